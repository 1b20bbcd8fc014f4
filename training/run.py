"""One run, from a recipe to a released bundle: data, network, training; then `release`.

parityline train digits
torchrun --nproc-per-node 2 -m training digits
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from artifacts.bundle import Bundle
from artifacts.devices import Device, resolve_device
from artifacts.errors import BundleError, DeviceError
from artifacts.manifest import DataInfo, Study
from artifacts.summary import column_lines, describe_input
from artifacts.terminal import busy, tell
from training.batches import Batches
from training.build import build_model
from training.checkpoints import RunRecord, open_checkpoints
from training.data import Dataset, load_dataset
from training.fit import Backbone, Fit, fit
from training.interrupts import catch_interrupts
from training.precision import compiled, compute_precision
from training.preflight import preflight as check_first
from training.progress import epoch_display
from training.ranks import (
    ALONE,
    Ranks,
    explained,
    is_first_of_machine,
    is_first_rank,
    join_ranks,
    processes_of_machine,
)
from training.recipe import DataConfig, Recipe
from training.release import Trained, commit, max_batch_size, release
from training.run_record import flat
from training.schedule import resolve_schedule
from training.threshold import check_threshold
from training.tracking import tracking
from training.transfer import weights_digest, with_backbone_defaults


def run(
    recipe: Recipe,
    store: Path,
    *,
    promote: bool,
    console: Console,
    resume: bool | None = False,
    preflight: bool = True,
    track: bool = False,
    study: Study | None = None,
) -> Bundle | None:
    """Train `recipe` and release the bundle into `store`; None in all processes but the first.

    Until the last step, which is one rename, the store holds nothing of it but checkpoints, from
    which `resume` goes on; with None where there are some of this very run. preflight: see first,
    in a second or two, whether it can be trained at all. track: record the run in MLflow.
    study: the search that found the recipe, for the manifest.
    Raises DataError, DeviceError, ParityError, BundleError, CheckpointError or RankError, each with
    one line for its reader; and Interrupted after SIGINT or SIGTERM.
    """
    began = time.perf_counter()
    device = device_of(recipe)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    recipe = with_backbone_defaults(recipe)
    if not is_first_rank():
        console, track = Console(quiet=True), False
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(catch_interrupts())
        tracker = stack.enter_context(tracking(track, console))
        joined = stack.enter_context(contextlib.ExitStack())
        ranks = joined.enter_context(join_ranks(device))
        if ranks.first:
            check_writable(store)
        data = share_of_machine(recipe.data, processes_of_machine())
        with busy(console, "reading the data"):
            dataset = _load(data, ranks)
        check_threshold(recipe.export, dataset.labels)
        info = dataset.info()
        ranks.same({"the data's fingerprint": info.fingerprint})
        recipe = recipe.model_copy(
            update={"train": resolve_schedule(recipe.train, len(dataset.train))}
        )
        rows = ", ".join(f"{len(part)} {name}" for name, part in dataset.parts.items())
        say(console, f"data: {dataset.source}: {rows}; {len(dataset.labels)} classes")
        say(console, f"input: {describe_input(dataset.input)}")
        for line in (*dataset.notes, *column_lines(dataset.input)):
            say(console, f"data: {line}")

        built = build_model(recipe, dataset, device)
        model, backbone = built.model, built.backbone
        network = model.network
        say(console, f"model: {recipe.model.kind}, {_parameters_line(network, backbone)}")
        say(console, f"device: {_device_name(device)}{_ranks_line(ranks)}")
        precision = compute_precision(network, recipe.train, torch.device(device))
        batches = {
            name: Batches(part, torch.device(device), data.workers)
            for name, part in dataset.parts.items()
        }
        largest = max_batch_size(recipe, dataset)
        resolved = resolved_recipe(recipe, device, precision, largest, ranks)
        record = _record(resolved, info, ranks)
        ranks.same(flat({**record.recipe, "torch": torch.__version__, "precision": precision}))
        checkpoints, saved = None, None
        if ranks.first:
            opened = open_checkpoints(store, recipe.name, record, resume=resume)
            checkpoints, lines = stack.enter_context(opened)
            # Each process takes it to its own device.
            saved, problems = checkpoints.read(torch.device("cpu"))
            for line in (*lines, *problems):
                say(console, line)
            if saved is not None:
                ended = saved["state"]["finished"]
                where = "the end of the training" if ended else checkpoints.record.where
                say(console, f"resume: going on from {where}")
            tags = {"data_fingerprint": info.fingerprint, "commit": commit()}
            run_id = checkpoints.record.run_id
            tracker.start(recipe.name, resolved, tags, run_id, resumed=saved is not None)
            if preflight and saved is None:
                with busy(console, "preflight"):
                    found = check_first(
                        network, model.preprocess, batches["train"], len(dataset.labels),
                        recipe.train, backbone,
                    )  # fmt: skip
                say(console, found)
        began_training = time.perf_counter()
        with compiled(), explained(), epoch_display(console, recipe.train.epochs) as show:
            fitted = fit(
                network, model.preprocess, batches["train"], batches["validation"],
                recipe.train, tracker.followed(show), backbone,
                ranks=ranks, checkpoints=checkpoints, resume=saved, interrupts=interrupts,
            )  # fmt: skip
        # All together: a process must not wait to leave while the first exports for minutes.
        joined.close()
        if not ranks.first:
            return None
        assert checkpoints is not None
        say(console, _fit_line(fitted, time.perf_counter() - began_training))
        trained = Trained(recipe, resolved, dataset, info, model, batches, fitted, study)
        with busy(console, "exporting, and proving each format"):
            bundle = release(trained, store, lambda line: say(console, line), promote=promote)
        checkpoints.remove()
        tracker.finish(bundle.manifest, bundle.path)
    say(console, f"seconds: {time.perf_counter() - began:.1f}")
    return bundle


def check_writable(store: Path) -> None:
    """Raise BundleError before the training, not after it, where nothing could be released."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=store):
            pass
    except OSError as error:
        raise BundleError(f"the store {store} cannot be written to: {error.strerror}") from error


