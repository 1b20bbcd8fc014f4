"""A study in PostgreSQL: Optuna's tables, which workers of several machines share."""

from __future__ import annotations

import contextlib
import math
import os
import re
import warnings
import weakref
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import RDBStorage

from training.tuning.journal import StudyError

if TYPE_CHECKING:
    from sqlalchemy import Engine

# By the database's clock: how often a worker gives a sign of life, and how old one may be.
HEARTBEAT_S = 15
STALE_AFTER_S = 60
# A connection whose other end has gone without a word is given up, instead of waited for.
_PATIENCE = {
    "keepalives_idle": 20, "keepalives_interval": 5, "keepalives_count": 3,
    "tcp_user_timeout": 30_000,
}  # fmt: skip
# Of our advisory locks there: any number that other programs are unlikely to use.
_LOCK = 0x7061726C


def shown(url: str) -> str:
    """The address without user, password and options, for messages; a path as it is."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url
    address, _, options = rest.partition("?")
    # All up to the last @, for a password may hold one, unquoted; where it may go on beyond what
    # looks like the options, or what is left looks like no host and database, nothing is shown.
    host = address.rpartition("@")[2]
    plain = re.fullmatch(r"(\[[\da-fA-F:.]*\]|[^:/\[\]]*)(:\d*)?(/[^#]*)?", host)
    return f"{scheme}://{'...' if '@' in options or not plain else host}"


class DatabaseStudies(RDBStorage):
    """Studies in Optuna's tables, with heartbeats."""

    def _get_stale_trial_ids(self, study_id: int) -> list[int]:
        from sqlalchemy import text

        # A worker that died before its first sign of life is given one, by the database's clock;
        # Optuna alone would take it for alive for ever.
        query = text(
            "SELECT trial_id FROM trials WHERE study_id = :study AND state = 'RUNNING'"
            " AND trial_id NOT IN (SELECT trial_id FROM trial_heartbeats)"
        )
        with self.engine.begin() as connection:
            silent = list(connection.scalars(query, {"study": study_id}))
        for trial_id in silent:
            self.record_heartbeat(trial_id)
        return super()._get_stale_trial_ids(study_id)

    @contextlib.contextmanager
    def sweeping(self, study_id: int) -> Iterator[bool]:
        """Whether this one may look for the dead now: False while another process does."""
        from sqlalchemy import text

        # The lock goes with the transaction, and that with the connection of a dead process.
        query = text("SELECT pg_try_advisory_xact_lock(:program, :study)")
        with self.engine.begin() as connection:
            yield bool(connection.scalar(query, {"program": _LOCK, "study": study_id}))


def open_database(url: str, timeout_s: float) -> DatabaseStudies:
    """The studies of an existing database, in which Optuna's tables are made where they miss.

    timeout_s: for connecting, of each of the host's addresses; 2 at least.
    Raises StudyError, one line without the URL's credentials.
    """
    import sqlalchemy
    from sqlalchemy.exc import SQLAlchemyError

    text, arguments = _address(url)
    arguments["connect_timeout"] = max(2, math.ceil(timeout_s))
    try:
        engine = sqlalchemy.create_engine(
            text, connect_args=arguments, poolclass=sqlalchemy.NullPool
        )
        lock = sqlalchemy.text("SELECT pg_advisory_xact_lock(:program)")
        # In turn, for two processes that make the same tables at once get in each other's way.
        with quiet_optuna(), engine.begin() as connection:
            connection.execute(lock, {"program": _LOCK})
            storage = DatabaseStudies(
                # Optuna fills in what is in braces.
                text.replace("{", "{{").replace("}", "}}"),
                # A database that was restarted is connected to anew.
                engine_kwargs={"connect_args": arguments, "pool_pre_ping": True},
                skip_compatibility_check=True,
                heartbeat_interval=HEARTBEAT_S,
                grace_period=STALE_AFTER_S,
            )
            # Its pool is its own, and not a fork's.
            weakref.finalize(storage, _dispose, storage.engine, os.getpid()).atexit = False
        found, expected = storage.get_current_version(), storage.get_head_version()
    except (SQLAlchemyError, StorageInternalError, ImportError) as error:
        raise StudyError(f"storage {shown(url)} cannot be used: {_innermost(error)}") from error
    if found != expected:
        way_out = "of a newer Optuna, or another program's: use another database"
        if found in storage.get_all_versions():
            way_out = "of an older one, which `optuna storage upgrade` brings up to date"
        raise StudyError(
            f"storage {shown(url)}: expected the tables of Optuna {optuna.__version__}, revision "
            f"{expected}, found revision {found}, {way_out}"
        )
    return storage


def _address(url: str) -> tuple[str, dict[str, Any]]:
    """SQLAlchemy's URL, without the password, and psycopg's arguments, with it.

    So neither Optuna, which keeps the URL, nor an error of SQLAlchemy's has it to tell.
    """
    import sqlalchemy
    from sqlalchemy.exc import ArgumentError

    try:
        address = sqlalchemy.make_url(url)
    except (ArgumentError, ValueError):
        address = None
    # An @ in the host is a part of the password.
    if address is None or "@" in (address.host or ""):
        raise StudyError(
            f"storage {shown(url)}: expected postgresql://USER:PASSWORD@HOST:PORT/DATABASE, in "
            "whose password @ : / ? # and % are written %40 %3A %2F %3F %23 and %25"
        )
    # Optuna compares local times of the database: a change to summer time would kill all workers.
    options = f"{address.query.get('options', '')} -c timezone=UTC".strip()
    arguments: dict[str, Any] = {**_PATIENCE, "options": options}
    if address.password is not None:
        arguments["password"] = address.password
    query = {key: value for key, value in address.query.items() if key != "options"}
    plain = sqlalchemy.URL.create(
        "postgresql+psycopg", username=address.username, host=address.host, port=address.port,
        database=address.database, query=query,
    )  # fmt: skip
    return plain.render_as_string(), arguments


def _dispose(engine: Engine, process: int) -> None:
    if os.getpid() == process:
        engine.dispose()


def _innermost(error: BaseException) -> str:
    """The first cause's message, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or repr(error)


@contextlib.contextmanager
def quiet_optuna() -> Iterator[None]:
    """Without Optuna's notes and its warnings of what this package does on purpose.

    For a main thread: warnings are filtered for the whole process.
    """
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(max(verbosity, optuna.logging.WARNING))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            # `training.tuning.storage.Heartbeats` gives what `optimize` would.
            message = r"Heartbeat of storage is supposed to be used with Study\.optimize"
            warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
