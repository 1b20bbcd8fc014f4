"""`parityline serve`: the same service as `bentoml serve`, with its settings as options."""

from __future__ import annotations

import os
import sys


def launch(
    bundle: str | None, *, host: str, port: int, backend: str | None, device: str | None
) -> None:
    """Become `bentoml serve` for one bundle; does not return."""
    import bentoml  # noqa: F401  (missing where the extra is: said before this process is gone)

    chosen = {"BUNDLE": bundle, "BACKEND": backend, "DEVICE": device}
    os.environ.update({f"PARITYLINE_{key}": value for key, value in chosen.items() if value})
    arguments = ["serve", "serving.service:Classifier", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])  # noqa: S606
