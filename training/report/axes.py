"""Axes of the charts: where values lie on a picture as wide as a phone, with names and numbers."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from markupsafe import Markup

from training.report.markup import Child, element

WIDTH = 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 10, 38
_MOST_POWERS = 5


@dataclass(frozen=True)
class Axis:
    """A range and what it is called. log: powers of ten lie equally far apart; `low` is one."""

    name: str
    low: float
    high: float
    whole: bool = False
    log: bool = False

    def share(self, value: float) -> float:
        """How far along a value lies: 0 at the low end, 1 at the high one."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = (math.log10(max(end, self.low)) for end in (value, low, high))
        return (value - low) / (high - low)

    def ticks(self) -> list[float]:
        """About four round numbers within the range."""
        if self.log:
            first, last = round(math.log10(self.low)), round(math.log10(self.high))
            step = math.ceil((last - first + 1) / _MOST_POWERS)
            return [10.0**power for power in range(first, last + 1, step)]
        span = self.high - self.low
        raw = span / 4
        scale = 10.0 ** math.floor(math.log10(raw))
        step = next(scale * factor for factor in (1, 2, 2.5, 5, 10) if scale * factor >= raw * 0.99)
        if self.whole:
            step = max(1.0, float(round(step)))
        first = math.ceil(self.low / step - 1e-9)
        return [step * count for count in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class Frame:
    """Where values lie on a chart."""

    x: Axis
    y: Axis
    height: int = 250

    def place(self, x: float, y: float) -> tuple[float, float]:
        """In the picture's units."""
        return (
            _LEFT + (WIDTH - _LEFT - _RIGHT) * self.x.share(x),
            _TOP + (self.height - _TOP - _BOTTOM) * (1 - self.y.share(y)),
        )


def axes(frame: Frame) -> Markup:
    """Lines at the ticks of y, the ticks' numbers, and both names."""
    drawn: list[Child] = []
    for tick in frame.y.ticks():
        (x1, y), (x2, _) = frame.place(frame.x.low, tick), frame.place(frame.x.high, tick)
        drawn.append(element("line", x1=x1, x2=x2, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", _tick_text(tick), x=x1 - 6, y=y + 4, text_anchor="end"))
    for tick in frame.x.ticks():
        x, bottom = frame.place(tick, frame.y.low)
        drawn.append(element("text", _tick_text(tick), x=x, y=bottom + 16, text_anchor="middle"))
    (x1, y), (x2, _) = (
        frame.place(frame.x.low, frame.y.low), frame.place(frame.x.high, frame.y.low)
    )  # fmt: skip
    drawn.append(element("line", x1=x1, x2=x2, y1=y, y2=y, class_="axis"))
    drawn.append(x_name(frame))
    middle = _TOP + (frame.height - _TOP - _BOTTOM) / 2
    drawn.append(
        element("text", frame.y.name, transform=f"translate(12 {middle:.1f}) rotate(-90)",
                text_anchor="middle")
    )  # fmt: skip
    return element("g", drawn)


def _tick_text(tick: float) -> str:
    """A tick's number, in the few characters that there are beside an axis' name."""
    return f"{tick:g}" if abs(tick) < 10_000 else re.sub(r"e\+0*", "e", f"{tick:.2g}")


def x_name(frame: Frame) -> Markup:
    """What the horizontal axis is called, below it."""
    middle = _LEFT + (WIDTH - _LEFT - _RIGHT) / 2
    return element("text", frame.x.name, x=middle, y=frame.height - 4, text_anchor="middle")


def even_tenth(share: float) -> float:
    """The last of 0, 0.2 ... 0.8 that is not above a share: an axis from there has it as a tick."""
    return min(0.8, math.floor(share * 5) / 5)


def square(x: str, y: str, first: float = 0.0) -> Frame:
    """Shares on both axes, from the same one to 1."""
    return Frame(Axis(x, first, 1.0), Axis(y, first, 1.0), 320)


def diagonal(frame: Frame) -> Markup:
    """Where both are equal, dotted."""
    (x1, y1), (x2, y2) = frame.place(frame.x.low, frame.y.low), frame.place(1, 1)
    return element("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="guide")
