"""The page of a study: all that it shows, of any study, and nothing that a study's texts do."""

from __future__ import annotations

import errno
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import optuna
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from artifacts.errors import ParitylineError
from training.tuning import figures
from training.tuning.figures import study_figures
from training.tuning.page import study_page, write_page

RATE = FloatDistribution(1e-5, 1e-1, log=True)
MOMENTUM = FloatDistribution(0.5, 1.0)
NAMES = ["history", "curves", "importances", "slices", "parallel", "timeline"]


@pytest.fixture(autouse=True)
def quiet_optuna() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def add(
    study: optuna.Study,
    value: float | None,
    state: TrialState = TrialState.COMPLETE,
    lr: float = 0.01,
    momentum: float | None = None,
    **attributes: object,
) -> None:
    """A trial with two epochs; momentum is a parameter that some have."""
    params: dict[str, float] = {"train.lr": lr}
    distributions: dict[str, BaseDistribution] = {"train.lr": RATE}
    if momentum is not None:
        params["model.hidden[0]"] = momentum
        distributions["model.hidden[0]"] = MOMENTUM
    study.add_trial(
        optuna.create_trial(
            state=state, value=value, params=params, distributions=distributions,
            user_attrs=attributes, intermediate_values={1: 0.25, 2: 0.5},
        )
    )  # fmt: skip


def mixed(direction: str = "maximize") -> optuna.Study:
    """Trials of every kind: the best is 6, the worst that completed is 0."""
    study = optuna.create_study(direction=direction)
    add(study, 0.25, lr=0.001, momentum=0.5, default=True)
    add(study, 0.5, lr=0.002)
    add(study, None, TrialState.FAIL, reason="the loss is not a number")
    add(study, 0.375, TrialState.PRUNED, reason="below the median")
    add(study, 0.5, lr=0.002, duplicate_of=1)
    add(study, math.inf, lr=0.003)
    add(study, 0.75, lr=0.004, momentum=1.0)
    study.ask()
    return study


