"""The training loop beside its floor, the textbook's loop and mere decoding; memory; checkpoints.

    python -m benchmarks.training --data FOLDER [--device cuda] [PART...]

FOLDER holds fashion-mnist/ (the idx files) and images/imagenette224/. PART: overhead, textbook,
streaming, memory, checkpoints; all of them by default. What is compared runs in turns in one
process, with one thread on CPU. Replaces its section of RESULTS.md for the device, or the lines of
the parts that were asked for.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from benchmarks.results import machine, write
from benchmarks.textbook import textbook_epochs
from training.batches import Batches
from training.checkpoints import open_checkpoints
from training.data import Dataset, load_dataset
from training.encoding import preprocessing
from training.evaluation import evaluate
from training.fit import fit
from training.optim import make_optimizers
from training.recipe import Recipe, load_recipe
from training.run_record import RunRecord

RECORD = Path(__file__).parent / "training.json"
PARTS = ("overhead", "textbook", "streaming", "memory", "checkpoints")
REPEATS = 5
PICTURES = 10_000
# Nothing that the bare step does not do.
PLAIN = [
    "train.augment.flip=false", "train.augment.crop=0", "train.augment.mixup=0", "train.ema=0",
    "train.label_smoothing=0", "train.warmup=0", "train.patience=0",
]  # fmt: skip


@dataclass(frozen=True)
class Setting:
    """A recipe with its data read and its preprocessing made."""

    recipe: Recipe
    dataset: Dataset
    preprocess: Preprocess
    steps: tuple[Any, ...]
    device: torch.device

    def network(self, seed: int = 0) -> nn.Module:
        """A fresh one."""
        torch.manual_seed(seed)
        shape, classes = self.dataset.input.shape, len(self.dataset.labels)
        network = build_network(self.recipe.model, shape, self.steps, classes)
        return network.to(memory_format=torch.channels_last).to(self.device)  # type: ignore[call-overload]

    def batches(self, part: str) -> Batches:
        """One part's."""
        return Batches(self.dataset.parts[part], self.device, self.recipe.data.workers)


