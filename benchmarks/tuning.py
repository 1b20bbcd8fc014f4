"""A study beside the textbook's, samplers, a tuned recipe beside its default, workers, stacking.

    python -m benchmarks.tuning --data FOLDER [--device cuda] [PART...]

FOLDER holds fashion-mnist/ (the idx files), of which a subset of 6,000 images is taken. PART:
textbook, sampler, tuned, wide, workers, together; all of them by default. Replaces its section of
RESULTS.md for the device, or the lines of the parts that were asked for. --seconds, --repeats and
--trials change how much is measured; without them it is what each part's text says.
"""

from __future__ import annotations

import argparse
import functools
import importlib.metadata
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from artifacts.devices import cuda_device_count
from artifacts.references import open_reference
from benchmarks.results import asked, machine, measure_parts_on
from benchmarks.settings import PLAIN
from benchmarks.studies import Found, ends, figure, found_in, middle, rate, rows, study, tell, times
from benchmarks.textbook_study import textbook_study
from training.data import load_dataset
from training.recipe import Recipe, load_recipe
from training.tuning.config import TuneConfig
from training.tuning.plan import PrunerName, SamplerName
from training.tuning.storage import quiet_optuna

ROOT = Path(__file__).parent.parent
RECORD = Path(__file__).parent / "tuning.json"
LIMIT = "data.limit=6000"
# What both studies start from, so that the study differs and not the recipe's augmentation.
BASE = [*PLAIN, "model.hidden=[128,64]", "model.activation=relu", "train.epochs=20"]
# Networks and batches stay as they are, and no rate is one at which a training diverges: each
# trial is the same work.
EQUAL_WORK = TuneConfig(
    space={
        "train.lr": {"low": 1e-4, "high": 1e-2, "log": True},
        "train.weight_decay": {"low": 1e-5, "high": 1e-1, "log": True},
    }
)
# What lies around the recipe's own setting, which the well-known space does not hold.
WIDE = (
    '{"train.lr"={low=5e-4,high=1e-2,log=true},"train.weight_decay"={low=1e-2,high=0.5,log=true},'
    '"model.hidden"=[[512,256],[512],[1024],[1024,512],[512,512]],'
    '"model.dropout"={low=0.0,high=0.5},"model.activation"=["relu","gelu","silu"],'
    '"train.label_smoothing"={low=0.0,high=0.15},"train.augment.mixup"={low=0.0,high=0.5},'
    '"train.augment.crop"=[0,1,2],"train.epochs"={low=40,high=120}}'
)
GOAL_WORKERS, GOAL_TOGETHER = 1.7, 10


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a part measures; each takes what concerns it, and has its own default for None."""

    seconds: float | None = None
    repeats: int | None = None
    trials: int | None = None


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--seconds", type=float, help="of each search")
    parser.add_argument("--repeats", type=int, help="turns, or seeds of the comparison")
    parser.add_argument("--trials", type=int, help="of each search for the workers")
    wanted, options = asked(parser, PARTS, argparse.Namespace)
    data, device = options.data / "fashion-mnist", torch.device(options.device)
    budget = Budget(seconds=options.seconds, repeats=options.repeats, trials=options.trials)
    parts = {name: functools.partial(part, data, device, budget) for name, part in PARTS.items()}
    title = "## Tuning on {} (tuning.py)"
    measure_parts_on(options.device, title, RECORD, parts, wanted, where)


def where(device: str) -> str:
    """Machine and versions."""
    return f"{machine(device)[:-1]}, optuna {importlib.metadata.version('optuna')}."


def textbook(data: Path, device: torch.device, budget: Budget) -> list[str]:
    """Our study and the one that every notebook has, each for as long."""
    seconds, repeats = budget.seconds or 300.0, budget.repeats or 1
    recipe, workers = plain(data, device), default_workers(device)
    dataset = load_dataset(recipe.data)
    print(f"textbook: two searches of {seconds:.0f} s, {times(repeats)}", flush=True)
    sides: dict[str, list[Found]] = {"textbook": [], "ours": []}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(repeats):
            with quiet_optuna():
                theirs = found_in(*textbook_study(dataset, device, seconds))
            tell(f"textbook's study {turn}", theirs)
            sides["textbook"].append(theirs)
            folder = Path(temporary) / str(turn)
            ours = study(recipe, folder, seconds=seconds, workers=workers, seed=turn)
            tell(f"our study {turn}", ours)
            sides["ours"].append(ours)
    ratio = middle(sides["ours"]) / middle(sides["textbook"])
    names = {
        "ours": f"ours, {workers} worker{'s' * (workers > 1)}",
        "textbook": f"textbook, one process, threads: {torch.get_num_threads()}",
    }
    return [
        "The study that every notebook has (`optuna.create_study` with its default sampler in "
        "memory, no pruner; for each trial an `nn.Sequential`, a Dataset of single rows with "
        "torchvision's ToTensor and Normalize in a DataLoader, `.to(device)`, `loss.item()` each "
        "batch, a constant rate, SGD without momentum, validation after the last epoch only; "
        "torch's own threads) and the search of `parityline tune` with its defaults (TPE, "
        "hyperband, one worker for each core or CUDA device; the cosine schedule, SGD with "
        "momentum, validation after each epoch; without augmentation and EMA), the same space (the "
        f"recipe's) and the same rows ({rows(recipe)}), each for {seconds:.0f} s of wall time "
        f"after the data is read, {times(repeats)}. Trials that have ended count: ours that were "
        "pruned too, but not those that were running when the time was over; the textbook's last "
        "one goes on to its end, in the seconds shown. The best validation accuracy is that of a "
        "completed trial that the sampler proposed; as the best of several on the same rows, it "
        "flatters both.",
        "",
        "| study | seconds | trials | completed, pruned, failed | trials a minute | best "
        "validation accuracy |",
        "|---|---|---|---|---|---|",
        *(
            f"| {names[side]} | {statistics.median(each.seconds for each in found):.0f} | "
            f"{sum(each.trials for each in found)} | {ends(found)} | {rate(found)} | "
            f"{figure([each.best for each in found])} |"
            for side, found in sides.items()
        ),
        "",
        f"Ours ends {ratio:.1f} times as many trials a minute.",
    ]


def sampler(data: Path, device: torch.device, budget: Budget) -> list[str]:
    """TPE with hyperband, also one trial at a time, and random search without pruning."""
    seconds, repeats = budget.seconds or 90.0, budget.repeats or 5
    recipe, workers = plain(data, device), default_workers(device)
    arms: list[tuple[SamplerName, PrunerName, int | None]] = [
        ("tpe", "hyperband", None), ("tpe", "hyperband", 1),
        ("random", "none", None),
    ]  # fmt: skip
    found: dict[tuple[SamplerName, PrunerName, int | None], list[Found]] = {arm: [] for arm in arms}
    with tempfile.TemporaryDirectory() as temporary:
        for seed in range(repeats):
            for arm in arms:
                each = study(
                    recipe, Path(temporary) / f"{arm[0]}-{arm[1]}-{arm[2]}-{seed}",
                    seconds=seconds, workers=workers, sampler=arm[0], pruner=arm[1], seed=seed,
                    together=arm[2],
                )  # fmt: skip
                tell(f"{arm[0]}, pruner {arm[1]}, together {arm[2]}, seed {seed}", each)
                found[arm].append(each)
    return [
        f"Searches of {seconds:.0f} s with {workers} workers, {rows(recipe)}, the recipe's space "
        f"from a plain base (no augmentation, no EMA), {times(repeats)}, each time with another "
        "seed: the best validation accuracy among the completed trials that were proposed, without "
        "trial 0, mean ± sd (min to max).",
        "",
        "| sampler | pruner | trials at once | best validation accuracy | trials a minute | "
        "completed, pruned, failed |",
        "|---|---|---|---|---|---|",
        *(
            f"| {arm[0]} | {arm[1]} | {arm[2] or 'up to 8'} "
            f"| {figure([each.best for each in several])} | {rate(several)} | {ends(several)} |"
            for arm, several in found.items()
        ),
    ]


def wide(data: Path, device: torch.device, budget: Budget) -> list[str]:
    """The same as `tuned` in a space around the recipe's own setting."""
    return tuned(data, device, budget, "--set", f"tune.space={WIDE}")


