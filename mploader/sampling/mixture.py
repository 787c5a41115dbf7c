"""Which source each sample of a mix comes from: a fixed pattern with the exact proportions, in closed form.

A mix is one endless sequence of samples. Its sample ``n`` is the sample with the *number* ``k`` of one source, where
the numbers of a source go on from pass to pass. Both maps,
``n -> (source, k)`` and back, take constant time for any ``n``.

How exact a pattern can be, with ``count`` samples of a source of weight ``p`` (all weights add up to 1) in a window of
``length`` samples of the mix:

* From the first sample on, ``|count - p * length| < 1`` for every source, at every length (Tijdeman, "The chairman
  assignment problem", Discrete Mathematics 32, 1980, which is also the method for three sources and more).
* For one or two sources the same holds for every window (the pattern is a Sturmian word).
* For three or more it cannot: such words exist only for few weights, as 4 : 2 : 1 or equal ones (Fraenkel's conjecture,
  proved up to seven letters). Any window is the difference of two that start at the first sample, so its error
  ``|count - p * length|`` is below 2. It is below 1 for a window that starts at a multiple of the period (the sum of
  the weights as integers in lowest terms). Of several patterns, the one with the smallest error is taken.

Checkpoints depend on every number here; ``NAME`` stands for them in the fingerprint of a plan.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from mploader.errors import ArgumentError

NAME = "proportions-1"

Int64Array = npt.NDArray[np.int64]

_MAX_PERIOD = 1 << 16  # of three sources and more: a table of one period is kept
_MAX_SUM = 1 << 31  # of two: products stay within 64 bits
_MAX_DENOMINATOR = 10**6  # 0.7 means 7/10, not the nearest binary fraction
_MERGES_TRIED = 64
_MAX_MERGED = 1 << 12


def whole_weights(weights: Sequence[Any]) -> tuple[int, ...]:
    """Returns weights as integers in lowest terms.

    One or two sources keep any proportion of 31 bits. Three and more keep theirs exactly if the integers add up to at
    most 65,536, and are otherwise rounded to one part in 65,536.

    Args:
        weights: positive numbers.

    Raises:
        ArgumentError: a weight is not a positive finite number, or is too small beside the others.
    """
    fractions = [_fraction(weight) for weight in weights]
    denominator = math.lcm(*(fraction.denominator for fraction in fractions))
    whole = [int(fraction * denominator) for fraction in fractions]
    divisor = math.gcd(*whole)
    whole = [number // divisor for number in whole]
    largest_sum = _MAX_SUM if len(whole) <= 2 else _MAX_PERIOD
    if sum(whole) <= largest_sum:
        return tuple(whole)
    total = sum(whole)
    kept = [number * largest_sum // total for number in whole]
    if not all(kept):
        raise ArgumentError(
            f"weights={list(weights)}: expected at least 1/{largest_sum} of their sum, got {min(weights)}"
        )
    remainders = sorted(range(len(whole)), key=lambda source: kept[source] * total - whole[source] * largest_sum)
    for source in remainders[: largest_sum - sum(kept)]:
        kept[source] += 1
    divisor = math.gcd(*kept)
    return tuple(number // divisor for number in kept)


def _fraction(weight: Any) -> Fraction:
    try:
        exact = Fraction(weight)
    except (TypeError, ValueError, OverflowError):
        exact = Fraction(0)
    if exact <= 0 or isinstance(weight, (bool, str)):
        raise ArgumentError(f"weight={weight!r}: expected a positive number")
    near = exact.limit_denominator(_MAX_DENOMINATOR)
    return near if abs(near - exact) <= exact * Fraction(1, 10**12) else exact


class Pattern:
    """The endless pattern of some weights, with one period of it in tables. Use :func:`pattern_of`."""

    def __init__(self, weights: tuple[int, ...]) -> None:
        self.period = sum(weights)
        self._weights = np.array(weights, np.int64)
        sources = _best_period(weights)
        self._sources = sources
        self._offsets = [np.flatnonzero(sources == source) for source in range(len(weights))]
        self._ranks = np.empty(self.period, np.int64)
        for offsets in self._offsets:
            self._ranks[offsets] = np.arange(len(offsets))

    def locate(self, samples: Int64Array) -> tuple[Int64Array, Int64Array]:
        """Returns the source of each sample of the mix, and its number in that source; int64 arrays."""
        turns, within = np.divmod(samples, self.period)
        sources = self._sources[within]
        return sources, turns * self._weights[sources] + self._ranks[within]

    def samples_of(self, source: int, numbers: Int64Array) -> Int64Array:
        """The inverse of :meth:`locate` for the samples of one source: their numbers in the mix."""
        turns, within = np.divmod(numbers, self._weights[source])
        return turns * self.period + self._offsets[source][within]


class PatternOfTwo:
    """The pattern of two weights a : b: ``round(n * a / (a + b))`` of the first n samples are of the first source."""

    def __init__(self, weights: tuple[int, int]) -> None:
        self.period = sum(weights)
        self._weights = weights

    def locate(self, samples: Int64Array) -> tuple[Int64Array, Int64Array]:
        """See :meth:`Pattern.locate`."""
        turns, within = np.divmod(samples, self.period)
        before, behind = self._firsts(within), self._firsts(within + 1)
        is_second = behind == before
        first, second = self._weights
        numbers = np.where(is_second, turns * second + within - before, turns * first + before)
        return is_second.astype(np.int64), numbers

    def samples_of(self, source: int, numbers: Int64Array) -> Int64Array:
        """See :meth:`Pattern.samples_of`."""
        weight = self._weights[source]
        turns, within = np.divmod(numbers, weight)
        # The shortest start of the pattern that holds one more sample of the source ends with that sample.
        rounding = self.period // 2 if source == 0 else self.period - 1 - self.period // 2
        length = -(-((within + 1) * self.period - rounding) // weight)
        samples: Int64Array = turns * self.period + length - 1
        return samples

    def _firsts(self, length: Int64Array) -> Int64Array:
        counts: Int64Array = (length * self._weights[0] + self.period // 2) // self.period
        return counts


@functools.lru_cache(maxsize=32)
def pattern_of(weights: tuple[int, ...]) -> Pattern | PatternOfTwo:
    """Returns the pattern of weights that :func:`whole_weights` has returned."""
    return PatternOfTwo((weights[0], weights[1])) if len(weights) == 2 else Pattern(weights)


def window_error(sources: Int64Array, weights: Sequence[int]) -> tuple[float, float]:
    """Returns the largest errors of one period, in samples: of windows from its start, and of all windows."""
    period = sum(weights)
    from_start = anywhere = 0.0
    for source, weight in enumerate(weights):
        counts = np.concatenate([[0], np.cumsum(sources == source)])
        excess = (counts * period - np.arange(len(counts)) * weight) / period
        from_start = max(from_start, float(np.abs(excess).max()))
        anywhere = max(anywhere, float(excess.max() - excess.min()))
    return from_start, anywhere


def _best_period(weights: tuple[int, ...]) -> Int64Array:
    """Returns the sources of one period, int64: the candidate with the smallest error of all windows.

    Its error from the start is below 1. Only the search finds the patterns that are exact in every window, as for
    4 : 2 : 1.
    """
    best = _chairmen(weights)
    best_error = window_error(best, weights)[1]
    if len(weights) == 1 or sum(weights) > _MAX_MERGED:
        return best
    for attempt in range(_MERGES_TRIED):
        merged = _merged(weights, attempt)
        from_start, anywhere = window_error(merged, weights)
        if from_start < 1 and anywhere < best_error - 1e-9:
            best, best_error = merged, anywhere
    return best


def _chairmen(weights: tuple[int, ...]) -> Int64Array:
    """Tijdeman's assignment: of the sources that may come next, the one with the earliest deadline."""
    count, period = len(weights), sum(weights)
    scale = max(1, 2 * count - 2)
    assigned = [0] * count
    chosen = np.empty(period, np.int64)
    for sample in range(period):
        best, best_deadline = -1, 0.0
        for source, weight in enumerate(weights):
            lack = ((sample + 1) * weight - assigned[source] * period) * scale  # in 1 / (period * scale) samples
            if lack >= period:
                deadline = ((scale - 1) * period - lack) / weight
                if best < 0 or deadline < best_deadline:
                    best, best_deadline = source, deadline
        assigned[best] += 1
        chosen[sample] = best
    return chosen


def _merged(weights: tuple[int, ...], attempt: int) -> Int64Array:
    """The samples of each source at equal distances, with one phase for each source: 1/2 at the first attempt."""
    golden = (math.sqrt(5) - 1) / 2
    phases = [(0.5 + (source + 1) * attempt * golden) % 1 for source in range(len(weights))]
    keys = np.concatenate([(np.arange(weight) + phase) / weight for weight, phase in zip(weights, phases, strict=True)])
    return np.repeat(np.arange(len(weights)), weights)[np.argsort(keys, kind="stable")]
