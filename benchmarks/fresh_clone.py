"""A newcomer's wait: a fresh clone, set up and tested with nothing but make.

    python benchmarks/fresh_clone.py

Clones HEAD into a temporary folder, times `make setup` and `make test` there, and replaces its
section of RESULTS.md. What the package installer has in its cache is used, as on CI.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from pathlib import Path

from benchmarks.results import machine, write

TITLE = "## A fresh clone (fresh_clone.py)"
ROOT = Path(__file__).parent.parent


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as temporary:
        clone = Path(temporary) / "parityline"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        # As a newcomer's shell: not inside this project's environment.
        environment = {
            key: value
            for key, value in os.environ.items()
            if key not in {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS"}
            and not key.startswith("PARITYLINE_")
        }
        seconds = {}
        for target in ("setup", "test"):
            began = time.perf_counter()
            subprocess.run(["make", target], cwd=clone, env=environment, check=True)
            seconds[target] = time.perf_counter() - began
    total = sum(seconds.values())
    write(
        TITLE,
        [
            machine(),
            "",
            "| step | seconds, n = 1 |",
            "|---|---|",
            f"| `make setup` (environment, lock, install) | {seconds['setup']:.0f} |",
            f"| `make test` after it (lint, types, every test not marked slow) "
            f"| {seconds['test']:.0f} |",
            f"| both, which is `make test` on a fresh clone; must be under 600 | {total:.0f} |",
        ],
    )


if __name__ == "__main__":
    main()