def tuned(data: Path, device: torch.device, budget: Budget, *more: str) -> list[str]:
    """`parityline tune fashion-mnist` as a user runs it: the recipe's own default and the tuned."""
    seconds, repeats = budget.seconds or 600.0, budget.repeats or 10
    options = ["--timeout", f"{seconds:g}", "--trials", "100000", "--repeats", str(repeats)]
    options += ["--set", LIMIT, "--set", f"train.device={device.type}", *more]
    with tempfile.TemporaryDirectory() as store:
        began = time.monotonic()
        printed = run_printing(
            ["parityline", "tune", "fashion-mnist", *options, "--data", str(data)],
            {"PARITYLINE_STORE": store, "PARITYLINE_TRACK": "0"},
        )
        took = time.monotonic() - began
        manifest = open_reference(Path(store), "fashion-mnist").manifest
    found = manifest.study
    assert found is not None
    what = "the recipe as it is" if found.unchanged else f"trial {found.trial}"
    if found.difference is None:
        difference = "There was nothing to compare."
    else:
        value = found.difference
        difference = (
            "Test accuracy of the best trial's recipe less that of the recipe as it is, "
            f"{found.repeats} seeds each: {value.value:+.4f} [{value.low:+.4f}, "
            f"{value.high:+.4f}] (95%)."
        )
    accuracy = manifest.metrics["test"].accuracy
    return [
        f"`parityline tune fashion-mnist {shlex.join(options)}`, {took:.0f} s in all: "
        f"{', '.join(f'{number} {name}' for name, number in found.trials.items())} trials "
        f"({found.sampler}, {found.pruner}). Released: {what}, validation {found.objective} "
        f"{found.value:.4f} in the search, test accuracy of the bundle {accuracy.value:.4f} "
        f"[{accuracy.low:.4f}, {accuracy.high:.4f}].",
        "",
        difference,
        "",
        *(f"- {line}" for line in printed if line.startswith(("best: ", "compare: "))),
    ]


