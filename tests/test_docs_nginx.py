"""The page on nginx, with a real one: TLS, tokens, sizes, a path, two services without a gap."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.conftest import ROOT, Server, free_port, start_server, stop_server, wait_until_ready
from tests.documented import blocks

PAGE = ROOT / "docs" / "pages" / "how-to" / "nginx.md"
TOKEN = "a-token-of-some-length"
HOST = "classify.example.org"
# Debian's nginx is where only root's PATH looks.
NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(
    NGINX is None or shutil.which("openssl") is None, reason="nginx or openssl is not installed"
)


def configuration(name: str) -> str:
    """What the page calls by this name."""
    return next(block.text for block in blocks(PAGE, "nginx") if block.title == name)


@contextlib.contextmanager
def nginx(folder: Path, text: str, *, run: bool = True) -> Iterator[str]:
    """A real nginx with the page's configuration, its certificate and port in `folder`; its URL."""
    port = free_port()
    key, certificate = folder / "classify.key", folder / "classify.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key,
         "-out", certificate, "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}"],
        check=True, capture_output=True,
    )  # fmt: skip
    text = text.replace("listen 443 ssl", f"listen 127.0.0.1:{port} ssl")
    text = text.replace("/etc/ssl/certs/classify.pem", str(certificate))
    text = text.replace("/etc/ssl/private/classify.key", str(key))
    places = "".join(
        f"{place}_temp_path {folder}/{place};\n"
        for place in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    main = folder / "nginx.conf"
    # Started by root its workers would be another user, to whom pytest's folders are closed.
    user = "user root;" if os.geteuid() == 0 else ""
    main.write_text(
        f"{user} daemon off; pid {folder}/pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{ access_log {folder}/access.log;\n{places}{text}\n}}\n"
    )
    command = [NGINX, "-c", str(main), "-e", str(folder / "error.log")]
    checked = subprocess.run([*command, "-t"], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    if not run:
        yield ""
        return
    process = subprocess.Popen(command)
    try:
        yield f"https://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGQUIT)
        process.wait(timeout=30)


def client(url: str, folder: Path, **headers: str) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(folder / "classify.pem"))
    context.check_hostname = False  # it is asked for by its address
    return httpx.Client(
        base_url=url, verify=context, timeout=60, headers={"Host": HOST, **headers}, trust_env=False
    )


def service(folder: Path, store: Path, name: str, **environment: str) -> Server:
    (folder / "tokens").write_text(f"# ours\n{TOKEN}\n")
    return start_server(
        folder / f"{name}.log", PARITYLINE_STORE=str(store), PARITYLINE_BUNDLE="breast-cancer",
        PARITYLINE_TOKENS=str(folder / "tokens"), **environment,
    )  # fmt: skip


def behind(text: str, *servers: Server) -> str:
    """A configuration with these services in place of the page's."""
    for port, server in zip((3000, 3001), servers, strict=False):
        text = text.replace(f"127.0.0.1:{port}", server.url.removeprefix("http://"))
    return text


def bodies(store: Path) -> dict[str, object]:
    from artifacts.bundle import read_bundle
    from artifacts.example import example_instance
    from artifacts.references import resolve

    bundle = read_bundle(resolve(store, "breast-cancer"))
    return {"instances": [example_instance(bundle.manifest, bundle.golden())]}


@pytest.mark.parametrize("extra", ["", "two.conf", "path.conf", "retry.conf"])
def test_nginx_takes_each_configuration_of_the_page(tmp_path: Path, extra: str) -> None:
    text = configuration("parityline.conf")
    if extra == "two.conf":
        text = re.sub(r"upstream classifier \{.*?\n\}", configuration(extra), text, flags=re.DOTALL)
    elif extra:
        text = text.replace("    location / {", f"{configuration(extra)}\n    location / {{", 1)
    with nginx(tmp_path, text, run=False):
        pass


@pytest.mark.slow
def test_a_service_behind_it_has_tls_tokens_and_limits(store: Path, tmp_path: Path) -> None:
    server = service(tmp_path, store, "one", PARITYLINE_READ_TIMEOUT_S="1")
    try:
        text = behind(configuration("parityline.conf"), server)
        text = text.replace(
            "    location / {", configuration("path.conf") + "\n    location / {", 1
        )
        with nginx(tmp_path, text) as url:
            wait_until_ready(server)
            bearer = {"Authorization": f"Bearer {TOKEN}"}
            with client(url, tmp_path) as anyone, client(url, tmp_path, **bearer) as known:
                assert anyone.get("/readyz").status_code == 200
                assert anyone.post("/predict", json=bodies(store)).status_code == 401
                answer = known.post("/predict", json=bodies(store))
                assert answer.status_code == 200 and answer.json()["predictions"]
                assert known.get("/metrics").status_code == 200
                # The page shows the address that the caller used.
                assert f"https://{HOST}/predict" in known.get("/").text
                # Below a path, the page's links too.
                below = known.post("/iris/predict", json=bodies(store))
                assert below.content == answer.content
                assert known.get("/iris/docs.json").json()["servers"] == [{"url": "."}]
                # A large body passes nginx: it is the service that looks at what is in it. A larger
                # one is refused in JSON, as the service itself would.
                large = known.post("/predict", content=b"[" + b" " * (20 * 2**20) + b"]")
                assert large.status_code == 400
                larger = known.post("/predict", content=b" " * (33 * 2**20))
                assert larger.status_code == 413 and "32 MiB" in larger.json()["error"]
                # A slow caller's body comes to the service at once; without nginx it is cut off.
                slow = known.post("/predict", content=_slowly(known, store))
                assert slow.status_code == 200
                with httpx.Client(base_url=server.url, headers=bearer, timeout=60) as direct:
                    slow = direct.post("/predict", content=_slowly(direct, store))
                assert slow.status_code == 408
            log = (tmp_path / "error.log").read_text()
            assert "[emerg]" not in log and "[crit]" not in log, log
    finally:
        stop_server(server)


def _slowly(known: httpx.Client, store: Path) -> Iterator[bytes]:
    body = known.build_request("POST", "/predict", json=bodies(store)).content
    for start in range(0, len(body), len(body) // 4 + 1):
        time.sleep(0.6)
        yield body[start : start + len(body) // 4 + 1]


@pytest.mark.slow
def test_of_two_services_each_can_be_replaced_without_a_failed_request(
    store: Path, tmp_path: Path
) -> None:
    servers = [service(tmp_path, store, name, PARITYLINE_GRACE_S="1") for name in ("one", "two")]
    text = re.sub(
        r"upstream classifier \{.*?\n\}", configuration("two.conf"),
        configuration("parityline.conf"), flags=re.DOTALL,
    )  # fmt: skip
    text = text.replace(
        "        proxy_pass http://classifier;",
        f"        {configuration('retry.conf')}        proxy_pass http://classifier;", 1,
    )  # fmt: skip
    statuses: list[int] = []
    done = threading.Event()
    try:
        for server in servers:
            wait_until_ready(server)
        with nginx(tmp_path, behind(text, *servers)) as url:

            def ask() -> None:
                with client(url, tmp_path, Authorization=f"Bearer {TOKEN}") as known:
                    while not done.is_set():
                        statuses.append(known.post("/predict", json=bodies(store)).status_code)

            callers = [threading.Thread(target=ask) for _ in range(4)]
            for caller in callers:
                caller.start()
            try:
                time.sleep(1)
                assert stop_server(servers[0]) == 0
                before = len(statuses)
                time.sleep(1)
                # The other answers alone.
                assert len(statuses) > before + 10
            finally:
                done.set()
                for caller in callers:
                    caller.join()
    finally:
        for server in servers:
            stop_server(server)
    assert set(statuses) == {200} and len(statuses) > 50