class Page(HTMLParser):
    """A page's tags with their attributes, and the texts of its table's cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._in_cell = True
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self._in_cell &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.tags if "id" in attributes]


def test_a_page_shows_facts_all_figures_and_each_trial_with_its_reason_best_first() -> None:
    page = Page(study_page(mixed(), "digits", [("objective", "accuracy")]))
    assert [name for name in page.ids() if name in NAMES] == NAMES
    assert page.rows[0] == ["objective", "accuracy"]
    head = ["trial", "state", "value", "seconds", "remark", "train.lr", "model.hidden[0]"]
    assert page.rows[1] == head
    cells = [[row[0], row[1], row[2], row[4]] for row in page.rows[2:]]
    assert cells == [
        ["6", "completed", "0.75", ""],
        ["1", "completed", "0.5", ""],
        ["4", "completed", "0.5", "as trial 1"],
        ["0", "completed", "0.25", "the recipe itself"],
        ["2", "failed", "", "the loss is not a number"],
        ["3", "pruned", "0.375", "below the median"],
        ["5", "completed", "inf", "its value is not finite"],
        ["7", "running", "", ""],
    ]
    assert page.rows[2][5:] == ["0.004", "1"] and page.rows[3][5:] == ["0.002", ""]
    least_first = Page(study_page(mixed("minimize"), "digits", []))
    assert [row[0] for row in least_first.rows[1:5]] == ["0", "1", "4", "6"]


def test_figures_leave_out_duplicates_and_infinite_values_and_keep_the_numbers() -> None:
    study = mixed()
    plots = {figure.name: figure.plot for figure in study_figures(study)}
    values, best, *_ = plots["history"].data
    assert list(values.x) == [0, 1, 6] and list(values.y) == [0.25, 0.5, 0.75]
    assert max(best.y) == 0.75
    default = plots["history"].data[-1]
    assert (default.name, default.x, default.y) == ("the recipe itself", (0,), (0.25,))
    ran = {trace.name: list(trace.y) for trace in plots["timeline"].data}
    assert ran == {"COMPLETE": [0, 1, 6], "FAIL": [2], "PRUNED": [3]}
    assert {trace.name for trace in plots["curves"].data} == {
        f"Trial{number}" for number in (0, 1, 3, 6)
    }
    text = study_page(study, "digits", [])
    assert "8 trials: 5 completed, 1 pruned, 1 failed, 1 running." in text
    assert "The figures leave out 2:" in text


def left_out(study: optuna.Study) -> dict[str, str]:
    """The figures that are left out, with the sentences that say why."""
    text = study_page(study, "digits", [])
    found = {figure.name: figure.about for figure in study_figures(study) if figure.plot is None}
    assert not set(found) & set(Page(text).ids())
    assert all(f"<p>{sentence}</p>" in text for sentence in found.values())
    return found


def test_what_cannot_be_drawn_is_left_out_with_the_reason() -> None:
    study = optuna.create_study()
    nothing = left_out(study)
    assert list(nothing) == NAMES
    assert nothing["history"] == "Left out: no trial has completed with a finite value."
    assert nothing["timeline"] == "Left out: no trial has finished."
    assert "<script" not in study_page(study, "digits", [])
    assert "No trial has begun." in study_page(study, "digits", [])

    add(study, math.inf)
    assert list(left_out(study)) == NAMES
    add(study, None, TrialState.FAIL)
    assert list(left_out(study)) == NAMES[:-1]

    study = optuna.create_study()
    add(study, 0.5)
    two = "Left out: it needs two completed trials"
    assert left_out(study) == {
        "importances": f"{two} with different values.", "parallel": f"{two}."
    }  # fmt: skip
    add(study, 0.25, lr=0.02)
    assert left_out(study) == {
        "importances": "Left out: it needs two parameters that have had different values.",
        "parallel": "Left out: it needs two parameters.",
    }


def test_a_figure_that_optuna_cannot_draw_costs_only_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("<b>")

    monkeypatch.setattr(figures.visualization, "plot_slice", fail)
    text = study_page(mixed(), "digits", [])
    assert [name for name in Page(text).ids() if name in NAMES] == [
        name for name in NAMES if name != "slices"
    ]
    assert "Left out: Optuna cannot draw it (KeyError: &#x27;&lt;b&gt;&#x27;)." in text


def test_no_text_of_a_study_becomes_a_part_of_the_page() -> None:
    harm = "</script><script>alert(1)</script><img src=x onerror=alert(1)>"
    study = optuna.create_study()
    for number, choice in enumerate((harm, "b", harm)):
        study.add_trial(
            optuna.create_trial(
                value=float(number),
                params={harm: choice, "b": number / 2},
                distributions={
                    harm: CategoricalDistribution([harm, "b"]), "b": FloatDistribution(0, 1)
                },
                user_attrs={"reason": harm},
            )
        )  # fmt: skip
    harmless, page = (
        Page(study_page(mixed(), "t", [("a", "b")])),
        study_page(study, harm, [(harm, harm)]),
    )
    tags = [tag for tag, _ in Page(page).tags]
    plots = [name for name in Page(page).ids() if name in NAMES]
    assert "slices" in plots and "parallel" in plots
    assert set(tags) <= {tag for tag, _ in harmless.tags}
    # plotly.js, and two for each figure.
    per_figure = ([tag for tag, _ in harmless.tags].count("script") - 1) / len(NAMES)
    assert tags.count("script") == 1 + per_figure * len(plots)
    assert page.count(harm) == 0


def test_a_page_is_one_file_that_fetches_nothing() -> None:
    page = Page(study_page(mixed(), "digits", []))
    for tag, attributes in page.tags:
        assert not {"src", "href", "srcset", "action"} & set(attributes), tag
    policies = [
        attributes["content"]
        for _, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    assert len(policies) == 1 and policies[0] and policies[0].startswith("default-src 'none';")
    assert page.tags[0] == ("html", {"lang": "en"})
    assert any(attributes.get("name") == "viewport" for _, attributes in page.tags)


def test_the_same_study_gives_the_same_page_and_optuna_logs_as_before() -> None:
    study = mixed()
    study.tell(7, state=TrialState.FAIL)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    first = study_page(study, "digits", [])
    assert study_page(study, "digits", []) == first
    assert optuna.logging.get_verbosity() == optuna.logging.ERROR
    assert len(re.findall("plotly.js v", first)) == 1


def test_the_newest_trials_alone_are_drawn_of_a_long_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(figures, "_MOST_TRIALS", 2)
    monkeypatch.setattr(figures, "_MOST_CURVES", 1)
    plots = {figure.name: figure.plot for figure in study_figures(mixed())}
    assert [trace.name for trace in plots["curves"].data] == ["Trial6"]
    assert {y for trace in plots["timeline"].data for y in trace.y} == {3, 6}
    assert len(plots["history"].data[0].x) == 3


def test_a_page_is_replaced_at_once_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "study.html"
    write_page(path, "first")
    with path.open() as reader:
        write_page(path, "é")
        assert reader.read() == "first"
    assert path.read_text(encoding="utf-8") == "é" and path.stat().st_mode & 0o777 == 0o644

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ParitylineError, match=r"study\.html: cannot be written: No space left"):
        write_page(path, "second")
    assert [file.name for file in tmp_path.iterdir()] == ["study.html"]
    assert path.read_text(encoding="utf-8") == "é"