def workers(data: Path, device: torch.device, budget: Budget) -> list[str]:
    """One worker and two, the same work."""
    trials, repeats = budget.trials or 16, budget.repeats or 3
    recipe = plain(data, device, "train.epochs=5").model_copy(update={"tune": EQUAL_WORK})
    found: dict[int, list[Found]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as temporary:
        for turn in range(repeats):
            for count, several in found.items():
                each = study(
                    recipe, Path(temporary) / f"{count}-{turn}", trials=trials, workers=count,
                    sampler="random", pruner="none", seed=turn, together=1,
                )  # fmt: skip
                tell(f"workers: {count}, turn {turn}", each)
                # A trial that failed would be less work.
                assert each.counts.complete == trials
                several.append(each)
    ratio = middle(found[2]) / middle(found[1])
    return [
        f"{trials} trials of equal cost (5 epochs each, only the rate and the weight decay differ; "
        f"random, no pruner, one at a time), {rows(recipe)}: trials a minute from the first "
        f"worker's being ready to the last trial's end, {times(repeats)}.",
        "",
        "| workers | trials a minute | times as many | goal |",
        "|---|---|---|---|",
        f"| 1 | {rate(found[1])} | 1 | |",
        f"| 2 | {rate(found[2])} | {ratio:.2f} | {GOAL_WORKERS} |",
    ]


def together(data: Path, device: torch.device, _: Budget) -> list[str]:
    """Many small networks trained at once; see benchmarks/stacked.py, which prints the lines."""
    # A process of its own: it sets torch's threads, and the memory of a device is its alone.
    lines = run_printing(["benchmarks.stacked", "--device", device.type, "--data", str(data)], {})
    return [*lines, "", f"Goal on CUDA: {GOAL_TOGETHER} times as many as one by one."]


def plain(data: Path, device: torch.device, *more: str) -> Recipe:
    """The recipe of the subset without anything that a textbook's loop does not do."""
    overrides = [LIMIT, *BASE, f"train.device={device.type}", *more]
    return load_recipe("fashion-mnist", overrides, data=str(data))


def default_workers(device: torch.device) -> int:
    """As many as `parityline tune` starts when it is not told."""
    return (cuda_device_count() if device.type == "cuda" else os.cpu_count()) or 1


def run_printing(module: Sequence[str], environment: dict[str, str]) -> list[str]:
    """Run `python -m MODULE ARGUMENT...`; the lines that it prints, which are shown as they come.

    Raises CalledProcessError where it fails.
    """
    command = [sys.executable, "-m", *module]
    lines = []
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, **environment}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line.rstrip())
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return lines


PARTS = {
    "textbook": textbook,
    "sampler": sampler,
    "tuned": tuned,
    "wide": wide,
    "workers": workers,
    "together": together,
}

if __name__ == "__main__":
    main()
