"""`parityline serve`: the same service as `bentoml serve`, with its settings as options."""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections.abc import Mapping

from artifacts.errors import DataError
from serving.settings import as_environment


def _check_free(host: str, port: int) -> None:
    """Raise DataError where nothing can listen there: BentoML would end with a traceback."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except socket.gaierror as error:
        raise DataError(f"--host {host}: expected an address of this machine: {error}") from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise DataError(
                f"--port {port}: expected a free port on {host}, found one in use; --port takes "
                "another"
            ) from error
        raise DataError(
            f"--host {host} --port {port}: expected an address of this machine: {error.strerror}"
        ) from error


def launch(*, host: str, port: int, chosen: Mapping[str, object]) -> None:
    """Become `bentoml serve`; does not return.

    chosen: settings by name (`serving.settings.Settings`); None leaves one to the environment.
    """
    import bentoml  # noqa: F401  (missing where the extra is: said before this process is gone)

    _check_free(host, port)
    os.environ.update(as_environment(chosen))
    arguments = ["serve", "serving.service:Classifier", "--host", host, "--port", str(port)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "bentoml", *arguments])  # noqa: S606
