"""Trials a minute: small networks trained one by one with `fit`, and many at once.

    python -m benchmarks.stacked [--device cuda] [--data FOLDER] [--at-once 2 8 32]

FOLDER holds the four files of Fashion-MNIST, of which 6,000 rows are taken; digits and
breast-cancer are measured without it. Everything is measured in turns, with one thread on CPU.
Prints Markdown; writes nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.results import machine
from benchmarks.settings import PLAIN, Setting, setting
from training.fit import fit
from training.recipe import TrainConfig, load_recipe
from training.tuning.stacked import fit_stacked, stack_key

REPEATS = 3
EPOCHS = 20  # of a trial; fewer are measured
NETWORK = ["model.kind=mlp", "model.dropout=0.2", "model.activation=relu", "train.keep=best"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--at-once", type=int, nargs="+", default=None)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 64])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(arguments.device)
    at_once = arguments.at_once or ([2, 8, 32] if device.type == "cpu" else [2, 8, 32, 128])
    name = machine()
    if device.type == "cuda":
        name = name.replace("CPU only", torch.cuda.get_device_name())
    print(
        f"{name} One CPU thread.\n\n"
        f"Trials a minute of {EPOCHS} epochs, networks of {arguments.hidden} units with batch "
        f"norm and dropout, AdamW; medians of {REPEATS} in turns (min to max), and how many times "
        "as many as one by one. On CPU of the seconds that the processor spent, on CUDA of "
        "those that passed.\n"
    )
    print(f"| data | batch | one by one | {' | '.join(f'{count} at once' for count in at_once)} |")
    print("|---" * (3 + len(at_once)) + "|")
    for recipe, epochs, more in (
        ("breast-cancer", 8, {}),
        ("digits", 4, {}),
        ("fashion-mnist", 2, {"data": arguments.data}),
    ):
        folder = more.get("data")
        if recipe == "fashion-mnist" and folder is None:
            continue
        overrides = [*NETWORK, f"model.hidden={arguments.hidden}", *PLAIN, "data.limit=6000"]
        data = None if folder is None else str(folder.resolve())
        of = setting(load_recipe(recipe, overrides, data=data), device)
        for batch_size in (32, 128):
            print(line(of, batch_size, epochs, at_once), flush=True)


def line(of: Setting, batch_size: int, epochs: int, at_once: list[int]) -> str:
    """One of the table: a data set at one batch size."""
    runs = [one_by_one(of, batch_size, epochs)]
    runs += [stacked(of, batch_size, epochs, count) for count in at_once]
    seconds = in_turns(of.device, runs)
    share = epochs / EPOCHS
    rates = [
        [60 * count * share / second for second in found]
        for count, found in zip([1, *at_once], seconds, strict=True)
    ]
    base = statistics.median(rates[0])
    cells = [f"{base:.0f} ({min(rates[0]):.0f} to {max(rates[0]):.0f})"]
    cells += [
        f"{statistics.median(rate):.0f} ({min(rate):.0f} to {max(rate):.0f}), "
        f"{statistics.median(rate) / base:.2f}"
        for rate in rates[1:]
    ]
    name = f"{of.recipe.name}, {len(of.dataset.train)} rows"
    return f"| {name} | {batch_size} | {' | '.join(cells)} |"


def one_by_one(of: Setting, batch_size: int, epochs: int) -> Callable[[], None]:
    """One trial."""
    train, validation = of.batches("train"), of.batches("validation")
    (config,) = trials(of, batch_size, epochs, 1)

    def run() -> None:
        fit(of.network(), of.preprocess, train, validation, config, lambda *_: None)

    return run


def stacked(of: Setting, batch_size: int, epochs: int, count: int) -> Callable[[], None]:
    """So many trials at once."""
    train, validation = of.batches("train"), of.batches("validation")
    configs = trials(of, batch_size, epochs, count)
    keys = {stack_key(of.recipe.model_copy(update={"train": config})) for config in configs}
    assert len(keys) == 1
    assert None not in keys

    def run() -> None:
        networks = [of.network() for _ in configs]
        fit_stacked(networks, of.preprocess, train, validation, configs, lambda *_: True)

    return run


def in_turns(device: torch.device, runs: list[Callable[[], None]]) -> list[list[float]]:
    """Seconds of each, in turns, after one round that is not counted."""
    # A shared machine's clock says more of others.
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: list[list[float]] = [[] for _ in runs]
    for turn in range(REPEATS + 1):
        for run, found in zip(runs, seconds, strict=True):
            began = clock()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if turn:
                found.append(clock() - began)
    return seconds


def trials(of: Setting, batch_size: int, epochs: int, count: int) -> list[TrainConfig]:
    """Settings that differ in rate and decay."""
    return [
        of.recipe.train.model_copy(
            update={
                "batch_size": batch_size,
                "epochs": epochs,
                "lr": 1e-3 * (1 + number / count),
                "weight_decay": 1e-2 * number,
            }
        )
        for number in range(count)
    ]


if __name__ == "__main__":
    main()
