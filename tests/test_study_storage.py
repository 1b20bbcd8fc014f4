"""Where a study lies: kills, full disks, several processes at once, and a real PostgreSQL."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import resource
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import optuna
import psycopg
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState

from tests.postgres import PASSWORD, postgres_server
from training.tuning import database, journal, storage
from training.tuning.storage import Heartbeats, StudyError, open_storage, quiet_optuna

# Forks of a process of one thread that has imported everything: soon there, nothing inherited.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(
    [
        "tests.test_study_storage",
        "optuna.storages._rdb.models",
        "alembic.command",
        "sqlalchemy.dialects.postgresql.psycopg",
    ]
)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quiet_optuna():
        yield


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real server's database."""
    with postgres_server(tmp_path_factory.mktemp("postgres")) as url:
        yield url


@pytest.fixture
def shortened(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial needs no time to be known as its worker's; a beat each second, stale after one."""
    monkeypatch.setattr(journal, "START_GRACE_S", 0.0)
    monkeypatch.setattr(database, "HEARTBEAT_S", 1)
    monkeypatch.setattr(database, "STALE_AFTER_S", 1)


def open_study(place: str, name: str = "study") -> optuna.Study:
    """place: a URL or a journal's path."""
    opened = open_storage(place, Path(place))
    return optuna.create_study(storage=opened, study_name=name, load_if_exists=True)


def spawn(work: object, *arguments: object) -> tuple[BaseProcess, Connection]:
    """`work(connection, *arguments)` in a process of its own, and our end of the connection."""
    ours, theirs = PROCESSES.Pipe()
    process = PROCESSES.Process(target=work, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    return process, ours


def kill(process: BaseProcess) -> None:
    os.kill(process.pid, signal.SIGKILL)
    process.join(10)
    assert process.exitcode == -signal.SIGKILL


def as_shortened() -> None:
    """`shortened`, in a process of its own."""
    journal.START_GRACE_S, database.HEARTBEAT_S, database.STALE_AFTER_S = 0.0, 1, 1


def work_on_a_trial(connection: Connection, place: str, name: str) -> None:
    """Begin a trial, suggest a value, and go on until killed or told to finish."""
    as_shortened()
    with quiet_optuna():
        study = open_study(place, name)
        with Heartbeats(study._storage) as heartbeats:
            trial = study.ask()
            heartbeats.begin(trial._trial_id)
            connection.send((trial.number, trial.suggest_float("lr", 0.0, 1.0)))
            connection.recv()
            study.tell(trial, 0.5)
            heartbeats.end(trial._trial_id)


def retry_at_once(connection: Connection, place: str, name: str) -> None:
    as_shortened()
    with quiet_optuna():
        study = open_study(place, name)
        connection.send("ready")
        connection.recv()
        connection.send(storage.retry_stale(study))


def append_many(connection: Connection, place: str, number: int) -> None:
    with quiet_optuna():
        study = open_study(place)
        connection.send("ready")
        connection.recv()
        for index in range(25):
            study.set_user_attr(f"{number}-{index}", number)


def hold_the_turn(connection: Connection, place: str) -> None:
    locks = open_study(place)._storage._locks
    with locks.turn():
        connection.send("held")
        connection.recv()


def fill_the_disk(connection: Connection, place: str) -> None:
    """Write until no byte more is to be had, then once more when there is room again."""
    with quiet_optuna():
        study = open_study(place)
        study.set_user_attr("before", 1)
        room = Path(place).stat().st_size + 150
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        told = []
        for index in range(5):
            try:
                study.set_user_attr(f"much {index}", "x" * 60)
            except StudyError as error:
                told.append(str(error))
        size = Path(place).stat().st_size
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        study.set_user_attr("after", 1)
        connection.send((room, size, told))


def killed_in_a_trial(place: str, name: str) -> tuple[int, float]:
    """The trial of a worker that is dead now: its number and its one parameter."""
    process, connection = spawn(work_on_a_trial, place, name)
    begun = connection.recv()
    kill(process)
    return begun


def wait_for_retry(study: optuna.Study) -> list[int]:
    """What `retry_stale` says once it finds something; a database waits for the grace period."""
    deadline = time.monotonic() + 10
    while not (found := storage.retry_stale(study)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


# The journal


def test_processes_that_append_at_once_lose_nothing(tmp_path: Path) -> None:
    place = str(tmp_path / "study.log")
    workers = [spawn(append_many, place, number) for number in range(4)]
    for _, connection in workers:
        assert connection.recv() == "ready"
    for _, connection in workers:
        connection.send("go")
    for process, _ in workers:
        process.join(30)
        assert process.exitcode == 0
    attributes = open_study(place).user_attrs
    assert attributes == {f"{n}-{i}": n for n in range(4) for i in range(25)}
    # Optuna's own backend reads the same file.
    own = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(place))
    assert optuna.load_study(study_name="study", storage=own).user_attrs == attributes


def test_a_process_killed_within_its_turn_holds_up_nobody(tmp_path: Path) -> None:
    place = str(tmp_path / "study.log")
    study = open_study(place)
    process, connection = spawn(hold_the_turn, place)
    assert connection.recv() == "held"
    waiting, done = spawn(append_many, place, 0)
    assert not done.poll(0.3), "a turn that is held was taken"
    kill(process)
    began = time.monotonic()
    study.set_user_attr("after", 1)
    assert time.monotonic() - began < 1
    assert done.recv() == "ready"
    kill(waiting)


@pytest.mark.parametrize("torn", ['{"op_co', '{"op_code":2,"worker_id":"x","study_id":0,"user'])
def test_a_torn_last_line_is_cut_and_every_whole_one_kept(tmp_path: Path, torn: str) -> None:
    file = tmp_path / "study.log"
    going_on = open_study(str(file))
    going_on.set_user_attr("first", 1)
    whole = file.read_bytes()
    with file.open("a") as opened:
        opened.write(torn)
    late = open_study(str(file))  # Its first word to the file was "does this study exist?"
    assert late.user_attrs == {"first": 1}
    going_on.set_user_attr("second", 2)
    late.set_user_attr("third", 3)
    assert file.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in file.read_text().splitlines())
    expected = {"first": 1, "second": 2, "third": 3}
    assert going_on.user_attrs == late.user_attrs == expected
    assert open_study(str(file)).user_attrs == expected


def test_a_full_disk_is_named_and_leaves_a_journal_that_goes_on(tmp_path: Path) -> None:
    place = str(tmp_path / "study.log")
    process, connection = spawn(fill_the_disk, place)
    room, size, told = connection.recv()
    process.join(10)
    assert told and all(
        line == f"{place}: the study cannot be written: File too large" for line in told
    )
    assert size < room
    attributes = open_study(place).user_attrs
    assert {"before", "after"} <= attributes.keys()
    assert len(attributes) == 2 + 5 - len(told)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"epoch,loss\n1,0.5\n", "found a file that begins with b'epoch,loss"),
        (b"no line", "begins with b'no line'"),
        (b"SQLite format 3\x00", "begins with b'SQLite form"),
        (b'{"op_code":0,"no more', None),
        (b'{"op_code":0,"worker_id":"x"}\n', "not a journal of this Optuna's: KeyError"),
        (b'{"op_code":99,"worker_id":"x"}\n', "line 1: operation 99 is unknown to Optuna"),
        (b'{"op_code":0,"no more\n{}\n', "line 1: expected an operation of Optuna's"),
    ],
)
def test_what_is_no_journal_is_refused_untouched(
    tmp_path: Path, content: bytes, message: str | None
) -> None:
    file = tmp_path / "study.log"
    file.write_bytes(content)
    if message is None:  # The first line of a journal, torn.
        open_study(str(file))
        return
    with pytest.raises(StudyError, match=re.escape(message)) as raised:
        open_study(str(file))
    assert str(file) in str(raised.value)
    assert file.read_bytes() == content


