"""Two processes that train one model, left alone and disturbed: python -m tests.ranked FOLDER.

Prints one JSON object. Everything heavy is imported once; each rank of each run is a fork.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # the optimizers would import it anew in each fork

import parityline
import training.checkpoints
import training.ranks
import training.run
from artifacts.networks import build_network
from artifacts.preprocess import Preprocess
from tests.conftest import free_port
from tests.killing import IN_MEMORY, differences
from tests.ranked_checks import checks
from training.batches import Batches
from training.checkpoints import open_checkpoints
from training.data import load_dataset
from training.encoding import preprocessing
from training.fit import fit
from training.interrupts import catch_interrupts
from training.ranks import RankError, explained, join_ranks
from training.recipe import DataConfig, load_recipe
from training.run_record import RunRecord

CPU = torch.device("cpu")
TIMEOUT_S = 5


def train(store: Path, weights: Path | None = None) -> None:
    """The loop with its checkpoints, going on from what is there."""
    with join_ranks("cpu") as ranks, catch_interrupts() as interrupts:
        recipe = load_recipe("digits", [*IN_MEMORY, "train.epochs=15"])
        dataset = load_dataset(recipe.data)
        steps = preprocessing(dataset, recipe.model, recipe.data.pixels)
        torch.manual_seed(0)
        network = build_network(recipe.model, dataset.input.shape, steps, len(dataset.labels))
        record = RunRecord(
            recipe=recipe.model_dump(mode="json"), data=dataset.info().model_dump(), environment={}
        )
        # A folder for each: the second's stays empty.
        opened = open_checkpoints(store / str(ranks.rank), recipe.name, record, resume=True)
        with opened as (checkpoints, _), explained():
            saved = checkpoints.read(CPU)[0]
            result = fit(
                network, Preprocess(steps, dataset.input.shape),
                *(Batches(rows, CPU) for rows in (dataset.train, dataset.validation)),
                recipe.train, lambda *_: None, ranks=ranks,
                checkpoints=checkpoints if ranks.first else None, resume=saved,
                interrupts=interrupts,
            )  # fmt: skip
    if weights is not None:
        history = [epoch.model_dump() for epoch in result.history]
        state = {"weights": network.state_dict(), "history": history}
        torch.save(state, weights.with_suffix(f".{ranks.rank}"))


class Pair:
    """Two ranks at `work`, each a fork; what they print is in FOLDER/RANK.out and .err."""

    def __init__(self, folder: Path, *work: Callable[[], None]) -> None:
        """work: of both, or of each."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        port = free_port()
        ranks = range(2)
        self.running = {rank: _forked(work[rank % len(work)], rank, port, folder) for rank in ranks}
        self.ended: dict[int, dict[str, Any]] = {}

    def kill(self, number: signal.Signals, *ranks: int) -> None:
        for rank in ranks:
            os.kill(self.running[rank], number)
        self.killed_at = time.monotonic()

    def wait(self, *ranks: int, timeout_s: float = 90) -> dict[int, dict[str, Any]]:
        """How they ended; those that do not are killed."""
        deadline = time.monotonic() + timeout_s
        left = set(ranks or self.running)
        while left:
            for rank in sorted(left):
                if time.monotonic() > deadline:
                    os.kill(self.running[rank], signal.SIGKILL)
                child, status = os.waitpid(self.running[rank], os.WNOHANG)
                if child:
                    left.discard(rank)
                    self._note(rank, status)
            time.sleep(0.02)
        return self.ended

    def _note(self, rank: int, status: int) -> None:
        self.ended[rank] = {
            "status": os.waitstatus_to_exitcode(status),
            "out": (self.folder / f"{rank}.out").read_text(),
            "err": (self.folder / f"{rank}.err").read_text(),
            "seconds": time.monotonic() - getattr(self, "killed_at", time.monotonic()),
        }


def _forked(work: Callable[[], None], rank: int, port: int, folder: Path) -> int:
    child = os.fork()
    if child:
        return child
    for number, stream in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{rank}.{stream}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
        os.dup2(file, number)
    os.environ.update(
        RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2",
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), COLUMNS="200",
    )  # fmt: skip
    status = 1
    try:
        work()
        status = 0
    except RankError as error:
        print(f"RankError: {error}", file=sys.stderr)
    except SystemExit as stop:
        status = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def command(store: Path, *arguments: str, timeout_s: int = TIMEOUT_S) -> Callable[[], None]:
    """`parityline train`, with a store for each rank."""

    def work() -> None:
        os.environ["PARITYLINE_STORE"] = str(store / os.environ.get("RANK", "0"))
        os.environ["PARITYLINE_RANK_TIMEOUT"] = str(timeout_s)
        sys.argv = ["parityline", "train", "--no-track", *arguments]
        parityline.main()

    return work


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def checkpoints_in(folder: Path) -> int:
    """The number of the newest."""
    files = folder.glob("*/.training/*/checkpoint-*.pt")
    return max((int(file.stem.partition("-")[2]) for file in files), default=0)


