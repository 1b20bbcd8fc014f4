"""A run can be killed at any instant; what is continued ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from artifacts.configs import LinearNetwork
from artifacts.errors import DataError
from artifacts.manifest import Epoch
from artifacts.networks import build_network
from tests.conftest import ROOT
from training.batches import Batches
from training.checkpoints import FOLDER, CheckpointError, Checkpoints, open_checkpoints
from training.data import Part
from training.fit import fit
from training.interrupts import Interrupted, catch_interrupts
from training.recipe import TrainConfig
from training.run_record import RunRecord

CPU = torch.device("cpu")
RECIPE = {"name": "x", "train": {"lr": 0.1, "epochs": 5}}
DATA = {"fingerprint": "abc", "rows": {"train": 100}}
GROUND = {"threads": 1, "processes": 1}


def record(**changes: object) -> RunRecord:
    content = {"recipe": RECIPE, "data": DATA, "environment": GROUND, **changes}
    return RunRecord.model_validate(content)


def write(checkpoints: Checkpoints, *values: float) -> None:
    for epoch, value in enumerate(values, start=1):
        checkpoints.write({"weights": torch.full((3,), value)}, epoch=epoch, batch=0)


def begun(store: Path, *values: float) -> Path:
    """A store with an interrupted run of so many checkpoints; the run's folder."""
    with open_checkpoints(store, "x", record(), resume=False) as (checkpoints, _):
        write(checkpoints, *values)
    return checkpoints.folder


def resumed(store: Path, now: RunRecord | None = None) -> tuple[float | None, list[str]]:
    """The first weight of the state that a resume finds, and what it says."""
    with open_checkpoints(store, "x", now or record(), resume=True) as (checkpoints, lines):
        state, problems = checkpoints.read(CPU)
    return (None if state is None else float(state["weights"][0])), [*lines, *problems]


@pytest.mark.parametrize("kills", [4, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["memory", "streamed"])
def test_killed_at_random_moments_the_weights_are_bitwise_the_same(
    kind: str, kills: int, tmp_path: Path
) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.killing", kind, str(tmp_path), str(kills)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["kills"] == kills and found["resumed"] >= 1
    assert found["differences"] and not any(found["differences"])


def test_the_newest_checkpoint_is_found_and_the_one_before_is_kept(tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0, 2.0, 3.0)
    assert sorted(path.name for path in folder.glob("*.pt")) == [
        "checkpoint-2.pt", "checkpoint-3.pt",
    ]  # fmt: skip
    assert resumed(tmp_path) == (3.0, [])
    # What is written after a resume does not take the place of what it was resumed from.
    with open_checkpoints(tmp_path, "x", record(), resume=True) as (checkpoints, _):
        write(checkpoints, 4.0)
    assert len(list(folder.glob("*.pt"))) == 2 and resumed(tmp_path) == (4.0, [])


@pytest.mark.parametrize("spoil", ["cut", "flip", "gone"])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(spoil: str, tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0, 2.0)
    spoiled = folder / "checkpoint-2.pt"
    content = spoiled.read_bytes()
    if spoil == "gone":
        spoiled.unlink()
    elif spoil == "cut":
        spoiled.write_bytes(content[:100])
    else:
        spoiled.write_bytes(content[:-50] + bytes([content[-50] ^ 1]) + content[-49:])
    value, lines = resumed(tmp_path)
    assert value == 1.0
    reason = {"cut": f"expected {len(content)} bytes, found 100", "flip": "expected sha256",
              "gone": "No such file"}[spoil]  # fmt: skip
    assert len(lines) == 1 and "checkpoint-2.pt" in lines[0] and reason in lines[0]


def test_the_checkpoint_that_was_gone_on_from_outlives_the_damaged_one(tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0, 2.0)
    (folder / "checkpoint-2.pt").write_bytes(b"damaged")
    with open_checkpoints(tmp_path, "x", record(), resume=True) as (checkpoints, _):
        checkpoints.read(CPU)
        assert checkpoints.record.where == "epoch 1, 0 batches done"
        write(checkpoints, 3.0)
    (folder / "checkpoint-3.pt").write_bytes(b"damaged")
    assert resumed(tmp_path)[0] == 1.0


def test_where_no_checkpoint_is_whole_nothing_is_made_up(tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0, 2.0)
    for path in folder.glob("*.pt"):
        path.write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*-2\.pt.*-1\.pt"):
        resumed(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"recipe": {"name": "x", "train": {"lr": 0.2, "epochs": 5}}}, "train.lr: 0.1 then, 0.2"),
        ({"recipe": {"name": "x", "train": {"lr": 0.1}}}, "train.epochs: 5 then, None now"),
        ({"data": {"fingerprint": "abd", "rows": {"train": 99}}}, "rows.train: 100 then, 99 now"),
    ],
)
def test_a_changed_recipe_or_other_data_is_refused_by_name(
    changes: dict[str, object], named: str, tmp_path: Path
) -> None:
    begun(tmp_path, 1.0)
    with pytest.raises(DataError, match=named):
        resumed(tmp_path, record(**changes))
    # Without --resume it begins beside the other, which stays.
    with open_checkpoints(tmp_path, "x", record(**changes), resume=False) as (checkpoints, _):
        assert checkpoints.read(CPU) == (None, [])
    assert resumed(tmp_path) == (1.0, [])


