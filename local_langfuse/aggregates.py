"""Aggregates that SQLite lacks, computed as Langfuse's ClickHouse does."""

import math
from collections import Counter
from itertools import pairwise

from local_langfuse.wire import to_json

GRID = 400


class Quantile:
    """`quantile(value, p)`: the p-quantile, p from 0 to 1, interpolated between neighbours."""

    def __init__(self) -> None:
        self._values: list[float] = []
        self._p = 0.0

    def step(self, value: float | None, p: float) -> None:
        """Take one value; skip NULL."""
        if value is not None:
            self._values.append(value)
            self._p = p

    def finalize(self) -> float | None:
        """Return the quantile, or NULL if there was no value."""
        if not self._values:
            return None
        self._values.sort()
        part, low = math.modf(self._p * (len(self._values) - 1))
        below = self._values[int(low)]
        above = self._values[min(int(low) + 1, len(self._values) - 1)]
        return below * (1 - part) + above * part


class Histogram:
    """`histogram(value, bins)`: JSON rows of lower bound, upper bound and height."""

    def __init__(self) -> None:
        self._counts: Counter[float] = Counter()
        self._bins = 1

    def step(self, value: float | None, bins: int) -> None:
        """Take one value; skip NULL."""
        if value is not None:
            self._counts[value] += 1
            self._bins = bins

    def finalize(self) -> str:
        """Return bins without gaps, narrower where there are more values."""
        if not self._counts:
            return "[]"
        points = _merged(_points(self._counts), self._bins)
        middles = [a / 2 + b / 2 for (a, _), (b, _) in pairwise(points)]
        bounds = [min(self._counts), *middles, max(self._counts)]
        sizes = [points[0][1], *(size for _, size in points), points[-1][1]]
        # Between two points the height changes evenly, so each bin takes a little of the next.
        heights = [
            (a + 6 * b + c) / 8 for a, b, c in zip(sizes, sizes[1:], sizes[2:], strict=False)
        ]
        return to_json([[*edges, h] for edges, h in zip(pairwise(bounds), heights, strict=True)])


def _points(counts: Counter[float]) -> list[tuple[float, float]]:
    """Return values and counts in order; if there are very many, round them to a grid."""
    low, step = min(counts), max(counts) / GRID - min(counts) / GRID
    if len(counts) > GRID:
        on_grid: Counter[float] = Counter()
        for value, count in counts.items():
            on_grid[low + round((value - low) / step) * step] += count
        counts = on_grid
    return sorted(counts.items())


def _merged(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """Merge the two nearest points, and add their counts, until at most `most` are left."""
    while len(points) > most:
        gaps = [b - a for (a, _), (b, _) in pairwise(points)]
        at = gaps.index(min(gaps))
        (a, n), (b, m) = points[at : at + 2]
        points[at : at + 2] = [(a * (n / (n + m)) + b * (m / (n + m)), n + m)]
    return points
