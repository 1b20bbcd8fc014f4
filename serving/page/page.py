"""One model's page: facts as HTML, and as JSON what trying it needs."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Any

from markupsafe import Markup

from artifacts.cells import MISSING_TEXTS, ColumnSpec, decode_row
from artifacts.configs import describe_network
from artifacts.errors import DataError
from artifacts.example import curl_line
from artifacts.inputs import CategoryColumn, ImageInput, TableInput
from artifacts.manifest import REPORT, Estimate
from artifacts.pixels import encode_png
from artifacts.predictor import Predictor
from artifacts.summary import describe_input
from serving.page.examples import choose_examples, drawing, true_label
from serving.page.files import template
from serving.page.markup import fill, join, script_json
from serving.settings import Settings

# A page that offers more categories of a column to choose from helps nobody; any can be typed.
_MOST_CATEGORIES = 500
_TILE = (
    '<div class="tile"><dt>$name</dt><dd class="figure">$value</dd>'
    '<dd class="interval">$interval</dd></div>'
)
_FACT = "<div><dt>$name</dt><dd>$value</dd></div>"


class Page:
    """What a browser is told of one model. max_rows: of one request."""

    def __init__(self, predictor: Predictor, settings: Settings, *, max_rows: int) -> None:
        self._predictor = predictor
        self._settings = settings
        self._max_rows = max_rows
        self._examples = choose_examples(predictor.golden)
        # Made once, when they are asked for. A caller's Host header says the address, so that there
        # may be many.
        self.render = lru_cache(maxsize=4)(self._render)
        self.example = lru_cache(maxsize=len(self._examples))(self._example)
        self.report = lru_cache(maxsize=1)(self._report)

    def _render(self, url: str) -> bytes:
        """The page's HTML. url: where the caller reached the service, no slash at the end."""
        manifest = self._predictor.manifest
        return fill(
            template("page.html"),
            name=manifest.name,
            version=manifest.version,
            reference=manifest.reference,
            summary=self._summary(),
            tiles=self._tiles(),
            labels=join(fill("<li>$label</li>", label=label) for label in manifest.labels),
            label_count=str(len(manifest.labels)),
            facts=join(
                fill(_FACT, name=name, value=value) for name, value in self._facts().items()
            ),
            call_note=_CALL_AUTHORIZED if self._settings.tokens is not None else _CALL,
            curl=self._curl(url),
            url=url,
            report=_REPORT_LINK if REPORT in manifest.files else "",
            image_route=_IMAGE_ROUTE if manifest.input.kind == "image" else "",
            data=script_json(self._data()),
        ).encode()

    def _example(self, version: str, index: int) -> bytes:
        """The picture of an example, as PNG. Raises DataError where there is none."""
        manifest = self._predictor.manifest
        if version != manifest.version:
            raise DataError(f"examples: expected version {manifest.version}, found {version}")
        if not isinstance(manifest.input, ImageInput) or not 0 <= index < len(self._examples):
            raise DataError(f"examples: there is no picture {index}")
        return encode_png(self._predictor.golden.raw[self._examples[index]])

    def _report(self) -> bytes:
        """`report.html`, its digest checked. Raises DataError where the bundle has none."""
        if REPORT not in self._predictor.manifest.files:
            raise DataError(f"{self._predictor.manifest.reference}: this bundle has no {REPORT}")
        return self._predictor.bundle.read(REPORT)

    def _curl(self, url: str) -> str:
        """A request that works as it stands: of a row, or of the first example's picture."""
        manifest = self._predictor.manifest
        with_token = self._settings.tokens is not None
        if not isinstance(manifest.input, ImageInput):
            return curl_line(manifest, self._predictor.golden, url, with_token=with_token)
        token = """ -H "Authorization: Bearer $TOKEN\"""" if with_token else ""
        picture = f"{url}/page/examples/{manifest.version}/0.png"
        return f"curl -s {picture}{token} | curl {url}/predict/image{token} --data-binary @-"

    def _summary(self) -> str:
        manifest = self._predictor.manifest
        if isinstance(manifest.input, ImageInput):
            what = describe_input(manifest.input)
        else:
            count = len(manifest.input.columns)
            what = f"table rows of {count} column{'' if count == 1 else 's'}"
        text = f"Sorts {what} into {len(manifest.labels)} labels."
        metrics = manifest.metrics.get("test")
        if metrics is None:
            return text
        right = _figure("accuracy", metrics.accuracy.value)
        return f"{text} Right on {right} of {metrics.rows:,} that it was tested on."

    def _tiles(self) -> Markup:
        metrics = self._predictor.manifest.metrics.get("test")
        if metrics is None:
            return Markup("")
        # With very many labels some of the figures are not there.
        return join(
            fill(
                _TILE,
                name=f"Test {name}",
                value=_figure(name, figure.value),
                interval=_interval(name, figure),
            )
            for name, figure in metrics.headline.items()
        )

    def _facts(self) -> dict[str, str]:
        predictor, manifest = self._predictor, self._predictor.manifest
        takes = describe_input(manifest.input)
        if isinstance(manifest.input, ImageInput):
            how = "stretched" if manifest.input.fit == "stretch" else "resized and cut"
            takes += f"; others are {how} to that size"
        facts = {
            "Takes": takes,
            "Network": f"{describe_network(manifest.network)}, {manifest.parameters:,} parameters",
        }
        rows = manifest.data.rows
        if "test" in manifest.metrics:
            facts["Tested on"] = f"{manifest.metrics['test'].rows:,} held-out rows"
        if "train" in rows:
            facts["Trained on"] = f"{rows['train']:,} rows"
        if manifest.verdict is not None:
            facts["Fit"] = manifest.verdict.text
        if manifest.calibration is not None and "test" in manifest.calibration.after:
            error = manifest.calibration.after["test"].ece
            facts["Calibration"] = f"expected calibration error {error:.4f} on the test part"
        if manifest.threshold != 0.5:
            facts["Answers"] = (
                f"{manifest.labels[1]} where its probability is above {manifest.threshold:g}, "
                f"else {manifest.labels[0]}"
            )
        if manifest.parity:
            largest = max(found.max_abs_diff for found in manifest.parity.values())
            answers = sum(found.rows for found in manifest.parity.values())
            facts["Served as trained"] = (
                f"{answers:,} answers of the exported formats compared with the trained model's: "
                f"logits differ by {largest:.1g} at most"
            )
        facts["Created"] = _moment(manifest.created)
        facts["Runs on"] = f"{predictor.backend}, {predictor.device}"
        return facts

    def _data(self) -> dict[str, Any]:
        manifest, golden = self._predictor.manifest, self._predictor.golden
        spec = manifest.input
        return {
            "name": manifest.name,
            "reference": manifest.reference,
            "labels": manifest.labels,
            "threshold": manifest.threshold,
            "token": self._settings.tokens is not None,
            "made_up": bool((golden.labels < 0).all()),
            "max_rows": self._max_rows,
            "max_bytes": self._settings.max_body_bytes,
            "input": self._images(spec) if isinstance(spec, ImageInput) else self._table(spec),
        }

    def _images(self, spec: ImageInput) -> dict[str, Any]:
        golden, version = self._predictor.golden, self._predictor.manifest.version
        return {
            "kind": "image",
            "height": spec.height,
            "width": spec.width,
            "drawing": drawing(golden, spec),
            "examples": [
                {
                    "path": f"page/examples/{version}/{index}.png",
                    "label": true_label(golden, row),
                }
                for index, row in enumerate(self._examples)
            ],
        }

    def _table(self, spec: TableInput) -> dict[str, Any]:
        golden = self._predictor.golden
        return {
            "kind": "table",
            "columns": [_column(column) for column in spec.columns],
            "missing_texts": sorted(MISSING_TEXTS),
            "examples": [
                {"cells": decode_row(golden.raw[row], spec), "label": true_label(golden, row)}
                for row in self._examples
            ],
        }


