"""A study's figures: Optuna's own, by plotly, for a page that is read in light and in dark."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import optuna
import plotly.graph_objects as go
from optuna import visualization
from optuna.trial import FrozenTrial, TrialState

# More would say no more, and a browser would draw for minutes: the newest ones count.
_MOST_TRIALS = 500
_MOST_CURVES = 200
# What Optuna takes to be the best tenth must be a few trials.
_TRUSTED_TRIALS = 50
_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
# Okabe and Ito's, which the colour-blind can tell apart.
_COLOURS = {"COMPLETE": "#0072b2", "PRUNED": "#e69f00", "FAIL": "#d55e00"}
_SCALE = [[0, "#56b4e9"], [1, "#08306b"]]


class _LeftOutError(Exception):
    """Why a figure would show nothing, as a sentence."""


@dataclass(frozen=True)
class Figure:
    """One of a study's figures. plot is None where there is nothing to draw, and about says why.

    name: for its place in the page. about: what it shows, in words.
    """

    name: str
    heading: str
    about: str
    plot: go.Figure | None


def finished_trials(study: optuna.Study) -> list[FrozenTrial]:
    """Those that the figures may show: finished, no duplicates, without infinite values."""
    return [
        trial
        for trial in study.get_trials(deepcopy=False, states=_FINISHED)
        if "duplicate_of" not in trial.user_attrs
        and all(math.isfinite(value) for value in trial.values or ())
    ]


def study_figures(study: optuna.Study) -> list[Figure]:
    """All figures of a study with one objective, in the order in which they are read.

    Raises nothing for what a study may hold: a figure that cannot be made says so itself.
    """
    label = study.metric_names[0] if study.metric_names else "objective"
    with _quiet():
        shown = _copied(study, finished_trials(study))
        recent = _copied(study, finished_trials(study)[-_MOST_TRIALS:])
        default = next(
            (t.number for t in study.get_trials(deepcopy=False) if t.user_attrs.get("default")),
            None,
        )
        return [
            _figure(
                "history", "Optimization history",
                "Each completed trial's value, and the best one so far.",
                lambda: _history(shown, label, default),
            ),
            _figure(
                "curves", "Intermediate values",
                "Each trial's value as it went on, at ninths of its own epochs (with several "
                "folds or seeds: of each training, and the mean so far); pruned ones end early. "
                f"At most the {_MOST_CURVES} newest trials.",
                lambda: _curves(_copied(study, finished_trials(study)[-_MOST_CURVES:]), label),
            ),
            _figure(
                "importances", "Importances",
                "Which parameters told the best tenth of the completed trials from the rest "
                "(PED-ANOVA; the shares add up to 1). With fewer than "
                f"{_TRUSTED_TRIALS} completed trials they are a first guess; there are "
                f"{len(_complete(recent))}.",
                lambda: _importances(recent, label),
            ),
            _figure(
                "slices", "Slices",
                "The value over each parameter alone, stronger colours for later trials; a trial "
                "without the parameter is absent from its slice.",
                lambda: _slices(recent, label),
            ),
            _figure(
                "parallel", "Parallel coordinates",
                "A line for each completed trial through its parameters, in stronger colours for "
                "better ones; None where it has no such parameter.",
                lambda: _parallel(recent, label),
            ),
            _figure(
                "timeline", "Timeline",
                "When each trial ran, and how it ended.",
                lambda: _timeline(recent),
            ),
        ]  # fmt: skip


def _figure(name: str, heading: str, about: str, draw: Callable[[], go.Figure]) -> Figure:
    try:
        plot = draw()
    except _LeftOutError as reason:
        return Figure(name, heading, f"Left out: {reason}.", None)
    # What Optuna cannot draw is not worth the study's page.
    except Exception as error:  # noqa: BLE001
        reason = f"{type(error).__name__}: {error}"
        return Figure(name, heading, f"Left out: Optuna cannot draw it ({reason}).", None)
    plot.update_layout(
        title=None, template="plotly_white", paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)", margin={"l": 70, "r": 20, "t": 20, "b": 60},
        font={"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#888", "activecolor": "#222"},
    )  # fmt: skip
    plot.update_xaxes(automargin=True)
    plot.update_yaxes(automargin=True)
    return Figure(name, heading, about, plot)


def _history(study: optuna.Study, label: str, default: int | None) -> go.Figure:
    complete = _some_complete(study)
    plot = visualization.plot_optimization_history(study, target_name=label)
    plot.update_traces(marker={"color": "#0072b2"}, selector={"mode": "markers"})
    plot.update_traces(line={"color": "#d55e00"}, selector={"mode": "lines"})
    own = [trial for trial in complete if trial.number == default]
    if own:
        plot.add_trace(
            go.Scatter(
                x=[own[0].number], y=[own[0].value], mode="markers", name="the recipe itself",
                marker={"symbol": "star", "size": 15, "color": "#009e73"},
            )
        )  # fmt: skip
    plot.update_layout(legend=_legend())
    return plot


def _curves(study: optuna.Study, label: str) -> go.Figure:
    drawn = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))
    if not any(trial.intermediate_values for trial in drawn):
        raise _LeftOutError("no completed or pruned trial has a value before its end")
    plot = visualization.plot_intermediate_values(study)
    plot.update_layout(showlegend=False, xaxis_title="ninths of the epochs", yaxis_title=label)
    pruned = {
        f"Trial{t.number}" for t in study.get_trials(deepcopy=False) if t.state == TrialState.PRUNED
    }
    plot.for_each_trace(
        lambda trace: trace.update(
            mode="lines+markers",
            line={
                "color": _COLOURS["PRUNED" if trace.name in pruned else "COMPLETE"], "width": 1
            },
            marker={"size": 3},
            opacity=0.7,
        )
    )  # fmt: skip
    return plot


def _importances(study: optuna.Study, label: str) -> go.Figure:
    complete = _some_complete(study)
    if len({trial.value for trial in complete}) < 2:
        raise _LeftOutError("it needs two completed trials with different values")
    if len(varied := _varied(complete)) < 2:
        raise _LeftOutError("it needs two parameters that have had different values")
    plot = visualization.plot_param_importances(study, params=varied, target_name=label)
    plot.update_traces(marker={"color": "#0072b2"})
    plot.update_layout(
        height=140 + 30 * len(varied), xaxis_title="importance", yaxis_title=None,
        showlegend=False,
    )  # fmt: skip
    return plot


def _slices(study: optuna.Study, label: str) -> go.Figure:
    names = _parameters(_some_complete(study))
    if not names:
        raise _LeftOutError("no completed trial has a parameter")
    plot = visualization.plot_slice(study, target_name=label)
    plot.update_traces(marker={"colorscale": _SCALE, "size": 7})
    plot.update_layout(width=max(660, 260 * len(names)))
    return plot


def _parallel(study: optuna.Study, label: str) -> go.Figure:
    complete = _some_complete(study)
    if len(complete) < 2:
        raise _LeftOutError("it needs two completed trials")
    names = _parameters(complete)
    if len(names) < 2:
        raise _LeftOutError("it needs two parameters")
    plot = visualization.plot_parallel_coordinate(study, target_name=label)
    plot.update_layout(width=max(660, 130 * (len(names) + 1)))
    return plot


def _timeline(study: optuna.Study) -> go.Figure:
    if not any(trial.state.is_finished() for trial in study.get_trials(deepcopy=False)):
        raise _LeftOutError("no trial has finished")
    plot = visualization.plot_timeline(study)
    plot.data = [trace for trace in plot.data if trace.name in _COLOURS]
    plot.for_each_trace(lambda trace: trace.update(marker={"color": _COLOURS[trace.name]}))
    plot.update_layout(xaxis_title="time", yaxis_title="trial", legend=_legend())
    return plot


def _legend() -> dict[str, object]:
    return {"orientation": "h", "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}


def _complete(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))


def _some_complete(study: optuna.Study) -> list[FrozenTrial]:
    if complete := _complete(study):
        return complete
    raise _LeftOutError("no trial has completed with a finite value")


def _parameters(trials: list[FrozenTrial]) -> list[str]:
    return sorted({name for trial in trials for name in trial.params})


def _varied(trials: list[FrozenTrial]) -> list[str]:
    """The parameters that have had two values, or that some of the trials do not have."""
    return [
        name
        for name in _parameters(trials)
        if len({repr(trial.params.get(name)) for trial in trials}) > 1
    ]


def _copied(study: optuna.Study, trials: list[FrozenTrial]) -> optuna.Study:
    """A study in memory with these trials, under their numbers, and none of the others' content."""
    shown = {trial.number: trial for trial in trials}
    copied = optuna.create_study(direction=study.direction)
    for number in range(max(shown, default=-1) + 1):
        # Optuna counts anew: a trial that only waits keeps the place of one that is not shown.
        trial = optuna.create_trial(state=TrialState.WAITING)
        if number in shown:
            trial = copy.deepcopy(shown[number])
            # They would fill what is shown where one points at.
            trial.user_attrs, trial.system_attrs = {}, {}
            trial.intermediate_values = {
                step: value
                for step, value in trial.intermediate_values.items()
                if math.isfinite(value)
            }
        copied.add_trial(trial)
    return copied


@contextmanager
def _quiet() -> Iterator[None]:
    """Optuna neither logs nor warns: what it would say, the page says."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
