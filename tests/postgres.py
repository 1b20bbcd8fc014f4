"""A PostgreSQL server of one's own for a test: with postgres_server(folder) as url."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from tests.conftest import free_port

USER, PASSWORD, DATABASE = "parityline", "p@ss/w%rd{1}:?#", "postgres"


def _program(name: str) -> str:
    """Debian keeps them off the PATH. The newest version's; skips the test where it is missing."""
    versions = sorted(
        Path("/usr/lib/postgresql").glob(f"*/bin/{name}"),
        key=lambda path: float(path.parent.parent.name),
    )
    found = str(versions[-1]) if versions else shutil.which(name)
    if found is None:
        pytest.skip(f"PostgreSQL's {name} is not installed (Debian's package postgresql)")
    return found


def _owner() -> str | None:
    """Whom the server runs as: it refuses root. None for the user who runs the tests."""
    if os.geteuid() != 0:
        return None
    import pwd

    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


@contextlib.contextmanager
def postgres_server(folder: Path) -> Iterator[str]:
    """The URL, password included, of an empty database on 127.0.0.1; its log is in `folder`.

    The server and its files are gone afterwards. Skips where PostgreSQL is not installed.
    """
    initdb, postgres = _program("initdb"), _program("postgres")
    owner = _owner()
    # Not in `folder`: pytest's are closed to other users, and a socket's path may not be long.
    home = Path(tempfile.mkdtemp(prefix="postgres-"))
    secret = home / "password"
    secret.write_text(PASSWORD)
    if owner is not None:
        for path in (home, secret):
            shutil.chown(path, owner)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    as_owner = {"user": owner, "extra_groups": [] if owner else None, "cwd": home}
    port, log = free_port(), folder / "postgres.log"
    cluster = ["-D", str(home / "data")]
    server = None
    try:
        with log.open("w") as output:
            common = {"stdout": output, "stderr": output, "env": environment, **as_owner}
            subprocess.run(
                [initdb, *cluster, "--no-sync", "--locale=C", "--encoding=UTF8",
                 f"--username={USER}", f"--pwfile={secret}", "--auth=scram-sha-256"],
                check=True, **common,
            )  # fmt: skip
            server = subprocess.Popen(
                [postgres, *cluster, "-h", "127.0.0.1", "-p", str(port), "-k", str(home),
                 "-F", "-c", "shared_buffers=16MB", "-c", "max_connections=30"],
                **common,
            )  # fmt: skip
        _wait_until_ready(server, port, log)
        yield f"postgresql://{USER}:{quote(PASSWORD, safe='')}@127.0.0.1:{port}/{DATABASE}"
    finally:
        if server is not None:
            # "Immediate": whoever is connected, and without a last checkpoint.
            server.send_signal(signal.SIGQUIT)
            server.wait(timeout=30)
        shutil.rmtree(home, ignore_errors=True)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        with contextlib.suppress(psycopg.OperationalError):
            psycopg.connect(
                host="127.0.0.1", port=port, user=USER, password=PASSWORD, dbname=DATABASE
            ).close()
            return
        time.sleep(0.05)
    raise AssertionError(f"PostgreSQL is not ready:\n{log.read_text()}")
