"""What the environment decides of a service."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from artifacts.backends import BACKENDS
from artifacts.devices import DEVICES
from artifacts.errors import DataError
from artifacts.pixels import MAX_PIXELS


@dataclass(frozen=True, kw_only=True)
class Settings:
    """bundle: a reference, or None for the store's only name.

    max_body_bytes, max_rows and max_pixels (of all pictures together) are for one request;
    max_queue_rows for all that wait.
    """

    bundle: str | None = None
    backend: str = "onnx"
    device: str = "auto"
    max_body_bytes: int = 10 * 10**6
    max_pixels: int = MAX_PIXELS
    max_rows: int = 8192
    max_queue_rows: int = 16384


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """PARITYLINE_BUNDLE, _BACKEND, _DEVICE, _MAX_BODY_BYTES, _MAX_PIXELS, _MAX_ROWS and
    _MAX_QUEUE_ROWS.

    Raises DataError naming the variable, what was expected and what was found.
    """
    default = Settings()
    return Settings(
        bundle=environment.get("PARITYLINE_BUNDLE") or None,
        backend=_choice(environment, "PARITYLINE_BACKEND", BACKENDS, default.backend),
        device=_choice(environment, "PARITYLINE_DEVICE", DEVICES, default.device),
        max_body_bytes=_count(environment, "PARITYLINE_MAX_BODY_BYTES", default.max_body_bytes),
        max_pixels=_count(environment, "PARITYLINE_MAX_PIXELS", default.max_pixels),
        max_rows=_count(environment, "PARITYLINE_MAX_ROWS", default.max_rows),
        max_queue_rows=_count(environment, "PARITYLINE_MAX_QUEUE_ROWS", default.max_queue_rows),
    )


def _choice(
    environment: Mapping[str, str], name: str, choices: tuple[str, ...], default: str
) -> str:
    value = environment.get(name) or default
    if value not in choices:
        raise DataError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
    return value


def _count(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not re.fullmatch(r"[0-9]{1,15}", text) or int(text) < 1:
        raise DataError(f"{name}: expected a whole number of at least 1, found {text!r}")
    return int(text)
