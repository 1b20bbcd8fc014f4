"""A port that another process has is said before anything else, in one line."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.usefixtures("use_store")
def test_a_port_that_is_taken_is_named_without_a_traceback() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [sys.executable, "-m", "parityline", "serve", "digits", "--device", "cpu"]
        done = subprocess.run(
            [*command, "--port", str(port)],
            cwd=ROOT, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 1
    assert f"error: port {port} of 127.0.0.1: expected one that is free" in done.stderr
    assert "Traceback" not in done.stderr and "curl" not in done.stdout
