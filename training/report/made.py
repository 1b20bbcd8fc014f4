"""Where a model comes from and what it is made of: parity, sizes, speed, data, recipe."""

from __future__ import annotations

import json
from typing import Any

from markupsafe import Markup

from artifacts.configs import describe_network
from artifacts.gate_report import GateReport
from artifacts.inputs import TableInput
from artifacts.manifest import REPORT, Manifest
from artifacts.summary import describe_input, study_lines, values_text
from training.report.charts import difference_histogram
from training.report.figures import (
    Heading,
    Section,
    code,
    counted,
    exponent,
    first_shown,
    folded_table,
    label,
    more,
    number_cell,
    percent,
    row,
    rows_noun,
    section,
    share_bar,
    signed,
    size_text,
    table,
)
from training.report.markup import Child, element, join
from training.run_record import flat

FORMATS = {
    "model.onnx": "ONNX",
    "model.ts": "TorchScript",
    "model.pt2": "torch.export",
    "state_dict.pt": "weights (PyTorch)",
}
_MOST_LABELS, _OPEN_COLUMNS = 20, 12
# What becomes of a row with a missing cell, by its column's policy.
_MISSING = {"fill": "answered", "reject": "refused"}


def formats(manifest: Manifest, parity: GateReport) -> Section:
    """The section about the exported formats: the parity gate, their sizes and their speed."""
    speed = manifest.speed
    head: list[Heading] = ["format", "answers compared", "largest difference of logits"]
    head += ["other labels", "size"]
    if speed is not None:
        head += ["answers/s, one by one", "in batches"]
    rows = []
    for file, entry in manifest.parity.items():
        fast = speed.formats.get(file) if speed is not None else None
        rows.append(
            row(
                FORMATS.get(file, file),
                number_cell(f"{entry.rows:,}"),
                number_cell(exponent(entry.max_abs_diff)),
                number_cell(f"{entry.label_disagreements:,}"),
                number_cell(size_text(manifest.files[file].size)) if file in manifest.files
                else element("td"),
                [number_cell(f"{fast.alone:,.0f}"), number_cell(f"{fast.batched:,.0f}")]
                if fast else [element("td"), element("td")] if speed else None,
            )
        )  # fmt: skip
    held_out = f"held-out {rows_noun(manifest, 1)}"
    tolerance = parity.tolerance.replace("<=", "≤").replace("*", "×")
    said = (
        f"Every format answered {counted(parity.held_out_rows, held_out)} and "
        f"{counted(parity.edge_rows, 'edge input')} as the trained model does, {_where(parity)}. "
        f"Allowed: {tolerance}. {parity.one_answer[:1].upper()}{parity.one_answer[1:]}."
    )
    charts: list[Child] = []
    histogram = parity.histogram
    if histogram is not None:
        for name, counts in histogram.counts.items():
            total, least = max(1, sum(counts)), signed(f"{histogram.edges[0]:.0e}")
            words = (
                f"{FORMATS.get(name, name)}: {percent(counts[0] / total)} of {total:,} answers "
                f"differ by less than {least} from the trained model's; the "
                "others by their largest difference."
            )
            charts.append(difference_histogram(histogram, name, words))
    timing = None
    if speed is not None and speed.formats:
        batch = max(entry.batch_size for entry in speed.formats.values())
        timing = element(
            "p", f"Speed: one thread of {speed.cpu}, batches of {batch:,}; medians of short rounds "
            "at the release, without HTTP. To be expected, not a benchmark.", class_="note",
        )  # fmt: skip
    return section(
        "formats",
        "The same answers in every format",
        element("p", said),
        table(head, rows, "Each format against the trained model, over all batch sizes."),
        timing,
        element("div", charts, class_="triple") if charts else None,
        more("By batch size", _by_batch(parity)),
    )


def _where(parity: GateReport) -> str:
    """At which batch sizes; of a large model only some of the rows at all of them."""
    tallies = [tally for by_size in parity.formats.values() for tally in by_size.values()]
    fewest = min((tally.rows for tally in tallies), default=0)
    *small, largest = map(str, parity.batch_sizes)
    if fewest < parity.held_out_rows + parity.edge_rows:
        return f"at batch size {largest}; {fewest:,} of them at {', '.join(small)} too"
    return f"at batch sizes {', '.join((*small, largest))}"


def _by_batch(parity: GateReport) -> Markup:
    rows = [
        element(
            "tr",
            element("th", FORMATS.get(name, name), scope="row"),
            number_cell(size), number_cell(f"{entry.rows:,}"),
            number_cell(exponent(entry.max_abs_diff)),
            number_cell(f"{entry.label_disagreements:,}"),
        )
        for name, by_size in parity.formats.items()
        for size, entry in by_size.items()
    ]  # fmt: skip
    head = ["format", "batch size", "rows", "largest difference", "other labels"]
    return table(head, rows, "The gate's report, as in parity.json.")


