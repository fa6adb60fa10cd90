"""Line charts as SVG that stands in a page by itself: no script, no font and no address from elsewhere."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 12, 34
"""Margins of the plot area, in units of the view box."""

MOST_POINTS = 400
"""Points of a longer line are joined in groups, of which the lowest and the highest stay."""

COLOURS = 4
"""Colours of the style; further curves take them again, dashed."""

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """One curve of a chart."""

    name: str
    points: Sequence[Point]
    """(step, value); values that are not finite are left out."""


@dataclass(frozen=True)
class Scale:
    """Maps values to positions."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def chart(title: str, lines: Sequence[Line], unit: str = "") -> str:
    """A figure of curves over the steps of training; empty where no curve has a finite point."""
    finite = [Line(line.name, [p for p in line.points if math.isfinite(p[1])]) for line in lines]
    drawn = [line for line in finite if line.points]
    if not drawn:
        return ""
    steps = [step for line in drawn for step, _ in line.points]
    values = [value for line in drawn for _, value in line.points]
    low, high, ticks = axis(min(values), max(values))
    x = Scale(min(steps), max(steps), LEFT, WIDTH - RIGHT)
    y = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [
        *(_grid(y(tick), tick) for tick in ticks),
        *(_step(x(step), step) for step in step_ticks(min(steps), max(steps))),
        f'<text class="axis" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 3}" text-anchor="middle">step</text>',
        *(_curve(number, line, x, y) for number, line in enumerate(drawn)),
    ]
    keys = "".join(
        f'<span class="key {colour(number)}">{escape(line.name)}</span>' for number, line in enumerate(drawn)
    )
    described = "; ".join(
        f"{line.name}: {_short(line.points[0][1])} to {_short(line.points[-1][1])}" for line in drawn
    )
    return (
        f"<figure><figcaption><b>{escape(title)}</b>{f' in {escape(unit)}' if unit else ''} {keys}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(f"{title}. {described}")}">'
        f"{''.join(parts)}</svg></figure>"
    )


def axis(low: float, high: float) -> tuple[float, float, list[float]]:
    """(lowest, highest, ticks) of an axis over these values: about five round numbers."""
    if low == high:
        margin = abs(low) * 0.1 or 1.0
        low, high = low - margin, high + margin
    rough = (high - low) / 4
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / width), math.ceil(high / width)
    return first * width, last * width, [number * width for number in range(first, last + 1)]


def step_ticks(low: float, high: float) -> list[int]:
    """Whole numbers of steps for the axis below the chart, at most six."""
    if high - low < 1:
        return [round(low)]
    _, _, ticks = axis(low, high)
    return sorted({round(tick) for tick in ticks if low <= tick <= high})


def thinned(points: Sequence[Point]) -> Sequence[Point]:
    """The points, or of each group of neighbours the lowest and the highest, where there are more than MOST_POINTS."""
    size = math.ceil(2 * len(points) / MOST_POINTS)
    if size < 2:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    extremes = [{min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])} for group in groups]
    return [point for both in extremes for point in sorted(both)]


def colour(number: int) -> str:
    """The class of a curve, which the style gives its colour."""
    return f"c{number % COLOURS}"


def _curve(number: int, line: Line, x: Scale, y: Scale) -> str:
    places = [(x(step), y(value)) for step, value in thinned(line.points)]
    own = colour(number)
    dots = "".join(f'<circle class="{own}" cx="{a:.1f}" cy="{b:.1f}" r="2.5"/>' for a, b in places)
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    dashed = " dashed" if number >= COLOURS else ""
    return f'<polyline class="{own}{dashed}" points="{path}"/>' + (dots if len(places) <= 40 else "")


def _grid(place: float, value: float) -> str:
    return (
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place:.1f}" y2="{place:.1f}"/>'
        f'<text class="axis" x="{LEFT - 6}" y="{place + 4:.1f}" text-anchor="end">{_short(value)}</text>'
    )


def _step(place: float, step: int) -> str:
    return f'<text class="axis" x="{place:.1f}" y="{HEIGHT - 17}" text-anchor="middle">{_short(step)}</text>'


def _short(value: float) -> str:
    """A number of few characters."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.4g}M"
    if abs(value) >= 1e4:
        return f"{value / 1e3:.4g}k"
    return f"{value:.4g}" if abs(value) >= 1e-3 or value == 0 else f"{value:.1e}"
