"""RESULTS.md: on what a measurement was made, and each script's own section."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import time
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"


def machine(device: str = "CPU only") -> str:
    """Date, processor, device, and the versions that decide speed and bits."""
    versions = ", ".join(
        f"{package} {importlib.metadata.version(package)}"
        for package in ("torch", "onnxruntime-gpu", "bentoml", "numpy")
    )
    model = next(
        (
            line.split(":")[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    return (
        f"{time.strftime('%Y-%m-%d')}; {model}, {os.cpu_count()} cores, {device}; "
        f"Python {platform.python_version()}, {versions}."
    )


def write(title: str, lines: list[str]) -> None:
    """Print a section and put it in the place of the one with its title, or at the end."""
    text = RESULTS.read_text() if RESULTS.exists() else "# What was measured\n"
    before, _, rest = text.partition(title)
    _, heading, after = rest.partition("\n## ")
    section = "\n".join([title, "", *lines]).rstrip() + "\n"
    RESULTS.write_text(before.rstrip() + "\n\n" + section + (heading + after if heading else ""))
    print(section)