def test_where_there_may_be_nothing_to_resume_only_the_very_run_goes_on(tmp_path: Path) -> None:
    begun(tmp_path, 1.0)
    other = record(recipe={"name": "x", "train": {"lr": 0.2}})
    for now, found in ((other, None), (record(), 1.0)):
        with open_checkpoints(tmp_path, "x", now, resume=None) as (checkpoints, lines):
            state, _ = checkpoints.read(CPU)
        assert (None if state is None else float(state["weights"][0])) == found
        assert lines == []


def test_a_folder_with_the_record_of_another_run_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0)
    other = record(recipe={**RECIPE, "name": "y"})
    folder.rename(folder.with_name(f"x-{other.identity}"))
    with pytest.raises(DataError, match="name: 'x' then, 'y' now"):
        resumed(tmp_path, other)


def test_another_ground_is_said_and_another_number_of_processes_refused(tmp_path: Path) -> None:
    begun(tmp_path, 1.0)
    value, lines = resumed(tmp_path, record(environment={**GROUND, "threads": 4}))
    assert value == 1.0
    assert len(lines) == 1 and "not bit for bit" in lines[0] and "threads 1 then, 4 now" in lines[0]
    begun(tmp_path, 1.0)
    with pytest.raises(DataError, match="begun by 1 processes, now there are 2"):
        resumed(tmp_path, record(environment={**GROUND, "processes": 2}))


def test_a_resume_before_the_first_checkpoint_begins_at_the_beginning(tmp_path: Path) -> None:
    assert resumed(tmp_path) == (
        None, ["resume: no checkpoint of this run, so it begins at the beginning"],
    )  # fmt: skip
    begun(tmp_path)
    assert resumed(tmp_path)[0] is None


def test_a_run_that_begins_anew_says_what_it_leaves(tmp_path: Path) -> None:
    begun(tmp_path, 1.0, 2.0)
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, lines):
        assert checkpoints.read(CPU) == (None, [])
    assert len(lines) == 1 and "epoch 2" in lines[0] and "--resume" in lines[0]
    assert not list(checkpoints.folder.glob("*.pt"))


def test_two_processes_cannot_train_the_same_run(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from tests.test_resume import record\n"
        "from training.checkpoints import open_checkpoints\n"
        "with open_checkpoints(Path(sys.argv[1]), 'x', record(), resume=True): pass"
    )
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        second = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert "another process is training this very recipe" in second.stderr
        write(checkpoints, 1.0)
    assert resumed(tmp_path) == (1.0, [])


