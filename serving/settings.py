"""What the environment decides of a service."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from artifacts.devices import BACKENDS, DEVICES
from artifacts.errors import DataError
from artifacts.pixels import MAX_PIXELS

PREFIX = "PARITYLINE_"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Seconds, milliseconds, bytes, as the names say.

    bundle: a path, NAME@VERSION, or NAME, its promoted version; the store's only name by default.
    backend: what runs the model: onnx, torchscript, export or eager.
    device: where it runs: cpu, cuda, or auto, which is CUDA where there is one; never a silent
    fallback.
    workers: processes; by default one for each core, on CUDA one for each device.
    max_body_bytes: of one request, also after inflating. max_rows: of one request; fewer where rows
    are large. max_pixels: of all encoded pictures of one request together, or of what resizing
    makes of them where that is more. max_queue_rows, max_queue_bytes: of all that a worker holds.
    max_connections: of a worker. max_batch_size: rows at a time through the model; 0 for what suits
    its measured pace. max_queue_ms: a request that would wait longer is refused; 0 for what suits
    the model's measured pace. max_delay_ms: how long a request waits for others while the model is
    free. read_timeout_s: for a request's headers, and for a body that comes at less than 16 KiB/s.
    request_timeout_s: for its answer. keep_alive_s: for the next request on a connection.
    grace_s: from SIGTERM, when /readyz begins to say no, until connections are refused.
    watch_s: how often the promoted version is looked up; 0: only on SIGHUP.
    tokens: a file of bearer tokens, one a line, read again when it changes.
    """

    bundle: str | None = None
    backend: str = "onnx"
    device: str = "auto"
    workers: int | None = None
    max_body_bytes: int = 32 * 2**20
    max_pixels: int = MAX_PIXELS
    max_rows: int = 8192
    max_queue_rows: int = 16384
    max_queue_bytes: int = 256 * 2**20
    max_connections: int = 4096
    max_batch_size: int = 0
    max_delay_ms: float = 0.0
    max_queue_ms: float = 0.0
    read_timeout_s: float = 10.0
    request_timeout_s: float = 60.0
    keep_alive_s: float = 75.0
    grace_s: float = 5.0
    watch_s: float = 0.0
    tokens: Path | None = None


# What may be 0: "as it suits", or "not at all".
_MAY_BE_0 = {"max_batch_size", "max_delay_ms", "max_queue_ms", "grace_s", "watch_s"}


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Each field of `Settings` from PARITYLINE_ and its name in capitals.

    Raises DataError naming the variable, what was expected and what was found.
    """
    values: dict[str, object] = {}
    for field in fields(Settings):
        variable = PREFIX + field.name.upper()
        text = environment.get(variable)
        if not text:
            continue
        if field.name == "backend":
            values[field.name] = _choice(variable, text, BACKENDS)
        elif field.name == "device":
            values[field.name] = _choice(variable, text, DEVICES)
        elif field.name == "tokens":
            values[field.name] = Path(text)
        elif field.name == "bundle":
            values[field.name] = text
        else:
            whole = "float" not in str(field.type)
            values[field.name] = _number(variable, text, whole, field.name in _MAY_BE_0)
    return Settings(**values)  # type: ignore[arg-type]


def describe(settings: Settings, workers: int | str) -> str:
    """All of them in a line, but for those that other lines tell."""
    values = {
        **asdict(settings),
        "workers": "one for each core" if workers == "cpu_count" else workers,
    }
    for told in ("bundle", "backend", "device"):
        del values[told]
    for name in ("max_batch_size", "max_queue_ms"):
        values[name] = values[name] or "as measured"
    return ", ".join(f"{name} {value}" for name, value in values.items())


def as_environment(chosen: Mapping[str, object]) -> dict[str, str]:
    """Settings by name, those that are not None, as `read_settings` reads them."""
    return {
        PREFIX + name.upper(): str(value) for name, value in chosen.items() if value is not None
    }


def _choice(variable: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise DataError(f"{variable}: expected one of {', '.join(choices)}, found {value!r}")
    return value


def _number(variable: str, text: str, whole: bool, may_be_0: bool) -> int | float:
    pattern = r"[0-9]{1,15}" if whole else r"[0-9]{1,15}(\.[0-9]{1,20})?(e-[0-9]{1,2})?"
    value = (int(text) if whole else float(text)) if re.fullmatch(pattern, text) else -1
    if value < 0 or (value == 0 and not may_be_0):
        kind = "a whole number" if whole else "a number"
        least = "of at least 0" if may_be_0 else "of at least 1" if whole else "above 0"
        raise DataError(f"{variable}: expected {kind} {least}, found {text!r}")
    return value
