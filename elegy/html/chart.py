"""Line charts as SVG, for pages that load nothing."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 560, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 24, 12, 34
_COLORS = 8
_SMALLEST, _LARGEST = 1e-300, 1e300
_MOST = 400
"""Lines with more points are thinned to the extremes of this many parts."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a chart.

    Args:
        name: its name in the legend.
        steps: the horizontal values.
        values: the vertical values; the line has a gap where one is not finite.
        faint: True to draw it behind the others, in the colour of the line before it.
        color: the number of its colour, so that it has the same one in several charts; None for that of its place.
    """

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    faint: bool = False
    color: int | None = None


def chart(title: str, lines: Sequence[Line], *, x: str = "step") -> str:
    """Draws lines over a common axis, as the HTML of a figure with a legend.

    The vertical axis is logarithmic if all values are positive and span a factor of 100 or more.

    Args:
        title: the name of the chart.
        lines: the lines.
        x: the name of the horizontal axis.

    Example:
        >>> "<polyline" in chart("loss", [Line("train", [1, 2], [0.5, 0.4])])
        True
    """
    points = [(s, v) for one in lines for s, v in zip(one.steps, one.values, strict=True) if math.isfinite(v)]
    if not points:
        return f"<figure><figcaption>{escape(title)}</figcaption><p>no finite values</p></figure>"
    values = [v for _, v in points]
    logarithmic = min(values) > 0 and max(values) >= 100 * min(values)
    scale = math.log10 if logarithmic else float
    xs = _Axis([s for s, _ in points], _LEFT, WIDTH - _RIGHT)
    ys = _Axis([scale(v) for v in values], HEIGHT - _BOTTOM, _TOP)
    solid = itertools.accumulate(not one.faint for one in lines)
    drawn = [
        (one, f"c{(max(count, 1) - 1 if one.color is None else one.color) % _COLORS}{' faint' if one.faint else ''}")
        for one, count in zip(lines, solid, strict=True)
    ]
    parts = [_grid(xs, ys, logarithmic, x)]
    data = []
    for one, style in sorted(drawn, key=lambda pair: not pair[0].faint):
        for part in _parts(one):
            places = [(round(xs.at(s), 1), round(ys.at(scale(v)), 1)) for s, v in part]
            if len(places) == 1:
                parts.append(f'<circle class="dot {style}" cx="{places[0][0]}" cy="{places[0][1]}" r="3"/>')
            else:
                parts.append(f'<polyline class="line {style}" points="{" ".join(f"{h},{v}" for h, v in places)}"/>')
    legend = [f'<span class="key {style}">{escape(one.name)}</span>' for one, style in drawn]
    for one in lines:
        if not one.faint:
            shown = [[s, v, round(xs.at(s), 1)] for part in _parts(one) for s, v in part]
            data.append({"name": one.name, "points": shown})
    note = " (log scale)" if logarithmic else ""
    payload = escape(json.dumps(data), quote=True)
    return (
        f'<figure data-lines="{payload}"><figcaption>{escape(title)}{note}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">{"".join(parts)}'
        f'<line class="cursor" y1="{_TOP}" y2="{HEIGHT - _BOTTOM}"/></svg>'
        f'<div class="legend">{"".join(legend)}</div><output></output></figure>'
    )


def _parts(line: Line) -> list[list[tuple[float, float]]]:
    """The parts of a line between values that are not finite."""
    parts: list[list[tuple[float, float]]] = [[]]
    for step, value in _thinned(list(zip(line.steps, line.values, strict=True))):
        if math.isfinite(value):
            parts[-1].append((step, value))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most about 2 x `_MOST` points: of each part of a long line, the smallest and the largest value."""
    if len(points) <= 2 * _MOST:
        return points
    size = len(points) / _MOST
    found = []
    for k in range(_MOST):
        part = points[int(k * size) : int((k + 1) * size)]
        if any(not math.isfinite(v) for _, v in part):
            found += part[:1] if not math.isfinite(part[0][1]) else [p for p in part if not math.isfinite(p[1])][:1]
            part = [p for p in part if math.isfinite(p[1])]
        if part:
            found += {min(part, key=lambda p: p[1]), max(part, key=lambda p: p[1])}
    return sorted(found, key=lambda p: p[0])


def _drawable(value: float) -> float:
    """The nearest value whose distance from every other one is a float."""
    return min(max(value, -_LARGEST), _LARGEST)


class _Axis:
    """A linear scale from values to pixels, with round marks."""

    def __init__(self, values: Sequence[float], begin: float, end: float):
        low, high = _drawable(min(values)), _drawable(max(values))
        if high - low < _SMALLEST:
            pad = 0.5 * (abs(low) if abs(low) > _SMALLEST else 1.0)
            low, high = low - pad, high + pad
        self.low, self.high, self.begin, self.end = low, high, begin, end

    def at(self, value: float) -> float:
        return self.begin + (_drawable(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    def marks(self, count: int) -> list[float]:
        raw = (self.high - self.low) / count
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(power * m for m in (1, 2, 5, 10) if power * m >= raw)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]


def _grid(xs: _Axis, ys: _Axis, logarithmic: bool, x: str) -> str:
    parts = []
    for mark in ys.marks(4):
        text = f"{10**mark:.3g}" if logarithmic else f"{mark:.4g}"
        at = f"{ys.at(mark):.1f}"
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{at}" text-anchor="end" dominant-baseline="middle">{text}</text>')
    for mark in xs.marks(6):
        at = f"{xs.at(mark):.1f}"
        parts.append(f'<text x="{at}" y="{HEIGHT - _BOTTOM + 15}" text-anchor="middle">{mark:g}</text>')
    parts.append(f'<text x="{(WIDTH + _LEFT) / 2}" y="{HEIGHT - 4}" text-anchor="middle">{escape(x)}</text>')
    return "".join(parts)
