"""What a person does on the page, and whether what it shows is the API's answer.

The fixtures go into a test module by their names, with `tests.browser.browser`.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Request, expect

from artifacts.predictor import Predictor
from tests.listening import listening
from tests.pages import mixed

Visit = Callable[..., Page]
_PATIENCE_MS = 20_000


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    """A function that opens a URL; nothing may go to another host, or be said on the console.

    refused: whether requests are to be refused, of which Chromium tells the console.
    """
    expect.set_options(timeout=_PATIENCE_MS)
    problems: list[str] = []
    contexts = []

    def opened(url: str, *, refused: bool = False, **options: Any) -> Page:
        context = browser.new_context(**options)
        contexts.append(context)
        context.set_default_timeout(_PATIENCE_MS)
        page = context.new_page()

        def said(message: Any) -> None:
            if not (refused and "Failed to load resource" in message.text):
                problems.append(f"console: {message.text}")

        def sent(request: Request) -> None:
            if not request.url.startswith((f"{url}/", "blob:", "data:")):
                problems.append(f"request: {request.url}")

        page.on("console", said)
        page.on("pageerror", lambda error: problems.append(f"error: {error}"))
        page.on("request", sent)
        page.on("dialog", lambda dialog: problems.append(f"dialog: {dialog.message}"))
        page.goto(f"{url}/")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert not problems


@pytest.fixture(scope="module")
def table(cancer: Predictor) -> Predictor:
    """A model of every type of column."""
    return mixed(cancer)


# One such service at a time: its connections are of one class.
@pytest.fixture
def table_url(table: Predictor) -> Iterator[str]:
    """Its service."""
    with listening(table) as server:
        yield f"http://127.0.0.1:{server.port}"


def shown(page: Page) -> dict[str, float]:
    """The bars by label, in the numbers that the answer had."""
    everything = page.get_by_role("button", name="labels", exact=False)
    if everything.count():
        everything.click()
    labels = page.locator(".bar-label").all_text_contents()
    values = page.locator(".bar-value").evaluate_all(
        "bars => bars.map(bar => Number(bar.dataset.probability))"
    )
    return dict(zip(labels, values, strict=True))


def asked(page: Page, act: Callable[[], object], path: str = "/predict") -> Request:
    """The request for a prediction that something on the page makes, answered and shown."""
    with page.expect_response(lambda response: response.url.endswith(path)) as answered:
        act()
    # Busy since before it was sent.
    expect(page.locator("#answer")).not_to_have_attribute("aria-busy", "true")
    return answered.value.request


def is_the_apis(page: Page, request: Request, body: bytes | None = None) -> dict[str, Any]:
    """Whether the page shows the very answer that the same request gets; returns it.

    body: of a file, which Chromium does not tell.
    """
    kind = {"Content-Type": request.headers.get("content-type", "")}
    content = body or request.post_data_buffer
    answer = httpx.post(request.url, content=content, headers=kind).json()
    (prediction,) = answer["predictions"]
    assert shown(page) == prediction["probabilities"]
    expect(page.locator(".outcome .label")).to_have_text(prediction["label"])
    expect(page.locator("#answer .meta")).to_contain_text("ms")
    return prediction


def run_curl(page: Page) -> Any:
    """What the shown command answers."""
    page.locator("#answer summary").first.click()
    line = page.locator("#answer pre").first.text_content()
    done = subprocess.run(["bash", "-c", line], capture_output=True, check=True, timeout=30)
    return json.loads(done.stdout)


def is_copied(page: Page) -> None:
    """Whether the button beside the shown command copies it, with a clipboard and without."""
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    line = page.locator("#answer pre").first.text_content()
    for secure in (True, False):
        page.evaluate("navigator.clipboard.writeText('before')")
        page.evaluate(
            "value => Reflect.defineProperty(self, 'isSecureContext', {value, configurable: true})",
            secure,
        )
        page.locator("#answer").get_by_role("button", name="Cop").first.click()
        expect(page.locator("#answer .copy").first).to_have_text("Copied")
        assert page.evaluate("navigator.clipboard.readText()") == line
        expect(page.locator("#answer .copy").first).to_have_text("Copy")


def has_focus(place: Locator) -> None:
    """Waits until it is what the keyboard types into, or would if its window were in front."""
    for _ in range(200):
        if place.evaluate("element => element === document.activeElement"):
            return
        place.page.wait_for_timeout(50)
    raise AssertionError(f"expected the focus at {place}")


def drop(place: Locator, *files: tuple[str, str, bytes]) -> None:
    """Drop files, each a name, a type and its bytes, as from a folder."""
    transfer = place.page.evaluate_handle(
        """files => {
            const transfer = new DataTransfer();
            for (const [name, type, bytes] of files) {
                transfer.items.add(new File([new Uint8Array(bytes)], name, { type }));
            }
            return transfer;
        }""",
        [[name, kind, list(data)] for name, kind, data in files],
    )
    for event in ("dragover", "drop"):
        place.dispatch_event(event, {"dataTransfer": transfer})


def drop_from_disk(place: Locator, path: Path) -> None:
    """Drop what lies there, file or folder, as the system's file manager does."""
    place.scroll_into_view_if_needed()
    box = place.bounding_box()
    data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
    session = place.page.context.new_cdp_session(place.page)
    for event in ("dragEnter", "dragOver", "drop"):
        where = {"x": box["x"] + 9, "y": box["y"] + 9}
        session.send("Input.dispatchDragEvent", {"type": event, **where, "data": data})


@contextmanager
def prefixed(port: int) -> Iterator[str]:
    """A reverse proxy that serves the service below a path."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            path = self.path.removeprefix("/models/one")
            answer = httpx.request(self.command, f"http://127.0.0.1:{port}{path}", content=body)
            self.send_response(answer.status_code)
            for name in ("Content-Type", "Content-Security-Policy"):
                if name in answer.headers:
                    self.send_header(name, answer.headers[name])
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        threading.Thread(target=proxy.serve_forever).start()
        yield f"http://127.0.0.1:{proxy.server_port}/models/one"
        proxy.shutdown()
