"""Where a study lies, a journal or PostgreSQL, and what becomes of the trials of dead workers.

storage = open_storage(None, Path("study"))
with quiet_optuna(), Heartbeats(storage) as heartbeats:
    study = optuna.create_study(storage=storage, study_name="digits", load_if_exists=True)
    retry_stale(study)
    trial = study.ask()
    heartbeats.begin(trial._trial_id)
    study.tell(trial, 0.5)
    heartbeats.end(trial._trial_id)
"""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage, _CachedStorage
from optuna.storages._heartbeat import BaseHeartbeat
from optuna.trial import FrozenTrial, TrialState

from training.tuning.database import DatabaseStudies, open_database, quiet_optuna, shown
from training.tuning.journal import JournalStudies, StudyError

__all__ = [
    "COPY_OF",
    "MOST_RETRIES",
    "Heartbeats",
    "StudyError",
    "open_storage",
    "quiet_optuna",
    "requeue",
    "retry_stale",
    "shown",
]

# How often a trial is tried again whose worker died: it may be the trial that kills its worker.
MOST_RETRIES = 2
JOURNAL = "journal.log"
_REASON = "reason"
_RUNG = "completed_rung_"  # Optuna's successive halving
# System attributes of a copy: whose it is, and (Optuna's own name) the dead tries before it.
COPY_OF, _HISTORY = "parityline:copy_of", "retry_history"


def open_storage(url: str | None, folder: Path, *, timeout_s: float = 10.0) -> BaseStorage:
    """The storage at `url`, opened for this process alone: a fork opens its own.

    url: None for the journal in `folder`, which is made; the path of a journal; or postgresql://
    (postgres://, postgresql+psycopg://), an existing database, whose tables are made.
    timeout_s: for connecting, of each of the host's addresses; 2 at least.
    Raises StudyError, one line without the URL's credentials, for anything else and for what
    cannot be used as it is.
    """
    if url is not None and "://" in url:
        scheme = url.partition("://")[0].lower()
        if scheme in ("postgres", "postgresql", "postgresql+psycopg"):
            return open_database(url, timeout_s)
        why = "; SQLite is no good for several workers" if scheme.startswith("sqlite") else ""
        raise StudyError(
            f"storage {shown(url)}: expected a journal file (a path; for one machine) or "
            f"PostgreSQL (postgresql://USER:PASSWORD@HOST/DATABASE; across machines){why}"
        )
    path = folder / JOURNAL if url is None else Path(url)
    try:
        if url is None:
            folder.mkdir(parents=True, exist_ok=True)
        return JournalStudies(path)
    except OSError as error:
        raise StudyError(f"{path}: no study can lie here: {error.strerror or error}") from error
    except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise StudyError(f"{path}: not a journal of this Optuna's: {error!r}") from error


class Heartbeats:
    """Says, while in the context, that this process works on the trials that it has begun.

    Nothing here raises for the storage's sake: a database may be away for a while, and when it
    stays away the worker's own next word to it fails.
    """

    def __init__(self, storage: BaseStorage) -> None:
        self._storage = storage
        # None, where a storage knows of no heartbeats, as one in memory: nothing is done.
        self._interval_s = (
            storage.get_heartbeat_interval() if isinstance(storage, BaseHeartbeat) else None
        )
        self._begun: set[int] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep_on, name="heartbeats", daemon=True)

    def begin(self, trial_id: int) -> None:
        """Right after the trial was asked for."""
        self._begun.add(trial_id)
        self._beat(trial_id)

    def end(self, trial_id: int) -> None:
        """After the trial's value or state was told: one that runs and has no worker is stale."""
        self._begun.discard(trial_id)
        if isinstance(self._storage, JournalStudies):
            self._storage.end_heartbeat(trial_id)

    def __enter__(self) -> Heartbeats:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        # Not for ever: it may be waiting for a database that is away.
        self._thread.join(timeout=1)
        for trial_id in tuple(self._begun):
            self.end(trial_id)

    def _keep_on(self) -> None:
        while not self._over.wait(self._interval_s):
            for trial_id in tuple(self._begun):
                self._beat(trial_id)
                if trial_id not in self._begun:  # it ended meanwhile
                    self.end(trial_id)

    def _beat(self, trial_id: int) -> None:
        if self._interval_s is not None:
            with contextlib.suppress(Exception):
                self._storage.record_heartbeat(trial_id)


def retry_stale(study: optuna.Study) -> list[int]:
    """Fail the running trials of dead workers and put each back into the queue; their numbers.

    The copy waits with the same parameters and attributes; a trial whose worker died oftener than
    MOST_RETRIES times stays failed. The user attribute "reason" says which. Each is put back once,
    however many processes call this and wherever one is killed: while one is at it, the others
    find nothing. A worker's death shows after 5 s of its trial in a journal, after 60 s
    in PostgreSQL: call this now and then.
    """
    storage = study._storage
    beneath = storage._backend if isinstance(storage, _CachedStorage) else storage
    if not isinstance(beneath, JournalStudies | DatabaseStudies):
        return []
    put_back = []
    with beneath.sweeping(study._study_id) as ours:
        for trial_id in beneath._get_stale_trial_ids(study._study_id) if ours else ():
            trial = storage.get_trial(trial_id)
            # Told between the two looks, by a worker that ended then.
            if trial.state != TrialState.RUNNING:
                continue
            deaths = [*trial.system_attrs.get(_HISTORY, []), trial.number]
            if len(deaths) > MOST_RETRIES:
                _fail(study, trial, f"its worker died ({len(deaths)} times)")
                continue
            copy = _copy(study, trial, {_HISTORY: deaths})
            if _fail(study, trial, f"its worker died; tried again as trial {copy}"):
                put_back.append(trial.number)
    return put_back


def requeue(study: optuna.Study, trial_number: int, reason: str) -> None:
    """Fail a running trial of one's own for this reason, and put it back into the queue.

    This does not count as a retry. Nothing happens to a trial that is finished.
    """
    storage = study._storage
    trial_id = storage.get_trial_id_from_study_id_trial_number(study._study_id, trial_number)
    trial = storage.get_trial(trial_id)
    if trial.state.is_finished():
        return
    _copy(study, trial, {})
    _fail(study, trial, reason)


def _copy(study: optuna.Study, trial: FrozenTrial, system_attrs: dict[str, Any]) -> int:
    """The number of the trial's waiting copy, which is made where it is not there yet.

    It comes before the failure: killed in between, the next one to look finds both.
    """
    for other in study.get_trials(deepcopy=False):
        if other.system_attrs.get(COPY_OF) == trial.number:
            return other.number
    user_attrs = {key: value for key, value in trial.user_attrs.items() if key != _REASON}
    template = optuna.trial.create_trial(
        state=TrialState.WAITING,
        params=trial.params,
        distributions=trial.distributions,
        user_attrs=user_attrs,
        # With fixed_params, and a grid's place; without what the pruner noted of its progress.
        system_attrs={
            **{k: v for k, v in trial.system_attrs.items() if not k.startswith(_RUNG)},
            **system_attrs,
            COPY_OF: trial.number,
        },
    )
    trial_id = study._storage.create_new_trial(study._study_id, template_trial=template)
    return study._storage.get_trial(trial_id).number


def _fail(study: optuna.Study, trial: FrozenTrial, reason: str) -> bool:
    """False where the trial's worker has finished it at the last moment after all."""
    try:
        study._storage.set_trial_user_attr(trial._trial_id, _REASON, reason)
        study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    except UpdateFinishedTrialError:
        return False
    return True
