"""What the page is made of: facts, escaping, headers, files; test_page_browser: in a browser."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markupsafe import Markup

from artifacts.bundle import Golden
from artifacts.inputs import ImageInput
from artifacts.manifest import REPORT
from artifacts.pixels import decode_image
from artifacts.predictor import Predictor
from serving.page import Page
from serving.page.examples import choose_examples, drawing
from serving.page.files import STATIC
from serving.page.markup import fill, script_json
from serving.settings import Settings
from tests.listening import get, listening
from tests.pages import BREAKING, mixed, wide
from tests.test_routes import app_of


class Parsed(HTMLParser):
    """The elements with their attributes, the texts, and what script elements hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.scripts: list[str] = []
        self._open = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        (self.scripts if self._open == "script" else self.texts).append(data)

    def data(self) -> Any:
        (found,) = (text for text in self.scripts if text.strip())
        return json.loads(found)


def page_of(predictor: Predictor, **settings: Any) -> str:
    page = Page(predictor, Settings(**settings), max_rows=100)
    return page.render("http://here").decode()


TEXTS = st.text(st.characters(codec="utf-8"), max_size=40) | st.sampled_from(
    ["</script>", "<!--<script>", BREAKING, "\u2028", "$name", "${x}", "&lt;", "]]>", "\\u003c"]
)


@settings(max_examples=50)
@given(TEXTS, TEXTS)
def test_whatever_a_value_holds_it_is_text(text: str, attribute: str) -> None:
    made = fill('<p title="$attribute">$text</p><b>', text=text, attribute=attribute)
    parsed = Parsed(made)
    assert [tag for tag, _ in parsed.elements] == ["p", "b"]
    # The parser reads line ends and the character NUL as HTML does.
    if not set(text + attribute) & set("\r\0"):
        assert "".join(parsed.texts) == text
        assert parsed.elements[0][1] == {"title": attribute}


def test_only_what_is_said_to_be_markup_is() -> None:
    assert fill("$a$b", a="<b>", b=Markup("<i>")) == "&lt;b&gt;<i>"


@settings(max_examples=50)
@given(st.lists(TEXTS) | st.dictionaries(TEXTS, TEXTS | st.none()))
def test_json_in_a_script_element_comes_back_and_never_ends_it(value: Any) -> None:
    written = script_json(value)
    assert not set(written) & set("<>&\u2028\u2029")
    assert json.loads(written) == value


@pytest.mark.parametrize("make", [mixed, wide])
def test_labels_and_columns_with_html_are_escaped(
    cancer: Predictor, make: Callable[[Predictor], Predictor]
) -> None:
    predictor = make(cancer)
    plain, hostile = Parsed(page_of(cancer)), Parsed(page_of(predictor))
    labels = [*predictor.manifest.labels]
    data = hostile.data()
    assert data["labels"] == labels
    names = [column.name for column in predictor.manifest.input.columns]
    assert [column["name"] for column in data["input"]["columns"]] == names
    for label in labels:
        assert label in hostile.texts
    # No element more than a page of harmless names has, but for the labels' own.
    tags, harmless = ([tag for tag, _ in parsed.elements] for parsed in (hostile, plain))
    assert tags.count("li") == len(labels) and tags.count("script") == harmless.count("script")
    assert set(tags) <= set(harmless)


def test_the_page_loads_nothing_from_elsewhere_and_holds_no_script_or_style(
    digits: Predictor,
) -> None:
    parsed = Parsed(page_of(digits))
    for tag, attributes in parsed.elements:
        assert tag != "style" and "style" not in attributes
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "action", "data"):
            # Relative, so that it holds behind a prefix.
            assert not re.match(r"[a-z]+:|/", attributes.get(name) or ""), attributes
        if tag == "script" and "src" not in attributes:
            assert attributes["type"] == "application/json"


