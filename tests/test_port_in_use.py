"""An address where nobody can listen is said before anything else, in one line."""

from __future__ import annotations

import socket
from pathlib import Path

from tests.conftest import parityline


def refused(store: Path, *where: str) -> str:
    done = parityline("serve", "digits", "--device", "cpu", *where, PARITYLINE_STORE=str(store))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "curl" not in done.stdout
    return done.stderr


def test_a_port_that_is_taken_is_named_without_a_traceback(store: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = refused(store, "--port", str(port))
    assert f"port {port}: expected a free port on 127.0.0.1, found one in use; --port" in said


def test_an_address_of_another_machine_is_named(store: Path) -> None:
    assert "host 203.0.113.1, port 3000: expected an address of this machine" in refused(
        store, "--host", "203.0.113.1"
    )