def main(folder: Path) -> None:
    os.environ["PARITYLINE_RANK_TIMEOUT"] = "60"
    load_dataset(DataConfig(source="digits"))  # imports scikit-learn
    found: dict[str, Any] = {}

    ends = Pair(folder / "checks", lambda: checks(folder / "checks")).wait()
    found["checks"] = [
        json.loads((folder / "checks" / f"{rank}.json").read_text()) | {"end": ends[rank]}
        for rank in (0, 1)
        if ends[rank]["status"] == 0 or sys.exit(ends[rank]["err"])
    ]

    # Both killed, once; then one of them; then gone on with.
    whole, killed = folder / "whole", folder / "killed"
    assert all(
        end["status"] == 0
        for end in Pair(folder / "a", lambda: train(whole, folder / "whole.pt")).wait().values()
    )
    pair = Pair(folder / "b", lambda: train(killed, folder / "killed.pt"))
    until(lambda: checkpoints_in(killed) >= 3)
    pair.kill(signal.SIGKILL, 0, 1)
    found["killed"] = pair.wait()
    reached = checkpoints_in(killed)
    pair = Pair(folder / "c", lambda: train(killed, folder / "killed.pt"))
    until(lambda: checkpoints_in(killed) >= reached + 3)
    pair.kill(signal.SIGKILL, 1)
    found["one killed"] = pair.wait()
    found["resumed"] = Pair(folder / "d", lambda: train(killed, folder / "killed.pt")).wait()
    found["differences"] = [
        differences(folder / f"whole.{rank}", folder / f"killed.{rank}") for rank in (0, 1)
    ]

    # The command, of which one rank gets SIGTERM; then one is stopped, which the other waits for.
    store = folder / "store"
    long = ["digits", "--set", "train.epochs=5000", "--set", "train.patience=0"]
    pair = Pair(folder / "e", command(store, *long, timeout_s=60))
    until(lambda: checkpoints_in(store))
    pair.kill(signal.SIGTERM, 1)
    found["one terminated"] = pair.wait()
    found["stores"] = [(store / rank).exists() for rank in "01"]
    alone = os.fork()
    if not alone:
        signal.alarm(60)
        os.environ["PARITYLINE_RANK_TIMEOUT"] = "60"
        with (folder / "alone.err").open("w") as file:
            os.dup2(file.fileno(), 2)
            os.dup2(file.fileno(), 1)
            status = 0
            try:
                command(store, *long, "--resume")()
            except SystemExit as stop:
                status = int(stop.code or 0)
            finally:
                sys.stdout.flush()
                os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(alone, 0)[1])
    found["resumed alone"] = [status, (folder / "alone.err").read_text()]
    pair = Pair(folder / "f", command(store, *long, "--resume"))
    until(lambda: "epoch" in (folder / "f" / "0.out").read_text())
    pair.kill(signal.SIGSTOP, 1)
    found["one stopped"] = dict(pair.wait(0))
    pair.kill(signal.SIGKILL, 1)
    pair.wait(1)

    # What differs between them.
    for rank in (0, 1):
        rows = "".join(f"{row % 7},{row % 2}\n" for row in range(60 + rank))
        (folder / f"{rank}.csv").write_text(f"x,y\n{rows}")
    tables = [["table", "--target", "y", "--data", str(folder / f"{rank}.csv")] for rank in (0, 1)]
    rates = [["digits", "--set", f"train.lr={rate}"] for rate in (0.01, 0.02)]
    for name, each in (("other data", tables), ("other recipe", rates)):
        work = [command(folder / name, *arguments) for arguments in each]
        found[name] = Pair(folder / name, *work).wait()
    shutil.rmtree(folder)
    print(json.dumps(found))


if __name__ == "__main__":
    torch.set_num_threads(1)
    # Many checkpoints, in the midst of epochs.
    training.checkpoints._SHARE, training.checkpoints._FIRST_AFTER_S = 0.3, 0.0
    training.ranks._AGREE_EVERY_S = 0.1
    main(Path(sys.argv[1]))
