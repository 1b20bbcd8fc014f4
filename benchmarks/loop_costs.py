"""What the training loop costs besides its steps: streaming pictures, memory, checkpoints."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from benchmarks.settings import PLAIN, REPEATS, in_turns, our_epoch, setting, spread
from training.batches import Batches
from training.checkpoints import open_checkpoints
from training.fit import fit
from training.recipe import load_recipe
from training.run_record import RunRecord

PICTURES = 10_000


def streaming(data: Path, device: torch.device) -> list[str]:
    """Pictures larger than the memory they may take: training beside mere decoding."""
    lines = [
        f"{PICTURES} JPEGs of 224 x 224 pixels, decoded to 64 x 64 (120 MB, `data.memory_mb=64`), "
        "a CNN of three layers, batches of 64: pictures a second through an epoch of the loop, "
        "validation included, over those that the same workers merely decode; medians of "
        f"{REPEATS} in turns (min to max). With as many workers as cores the network has to share "
        "one with them.",
        "",
        "| workers | decoding alone | training | ratio | goal |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "pictures"
        multiply(data / "images" / "imagenette224" / "train", folder)
        for workers in (1, 2):
            recipe = load_recipe(
                "images",
                [
                    "data.memory_mb=64", f"data.workers={workers}", "data.size=[64,64]",
                    "data.channels=3", "data.test_fraction=0.02", "model.kind=cnn",
                    "model.channels=[8,16,32]", "model.depth=1", "train.batch_size=64",
                    "train.patience=0", *PLAIN[:4],
                ],
                data=str(folder),
            )  # fmt: skip
            of = setting(recipe, device)
            train, validation = of.batches("train"), of.batches("validation")

            def decode(train: Batches = train, validation: Batches = validation) -> None:
                for part in (train, validation):
                    for _ in part.in_order(torch.randperm(part.rows).split(64)):
                        pass

            alone, training = in_turns(device, decode, our_epoch(of), count=REPEATS)
            rows = train.rows + validation.rows
            rates = [[rows / seconds for seconds in found] for found in (alone, training)]
            ratio = statistics.median(rates[1]) / statistics.median(rates[0])
            shown = [f"{statistics.median(r):.0f} ({min(r):.0f} to {max(r):.0f})" for r in rates]
            lines.append(f"| {workers} | {shown[0]} | {shown[1]} | {ratio:.3f} | 0.9 |")
    return lines


def multiply(source: Path, target: Path) -> None:
    """PICTURES copies of the pictures in class folders."""
    pictures = sorted(source.glob("*/*"))
    for number in range(PICTURES):
        picture = pictures[number % len(pictures)]
        folder = target / picture.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(picture, folder / f"{number}{picture.suffix}")


def memory(data: Path, device: torch.device) -> list[str]:
    """The most memory that a whole run took, import, export and gate included."""
    code = (
        "import resource, sys, parityline\n"
        "sys.argv = ['parityline', *sys.argv[1:]]\n"
        "parityline.main()\n"
    )
    peaks = []
    for _ in range(3):
        with tempfile.TemporaryDirectory() as store:
            command = [sys.executable, "-c", code, "train", "fashion-mnist", "--no-track"]
            command += ["--data", str(data / "fashion-mnist"), "--set", "train.epochs=2"]
            command += ["--set", f"train.device={device.type}"]
            process = subprocess.Popen(
                command,
                env={**os.environ, "PARITYLINE_STORE": store, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            peaks.append(usage.ru_maxrss / 2**20)
    return [
        f"The most memory of a whole `parityline train fashion-mnist` of 2 epochs (60,000 x 784 "
        f"uint8), export and gate included: {spread(peaks)} GB, n = {len(peaks)} (goal: below 1.5)."
    ]


def checkpoints(data: Path, device: torch.device) -> list[str]:
    """What the checkpoints of a run take of its time."""
    of = setting(load_recipe("fashion-mnist", data=str(data / "fashion-mnist")), device)
    train, validation = of.batches("train"), of.batches("validation")
    config = of.recipe.train.model_copy(update={"epochs": 10})
    each, shares, epochs = [], [], []
    for _ in range(REPEATS):
        record = RunRecord(recipe={}, data={}, environment={})
        with (
            tempfile.TemporaryDirectory(dir=Path.cwd()) as store,
            open_checkpoints(Path(store), "bench", record, resume=False) as (opened, _),
        ):
            began = time.perf_counter()
            fit(
                of.network(), of.preprocess, train, validation, config,
                lambda _, seconds: epochs.append(seconds), checkpoints=opened,
            )  # fmt: skip
            shares.append(100 * sum(opened.seconds) / (time.perf_counter() - began))
            each += opened.seconds
            size = opened.record.checkpoints[0].size
    return [
        f"Checkpoints of the Fashion-MNIST MLP with EMA ({size / 2**20:.1f} MB, fsynced): "
        f"{spread([1000 * value for value in each])} ms each, n = {len(each)}, "
        f"{spread(shares)}% of the time of runs of 10 epochs of {spread(epochs)} s (goal: below 2% "
        "of an epoch).",
    ]
