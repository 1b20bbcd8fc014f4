"""Pictures that are decoded when asked for train as those in memory do."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artifacts.configs import CnnNetwork
from artifacts.errors import DataError
from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from artifacts.steps import Normalize, Scale
from tests.labelled import MUCH, folder, load
from training.batches import Batches
from training.data import Part
from training.fit import fit
from training.recipe import AugmentConfig, TrainConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("pictures"), "a", "b", rows=11)


def part(place: Path, memory_bytes: int) -> Part:
    found = load(place, memory_bytes=memory_bytes).parts["train"]
    assert isinstance(found.raw, np.ndarray) == (memory_bytes == MUCH)
    return Part(found.raw, found.labels, found.digests)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_arrays(place: Path, workers: int) -> None:
    held = Batches(part(place, MUCH), CPU)
    decoded = Batches(part(place, 1), CPU, workers)
    order = torch.randperm(22, generator=torch.Generator().manual_seed(0))
    state = torch.get_rng_state()
    for ours, theirs in (
        (decoded.in_order(order.split(5)), held.in_order(order.split(5))),
        (decoded.all(64), held.all(64)),
        (decoded.all(3, 1, 4), held.all(3, 1, 4)),
        (decoded.in_order([]), held.in_order([])),
    ):
        for (raw, labels), (expected, expected_labels) in zip(ours, theirs, strict=True):
            assert raw.dtype == torch.uint8
            assert torch.equal(raw, expected) and torch.equal(labels, expected_labels)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 2])
def test_training_gives_bitwise_the_same_weights(place: Path, workers: int) -> None:
    states = []
    for memory_bytes in (MUCH, 1):
        torch.manual_seed(0)
        steps = (Scale(factor=1 / 255), Normalize(mean=(0.5,) * 3, std=(0.25,) * 3))
        network = build_network(CnnNetwork(channels=(4,), depth=1), (3, 6, 8), steps, 2)
        batches = Batches(part(place, memory_bytes), CPU, workers)
        config = TrainConfig(epochs=2, batch_size=8, augment=AugmentConfig(flip=True, crop=1))
        fit(network, Preprocess(steps, (3, 6, 8)), batches, batches, config, lambda *_: None)
        states.append(network.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_is_gone_is_one_line(tmp_path: Path, workers: int) -> None:
    batches = Batches(part(folder(tmp_path, "a", "b"), 1), CPU, workers)
    (tmp_path / "b" / "1.png").unlink()
    with pytest.raises(DataError, match=r"^b/1\.png: ") as error:
        list(batches.all(2))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("side", "expected"), [(8, 1024), (32, 1024), (64, 341), (224, 64)])
def test_large_pictures_are_evaluated_in_smaller_batches(side: int, expected: int) -> None:
    raw = np.zeros((1, 3, side, side), dtype=np.uint8)
    assert Batches(Part(raw, np.zeros(1, dtype=np.int64)), CPU).answered_at_once == expected


def test_a_decoding_process_that_is_killed_is_one_line() -> None:
    class Deadly:
        shape = (8, 3, 4, 4)

        def __getitem__(self, _rows: object) -> np.ndarray:
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError

    raw: Any = Deadly()
    deadly = Part(raw, np.zeros(8, dtype=np.int64))
    with pytest.raises(DataError, match=r"decodes pictures has died .*fewer data\.workers"):
        list(Batches(deadly, CPU, 1).all(4))
