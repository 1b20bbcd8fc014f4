"""What a model is: the bundle's contract, raw input -> arrays, opening a bundle on a backend.

This room knows nothing of how a model is trained or offered. It imports torch only in the torch
backends, and bentoml never.

    from artifacts import open_bundle
    answer = open_bundle("digits").predict([open("seven.png", "rb").read()])
    answer.label, answer.probabilities
"""

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
