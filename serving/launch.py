"""`parityline serve`: the same service as `bentoml serve`, with its settings as options."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from serving.settings import as_environment


def launch(*, host: str, port: int, chosen: Mapping[str, object]) -> None:
    """Become `bentoml serve`; does not return.

    chosen: settings by name (`serving.settings.Settings`); None leaves one to the environment.
    """
    import bentoml  # noqa: F401  (missing where the extra is: said before this process is gone)

    os.environ.update(as_environment(chosen))
    arguments = ["serve", "serving.service:Classifier", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])  # noqa: S606
