"""RESULTS.md: on what a measurement was made, each script's own section, and scripts of parts."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

RESULTS = Path(__file__).parent / "RESULTS.md"

S = TypeVar("S")


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


def asked(
    parser: argparse.ArgumentParser,
    parts: Iterable[str],
    setting: Callable[..., S],
    able: Iterable[str] | None = None,
) -> tuple[list[str], S]:
    """The parts that the command line names, and a setting of its options, with absolute paths.

    parts: all that there are; able: those that are meant where it names none; by default all.
    """
    # argparse holds the default of such an argument itself to be a choice.
    parser.add_argument("parts", metavar="PART", nargs="*", choices=[*parts, []], default=[])
    said = {
        key: value.resolve() if isinstance(value, Path) else value
        for key, value in vars(parser.parse_args()).items()
    }
    return said.pop("parts") or list(parts if able is None else able), setting(**said)


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
    record = _read(record_file)
    for part in wanted:
        print(part, flush=True)
        before = psutil.cpu_percent(interval=2)
        lines, figures = parts[part]()
        on = f"{where(part)} Cores busy just before and after: {before:.0f}%, "
        on += f"{psutil.cpu_percent(interval=2):.0f}%."
        record[part] = {"machine": on, "lines": lines, "figures": figures}
        record_file.write_text(json.dumps(record, indent=1) + "\n")
    write(title, _section(parts, record))


def measure_parts_on(
    device: str,
    title: str,
    record_file: Path,
    parts: Mapping[str, Callable[[], list[str]]],
    wanted: Sequence[str],
    where: Callable[[str], str],
) -> None:
    """The same with a section for each device, and lines alone; `{}` in the title is the device.

    device: cpu or cuda. where: the machine and versions, with the device's name.
    """
    record = _read(record_file)
    ours = record.setdefault(device, {})
    for part in wanted:
        on = where(_device_name(device))
        ours[part] = {"machine": on, "lines": parts[part]()}
        record_file.write_text(json.dumps(record, indent=2) + "\n")
    for kind, found in record.items():
        if lines := _section(parts, found):
            write(title.format(kind.upper()), lines)


def _device_name(device: str) -> str:
    if device == "cpu":
        return "CPU only"
    import torch

    return torch.cuda.get_device_name()


def _read(record_file: Path) -> dict[str, Any]:
    return json.loads(record_file.read_text()) if record_file.exists() else {}


def _section(parts: Iterable[str], record: Mapping[str, Any]) -> list[str]:
    """Of those parts that are recorded, their lines, and on what they were measured."""
    lines: list[str] = []
    for part in parts:
        if part in record:
            lines += [*record[part]["lines"], "", f"({part}: {record[part]['machine']})", ""]
    return lines