def test_a_journal_that_was_written_over_is_named(tmp_path: Path) -> None:
    file = tmp_path / "study.log"
    study = open_study(str(file))
    file.write_bytes(b"")
    with pytest.raises(StudyError, match="shorter than it was"):
        study.set_user_attr("lost", 1)


def test_a_folder_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StudyError, match="no study can lie here: Not a directory"):
        open_storage(None, tmp_path / "file" / "folder")
    with pytest.raises(StudyError, match="no study can lie here: Is a directory"):
        open_storage(str(tmp_path), tmp_path)
    open_storage(None, tmp_path / "new" / "folder")
    assert (tmp_path / "new" / "folder" / "journal.log").exists()


def test_a_signal_in_the_midst_of_a_replay_shifts_no_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path / "study.log")
    study, other = open_study(place), open_study(place)
    other.ask()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        replay = journal.JournalStorageReplayResult
        patch.setattr(replay, "_apply_create_trial", interrupted)
        with pytest.raises(KeyboardInterrupt):
            _ = study.trials
    mine = study.ask()
    study.tell(mine, 0.25)
    assert mine.number == 1
    states = [trial.state for trial in open_study(place).trials]
    assert states == [TrialState.RUNNING, TrialState.COMPLETE]


def test_a_copy_of_the_journal_does_not_lose_the_locks_for_long(
    tmp_path: Path, shortened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any close() of the file of locks drops them all: the next heartbeat takes them anew."""
    monkeypatch.setattr(journal, "_BEAT_S", 0.1)
    place = str(tmp_path / "study.log")
    study = open_study(place)
    with Heartbeats(study._storage) as heartbeats:
        heartbeats.begin(study.ask()._trial_id)
        (tmp_path / "study.log.locks").read_bytes()
        time.sleep(0.5)
        process, connection = spawn(retry_at_once, place, "study")
        assert connection.recv() == "ready"
        connection.send("go")
        assert connection.recv() == []
        process.join(10)


# Workers that die


@pytest.fixture(params=["journal", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "journal":
        return str(tmp_path / "study.log")
    return request.getfixturevalue("postgres")


def test_a_dead_workers_trial_is_put_back_until_it_has_killed_three(
    place: str, shortened: None
) -> None:
    study = open_study(place, "deaths")
    study.enqueue_trial({"lr": 0.125}, user_attrs={"default": True})
    assert storage.retry_stale(study) == []
    for number in range(1 + storage.MOST_RETRIES):
        assert killed_in_a_trial(place, "deaths") == (number, 0.125)
        again = number < storage.MOST_RETRIES
        if again:
            assert wait_for_retry(study) == [number]
            assert study.trials[number + 1].state == TrialState.WAITING
        else:
            deadline = time.monotonic() + 10
            while study.trials[number].state == TrialState.RUNNING:
                assert storage.retry_stale(study) == [] and time.monotonic() < deadline
                time.sleep(0.1)
    states = [trial.state for trial in study.trials]
    assert states == [TrialState.FAIL] * 3
    reasons = [trial.user_attrs.pop("reason") for trial in study.trials]
    assert reasons == [
        "its worker died; tried again as trial 1",
        "its worker died; tried again as trial 2",
        "its worker died (3 times)",
    ]
    for trial in study.trials:
        assert trial.params == {"lr": 0.125} and trial.user_attrs["default"] is True
        assert trial.system_attrs["fixed_params"] == {"lr": 0.125}


def test_two_that_look_at_once_put_a_trial_back_once(place: str, shortened: None) -> None:
    study = open_study(place, "at once")
    killed = [killed_in_a_trial(place, "at once")[0] for _ in range(2)]
    seekers = [spawn(retry_at_once, place, "at once") for _ in range(2)]
    for _, connection in seekers:
        assert connection.recv() == "ready"
    if "://" in place:
        time.sleep(2.1)  # More than the grace period, and no heartbeat of the dead since.
    for _, connection in seekers:
        connection.send("go")
    found = [number for _, connection in seekers for number in connection.recv()]
    assert sorted(found) == killed
    waiting = [trial for trial in study.trials if trial.state == TrialState.WAITING]
    assert len(waiting) == len(killed)


def test_a_living_workers_trial_is_left_alone(
    place: str, shortened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # It beats each second; on a busy machine a beat may come late.
    monkeypatch.setattr(database, "STALE_AFTER_S", 5)
    study = open_study(place, "alive")
    process, connection = spawn(work_on_a_trial, place, "alive")
    number, _ = connection.recv()
    until = time.monotonic() + (7.0 if "://" in place else 0.5)
    while time.monotonic() < until:
        assert storage.retry_stale(study) == []
        time.sleep(0.2)
    connection.send("finish")
    process.join(10)
    assert process.exitcode == 0
    assert storage.retry_stale(study) == []
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]
    assert study.trials[number].value == 0.5


def test_one_that_was_killed_while_putting_back_leaves_no_second_copy(
    place: str, shortened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(place, "half")
    number, _ = killed_in_a_trial(place, "half")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(storage, "_fail", killed)
        with pytest.raises(KeyboardInterrupt):
            wait_for_retry(study)
    assert wait_for_retry(study) == [number]
    assert [trial.state for trial in study.trials] == [TrialState.FAIL, TrialState.WAITING]


def test_a_worker_that_died_before_its_first_sign_of_life_is_found(
    place: str, shortened: None
) -> None:
    study = open_study(place, "silent")
    number = open_study(place, "silent").ask().number
    assert wait_for_retry(study) == [number]


def test_a_trial_that_has_just_begun_is_given_time(tmp_path: Path) -> None:
    study = open_study(str(tmp_path / "study.log"))
    study.ask()
    assert storage.retry_stale(study) == []


def test_a_trial_that_is_told_while_one_looks_is_left_alone(
    tmp_path: Path, shortened: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = open_study(str(tmp_path / "study.log"))
    trial = study.ask()

    def told_and_gone(_locks: journal.ByteLocks, _byte: int) -> bool:
        study.tell(trial, 0.5)
        return False

    monkeypatch.setattr(journal.ByteLocks, "is_held", told_and_gone)
    assert storage.retry_stale(study) == []
    assert [trial.state for trial in study.trials] == [TrialState.COMPLETE]


def test_an_interrupted_trial_is_put_back_and_counts_no_death(place: str, shortened: None) -> None:
    study = open_study(place, "interrupted")
    with Heartbeats(study._storage) as heartbeats:
        trial = study.ask()
        heartbeats.begin(trial._trial_id)
        trial.suggest_float("lr", 0.0, 1.0)
        trial.set_user_attr("default", True)
        storage.requeue(study, trial.number, "interrupted by SIGTERM")
        heartbeats.end(trial._trial_id)
    failed, waiting = study.trials
    assert failed.state == TrialState.FAIL
    assert failed.user_attrs == {"default": True, "reason": "interrupted by SIGTERM"}
    assert waiting.state == TrialState.WAITING
    assert waiting.user_attrs == {"default": True}
    assert waiting.params == trial.params
    assert waiting.distributions == {"lr": FloatDistribution(0.0, 1.0)}
    assert killed_in_a_trial(place, "interrupted")[0] == waiting.number
    assert wait_for_retry(study) == [waiting.number]
    assert len(study.trials[2].system_attrs["retry_history"]) == 1
    # What is finished stays as it is.
    storage.requeue(study, 0, "once more")
    assert len(study.trials) == 3


def test_a_heartbeat_outlives_a_storage_that_fails(tmp_path: Path, shortened: None) -> None:
    study = open_study(str(tmp_path / "study.log"))
    beats: list[int] = []

    def failing(trial_id: int) -> None:
        beats.append(trial_id)
        raise psycopg.OperationalError("the database system is shutting down")

    study._storage.record_heartbeat = failing
    study._storage.get_heartbeat_interval = lambda: 0.05
    with Heartbeats(study._storage) as heartbeats:
        heartbeats.begin(7)
        deadline = time.monotonic() + 5
        while len(beats) < 3 and time.monotonic() < deadline:
            time.sleep(0.02)
        heartbeats.end(7)
        after = len(beats)
        time.sleep(0.3)
    assert after >= 3 and len(beats) <= after + 1


# Addresses


@pytest.mark.parametrize(
    "url", ["sqlite:///study.db", "mysql://u:pw@h/d", "redis://:pw@h", "http://u:pw@h"]
)
def test_what_no_study_can_lie_in_is_refused(url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="expected a journal file .* or PostgreSQL") as raised:
        open_storage(url, tmp_path)
    assert ("SQLite is no good" in str(raised.value)) == url.startswith("sqlite")
    assert "pw" not in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://me:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgres://me:se%40cret@host/db?sslmode=require", "postgres://host/db"),
        ("postgresql://me:se@cret@host/db", "postgresql://host/db"),
        ("postgresql://me:se/cret@host/db", "postgresql://host/db"),
        ("postgresql://me:secret@[::1]:5432/db", "postgresql://[::1]:5432/db"),
        ("postgresql://host/db?user=me&password=secret", "postgresql://host/db"),
        ("postgresql://host/db?user=me&password=se@cret", "postgresql://..."),
        ("postgresql://me:se?cret@host/db", "postgresql://..."),
        ("postgresql://me:secret", "postgresql://..."),
        ("folder/study.log", "folder/study.log"),
    ],
)  # fmt: skip
def test_an_address_is_shown_without_credentials(url: str, expected: str) -> None:
    assert storage.shown(url) == expected


@pytest.mark.parametrize("url", ["postgresql://me:se@cret@host/db", "postgresql://me:secret"])
def test_a_malformed_address_is_refused_without_its_password(url: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="expected postgresql://USER") as raised:
        open_storage(url, tmp_path)
    assert "cret" not in str(raised.value)


def test_an_unreachable_database_is_named_in_time(tmp_path: Path) -> None:
    with socket.socket() as closed, socket.socket() as mute:
        for listener in (closed, mute):
            listener.bind(("127.0.0.1", 0))
        mute.listen()
        for listener, reason in ((closed, "Connection refused"), (mute, "timeout")):
            port = listener.getsockname()[1]
            url = f"postgresql://me:s%40cret@127.0.0.1:{port}/db"
            began = time.monotonic()
            with pytest.raises(StudyError, match=reason) as raised:
                open_storage(url, tmp_path, timeout_s=2)
            assert time.monotonic() - began < 4
            message = str(raised.value)
            assert message.startswith(f"storage postgresql://127.0.0.1:{port}/db cannot be used: ")
            assert "cret" not in message and "\n" not in message


def test_a_database_that_refuses_is_named_with_its_reason(postgres: str, tmp_path: Path) -> None:
    address = postgres.partition("@")[2]
    for url, reason in (
        (f"postgres://parityline:wrong@{address}", "password authentication failed"),
        (f"{postgres}x", 'database "postgresx" does not exist'),
    ):
        with pytest.raises(StudyError, match=reason) as raised:
            open_storage(url, tmp_path)
        assert "wrong" not in str(raised.value) and "\n" not in str(raised.value)


def open_and_say(connection: Connection, url: str) -> None:
    connection.send("ready")
    connection.recv()
    with quiet_optuna():
        connection.send(type(open_storage(url, Path())).__name__)


def test_an_empty_database_can_be_opened_by_several_at_once(postgres: str) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE several")
    url = postgres.removesuffix("postgres") + "several"
    opening = [spawn(open_and_say, url) for _ in range(3)]
    for _, connection in opening:
        assert connection.recv() == "ready"
    for _, connection in opening:
        connection.send("go")
    assert [connection.recv() for _, connection in opening] == ["DatabaseStudies"] * 3
    for process, _ in opening:
        process.join(10)


def test_tables_of_another_optuna_are_refused(postgres: str, tmp_path: Path) -> None:
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("CREATE DATABASE another")
    url = postgres.removesuffix("postgres") + "another"
    opened = open_storage(url.replace("postgresql://", "postgresql+psycopg://"), tmp_path)
    assert PASSWORD not in opened.url
    opened.engine.dispose()
    for revision, way_out in (("v99.0.0.a", "newer Optuna"), ("v3.0.0.a", "storage upgrade")):
        with psycopg.connect(url) as connection:
            connection.execute("UPDATE alembic_version SET version_num = %s", [revision])
        with pytest.raises(StudyError, match=f"found revision {revision}, .*{way_out}"):
            open_storage(url, tmp_path)


def test_a_servers_time_zone_makes_no_trial_stale(postgres: str, shortened: None) -> None:
    """Optuna keeps the session's local time: two sessions must not differ in it."""
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute("ALTER ROLE parityline SET timezone = 'Asia/Tokyo'")
    try:
        study = open_study(postgres, "zones")
        with Heartbeats(study._storage) as heartbeats:
            heartbeats.begin(study.ask()._trial_id)
            with psycopg.connect(postgres, autocommit=True) as connection:
                connection.execute("ALTER ROLE parityline SET timezone = 'Pacific/Auckland'")
            later = open_study(postgres, "zones")
            assert storage.retry_stale(later) == []
    finally:
        with psycopg.connect(postgres, autocommit=True) as connection:
            connection.execute("ALTER ROLE parityline RESET timezone")


def test_a_trial_that_is_tried_again_has_passed_no_rung_yet(place: str) -> None:
    study = open_study(place, "rungs")
    study.enqueue_trial({"lr": 0.5})
    trial = study.ask()
    study._storage.set_trial_system_attr(trial._trial_id, "completed_rung_0", 0.5)
    storage.requeue(study, trial.number, "interrupted")
    waiting = study.trials[1]
    assert waiting.state == TrialState.WAITING and waiting.system_attrs["fixed_params"]
    assert not [name for name in waiting.system_attrs if name.startswith("completed_rung")]
