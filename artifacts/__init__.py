"""What a model is: the bundle's contract, raw input -> arrays, opening a bundle on a backend.

This room knows nothing of how a model is trained or offered. It imports torch only in the torch
backends, and bentoml never.

    from artifacts import open_bundle
    answer = open_bundle("digits").predict([open("seven.png", "rb").read()])
    answer.label, answer.probabilities
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from artifacts.bundle import Bundle, read_bundle
    from artifacts.errors import BundleError, DataError, DeviceError, ParityError, ParitylineError
    from artifacts.predictor import Predictions, Predictor, open_bundle

__all__ = [
    "Bundle",
    "BundleError",
    "DataError",
    "DeviceError",
    "ParityError",
    "ParitylineError",
    "Predictions",
    "Predictor",
    "open_bundle",
    "read_bundle",
]

# Imported when they are asked for: the command line is there in a third of the time.
_MODULES = {
    **dict.fromkeys(("Bundle", "read_bundle"), "artifacts.bundle"),
    **dict.fromkeys(("Predictions", "Predictor", "open_bundle"), "artifacts.predictor"),
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES.get(name, "artifacts.errors")), name)
