"""Several bundles side by side: what they have in common, and what differs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from markupsafe import Markup

from artifacts.bundle import Bundle
from artifacts.configs import describe_network
from artifacts.errors import BundleError
from artifacts.estimates import difference_interval
from artifacts.manifest import Estimate, Manifest
from training.report.figures import (
    Heading,
    Section,
    estimate_cell,
    exponent,
    interval_bar,
    label,
    number_cell,
    points,
    released,
    row,
    section,
    signed,
    size_text,
    table,
)
from training.report.made import FORMATS, as_json
from training.report.markup import document, element, join
from training.report.page import style
from training.report.quality import areas_of

FEWEST, MOST = 2, 12
_ABSENT = "–"
# Bundles whose columns fit a page of paper at the size of its other tables.
_MOST_ON_PAPER = 6


def render_comparison(bundles: Sequence[Bundle]) -> bytes:
    """One page for 2 to 12 bundles; differences are from the first. Raises BundleError."""
    if not FEWEST <= len(bundles) <= MOST:
        raise BundleError(f"expected {FEWEST} to {MOST} bundles to compare, found {len(bundles)}")
    manifests = [bundle.manifest for bundle in bundles]
    title = f"{len(manifests)} classifiers compared"
    keys = [
        element(
            "li", element("code", manifest.reference),
            f": {describe_network(manifest.network)}, {manifest.parameters:,} parameters, ",
            "released ", released(manifest),
        )
        for manifest in manifests
    ]  # fmt: skip
    top = element(
        "header",
        element("p", "Classifier report", class_="kicker"),
        element("h1", title),
        element("ol", keys),
        element("ul", [element("li", line) for line in same_lines(manifests)], class_="said"),
    )
    sections = [
        _figures(manifests), _differences(manifests), _labels(manifests), _formats(manifests),
        _recipes(manifests),
    ]  # fmt: skip
    body = element("main", top, [part.body for part in sections if part is not None])
    return document(title, style(), body).encode()


def same_lines(manifests: Sequence[Manifest]) -> list[str]:
    """Whether their figures can be set beside each other, in words."""
    lines = []
    if _same([manifest.data.fingerprint for manifest in manifests]):
        lines.append("The same data, split in the same way: the test parts are the same rows.")
    else:
        lines.append(
            "Not the same data, not split in the same way, or not the same columns of it: where "
            "the test parts differ, a difference between figures may be one between rows."
        )
    if not _same([manifest.labels for manifest in manifests]):
        lines.append("Not the same labels.")
    if not _same([manifest.input for manifest in manifests]):
        lines.append("Not the same input: columns, types or sizes of pictures differ.")
    return lines


def _same(values: Sequence[object]) -> bool:
    return all(one == other for one, other in pairwise(values))


def _names(manifests: Sequence[Manifest]) -> list[Markup]:
    """What each bundle is called: its number in the list, and its reference."""
    return [
        join(
            element("span", f"{number}", class_="key"), " ", manifest.name, element("br"),
            element("small", manifest.version),
        )
        for number, manifest in enumerate(manifests, start=1)
    ]  # fmt: skip


def _numbered(manifests: Sequence[Manifest]) -> list[str]:
    """What each bundle is called over a column, where there is little room."""
    return [f"bundle {number}" for number in range(1, len(manifests) + 1)]


def _figures(manifests: Sequence[Manifest]) -> Section | None:
    tests = [test for manifest in manifests if (test := manifest.metrics.get("test"))]
    areas, rows = areas_of(tests), []
    head: list[Heading] = ["bundle", "test rows", "accuracy", ("0 to 100%", "wide"), "log loss"]
    head += areas.values()
    for name, manifest in zip(_names(manifests), manifests, strict=True):
        test = manifest.metrics.get("test")
        if test is not None:
            rows.append(
                row(
                    name, number_cell(f"{test.rows:,}"), estimate_cell(test.accuracy, shares=True),
                    element("td", interval_bar(test.accuracy), class_="wide"),
                    estimate_cell(test.log_loss),
                    [estimate_cell(getattr(test, area)) for area in areas],
                )
            )  # fmt: skip
    caption = "Each one's test part, with 95% intervals."
    if not rows:
        return None
    return section("figures", "How good they are", table(head, rows, caption, "estimates"))


def _differences(manifests: Sequence[Manifest]) -> Section | None:
    """Each figure less that of the first bundle."""
    first = manifests[0].metrics.get("test")
    if first is None:
        return None
    rows = []
    for name, manifest in list(zip(_names(manifests), manifests, strict=True))[1:]:
        test = manifest.metrics.get("test")
        if test is None:
            continue
        rows.append(
            row(
                name,
                _difference(test.accuracy, first.accuracy, shares=True),
                _difference(test.log_loss, first.log_loss),
                _difference(test.auc, first.auc),
            )
        )
    if not rows:
        return None
    caption = (
        "Less the figure of bundle 1, with 95% intervals as of two independent samples (Newcombe). "
        "On the same test rows they are too wide rather than too narrow."
    )
    head = ["bundle", "accuracy, points", "log loss", "AUC"]
    return section("differences", "How far they differ", table(head, rows, caption, "estimates"))


def _difference(one: Estimate | None, other: Estimate | None, *, shares: bool = False) -> Markup:
    if one is None or other is None:
        return number_cell(_ABSENT)
    found = difference_interval(one, other)

    def said(value: float) -> str:
        return points(value) if shares else signed(f"{value:+.4f}")

    below = element("small", f"{said(found.low)} to {said(found.high)}")
    return element("td", element("b", said(found.value)), " ", below, class_="number")


def _labels(manifests: Sequence[Manifest]) -> Section | None:
    """F1 of each label, where the labels are the same: what differs most first."""
    tests = [manifest.metrics.get("test") for manifest in manifests]
    if not _same([manifest.labels for manifest in manifests]):
        return None
    if any(test is None or not test.per_label for test in tests):
        return None
    found = [test.per_label for test in tests if test is not None]
    known = [name for name in manifests[0].labels if all(name in labels for labels in found)]

    def values(name: str) -> list[Estimate | None]:
        return [labels[name].f1 for labels in found]

    def spread(name: str) -> float:
        given = [figure.value for figure in values(name) if figure is not None]
        return max(given) - min(given) if given else 0.0

    shown = sorted(known, key=spread, reverse=True)[:20]
    rows = [
        row(label(name), [estimate_cell(figure, short=True) for figure in values(name)])
        for name in shown
    ]
    head = ["label", *_numbered(manifests)]
    caption = "F1 of each label on the test part, where they differ most first"
    caption += f"; 20 of {len(known)}." if len(known) > len(shown) else "."
    class_ = "dense" if len(found) > _MOST_ON_PAPER else None
    return section("labels", "Each label", table(head, rows, caption, class_))


def _formats(manifests: Sequence[Manifest]) -> Section:
    rows = []
    for name, manifest in zip(_names(manifests), manifests, strict=True):
        for file, entry in manifest.parity.items():
            speed = manifest.speed.formats.get(file) if manifest.speed else None
            size = manifest.files.get(file)
            rows.append(
                row(
                    name, element("td", FORMATS.get(file, file)),
                    number_cell(size_text(size.size) if size else _ABSENT),
                    number_cell(f"{speed.alone:,.0f}" if speed else _ABSENT),
                    number_cell(f"{speed.batched:,.0f}" if speed else _ABSENT),
                    number_cell(exponent(entry.max_abs_diff)),
                )
            )  # fmt: skip
    head = ["bundle", ("format", "text"), "size", "answers/s, one by one", "in batches"]
    machines = {manifest.speed.cpu for manifest in manifests if manifest.speed}
    caption = "Speed on one CPU thread, as measured when each was released"
    caption += f", on {', '.join(sorted(machines))}." if machines else "."
    return section(
        "formats", "Sizes and speeds",
        table([*head, "largest difference of logits"], rows, caption),
    )  # fmt: skip


def _recipes(manifests: Sequence[Manifest]) -> Section:
    recipes = [as_json(manifest.recipe) for manifest in manifests]
    keys = list(dict.fromkeys(key for recipe in recipes for key in recipe))
    differing = [key for key in keys if not _same([recipe.get(key, _ABSENT) for recipe in recipes])]
    rows = [
        row(element("code", key), [
            element("td", element("code", recipe.get(key, _ABSENT)), class_="name")
            for recipe in recipes
        ])
        for key in differing
    ]  # fmt: skip
    title = "What differs in their recipes"
    if not rows:
        return section("recipes", title, element("p", "Nothing."))
    head: list[Heading] = ["key", *[(name, "text") for name in _numbered(manifests)]]
    same = len(keys) - len(differing)
    class_ = "dense" if len(recipes) > _MOST_ON_PAPER else None
    return section("recipes", title, table(head, rows, f"{same} other keys are the same.", class_))
