"""Untrained networks of every kind, with rows for them, as the tests of the gate need them."""

from __future__ import annotations

import functools

import numpy as np
import torch
from torch import nn

from artifacts.configs import NetworkConfig
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.networks import DeployedClassifier, build_network
from artifacts.preprocess import Preprocess
from artifacts.steps import (
    CategoryEncoding,
    Clip,
    Encode,
    Fill,
    Normalize,
    NumberEncoding,
    Reorder,
    Scale,
)
from training.export import export_model
from training.gate import synthetic_rows

IMAGE = ImageInput(channels=1, height=6, width=5)
TABLE = TableInput(
    columns=(
        Column(name="a", low=-1, high=1, typical=0),
        Column(name="b", low=1e9, high=2e9, typical=1.5e9, missing="fill"),
        Column(name="c", low=0, high=1e-6, typical=1e-7),
    )
)
IMAGE_STEPS = (Scale(factor=1 / 255), Normalize(mean=(0.5,), std=(0.3,)))
TABLE_STEPS = (
    Fill(values=(0.0, 1.5e9, 1e-7)),
    Normalize(mean=(0.1, 1.4e9, 1e-7), std=(0.6, 3e8, 3e-7)),
    Clip(limit=30.0),
)
MIXED = TableInput(
    columns=(
        Column(name="a", low=-1, high=1, typical=0),
        BooleanColumn(name="b", typical=True),
        DateColumn(
            name="c", parts=("timestamp", "month"), low="2000-01-01", high="2020-01-01",
            typical="2010-01-01",
        ),
        CategoryColumn(name="d", missing="fill", typical="x", categories=("x", "y", "z")),
    )
)  # fmt: skip
MIXED_STEPS = (
    Encode(
        inputs=(
            NumberEncoding(fill=0, center=0.1, scale=0.6, edges=(-1, 0, 0.5, 1), indicator=True),
            NumberEncoding(fill=1, center=0.5, scale=0.5),
            NumberEncoding(fill=1.2e9, center=1.2e9, scale=2e8, edges=(9e8, 1.2e9, 1.6e9)),
            CategoryEncoding(values=tuple(range(1, 13))),
            CategoryEncoding(values=(-1, 0, 1, 2)),
        )
    ),
)
PICTURE = ImageInput(channels=3, height=9, width=8)
# Halved to 7 x 7 of 5 channels: a row's place in memory differs in a batch.
ODD_PICTURE = ImageInput(channels=3, height=14, width=14)
PICTURE_STEPS = (Scale(factor=1 / 255), Normalize(mean=(0.5,) * 3, std=(0.3,) * 3))

PHOTO = ImageInput(channels=3, height=33, width=40)
BGR_STEPS = (
    Reorder(channels=(2, 1, 0)),
    Scale(factor=1.0),
    Normalize(mean=(103.939, 116.779, 123.68), std=(60.0, 60.0, 60.0)),
)


def quiet(_: str) -> None:
    pass


def random_model(spec, steps, network_config, classes: int, seed: int = 0) -> DeployedClassifier:
    """Weights and batch statistics far from their initial values."""
    torch.manual_seed(seed)
    network = build_network(network_config, spec.shape, steps, classes)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.2, 3)
            nn.init.normal_(module.weight, 1, 0.3)
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.bias)
    return DeployedClassifier(Preprocess(steps, spec.shape), network, 1.3).eval()


def rows_of(spec, count: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng(seed)
    if isinstance(spec, ImageInput):
        return generator.integers(0, 256, (count, *spec.shape), dtype=np.uint8)
    if not spec.only_numbers:
        rows = synthetic_rows(spec, count)[generator.permutation(count)]
        # In these tests the last value of a row is the one that may be missing.
        rows[::3, -1] = np.nan
        return rows
    low = np.array([column.low for column in spec.columns])
    high = np.array([column.high for column in spec.columns])
    return low + (high - low) * generator.random((count, len(low)))


@functools.cache
def small_export(network: NetworkConfig, classes: int = 3) -> tuple[DeployedClassifier, dict]:
    """A model of IMAGE with its exported files, which are seconds of work; not to be changed."""
    model = random_model(IMAGE, IMAGE_STEPS, network, classes)
    return model, export_model(model, rows_of(IMAGE, 4), "images").files