def data(manifest: Manifest) -> Section:
    """The section about the data and what the model takes."""
    found, noun = manifest.data, rows_noun(manifest)
    rows = ", ".join(f"{count:,} {name}" for name, count in found.rows.items())
    notes = [element("li", label(note)) for note in found.notes]
    counts = sorted(found.label_counts.items(), key=lambda entry: -entry[1])
    largest = max([count for _, count in counts], default=1) or 1
    total = sum(found.label_counts.values()) or 1
    lines = [
        row(
            label(name),
            number_cell(f"{count:,}"),
            number_cell(percent(count / total)),
            element("td", share_bar(count / largest), class_="wide"),
        )
        for name, count in counts
    ]
    head: list[Heading] = ["label", noun, "share", ("beside the largest", "wide")]
    return section(
        "data",
        "The data",
        element("p", label(found.source), f": {rows} {noun}. Fingerprint ",
                element("code", found.fingerprint[:16]), "."),
        element("ul", notes, class_="said") if notes else None,
        folded_table(
            head, lines, f"Labels of all {noun}, the most frequent first.",
            shown=first_shown(len(lines), _MOST_LABELS), noun="labels",
            rest="The other labels, by their number.",
        ),
        _columns(manifest),
    )  # fmt: skip


def _columns(manifest: Manifest) -> Markup | None:
    spec = manifest.input
    if not isinstance(spec, TableInput):
        return None
    absent = {entry.name: entry.missing for entry in manifest.profile}
    policies = {column.missing for column in spec.columns}
    rows = [
        row(
            label(column.name),
            element("td", column.type),
            element("td", label(values_text(column)), class_="values"),
            number_cell(percent(absent[column.name]) if column.name in absent else "–"),
            element("td", _MISSING[column.missing]) if len(policies) > 1 else None,
        )
        for column in spec.columns
    ]
    texts = [(text, "text") for text in ("type", "in training")]
    head: list[Heading] = ["column", *texts, "missing"]
    caption = "What the model takes: each column's type, and its values in the training part."
    if len(policies) > 1:
        head.append(("a missing cell is", "text"))
    else:
        caption += f" A missing cell is {_MISSING[policies.pop()]}."
    title = counted(len(rows), "column")
    return element(
        "details", element("summary", title), table(head, rows, caption),
        open=len(rows) <= _OPEN_COLUMNS,
    )  # fmt: skip


def made(manifest: Manifest) -> Section:
    """The section about the recipe, the study and the versions."""
    recipe: list[str] = []
    for name, content in manifest.recipe.items():
        if isinstance(content, dict):
            lines = [f"{key} = {value}" for key, value in as_json(content).items()]
            recipe += [f"[{name}]", *lines, ""]
    files = [
        row(element("code", name), number_cell(size_text(info.size)),
            element("td", element("code", info.sha256[:16])))
        for name, info in sorted(manifest.files.items())
        if name != REPORT
    ]  # fmt: skip
    # Behind a + it says that files differed.
    commit, plus, changes = (manifest.commit or "unknown").partition("+")
    versions = {"commit": f"{commit[:16]}{plus}{changes}", **manifest.packages}
    packages = [
        join(element("dt", name), element("dd", version)) for name, version in versions.items()
    ]
    return section(
        "made",
        "How it was made",
        element(
            "p", f"Network: {describe_network(manifest.network)}, {manifest.parameters:,} "
            f"parameters, on {describe_input(manifest.input).split(':')[0]}; seed {manifest.seed}.",
        ),
        _study(manifest),
        more("The recipe, as it was carried out", code("\n".join(recipe))),
        more("Versions of what it was made with", element("dl", packages, class_="cells")),
        more(
            "Files of the bundle",
            table(["file", "size", ("sha256", "text")], files,
                  "Every file is checked before it is opened."),
        ),
    )  # fmt: skip


def as_json(recipe: dict[str, Any]) -> dict[str, str]:
    """The keys of a recipe, or of a section of one, as `flat` has them, and their values."""
    return {key: json.dumps(value, ensure_ascii=False) for key, value in flat(recipe).items()}


def _study(manifest: Manifest) -> Markup | None:
    study = manifest.study
    if study is None:
        return None
    space = [element("li", element("code", line)) for line in study.space]
    return join(
        element("p", "By a study:"),
        element("ul", [element("li", line) for line in study_lines(study)]),
        more("What it searched", element("ul", space)),
    )
