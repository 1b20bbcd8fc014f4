"""The BentoML service: one verified bundle behind the routes of `serving.routes`.

    PARITYLINE_BUNDLE=digits bentoml serve

Each worker verifies the bundle and replays its golden rows before it is ready; the process that
starts the workers does the same first, so that a bad bundle ends the command with one line.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import bentoml
import click

from serving.routes import build_app, serve_model
from serving.selfcheck import open_served
from serving.settings import read_settings

_URL = "PARITYLINE_URL"

app = build_app()


@bentoml.service(
    name="Classifier",
    # One line a request costs a third of the throughput; /metrics counts them all.
    logging={"access": {"enabled": False}},
    traffic={"timeout": 60},
    envs=[{"name": "OTEL_SDK_DISABLED", "value": os.environ.get("OTEL_SDK_DISABLED", "true")}],
)
@bentoml.asgi_app(app, path="/")
class Classifier:
    """Predicts with the bundle that $PARITYLINE_BUNDLE names, or the store's only one."""

    def __init__(self) -> None:
        """Load, verify and check the model; BentoML opens the routes after this."""
        settings = read_settings()
        app.state.model = serve_model(open_served(settings), settings)
        # What start-up made stays for ever: without it in the collector's way, a full
        # collection does not stop requests for 100 ms.
        gc.collect()
        gc.freeze()

    @bentoml.on_deployment  # type: ignore[untyped-decorator]
    @staticmethod
    def check_before_workers() -> None:
        """In the process that starts the workers: refuse a bad bundle, say where to call."""
        context = click.get_current_context(silent=True)
        port = context.params.get("port") if context else None
        if port:
            os.environ.setdefault(_URL, f"http://localhost:{port}")
        # A process of its own, so that this one holds no model and no CUDA context for ever.
        command = [sys.executable, "-m", "serving.selfcheck", os.environ.get(_URL, "")]
        status = subprocess.run(command, check=False).returncode
        if status != 0:
            raise SystemExit(status)
