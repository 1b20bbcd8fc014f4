"""A newcomer's time to the first answer: README's one command, then the tutorial, step by step.

    python benchmarks/first_answer.py

Clones HEAD into a temporary folder and types there what README and the tutorial say, with nothing
else on the path than a shell, Python and make. What is timed are the commands; a reader adds the
reading. What the package installer has in its cache is used, as by whoever tries a second tool.
Replaces its section of RESULTS.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from benchmarks.results import machine, write
from tests.conftest import free_port
from tests.documented import Block, blocks

TITLE = "## The first answer (first_answer.py)"
ROOT = Path(__file__).parent.parent
READY_S = 600.0
# Words a minute of somebody who reads to understand.
READING = 200


class Newcomer:
    """A shell in a fresh clone, what it was told so far, and how long each step took."""

    def __init__(self, clone: Path, folder: Path) -> None:
        self.clone, self.folder = clone, folder
        self.port = free_port()
        self.steps: list[tuple[str, float]] = []
        # As a newcomer's shell: not inside this project's environment, nor that of its tests.
        self.environment = {
            key: value
            for key, value in os.environ.items()
            if key not in {"VIRTUAL_ENV", "PYTHONPATH", "MAKEFLAGS", "OMP_NUM_THREADS"}
            and not key.startswith("PARITYLINE_")
        }

    def timed(self, what: str, step: Callable[[], None]) -> None:
        """Do a step."""
        began = time.perf_counter()
        step()
        self.steps.append((what, time.perf_counter() - began))
        print(f"{self.steps[-1][1]:6.1f} s  {what}", flush=True)

    def types(self, text: str, cwd: Path) -> str:
        """What a command prints; it must succeed."""
        text = text.replace("localhost:3000", f"127.0.0.1:{self.port}")
        done = subprocess.run(
            ["bash", "-euc", text], cwd=cwd, env=self.environment, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{text}\n{done.stdout}{done.stderr}")
        return done.stdout

    def starts(self, text: str, cwd: Path) -> subprocess.Popen[str]:
        """A command that stays up, once it is ready to answer."""
        process = subprocess.Popen(
            ["bash", "-euc", f"exec {text}"], cwd=cwd, env=self.environment, text=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if httpx.get(f"http://127.0.0.1:{self.port}/readyz").status_code == 200:
                    return process
            except httpx.TransportError:
                time.sleep(0.2)
        raise SystemExit(f"not ready: {text}")

    def sets_up(self) -> None:
        """The tutorial's first block, whose `export` is of the whole terminal."""
        self.types("make setup", self.clone)
        self.environment["PATH"] = f"{self.clone}/.venv/bin:{os.environ['PATH']}"


def _stop(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(timeout=60)


def _readme(newcomer: Newcomer) -> None:
    """`make serve`, and a request."""
    serving: list[subprocess.Popen[str]] = []
    command = f"make serve PORT={newcomer.port}"
    newcomer.timed(
        "`make serve`: environment, lock, install, training, gate, service ready",
        lambda: serving.append(newcomer.starts(command, newcomer.clone)),
    )
    picture = [[0] * 8] * 8
    answers: list[int] = []
    newcomer.timed(
        "a request: the first answer",
        lambda: answers.append(
            httpx.post(
                f"http://127.0.0.1:{newcomer.port}/predict", json={"instances": [picture]}
            ).status_code
        ),
    )
    _stop(serving[0])
    assert answers == [200]


def _tutorial(newcomer: Newcomer) -> None:
    """Every block of the tutorial, until its end."""
    serving: list[subprocess.Popen[str]] = []
    try:
        for block in blocks(newcomer.clone / "docs" / "pages" / "tutorial.md", "sh"):
            if block.text.startswith("make "):
                newcomer.timed("`make setup`, once more", newcomer.sets_up)
            elif block.note.startswith("skip"):
                continue
            elif block.serves:
                text = f"{block.text.strip()} --port {newcomer.port}"
                newcomer.timed(
                    _shown(block),
                    lambda text=text: serving.append(newcomer.starts(text, newcomer.folder)),
                )
            else:
                newcomer.timed(
                    _shown(block),
                    lambda block=block: newcomer.types(block.text, newcomer.folder),
                )
    finally:
        for process in serving:
            _stop(process)


def _shown(block: Block) -> str:
    lines = block.text.strip().splitlines()
    return f"`{lines[0][:70].replace('|', chr(92) + '|')}{' ...' if len(lines) > 1 else ''}`"


def main() -> None:
    """Measure, print, write."""
    with tempfile.TemporaryDirectory() as temporary:
        clone, folder = Path(temporary) / "parityline", Path(temporary) / "iris"
        folder.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        pages = [clone / "README.md", clone / "docs" / "pages" / "tutorial.md"]
        words = [len(page.read_text().split()) for page in pages]
        busy = psutil.cpu_percent(interval=2)
        newcomer = Newcomer(clone, folder)
        _readme(newcomer)
        first = sum(seconds for _, seconds in newcomer.steps)
        newcomer.port = free_port()
        _tutorial(newcomer)
    total = sum(seconds for _, seconds in newcomer.steps)
    own = total - first
    reading = words[1] / READING
    write(
        TITLE,
        [
            f"{machine()} Cores busy just before: {busy:.0f}%.",
            "",
            "What README and the tutorial say, typed in a fresh clone; n = 1.",
            "",
            "| step | seconds |",
            "|---|---|",
            *(f"| {what} | {seconds:.1f} |" for what, seconds in newcomer.steps),
            f"| **to the first answer, by README alone** | {first:.0f} |",
            f"| **the whole tutorial, to a version rolled back** | {own:.0f} |",
            "",
            f"The tutorial has {words[1]:,} words, commands and output included, "
            f"{reading:.0f} minutes at {READING} a minute; with its commands "
            f"{reading + own / 60:.0f} minutes (goal: 15).",
        ],
    )


if __name__ == "__main__":
    main()
