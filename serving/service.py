"""The BentoML service: one verified bundle behind the routes of `serving.routes`.

    PARITYLINE_BUNDLE=digits bentoml serve

Each worker verifies the bundle and replays its golden rows before it is ready; the process that
starts the workers does the same first, so that a bad bundle ends the command with one line.
"""

from __future__ import annotations

import os

import bentoml
import click
import uvicorn.config

from serving.lifecycle import lifespan, open_prepared
from serving.routes import SERVICE, build_app
from serving.rundir import RunDirectory
from serving.selfcheck import reference_of
from serving.settings import read_settings
from serving.supervisor import supervise, worker_count, worker_environment

app = build_app(lifespan)
# BentoML's workers run uvicorn with this choice, in which connections are ours.
uvicorn.config.HTTP_PROTOCOLS["auto"] = "serving.connection:Connection"


@bentoml.service(
    name=SERVICE,
    workers=worker_count(),
    # One line a request costs a third of the throughput; /metrics counts them all.
    logging={"access": {"enabled": False}},
    # Ours are at /metrics: BentoML's have a series for each path that anybody asks for.
    metrics={"enabled": False},
    # Times are kept to by connections; BentoML's clock would count an upload's time too.
    traffic={"timeout": 24 * 3600},
    envs=[{"name": "OTEL_SDK_DISABLED", "value": os.environ.get("OTEL_SDK_DISABLED", "true")}],
)
@bentoml.asgi_app(app, path="/")
class Classifier:
    """Predicts with the bundle that $PARITYLINE_BUNDLE names, or the store's only one."""

    def __init__(self) -> None:
        """Load, verify and check the model; BentoML opens the routes after this."""
        os.environ.update(worker_environment())
        settings = read_settings()
        directory = RunDirectory.of_environment()
        reference = reference_of(settings) if directory is None else directory.orders_now().serve
        app.state.settings = settings
        app.state.serves = reference
        app.state.prepared = open_prepared(reference, settings)

    async def __is_ready__(self) -> bool:
        """For /readyz: not while the process drains."""
        return not app.state.worker.draining

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_before_workers() -> None:
        """In the process that starts the workers: refuse a bad bundle, then watch over them."""
        context = click.get_current_context(silent=True)
        supervise(context.params if context else {})
