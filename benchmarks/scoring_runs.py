"""A whole command in a process of its own: how long it took, and how much memory it held."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from artifacts.bundle import Bundle

ROOT = Path(__file__).parent.parent
_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Run:
    """One job. scoring_s: what the job says of itself, from when the bundle is open;
    command_s: from the call to the exit, by the clock."""

    rows: int
    scoring_s: float
    command_s: float

    @property
    def scoring_rate(self) -> float:
        """Rows a second of the scoring."""
        return self.rows / self.scoring_s

    @property
    def command_rate(self) -> float:
        """Rows a second of the whole command."""
        return self.rows / self.command_s


def ours(bundle: Bundle, given: Path, out: Path, *options: str, device: str = "cpu") -> Run:
    """`parityline score` into `out`, which is emptied before."""
    shutil.rmtree(out, ignore_errors=True)
    took = timed(_command(bundle, given, out, *options, "--device", device))
    return _run(out, took)


def timed(command: list[str]) -> float:
    """Seconds of a command by the clock. What it says is shown where it fails."""
    _settle()
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True)
    took = time.perf_counter() - began
    _check(command, done.returncode, done.stdout + done.stderr)
    return took


def peak_mb(bundle: Bundle, given: Path, out: Path) -> tuple[float, int]:
    """The largest sum of the proportional set sizes of the command's processes, in MB of 10^6
    bytes, looked at every 50 ms; and how often it was looked at."""
    shutil.rmtree(out, ignore_errors=True)
    command = _command(bundle, given, out, "--device", "cpu")
    _settle()
    log = out.with_suffix(".log")
    with log.open("w+b") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=_environment(), stdout=file, stderr=subprocess.STDOUT
        )
        sizes = list(_sizes_mb(process))
    _check(command, process.returncode, log.read_text())
    return max(sizes), len(sizes)


def _sizes_mb(process: subprocess.Popen[bytes]) -> Iterator[float]:
    root = psutil.Process(process.pid)
    due = time.monotonic()
    while process.poll() is None:
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    total += each.memory_full_info().pss
        yield total / 1e6
        due += _SAMPLE_S
        time.sleep(max(0.0, due - time.monotonic()))


def _command(bundle: Bundle, given: Path, out: Path, *options: str) -> list[str]:
    what = [str(bundle.path), str(given), "--out", str(out), *options]
    return [sys.executable, "-m", "parityline", "score", *what]


def _environment() -> dict[str, str]:
    """As a user's: nothing that changes the number of threads, compiled modules are kept."""
    unwanted = {"OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE"}
    kept = {name: value for name, value in os.environ.items() if name not in unwanted}
    return {**kept, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}


def _settle() -> None:
    """What was written before is not to be paid for by who comes next."""
    os.sync()


def _run(out: Path, took: float) -> Run:
    summary = json.loads((out / "summary.json").read_text())
    if summary["rows_rejected"]:
        raise SystemExit(f"{out}: expected no rejected row, found {summary['rows_rejected']}")
    return Run(summary["rows_in"], summary["seconds"], took)


def _check(command: list[str], status: int, said: str) -> None:
    if status:
        last = "\n".join(said.splitlines()[-30:])
        raise SystemExit(f"{' '.join(command)}: expected exit 0, found {status}:\n{last}")