def test_our_scripts_make_no_markup_of_texts_and_name_no_other_host() -> None:
    ours = [*STATIC.glob("*.js"), *STATIC.glob("*.html"), *STATIC.glob("*.css")]
    ours = [path for path in ours if "papaparse" not in path.name]
    assert len(ours) > 8
    for path in ours:
        text = path.read_text()
        for word in (
            "innerHTML",
            "outerHTML",
            "insertAdjacent",
            "document.write",
            "eval(",
            "//cdn",
        ):
            assert word not in text, f"{path.name}: {word}"
        assert "://" not in text, path.name
        for link in re.findall(r'(?:src|href)="([^"$]*)"', text):
            assert link.startswith(("page/", "#")) or "/" not in link, f"{path.name}: {link}"
            if link.startswith("page/"):
                assert (STATIC / link.removeprefix("page/")).is_file(), link


def test_the_request_that_works_as_it_stands_says_where_its_token_is(
    digits: Predictor, tmp_path: Path
) -> None:
    needed = "as it stands, with a token in the shell&#39;s variable TOKEN."
    assert needed not in page_of(digits) and "as it stands." in page_of(digits)
    with_token = page_of(digits, tokens=tmp_path / "tokens")
    assert needed in with_token and "Bearer $TOKEN" in with_token


def test_examples_are_spread_over_the_labels() -> None:
    def chosen(labels: list[int]) -> list[int]:
        rows = len(labels)
        probabilities = np.eye(max(1, max(labels) + 1), dtype=np.float32)[np.maximum(labels, 0)]
        golden = Golden(np.zeros((rows, 1)), probabilities, probabilities, np.array(labels))
        return choose_examples(golden)

    assert chosen([1, 1, 1, 0, 2, 0]) == [3, 0, 4, 5, 1, 2]
    many = [label for label in range(50) for _ in range(3)]
    assert len(chosen(many)) == 12
    found = [many[row] for row in chosen(many)]
    assert found == sorted(set(found)) and (found[0], found[-1]) == (0, 49)
    # Made up: by what was answered, here always the first.
    assert chosen([-1, -1]) == [0, 1]


def test_made_up_rows_are_said_to_be_so_and_have_no_true_label(cancer: Predictor) -> None:
    unknown = np.full_like(cancer.golden.labels, -1)
    for golden, made_up in ((cancer.golden, False), (replace(cancer.golden, labels=unknown), True)):
        data = Parsed(page_of(replace(cancer, golden=golden))).data()
        truths = [example["label"] for example in data["input"]["examples"]]
        assert data["made_up"] == made_up
        assert truths == ([None, None] if made_up else [0, 1]) * 6


def test_a_drawing_is_to_be_like_the_examples(digits: Predictor) -> None:
    spec = digits.manifest.input
    found = drawing(digits.golden, spec)
    assert (found["background"], found["ink"]) == (0, 255)
    # Its digits are as high as the picture, and narrower.
    assert found["height"] == 1.0 and 0.6 < found["width"] < 1.0
    assert 0.4 < found["left"] < 0.6
    inverted = replace(digits.golden, raw=255 - digits.golden.raw)
    assert drawing(inverted, spec) == {**found, "background": 255, "ink": 0}
    empty = replace(digits.golden, raw=np.zeros_like(digits.golden.raw))
    assert drawing(empty, spec)["height"] == 0.8
    assert drawing(digits.golden, ImageInput(channels=3, height=8, width=8)) is None
    assert drawing(digits.golden, ImageInput(channels=1, height=99, width=8)) is None


async def _routes(digits: Predictor, folder: Path) -> None:
    version = digits.manifest.version
    async with app_of(digits, folder) as (client, worker):
        page = await client.get("/")
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "*" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        await _files(client)
        report = await client.get("/report")
        assert report.content == digits.bundle.read(REPORT)
        assert report.headers["content-type"] == "text/html; charset=utf-8"
        assert report.headers["content-security-policy"].startswith("default-src 'none'; style-src")
        row = worker.model.page._examples[3]
        picture = await client.get(f"/page/examples/{version}/3.png")
        assert picture.headers["content-type"] == "image/png"
        pixels = decode_image(picture.content, digits.manifest.input)
        np.testing.assert_array_equal(pixels, digits.golden.raw[row])
        for path in (
            f"/page/examples/{version}/12.png", "/page/examples/0123456789ab/0.png",
"/page/page.html", "/page/token.html",
            "/page/papaparse.LICENSE", "/page/../page.py", "/page/%2e%2e/page.py", "/page/",
            "/page", "/page/page.js/",
        ):  # fmt: skip
            answer = await client.get(path)
            assert answer.status_code == 404 and answer.json()["error"], path
        assert (await client.post("/report")).status_code == 405


