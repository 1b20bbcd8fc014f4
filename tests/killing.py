"""A training that is killed at random moments and continued: python -m tests.killing KIND FOLDER.

Prints one JSON object. Everything heavy is imported once; each run is a fork of this process.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch._dynamo  # the optimizers would import it anew in each fork

import training.checkpoints
from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from training.batches import Batches
from training.checkpoints import open_checkpoints
from training.data import Part, load_dataset
from training.encoding import preprocessing
from training.fit import fit
from training.interrupts import catch_interrupts
from training.recipe import Recipe, load_recipe
from training.run_record import RunRecord

# Much of what a step depends on: dropout, augmentation, batch norm, EMA, a plateau, best weights.
IN_MEMORY = [
    "model.hidden=[48]", "model.dropout=0.2", "train.batch_size=64", "train.epochs=40",
    "train.ema=0.99", "train.patience=0", "train.monitor=accuracy", "train.schedule=plateau",
    "train.plateau_patience=1", "train.augment.shift=0.1", "train.augment.mixup=0.2",
]  # fmt: skip
STREAMED = [
    "data.size=[32,32]", "data.channels=3", "data.memory_mb=1", "data.workers=1",
    "model.kind=mlp", "model.hidden=[16,16]", "train.optimizer=muon", "train.schedule=one-cycle",
    "train.batch_size=32", "train.epochs=8", "train.keep=last", "train.patience=0",
    "train.augment.flip=true", "train.augment.crop=2",
]  # fmt: skip


def train(recipe: Recipe, store: Path, weights: Path | None) -> None:
    """One run of the loop with its checkpoints; the final weights are saved where asked."""
    dataset = load_dataset(recipe.data)
    cpu = torch.device("cpu")
    steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
    torch.manual_seed(0)
    network = build_network(recipe.model, dataset.input.shape, steps, len(dataset.labels))
    parts = [
        Batches(part, cpu, recipe.data.workers) for part in (dataset.train, dataset.validation)
    ]
    record = RunRecord(
        recipe=recipe.model_dump(mode="json"), data=dataset.info().model_dump(), environment={}
    )
    with (
        catch_interrupts() as interrupts,
        open_checkpoints(store, recipe.name, record, resume=True) as (checkpoints, _),
    ):
        saved, _ = checkpoints.read(cpu)
        result = fit(
            network, Preprocess(steps, dataset.input.shape), *parts, recipe.train,
            lambda *_: None, checkpoints=checkpoints, resume=saved, interrupts=interrupts,
        )  # fmt: skip
    if weights is not None:
        history = [record.model_dump() for record in result.history]
        torch.save({"weights": network.state_dict(), "history": history}, weights)


def forked(work: Callable[[], None]) -> int:
    """`work` in a child; its process id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def pictures(folder: Path) -> None:
    """560 pictures of two classes, too large together for data.memory_mb=1."""
    from PIL import Image

    generator = np.random.default_rng(0)
    for index in range(560):
        label = "dark" if index % 2 else "light"
        (folder / label).mkdir(parents=True, exist_ok=True)
        level = 70 if index % 2 else 180
        pixels = generator.normal(level, 60, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / label / f"{index}.png")


def main(kind: str, folder: Path, wanted: int) -> None:
    if kind == "streamed":
        pictures(folder / "pictures")
        recipe = load_recipe("images", STREAMED, data=str(folder / "pictures"))
        assert not isinstance(load_dataset(recipe.data).train.raw, np.ndarray)
    else:
        recipe = load_recipe("digits", IN_MEMORY)
        assert isinstance(load_dataset(recipe.data).train, Part)
    whole, killed = folder / "whole", folder / "killed"
    began = time.perf_counter()
    assert os.waitpid(forked(lambda: train(recipe, whole, folder / "whole.pt")), 0)[1] == 0
    seconds = time.perf_counter() - began
    chance = random.Random(0)
    kills, resumed, ends = 0, 0, []
    while kills < wanted or not ends:
        resumed += any(killed.glob(".training/*/*.pt"))
        child = forked(lambda: train(recipe, killed, folder / "killed.pt"))
        if kills < wanted:
            time.sleep(chance.uniform(0, seconds * 0.7))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        kills += status == signal.SIGKILL
        if status == 0:
            ends.append(differences(folder / "whole.pt", folder / "killed.pt"))
            shutil.rmtree(killed)
        elif status != signal.SIGKILL:
            sys.exit(f"a run ended with status {status}")
    print(json.dumps({"kills": kills, "resumed": resumed, "differences": ends}))


def differences(whole: Path, killed: Path) -> list[str]:
    """What of the two runs' ends is not the same, to the bit."""
    theirs, ours = (torch.load(path) for path in (whole, killed))
    found = [
        name
        for name, value in theirs["weights"].items()
        if not torch.equal(value, ours["weights"][name])
    ]
    return found + ["history"] * (theirs["history"] != ours["history"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Many, so that some kills fall into the writing of one.
    training.checkpoints._SHARE, training.checkpoints._FIRST_AFTER_S = 0.3, 0.0
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
