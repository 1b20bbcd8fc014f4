"""`report.html` of one bundle: the order of its sections."""

from __future__ import annotations

from importlib.resources import files

from artifacts.bundle import Bundle, Golden
from artifacts.evidence import Evidence
from artifacts.gate_report import GateReport
from artifacts.manifest import Manifest
from training.report.confusion import confusion_section
from training.report.looks import importance, mistakes
from training.report.made import data, formats, made
from training.report.markup import document, element
from training.report.overview import calling, contents, header, summary
from training.report.quality import labels_section, quality
from training.report.trust import calibration, learning, thresholds


def render_report(
    manifest: Manifest, parity: GateReport, golden: Golden, evidence: Evidence | None
) -> bytes:
    """One self-contained page: no script, nothing loaded.

    evidence: None of a bundle that has none; its sections are left out then, as are those of
    figures that the manifest does not have. What the manifest says of report.html itself is not
    looked at, so that a bundle's own page comes out again.
    """
    sections = [
        quality(manifest),
        labels_section(manifest),
        confusion_section(manifest),
        mistakes(manifest, evidence),
        thresholds(manifest, evidence),
        importance(evidence),
        calibration(manifest),
        learning(manifest),
        formats(manifest, parity),
        calling(manifest, golden),
        data(manifest),
        made(manifest),
    ]
    shown = [part for part in sections if part is not None]
    body = element(
        "main",
        header(manifest),
        summary(manifest),
        contents(shown),
        [part.body for part in shown],
    )
    return document(f"{manifest.name}: classifier report", style(), body).encode()


def report_of(bundle: Bundle) -> bytes:
    """The page of a bundle, made again from its files. Raises BundleError."""
    return render_report(bundle.manifest, bundle.parity(), bundle.golden(), bundle.evidence())


def style() -> str:
    """The package's stylesheet."""
    return files("training.report").joinpath("style.css").read_text(encoding="utf-8")
