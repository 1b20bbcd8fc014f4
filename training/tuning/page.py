"""The page of a study: its facts, its figures and a table of its trials, in one HTML file.

write_page(folder / "study.html", study_page(study, "digits", [("objective", "accuracy")]))
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState
from plotly.offline import get_plotlyjs

from artifacts.errors import ParitylineError
from artifacts.files import write_file
from training.tuning.figures import Figure, finished_trials, study_figures

# Nothing is fetched, whatever a study's texts say.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)
# In the dark the figures' ink is inverted, which keeps every contrast; their ground is the page's.
_STYLE = """
:root { color-scheme: light dark; --line: #8884; --best: #0072b222 }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: break-word }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .25rem .75rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top }
.facts th { font-weight: normal; opacity: .75 }
.facts td { overflow-wrap: anywhere }
.trials { overflow-x: auto; font-size: .875rem }
.trials th, .trials td { white-space: nowrap } .trials .number { text-align: right }
.trials .reason { white-space: normal; min-width: 12rem; overflow-wrap: anywhere }
.trials .best { background: var(--best) }
figure { margin: 1rem 0; overflow-x: auto } .plot { min-width: 40rem }
@media (prefers-color-scheme: dark) { .plot { filter: invert(.9) hue-rotate(180deg) } }
"""
_STATES = {
    TrialState.COMPLETE: "completed",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
    TrialState.WAITING: "waiting",
}


def study_page(study: optuna.Study, title: str, facts: Sequence[tuple[str, str]]) -> str:
    """One self-contained HTML document about a study with one objective.

    title: its heading. facts: labels and values of the table at its top.
    Of the trials' user attributes, "reason" is why one failed or was pruned, "default" marks the
    recipe as it is, and "duplicate_of" names the trial that had the same parameters before.
    """
    trials = study.get_trials(deepcopy=False)
    figures = study_figures(study)
    plotly = f"<script>{get_plotlyjs()}</script>" if any(figure.plot for figure in figures) else ""
    about = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td>{html.escape(value)}</td></tr>'
        for label, value in facts
    )
    heading = html.escape(title)
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{heading}</title><style>{_STYLE}</style>{plotly}</head><body>
<h1>{heading}</h1>
{f'<table class="facts"><tbody>{about}</tbody></table>' if about else ""}
<p>{html.escape(_counts(study, trials))}</p>
{"".join(map(_section, figures))}
<h2>Trials</h2>{_table(study, trials)}
</body></html>
"""


def write_page(path: Path, text: str) -> None:
    """Put the page there at once.

    Raises ParitylineError where it cannot be written; a page that was there before is left then.
    """
    try:
        write_file(path, text.encode())
    except OSError as error:
        raise ParitylineError(f"{path}: cannot be written: {error.strerror or error}") from error


def _counts(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    """How many trials there are of each state, and how many the figures leave out."""
    states = [(word, sum(t.state == state for t in trials)) for state, word in _STATES.items()]
    text = ", ".join(f"{count} {word}" for word, count in states if count)
    some = "1 trial" if len(trials) == 1 else f"{len(trials)} trials"
    line = f"{some}: {text}." if trials else "No trial has begun."
    left_out = sum(trial.state.is_finished() for trial in trials) - len(finished_trials(study))
    if left_out:
        line += f" The figures leave out {left_out}: duplicates, and those with an infinite value."
    return line


def _section(figure: Figure) -> str:
    about = f"<p>{html.escape(figure.about)}</p>"
    plot = ""
    if figure.plot is not None:
        drawn = figure.plot.to_html(
            config={"responsive": True, "displaylogo": False},
            include_plotlyjs=False, full_html=False, div_id=figure.name,
            default_height=figure.plot.layout.height or 420,
        )  # fmt: skip
        # A part that scrolls must be reached by the keyboard too.
        label = html.escape(figure.heading)
        plot = f'<figure tabindex="0" aria-label="{label}"><div class="plot">{drawn}</div></figure>'
    return f"<section><h2>{html.escape(figure.heading)}</h2>{about}{plot}</section>"


def _table(study: optuna.Study, trials: list[FrozenTrial]) -> str:
    """Best first, then those without a value, by their numbers; a column for each parameter."""
    if not trials:
        return "<p>None.</p>"
    names = list(dict.fromkeys(name for trial in trials for name in trial.params))
    sign = -1 if study.direction == optuna.study.StudyDirection.MAXIMIZE else 1

    def place(trial: FrozenTrial) -> tuple[bool, float, int]:
        value = trial.value if trial.state == TrialState.COMPLETE else None
        if value is None or not math.isfinite(value):
            return True, 0.0, trial.number
        return False, sign * value, trial.number

    head = ["trial", "state", "value", "seconds", "remark", *names]
    header = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    rows = ""
    for index, trial in enumerate(sorted(trials, key=place)):
        cells = [
            (str(trial.number), "number"),
            (_STATES[trial.state], ""),
            (_number(trial.value), "number"),
            (_seconds(trial), "number"),
            (_remark(trial), "reason"),
            *((_number(trial.params.get(name)), "number") for name in names),
        ]
        rows += '<tr class="best">' if index == 0 and not place(trial)[0] else "<tr>"
        rows += "".join(f'<td class="{kind}">{html.escape(cell)}</td>' for cell, kind in cells)
        rows += "</tr>"
    return (
        '<div class="trials" tabindex="0" role="region" aria-label="Trials"><table>'
        f"<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _number(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _seconds(trial: FrozenTrial) -> str:
    return "" if trial.duration is None else f"{trial.duration.total_seconds():.1f}"


def _remark(trial: FrozenTrial) -> str:
    attributes = trial.user_attrs
    remarks = ["the recipe itself"] if attributes.get("default") else []
    if "duplicate_of" in attributes:
        remarks.append(f"as trial {attributes['duplicate_of']}")
    if attributes.get("reason"):
        remarks.append(str(attributes["reason"]))
    if trial.value is not None and not math.isfinite(trial.value):
        remarks.append("its value is not finite")
    return "; ".join(remarks)
