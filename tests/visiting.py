"""What a person does on the page, and whether what it shows is the API's answer."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from playwright.sync_api import Locator, Page, Request, expect


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
