"""What a browser makes of a report, and reports of manifests that are changed."""

from __future__ import annotations

import html.parser
import json

from artifacts.manifest import Manifest
from artifacts.predictor import Predictor
from training.report.page import render_report

NASTY = "<script>alert('x')</script><b title=\"y\">&amp;\u202e" + "長い" * 60


class Page(html.parser.HTMLParser):
    """What a browser makes of a page: its tags, attributes and texts."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self.feed(page.decode())
        self.text = "".join(self.words)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        if self.tags[-1:] == ["h2"]:
            self.headings.append(data)
        if "style" not in self.tags[-1:]:
            self.words.append(data)


def loads_nothing(page: bytes) -> None:
    """No script, no handler, and no address but of the page itself."""
    seen = Page(page)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(seen.tags)
    for name, value in seen.attributes:
        assert not name.startswith("on"), (name, value)
        if name in {"src", "href", "xlink:href", "srcset", "data", "action"}:
            assert value.startswith(("#", "data:image/png;base64,")), value
        assert "url(" not in value
    assert b"url(" not in page and b"@import" not in page


def renamed(manifest: Manifest, old: str, new: str) -> Manifest:
    """A manifest in which every text that is `old` is `new`, keys too."""
    text = manifest.model_dump_json()
    text = text.replace(json.dumps(old), json.dumps(new))
    return Manifest.model_validate_json(text)


def rendered(predictor: Predictor, manifest: Manifest | None = None) -> bytes:
    bundle = predictor.bundle
    return render_report(
        manifest or bundle.manifest, bundle.parity(), bundle.golden(), bundle.evidence()
    )
