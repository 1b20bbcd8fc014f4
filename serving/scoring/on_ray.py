"""The same job on a Ray cluster: actors score units, and write the parts themselves.

Input and output lie where all machines see them by the same path or URL. Units, parts and records
are those of a job on one machine, so that either may go on with what the other has begun.
"""

from __future__ import annotations

import json
import logging
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any

from artifacts.errors import DataError
from serving.scoring.scorer import Scorer, Work
from serving.scoring.units import Unit

# Units that an actor has at a time: one that has more would keep them from those that have none.
_UNITS = 1
_CONNECT_S = 10.0


def ray_engine(address: str | None = None) -> Callable[..., None]:
    """An engine for `score`. address: of a cluster that is there; None: one on this machine.

    Raises DataError where Ray is not installed, or the cluster is not there.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise DataError(
            f"--engine ray: {error.name} is not installed: pip install 'parityline[ray]'"
        ) from error

    if address is not None:
        _find(address)

    def run(
        work: Work,
        units: Iterator[Unit],
        count: int,
        done: Callable[[dict[str, Any]], None],
        recorded: set[str],
    ) -> None:
        mine = not ray.is_initialized()
        if mine:
            _connect(address, count)
        try:
            _run(work, units, count, done, recorded)
        finally:
            if mine:
                ray.shutdown()

    def _connect(address: str | None, count: int) -> None:
        local: dict[str, Any] = (
            {} if address else {"num_cpus": max(count, 1), "include_dashboard": False}
        )
        try:
            ray.init(
                address=address, ignore_reinit_error=True, log_to_driver=False,
                logging_level=logging.ERROR, **local,
            )  # fmt: skip
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise DataError(
                f"--address {address}: no cluster is there that lets this user in: {error} "
                "(one that asks for a token: RAY_AUTH_MODE=token, with its token in "
                "~/.ray/auth_token or RAY_AUTH_TOKEN)"
            ) from error

    return run


def _find(address: str) -> None:
    """Raise DataError where nobody listens at HOST:PORT: Ray would wait for minutes."""
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise DataError(f"--address {address}: no cluster is there: {error}") from error


def _run(
    work: Work,
    units: Iterator[Unit],
    count: int,
    done: Callable[[dict[str, Any]], None],
    recorded: set[str],
) -> None:
    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    entries = [{"unit": pickle.dumps(unit)} for unit in units]
    if not entries:
        return
    dataset = ray.data.from_items(entries, override_num_blocks=len(entries))
    gpu: dict[str, Any] = {"num_gpus": 1} if work.device == "cuda" else {"num_cpus": 1}
    scored = dataset.map_batches(
        UnitScorer,
        fn_constructor_kwargs={"work": work, "recorded": frozenset(recorded)},
        batch_size=_UNITS,
        compute=ray.data.ActorPoolStrategy(
            size=min(count, len(entries)), max_tasks_in_flight_per_actor=1
        ),
        **gpu,
    )
    try:
        # Each as soon as it is there, not together with the next.
        for batch in scored.iter_batches(batch_size=None, prefetch_batches=0):
            for text in batch["record"]:
                record = json.loads(text)
                if "failed" in record:
                    raise DataError(record["failed"])
                done(record)
    except ray.exceptions.RayError as error:
        raise DataError(f"--engine ray: {_first_line(error)}") from error


class UnitScorer:
    """An actor: opens the bundle once, checks it on its machine, then scores what it is given."""

    def __init__(self, work: Work, recorded: frozenset[str]) -> None:
        from artifacts.predictor import open_bundle

        predictor = open_bundle(work.bundle, backend=work.backend, device=work.device)
        if predictor.manifest.content_sha256 != work.content_sha256:
            raise DataError(f"{work.bundle}: it is another bundle on this machine")
        self._scorer = Scorer(work, predictor)
        self._recorded = recorded

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """batch: pickled units. Returns what was done, or what went wrong, as JSON."""
        records: list[str] = []
        try:
            units = [pickle.loads(found) for found in batch["unit"]]  # noqa: S301 - our own
            self._scorer.run(units, lambda done: records.append(json.dumps(done)), self._recorded)
        except DataError as error:
            records.append(json.dumps({"failed": str(error)}))
        return {"record": records}


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return lines[-1]
