"""RESULTS.md: on what a measurement was made, each script's own section, and scripts of parts."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

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


def asked(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """What the command line says, its paths absolute."""
    return {
        key: value.resolve() if isinstance(value, Path) else value
        for key, value in vars(parser.parse_args()).items()
    }


def measure_parts(
    title: str,
    record_file: Path,
    parts: Mapping[str, Callable[[], tuple[list[str], dict]]],
    wanted: Sequence[str],
    where: Callable[[str], str],
) -> None:
    """Measure those parts, keep their lines and figures in `record_file`, and write the section.

    parts: all that there are, in the section's order; each gives lines and figures. where: the
    machine and versions of a part. Parts that are not wanted keep what was recorded before.
    """
    record = json.loads(record_file.read_text()) if record_file.exists() else {}
    for part in wanted:
        print(part, flush=True)
        before = psutil.cpu_percent(interval=2)
        lines, figures = parts[part]()
        on = f"{where(part)} Cores busy just before and after: {before:.0f}%, "
        on += f"{psutil.cpu_percent(interval=2):.0f}%."
        record[part] = {"machine": on, "lines": lines, "figures": figures}
        record_file.write_text(json.dumps(record, indent=1) + "\n")
    section = []
    for part in parts:
        if part in record:
            section += [*record[part]["lines"], "", f"({part}: {record[part]['machine']})", ""]
    write(title, section)
