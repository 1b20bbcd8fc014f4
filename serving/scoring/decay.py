"""A model's figures on today's rows beside those it was released with."""

from __future__ import annotations

from typing import Any

from artifacts.estimates import difference_interval
from artifacts.manifest import Estimate, Metrics

_HIGHER_IS_BETTER = {"accuracy": True, "AUC": True, "log loss": False}


def compare(now: Metrics, then: Metrics) -> dict[str, Any]:
    """Accuracy, AUC and log loss now and then, as a JSON object.

    Of each figure: now, then and the difference now - then, each {value, low, high} or None where
    it is not defined; decayed, whether it is worse and the interval of the difference excludes 0;
    and text, a line of that. At the top: decayed, whether any is, and text, which ones are.
    The two are taken as independent samples. Where nothing has changed, a figure is found decayed
    in one of 40 comparisons, by chance.
    """
    figures = {
        name: _figure(name, now.headline.get(name), then.headline.get(name))
        for name in _HIGHER_IS_BETTER
    }
    worse = [name for name, figure in figures.items() if figure["decayed"]]
    return {
        "decayed": bool(worse),
        "text": f"worse than at release: {', '.join(worse)}" if worse else "no figure is worse",
        "rows_now": now.rows,
        "rows_then": then.rows,
        "figures": figures,
    }


def _figure(name: str, now: Estimate | None, then: Estimate | None) -> dict[str, Any]:
    shown = {
        "now": None if now is None else now.model_dump(),
        "then": None if then is None else then.model_dump(),
    }
    if now is None or then is None:
        when = "now" if now is None else "at release"
        text = f"{name}: not compared, as it is not defined {when}"
        return {**shown, "difference": None, "decayed": False, "text": text}
    found = difference_interval(now, then)
    higher, lower = found.low > 0, found.high < 0
    better, decayed = (higher, lower) if _HIGHER_IS_BETTER[name] else (lower, higher)
    change = "worse" if decayed else "better" if better else "no clear difference"
    text = (
        f"{name} {now.value:.4f} now, {then.value:.4f} at release: {change} "
        f"({found.value:+.4f}, 95% interval {found.low:+.4f} to {found.high:+.4f})"
    )
    return {**shown, "difference": found.model_dump(), "decayed": decayed, "text": text}