async def _files(client: httpx.AsyncClient) -> None:
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    served = [path for path in STATIC.iterdir() if path.suffix in types]
    assert len(served) > 8
    for path in served:
        file = await client.get(f"/page/{path.name}")
        assert file.content == path.read_bytes()
        assert file.headers["content-type"].startswith(types[path.suffix])
        assert file.headers["x-content-type-options"] == "nosniff"
        tag = file.headers["etag"]
        for known in (tag, f'"other", W/{tag}'):
            again = await client.get(f"/page/{path.name}", headers={"If-None-Match": known})
            assert (again.status_code, again.content) == (304, b"")
        other = await client.get(f"/page/{path.name}", headers={"If-None-Match": '"other"'})
        assert other.status_code == 200


def test_page_files_examples_and_report_are_served_and_nothing_else(
    digits: Predictor, tmp_path: Path
) -> None:
    asyncio.run(_routes(digits, tmp_path))


def test_a_bundle_without_a_report_has_no_link_to_one(digits: Predictor, tmp_path: Path) -> None:
    files = {name: info for name, info in digits.manifest.files.items() if name != REPORT}
    manifest = digits.manifest.model_copy(update={"files": files})
    without = replace(digits, bundle=replace(digits.bundle, manifest=manifest))
    assert 'href="report"' in page_of(digits) and 'href="report"' not in page_of(without)

    async def scenario() -> None:
        async with app_of(without, tmp_path) as (client, _):
            answer = await client.get("/report")
            assert answer.status_code == 404 and "report.html" in answer.json()["error"]

    asyncio.run(scenario())


def test_without_a_token_a_browser_gets_a_field_for_one_and_nothing_of_the_model(
    digits: Predictor, tmp_path: Path
) -> None:
    file = tmp_path / "tokens"
    file.write_text("a-token-of-sixteen\n")
    html = "Accept: text/html,application/xhtml+xml"
    bearer = "Authorization: Bearer a-token-of-sixteen"
    picture = f"/page/examples/{digits.manifest.version}/0.png"

    def ask(*request: str):
        with server.connect() as client:
            return client.ask(get(*request))

    with listening(digits, tokens=file) as server:
        shown = ask("/", html)
        assert shown.status == 401 and shown.headers["www-authenticate"] == "Bearer"
        assert shown.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in shown.headers["content-security-policy"]
        for fact in (digits.manifest.name, digits.manifest.version, "mlp"):
            assert fact not in shown.body.decode()
        # Files of every service alike.
        assert ask("/page/page.js").status == ask("/page/page.css").status == 200
        # What the page links to, each with what it may load once it is there.
        for path in ("/report", "/model", "/docs.json", "/metrics"):
            form = ask(path, html)
            assert form.status == 401 and form.body == shown.body
            inline = "'unsafe-inline'" in form.headers["content-security-policy"]
            assert inline == (path == "/report")
            assert "script-src 'self';" in form.headers["content-security-policy"]
            assert ask(path).status == 401 and "expected Authorization" in ask(path).error
        for path in (picture, "/page/other.js", "/page/page.html", "/v2", "/v2/models/digits"):
            refused = ask(path, html)
            assert refused.status == 401 and refused.headers["content-type"] == "application/json"
        assert ask("/", html, "Authorization: Bearer another-token-here").error
        whole = ask("/", html, bearer)
        assert whole.status == 200 and digits.manifest.version in whole.body.decode()
        assert "$TOKEN" in whole.body.decode()
        assert ask(picture, bearer).body.startswith(b"\x89PNG")
        assert ask("/report", bearer).body == digits.bundle.read(REPORT)
