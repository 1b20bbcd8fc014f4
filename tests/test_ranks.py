"""Several processes train one model as a single one does, and none waits for ever for another."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from artifacts.bundle import read_bundle
from artifacts.errors import DataError
from artifacts.references import resolve
from tests.conftest import QUICK_DIGITS, ROOT, free_port
from tests.ranked_checks import SETTINGS
from training.interrupts import Interrupted, catch_interrupts
from training.ranks import ALONE, Ranks, is_first_rank, join_ranks, processes_of_machine
from training.recipe import DataConfig
from training.run import share_of_machine

GONE = (
    "another process of this run has ended, or has not answered for PARITYLINE_RANK_TIMEOUT="
)  # fmt: skip


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes did in every situation of tests/ranked.py."""
    folder = str(tmp_path_factory.mktemp("ranked"))
    result = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.ranked", folder],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return dict(json.loads(result.stdout))


@pytest.fixture(scope="module")
def both(ranked: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two undisturbed processes found."""
    return list(ranked["checks"])


@given(st.data())
def test_each_row_of_a_step_is_in_one_piece_of_one_process(data: st.DataObject) -> None:
    world, pieces = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    count = data.draw(st.integers(2 * world * pieces, 500))
    rows = torch.randperm(count)
    shares = [Ranks(rank, world).share(rows, pieces) for rank in range(world)]
    assert [len(share) for share in shares] == [pieces] * world
    assert torch.equal(torch.cat([piece for share in shares for piece in share]), rows)
    sizes = [len(piece) for share in shares for piece in share]
    assert min(sizes) >= 2 and max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [339, 335])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_processes_of_a_step_have_the_rows_of_a_single_ones(
    accumulate: int, count: int, both: list[dict[str, Any]]
) -> None:
    (first, single), (second, _) = (found["shards"][f"{accumulate}/{count}"] for found in both)
    assert len(first) == len(second) == accumulate * len(single) and len(single) == 6
    for step, expected in enumerate(single):
        mine = slice(step * accumulate, (step + 1) * accumulate)
        pieces = [*first[mine], *second[mine]]
        assert [row for piece in pieces for row in piece] == expected
        assert min(map(len, pieces)) >= 2
    assert sorted(row for step in single for row in step) == list(range(count))


@pytest.mark.parametrize("setting", SETTINGS)
def test_with_an_equal_global_batch_the_losses_agree(
    setting: str, both: list[dict[str, Any]]
) -> None:
    first, second = (found["equal global batch"][setting] for found in both)
    assert len(first["losses"]) == 2
    for epoch in first["losses"]:
        for together, single in epoch:
            assert together == pytest.approx(single, abs=1e-5, rel=0)
    assert first["weights"] < 1e-5
    assert first == second


def test_batch_norm_is_that_of_all_rows(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["batch norm"].keys() == {"outputs", "gradients", "statistics"}
        assert max(found["batch norm"].values()) < 5e-6


def test_each_row_is_measured_once_however_few_there_are(both: list[dict[str, Any]]) -> None:
    for together, single in both[0]["evaluated"]:
        assert together == pytest.approx(single, abs=1e-6)
    assert both[0]["evaluated"] == both[1]["evaluated"] and len(both[0]["evaluated"]) == 3


def test_all_stop_early_after_the_same_epoch_with_the_same_weights(
    both: list[dict[str, Any]],
) -> None:
    first, second = (found["early stop"] for found in both)
    assert first == second
    assert first["stopped"] and first["epochs"] == first["kept"] + 3 < 200
    assert both[0]["pictures"] == both[1]["pictures"]


def test_what_cannot_be_shared_is_refused_by_all(both: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(both):
        refused = found["refusals"]
        mine, other = ("ab", "cd")[rank], ("ab", "cd")[1 - rank]
        assert refused["data"] == (
            "DataError: the processes of this run differ in the data's fingerprint: "
            f"{mine!r} in rank {rank}, {other!r} in rank {1 - rank}"
        )
        assert refused["batch size"] == (
            "DataError: train.batch_size: expected at least 8 for 2 processes and "
            "train.accumulate=2, found 7"
        )
        assert refused["rows"] == "DataError: training needs at least 32 rows, found 31"


def test_a_signal_to_one_process_stops_all_after_the_same_step(both: list[dict[str, Any]]) -> None:
    assert both[0]["signalled"] == both[1]["signalled"]
    message, status, epoch = both[0]["signalled"]
    assert message == "interrupted by SIGTERM" and status == 143 and epoch >= 3


def test_nothing_is_warned_of(both: list[dict[str, Any]]) -> None:
    for found in both:
        assert found["warnings"] == []
        assert (found["end"]["out"], found["end"]["err"]) == ("", "")


def test_killed_and_continued_the_weights_are_bitwise_the_same(ranked: dict[str, Any]) -> None:
    assert [end["status"] for end in ranked["killed"].values()] == [-9, -9]
    assert [end["status"] for end in ranked["resumed"].values()] == [0, 0]
    assert ranked["differences"] == [[], []]


def test_when_one_process_is_killed_the_other_ends_at_once_and_says_why(
    ranked: dict[str, Any],
) -> None:
    left = ranked["one killed"]["0"]
    assert ranked["one killed"]["1"]["status"] == -9
    # Far below the time that it would wait for one that hangs.
    assert left["status"] == 1 and left["seconds"] < 20
    assert left["err"].startswith(f"RankError: rank 0: {GONE}60 s") and left["err"].count("\n") == 1
    assert "--resume" in left["err"] and "peer" in left["err"]


def test_when_one_process_hangs_the_other_gives_up_and_says_why(ranked: dict[str, Any]) -> None:
    left = ranked["one stopped"]["0"]
    assert left["status"] == 1 and 4 < left["seconds"] < 30
    assert left["err"].startswith(f"error: rank 0: {GONE}5 s") and left["err"].count("\n") == 1
    assert "Timed out" in left["err"]


def test_a_command_that_one_process_gets_a_signal_for_can_be_gone_on_with(
    ranked: dict[str, Any],
) -> None:
    for end in ranked["one terminated"].values():
        assert end["status"] == 143
        assert end["err"].startswith("interrupted by SIGTERM;") and "--resume" in end["err"]
        assert end["err"].count("\n") == 1
    assert ranked["one terminated"]["1"]["out"] == ""
    assert "resume: going on from epoch" in ranked["one stopped"]["0"]["out"]


def test_another_number_of_processes_does_not_go_on_with_it(ranked: dict[str, Any]) -> None:
    status, printed = ranked["resumed alone"]
    assert status == 1
    assert "error: --resume: the run was begun by 2 processes, now there are 1" in printed


def test_only_the_first_process_writes(ranked: dict[str, Any]) -> None:
    assert ranked["stores"] == [True, False]


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("other data", r"the data's fingerprint: '\w+' in rank {}, '\w+' in rank {}\n"),
        ("other recipe", r"train\.lr: 0\.0\d in rank {}, 0\.0\d in rank {}\n"),
    ],
)
def test_processes_that_differ_say_in_what(what: str, named: str, ranked: dict[str, Any]) -> None:
    for rank, end in ((0, ranked[what]["0"]), (1, ranked[what]["1"])):
        expected = "error: the processes of this run differ in " + named.format(rank, 1 - rank)
        assert end["status"] == 1 and re.fullmatch(expected, end["err"]), end["err"]


def test_a_signal_does_not_hide_the_error_that_ends_a_run() -> None:
    with catch_interrupts() as interrupts:
        with pytest.raises(ValueError, match="gone"), interrupts.deferred():
            raise ValueError("gone")
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)
    with catch_interrupts() as interrupts:
        with interrupts.deferred():
            pass
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGTERM)


def test_variables_that_say_nothing_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Some clusters set RANK for jobs of one process.
    monkeypatch.setenv("RANK", "3")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with join_ranks("cpu") as ranks:
        assert ranks is ALONE and is_first_rank()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert not is_first_rank()
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DataError, match="MASTER_ADDR: expected it beside RANK"), join_ranks("cpu"):
        pass
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(DataError, match=r"a CUDA dev.* local rank 99"), join_ranks("cuda"):
        pass
    monkeypatch.setenv("PARITYLINE_RANK_TIMEOUT", "soon")
    with pytest.raises(DataError, match="TIMEOUT: .* from 1, found 'soon'"), join_ranks("cpu"):
        pass


def test_processes_of_one_machine_share_its_memory_and_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = DataConfig(source="images")
    assert share_of_machine(config, processes_of_machine()) is config
    for name, value in (("RANK", "9"), ("WORLD_SIZE", "12"), ("LOCAL_WORLD_SIZE", "4")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2**18}.__getitem__)
    share = share_of_machine(config, processes_of_machine())
    # Half of 1 GiB, and all of the cores, for four.
    assert (share.memory_mb, share.workers) == (128, 2)
    said = config.model_copy(update={"memory_mb": 300, "workers": 0})
    assert share_of_machine(said, processes_of_machine()) == said


def test_torchrun_releases_a_bundle_as_good_as_that_of_one_process(
    store: Path, tmp_path: Path
) -> None:
    sets = [argument for override in QUICK_DIGITS for argument in ("--set", override)]
    result = subprocess.run(
        [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2",
            "--master-port", str(free_port()), "--log-dir", str(tmp_path / "logs"),
            "--redirects", "3", "-m", "training", "digits", *sets,
        ],
        cwd=ROOT, env={**os.environ, "PARITYLINE_STORE": str(tmp_path / "store")},
        capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    printed = {
        path.relative_to(tmp_path / "logs").as_posix()[-len("0/stdout.log") :]: path.read_text()
        for path in (tmp_path / "logs").glob("**/*.log")
    }
    assert result.returncode == 0, printed
    assert printed["0/stderr.log"] == printed["1/stderr.log"] == printed["1/stdout.log"] == ""
    assert printed["0/stdout.log"].count("epoch   6/6") == 1
    assert ", 2 processes" in printed["0/stdout.log"]

    ours, single = (
        read_bundle(resolve(folder, "digits")).manifest for folder in (tmp_path / "store", store)
    )
    assert ours.recipe["train"]["processes"] == 2
    assert "processes" not in single.recipe["train"]
    assert [epoch.epoch for epoch in ours.history] == [epoch.epoch for epoch in single.history]
    accuracy, expected = ours.metrics["test"].accuracy, single.metrics["test"].accuracy
    assert expected.low <= accuracy.value <= expected.high
    assert sorted(path.name for path in (tmp_path / "store").iterdir()) == ["digits"]