def say(console: Console, line: str) -> None:
    """One line of the run."""
    tell(console, line)


def device_of(recipe: Recipe) -> Device:
    """Where the recipe is trained. Raises DeviceError."""
    device = resolve_device(recipe.train.device)
    if device == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"the driver shows a CUDA device, but this torch ({torch.__version__}) has no CUDA; "
            "install its CUDA build, or set train.device=cpu"
        )
    return device


def share_of_machine(config: DataConfig, sharing: int) -> DataConfig:
    """What each of so many processes takes by default of the memory and the cores."""
    if sharing == 1:
        return config
    memory_mb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**21
    shares = {"memory_mb": memory_mb // sharing, "workers": (os.cpu_count() or 1) // sharing}
    unset = {key: max(1, share) for key, share in shares.items() if getattr(config, key) is None}
    return config.model_copy(update=unset)


def _load(config: DataConfig, ranks: Ranks) -> Dataset:
    """First the first process, then each machine's first, then all: one downloads, all find it."""
    dataset = None
    for mine in (ranks.first, is_first_of_machine(), True):
        if mine and dataset is None:
            dataset = load_dataset(config)
        ranks.meet()
    assert dataset is not None
    return dataset


def _record(resolved: dict[str, Any], info: DataInfo, ranks: Ranks) -> RunRecord:
    """What a checkpoint is of: a recipe, its data, and the ground that it runs on."""
    content = {**resolved, "train": dict(resolved["train"])}
    content["train"].pop("processes", None)
    ground = ("device", "threads", "precision")
    environment = {key: content["train"].pop(key) for key in ground}
    environment |= {
        "processes": ranks.world,
        "torch": torch.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    if environment["device"] == "cuda":
        environment["cuda"] = torch.cuda.get_device_name()
    data = info.model_dump(mode="json", include={"source", "fingerprint", "rows"})
    return RunRecord(recipe=content, data=data, environment=environment)


def _ranks_line(ranks: Ranks) -> str:
    return "" if ranks.world == 1 else f", {ranks.world} processes"


def resolved_recipe(
    recipe: Recipe, device: str, precision: str, largest: int, ranks: Ranks = ALONE
) -> dict[str, Any]:
    """The recipe as it was carried out: what was "auto" as it was, files without their folders.

    train.processes: how many there were, where it was more than one.
    """
    content = recipe.model_dump(
        mode="json",
        exclude={"summary": True, "tune": True, "data": {"path", "test_path", "workers"}},
    )
    content["train"].update(device=device, threads=torch.get_num_threads(), precision=precision)
    if ranks.world > 1:
        content["train"]["processes"] = ranks.world
    content["export"]["max_batch_size"] = largest
    digest = weights_digest(recipe)
    if digest is not None:
        content["transfer"].update(
            weights=Path(recipe.transfer.weights).name, weights_sha256=digest
        )
    return content


def _parameters_line(network: torch.nn.Module, backbone: Backbone | None) -> str:
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    total = sum(sizes.values())
    if backbone is None:
        return f"{total:,} parameters, all trained"
    if not backbone.freeze_epochs:
        return f"{total:,} parameters, all trained; all but the head at {backbone.lr:g} of the rate"
    trainable = sum(size for name, size in sizes.items() if name in backbone.head)
    epochs = "epoch" if backbone.freeze_epochs == 1 else f"{backbone.freeze_epochs} epochs"
    return (
        f"{total:,} parameters, {trainable:,} trained and {total - trainable:,} frozen for the "
        f"first {epochs}"
    )


def _device_name(device: str) -> str:
    if device == "cuda":
        return f"cuda ({torch.cuda.get_device_name()})"
    threads = torch.get_num_threads()
    return f"cpu ({threads} thread{'' if threads == 1 else 's'})"


def _fit_line(fitted: Fit, seconds: float) -> str:
    stopped = "stopped early, " if fitted.stopped_early else ""
    return (
        f"trained: {len(fitted.history)} epochs in {seconds:.1f} s, {stopped}"
        f"the weights of epoch {fitted.kept_epoch} are kept"
    )