def test_on_a_full_disk_the_checkpoint_before_survives(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        write(checkpoints, 1.0)
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
            with pytest.raises(CheckpointError) as error:
                checkpoints.write({"weights": torch.ones(100_000)}, epoch=7, batch=3)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert sorted(path.name for path in checkpoints.folder.iterdir()) == [
            "checkpoint-1.pt", "lock", "run.json",
        ]  # fmt: skip
    assert "in epoch 7: File too large; that of epoch 1" in str(error.value)
    assert "\n" not in str(error.value) and "--resume" in str(error.value)
    assert resumed(tmp_path) == (1.0, [])


def test_a_record_that_is_none_is_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path, 1.0)
    (folder / "run.json").write_text('{"format": 1, "checkpoints": [{"file": "../../x.pt"')
    with pytest.raises(CheckpointError, match="not the record of a run"):
        resumed(tmp_path)
    (folder / "run.json").write_text(
        record().model_dump_json().replace(
            '"checkpoints":[]',
            '"checkpoints":[{"file":"../x.pt","size":1,"sha256":"","epoch":1,"batch":0}]',
        )
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="not the record of a run"):
        resumed(tmp_path)
    # As it says, without --resume it begins anew.
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        assert checkpoints.read(CPU) == (None, [])
    assert resumed(tmp_path) == (None, [])


def test_a_checkpoint_runs_no_code_when_it_is_read(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        checkpoints.write({"weights": Evil()}, epoch=1, batch=0)
    with pytest.raises(CheckpointError, match="cannot be read"):
        resumed(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_released_leaves_no_checkpoints(tmp_path: Path) -> None:
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        write(checkpoints, 1.0)
        checkpoints.remove()
    assert not (tmp_path / FOLDER).exists()


def test_the_second_signal_does_not_wait() -> None:
    def signalled_twice() -> None:
        with interrupts.deferred():
            interrupts.handle(15, None)
            assert interrupts.received == 15
            interrupts.handle(15, None)
            pytest.fail("the second signal was deferred")

    with catch_interrupts() as interrupts, pytest.raises(Interrupted):
        signalled_twice()


def test_of_deferrals_in_one_another_the_outermost_raises() -> None:
    ends: list[str] = []

    def nested() -> None:
        with interrupts.deferred():
            with interrupts.deferred():
                interrupts.handle(15, None)
            ends.append("inner")
            with pytest.raises(Interrupted):
                interrupts.check()
        ends.append("outer")

    with catch_interrupts() as interrupts, pytest.raises(Interrupted, match="SIGTERM"):
        nested()
    assert ends == ["inner"]


def test_a_signal_after_the_last_look_is_not_forgotten() -> None:
    def signalled() -> None:
        with interrupts.deferred():
            interrupts.handle(15, None)

    with catch_interrupts() as interrupts, pytest.raises(Interrupted, match="SIGTERM"):
        signalled()


def test_a_signal_in_the_last_epoch_stops_the_run_with_all_of_it_saved(tmp_path: Path) -> None:
    def signal_once(record: Epoch, _seconds: float) -> None:
        if record.epoch == 2:
            signal.raise_signal(signal.SIGTERM)

    part = Part(np.ones((8, 3), dtype=np.float32), np.arange(8) % 2)
    network = build_network(LinearNetwork(), (3,), (), 2)
    config = TrainConfig(epochs=2, batch_size=8)
    with open_checkpoints(tmp_path, "x", record(), resume=False) as (checkpoints, _):
        with catch_interrupts() as interrupts, pytest.raises(Interrupted):
            fit(
                network, torch.nn.Identity(), Batches(part, CPU), Batches(part, CPU), config,
                signal_once, checkpoints=checkpoints, interrupts=interrupts,
            )  # fmt: skip
        saved, _ = checkpoints.read(CPU)
    assert saved is not None and saved["state"]["finished"]


def test_what_fails_in_a_run_is_not_blamed_on_its_checkpoints(tmp_path: Path) -> None:
    opened = open_checkpoints(tmp_path, "x", record(), resume=False)
    with pytest.raises(OSError, match="elsewhere"), opened:
        raise OSError(28, "elsewhere")