def setting(recipe: Recipe, device: torch.device) -> Setting:
    """Read the recipe's data."""
    dataset = load_dataset(recipe.data)
    steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
    return Setting(
        recipe, dataset, Preprocess(steps, dataset.input.shape).to(device), steps, device
    )


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=list(PARTS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    ours = record.setdefault(arguments.device, {})
    for part in arguments.parts:
        name = machine() if device.type == "cpu" else f"{machine()} {torch.cuda.get_device_name()}"
        ours[part] = {"machine": name, "lines": globals()[part](arguments.data.resolve(), device)}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for kind, parts in record.items():
        lines = []
        for part in PARTS:
            if part in parts:
                lines += [*parts[part]["lines"], "", f"({part}: {parts[part]['machine']})", ""]
        write(f"## Training on {kind.upper()} (training.py)", lines)


def in_turns(
    device: torch.device, *runs: Callable[[], None], count: int = REPEATS
) -> list[list[float]]:
    """Seconds of each, `count` times in turns, after one round that is not counted."""
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(count + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                found.append(time.perf_counter() - began)
    return seconds


def spread(values: list[float]) -> str:
    """Median (min to max)."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def overhead(data: Path, device: torch.device) -> list[str]:
    """An epoch of `fit`, checkpoints and validation included, over the bare steps of one."""
    lines = [
        f"An epoch of the loop as `parityline train` runs it (rows indexed, preprocessing, sums, "
        "validation, checkpoints) over the bare steps (forward, backward, optimizer) on batches "
        f"that lie ready as network input; seconds, medians of {REPEATS} in turns (min to max).",
        "",
        "| model | rows | bare steps | the loop | ratio | goal | with the recipe's augmentation "
        "and EMA |",
        "|---|---|---|---|---|---|---|",
    ]
    # A CNN's epoch of all rows would take minutes on a CPU.
    limits = {
        "fashion-mnist": [],
        "fashion-mnist-cnn": ["data.limit=6000"] * (device.type == "cpu"),
    }
    for name, goal in (("fashion-mnist", 1.15), ("fashion-mnist-cnn", 1.05)):
        folder = str(data / "fashion-mnist")
        whole = setting(load_recipe(name, limits[name], data=folder), device)
        plain = setting(load_recipe(name, [*limits[name], *PLAIN], data=folder), device)
        bare, loop, full = in_turns(device, bare_epoch(plain), our_epoch(plain), our_epoch(whole))
        ratio = statistics.median(loop) / statistics.median(bare)
        lines.append(
            f"| {name} | {len(plain.dataset.train)} | {spread(bare)} | {spread(loop)} | "
            f"{ratio:.3f} | {goal} | {spread(full)} |"
        )
    return lines


def bare_epoch(of: Setting) -> Callable[[], None]:
    """Forward, backward and optimizer step on each of an epoch's batches, ready as input."""
    part, size = of.dataset.train, int(of.recipe.train.batch_size)
    assert isinstance(part.raw, np.ndarray)
    ready = []
    for rows in torch.randperm(len(part)).split(size):
        inputs = of.preprocess(torch.from_numpy(part.raw[rows.numpy()]).to(of.device))
        if inputs.ndim == 4:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        ready.append((inputs, torch.from_numpy(part.labels[rows.numpy()]).to(of.device)))
    network = of.network().train()
    (optimizer,) = make_optimizers(network, of.recipe.train)

    def run() -> None:
        for inputs, labels in ready:
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(inputs), labels).backward()
            optimizer.step()

    return run


def our_epoch(of: Setting, epochs: int = 1) -> Callable[[], None]:
    """`fit` with checkpoints, for one epoch."""
    train, validation = of.batches("train"), of.batches("validation")
    config = of.recipe.train.model_copy(update={"epochs": epochs})

    def run() -> None:
        network = of.network()
        record = RunRecord(recipe={}, data={}, environment={})
        with (
            tempfile.TemporaryDirectory() as store,
            open_checkpoints(Path(store), "bench", record, resume=False) as (checkpoints, _),
        ):
            fit(
                network, of.preprocess, train, validation, config, lambda *_: None,
                checkpoints=checkpoints,
            )  # fmt: skip

    return run


def textbook(data: Path, device: torch.device) -> list[str]:
    """The loop that every tutorial has, with the same model, optimizer, batches and epochs."""
    epochs, seeds = 3, 3
    folder = str(data / "fashion-mnist")
    overrides = [*PLAIN, f"train.epochs={epochs}", "train.schedule=constant", "train.keep=last"]
    of = setting(load_recipe("fashion-mnist", overrides, data=folder), device)
    train, validation, test = (of.batches(name) for name in ("train", "validation", "test"))
    ours: list[float] = []
    theirs: dict[int, list[float]] = {0: [], 2: []}
    accuracy: dict[str, list[float]] = {"ours": [], "theirs": []}
    for seed in range(seeds):
        network = of.network(seed)
        config = of.recipe.train.model_copy(update={"seed": seed})
        fit(
            network, of.preprocess, train, validation, config,
            lambda _, seconds: ours.append(seconds),
        )  # fmt: skip
        accuracy["ours"].append(evaluate(network, of.preprocess, test)[1])
        for workers, found in theirs.items():
            network = of.network(seed)
            found += textbook_epochs(
                network, of.dataset, of.recipe.train, device, seed=seed, workers=workers
            )
            if workers == 0:
                accuracy["theirs"].append(evaluate(network, of.preprocess, test)[1])
    best = min(theirs.values(), key=statistics.median)
    goal = 1.5 if device.type == "cpu" else 10
    return [
        "The textbook's loop (a Dataset of single rows with torchvision's ToTensor and Normalize, "
        "DataLoader, `.to(device)`, `loss.item()` each batch), the same network, AdamW, batches of "
        f"{of.recipe.train.batch_size} and validation: seconds an epoch of Fashion-MNIST "
        f"({len(of.dataset.train)} rows), medians of {len(ours)} (min to max); test accuracy after "
        f"{epochs} epochs, mean ± sd of {seeds} seeds.",
        "",
        "| loop | seconds an epoch | times as long | test accuracy |",
        "|---|---|---|---|",
        f"| ours | {spread(ours)} | 1 | {figure(accuracy['ours'])} |",
        *(
            f"| textbook, {workers or 'no'} workers | {spread(found)} | "
            f"{statistics.median(found) / statistics.median(ours):.2f} "
            f"| {figure(accuracy['theirs']) if not workers else ''} |"
            for workers, found in theirs.items()
        ),
        "",
        f"The faster of the textbook's takes "
        f"{statistics.median(best) / statistics.median(ours):.2f} times as long (goal {goal}).",
    ]


def figure(values: list[float]) -> str:
    """Mean ± standard deviation."""
    return f"{statistics.mean(values):.4f} ± {statistics.stdev(values):.4f}"


def streaming(data: Path, device: torch.device) -> list[str]:
    """Pictures larger than the memory they may take: training beside mere decoding."""
    lines = [
        f"{PICTURES} JPEGs of 224 x 224 pixels (1.5 GB of pixels, `data.memory_mb=512`), a CNN of "
        "three layers, batches of 64: pictures a second through an epoch of the loop, validation "
        f"included, over those that the same workers merely decode; medians of {REPEATS} in turns "
        "(min to max).",
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
                    "data.memory_mb=512", f"data.workers={workers}", "data.size=[224,224]",
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


if __name__ == "__main__":
    main()