_CALL = "This request works as it stands."
_CALL_AUTHORIZED = "This request works as it stands, with a token in the shell's variable TOKEN."
_REPORT_LINK = Markup('<a href="report">Report</a>')
_IMAGE_ROUTE = Markup(
    "<tr><td><code>POST</code> <code>/predict/<wbr>image</code></td><td>A PNG, JPEG or WebP as the "
    "body, or several as multipart <code>files</code>; <code>?top_k=K</code></td></tr>"
)


def _column(column: ColumnSpec) -> dict[str, Any]:
    found = column.model_dump(mode="json")
    if isinstance(column, CategoryColumn):
        found["known"] = len(column.categories)
        found["categories"] = column.categories[:_MOST_CATEGORIES]
    return found


def _figure(name: str, value: float) -> str:
    return f"{100 * value:.1f}%" if name == "accuracy" else f"{value:.3f}"


def _moment(created: str) -> str:
    """Without seconds; as it stands where it is no such text."""
    try:
        moment = datetime.fromisoformat(created)
    except ValueError:
        return created
    return moment.strftime("%Y-%m-%d %H:%M %Z").strip()


def _interval(name: str, figure: Estimate) -> str:
    low, high = (_figure(name, value) for value in (figure.low, figure.high))
    return f"95%: {low} to {high}"
