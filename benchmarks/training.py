"""The training loop beside its floor, the textbook's loop and mere decoding; memory; checkpoints.

    python -m benchmarks.training --data FOLDER [--device cuda] [PART...]

FOLDER holds fashion-mnist/ (the idx files) and images/imagenette224/. PART: overhead, textbook,
streaming, memory, checkpoints; all of them by default. What is compared runs in turns in one
process, with one thread on CPU. Replaces its section of RESULTS.md for the device, or the lines of
the parts that were asked for.
"""

from __future__ import annotations

import argparse
import functools
import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.loop_costs import checkpoints, memory, streaming
from benchmarks.results import asked, machine, measure_parts_on
from benchmarks.settings import PLAIN, REPEATS, Setting, in_turns, our_epoch, setting, spread
from benchmarks.textbook import textbook_epochs
from training.evaluation import evaluate
from training.fit import fit
from training.optim import make_optimizers
from training.recipe import load_recipe

RECORD = Path(__file__).parent / "training.json"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    wanted, options = asked(parser, PARTS, argparse.Namespace)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    parts = {name: functools.partial(part, options.data, device) for name, part in PARTS.items()}
    title = "## Training on {} (training.py)"
    measure_parts_on(options.device, title, RECORD, parts, wanted, machine)


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


PARTS = {
    "overhead": overhead,
    "textbook": textbook,
    "streaming": streaming,
    "memory": memory,
    "checkpoints": checkpoints,
}

if __name__ == "__main__":
    main()
