"""Several sources in fixed proportions."""

from __future__ import annotations

import hashlib
import operator
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.checks import whole_number
from mploader._util.location import Location
from mploader.errors import ArgumentError
from mploader.sampling import mixture, permutation
from mploader.sampling.samplers import Indices, Sampler, ShardShuffle
from mploader.sources.choose_sampler import sampler_for
from mploader.sources.combinators import checked_source, combined_fingerprint, short
from mploader.sources.protocols import is_endless, where_is


class Mix:
    """Samples of several sources in fixed proportions, spread evenly: ``Mix({photos: 0.9, drawings: 0.1})``.

    A fixed pattern decides which source each sample comes from. With ``w`` the share of a source's weight in the sum of
    all, the first n samples contain ``w * n`` of this source to within less than one; with two sources so do any n
    neighbouring samples. With three or more no pattern can do that everywhere (see `mploader.sampling.mixture`): then
    any n neighbours are within two, and in most mixes within one.

    A mix has no end: its indices go on beyond `len`, into the next epochs. Each sample of a source comes once before
    any is repeated; then the source starts again, in another random order if the loader shuffles. The proportions hold
    across epochs, and each sample is found in constant time.

    The index of a sample is that in the mix without shuffling. A repeated sample has another index, and so gets other
    random numbers in a transform, even in the same epoch. A bad sample is replaced by one of the same source.

    Args:
        sources: a dict of source to weight, or pairs of them (for sources that cannot be keys, such as lists).
            Weights are positive numbers; only their ratio counts.
        length: number of samples in an epoch. None: until the first source ends.

    Raises:
        ArgumentError: there is no source, or a weight, a source or the length is invalid.
    """

    is_endless = True

    def __init__(self, sources: Mapping[Any, float] | Iterable[tuple[Any, float]], *, length: int | None = None):
        expected = "expected a dict of source to weight, or pairs (source, weight)"
        try:
            given = iter(sources.items() if isinstance(sources, Mapping) else sources)
        except TypeError:
            raise ArgumentError(f"Mix: sources={sources!r}: {expected}") from None
        pairs = list(given)
        if not pairs:
            raise ArgumentError("Mix({}): expected at least one source and its weight")
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise ArgumentError(f"Mix: {expected}")
        self._sources = tuple(checked_source(source) for source, _ in pairs)
        self._weights = mixture.whole_weights([weight for _, weight in pairs])
        self._length = self._until_first_end() if length is None else whole_number("Mix: length", length, 1)
        if self._length > permutation.MAX_SIZE:
            raise ArgumentError(f"Mix: length={length!r}: expected at most {permutation.MAX_SIZE}")

    @property
    def sources(self) -> tuple[Any, ...]:
        """The parts."""
        return self._sources

    @property
    def weights(self) -> tuple[int, ...]:
        """The proportions of the parts as whole numbers; see `mploader.sampling.mixture.whole_weights`."""
        return self._weights

    def locate(self, index: int) -> tuple[int, int]:
        """Returns the number of the part that a sample comes from, and its index there.

        Raises:
            IndexError: the index is before the start; -1 is the last one of the first epoch.
        """
        source, inside = self._locate(index)
        part = self._sources[source]
        return source, inside if is_endless(part) else inside % len(part)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Any:
        """Returns a sample of the mix without shuffling.

        Raises:
            IndexError: the index is before the start; -1 is the last one of the first epoch.
            Exception: from the part.
        """
        source, inside = self.locate(index)
        return self._sources[source][inside]

    def __iter__(self) -> Iterator[Any]:
        """Iterates over the samples of the first epoch without shuffling."""
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> Location:
        """Returns the location of a sample, as the part states it."""
        source, inside = self.locate(index)
        return where_is(self._sources[source], inside)

    def fingerprint(self) -> str:
        """Hashes the parts' fingerprints, the proportions and the length."""
        return combined_fingerprint("Mix", self._length, self._weights, *self._sources)

    def epoch_sampler(self, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
        """Returns the order of all epochs: the pattern, with each part in the order that ``shuffle`` gives."""
        orders = tuple(
            sampler_for(source, len(source), _seed_of(seed, part), shuffle) for part, source in enumerate(self._sources)
        )
        lengths = tuple(0 if is_endless(source) else len(source) for source in self._sources)
        periods = tuple(len(source) for source in self._sources)
        return MixedSampler(self._weights, orders, lengths, periods, self._length)

    def __repr__(self) -> str:
        total = sum(self._weights)
        parts = [f"{weight / total:.4g}: {short(source)}"
                 for weight, source in zip(self._weights, self._sources, strict=True)]  # fmt: skip
        return f"Mix of {len(self._sources)} sources, {len(self)} samples an epoch: {{{', '.join(parts)}}}"

    def _locate(self, index: int) -> tuple[int, int]:
        """Returns the number of a part, and how many samples of it come before this one."""
        from_start = operator.index(index)
        from_start += len(self) if from_start < 0 else 0
        if not 0 <= from_start < permutation.MAX_SIZE:
            raise IndexError(f"sample {operator.index(index)} of a mix of {len(self)} samples an epoch")
        sources, before = mixture.pattern_of(self._weights).locate(np.array([from_start]))
        return int(sources[0]), int(before[0])

    def _until_first_end(self) -> int:
        """Returns how many samples come before the first that would be beyond the end of its source."""
        pattern = mixture.pattern_of(self._weights)
        firsts = (pattern.samples_of(part, np.array([len(source)])) for part, source in enumerate(self._sources))
        return min(int(first[0]) for first in firsts)


@dataclass(frozen=True)
class MixedSampler:
    """The order of a `Mix`: the pattern, in which each source follows its own order, pass after pass.

    Attributes:
        weights: the proportions, as whole numbers.
        orders: the order of each source.
        lengths: samples in a pass of each source, after which its indices start again; 0 if it is endless.
        periods: samples in a pass of each source.
        length: samples in an epoch.
    """

    weights: tuple[int, ...]
    orders: tuple[Sampler, ...]
    lengths: tuple[int, ...]
    periods: tuple[int, ...]
    length: int

    @property
    def name(self) -> str:
        """See `Sampler.name`."""
        facts = repr((self.weights, self.periods, [order.name for order in self.orders]))
        facts = facts if len(facts) <= 160 else hashlib.sha256(facts.encode()).hexdigest()[:16]
        return f"mix-1 of {self.length} {mixture.NAME} {facts}"

    def indices(self, epoch: int, positions: Indices) -> Indices:
        """See `Sampler.indices`."""
        pattern = mixture.pattern_of(self.weights)
        sources, ordinals = pattern.locate(epoch * self.length + positions)
        result = np.empty_like(positions)
        for source in np.unique(sources):
            is_here = sources == source
            shuffled = self._in_order(int(source), ordinals[is_here])
            result[is_here] = pattern.samples_of(int(source), shuffled)
        return result

    def replacement(self, epoch: int, index: int, attempt: int) -> int:
        """See `Sampler.replacement`; another sample of the same source."""
        pattern = mixture.pattern_of(self.weights)
        sources, ordinals = pattern.locate(np.array([index]))
        source, ordinal = int(sources[0]), int(ordinals[0])
        begin = 0 if not self.lengths[source] else ordinal // self.lengths[source] * self.lengths[source]
        other = begin + self.orders[source].replacement(epoch, ordinal - begin, attempt)
        return int(pattern.samples_of(source, np.array([other]))[0])

    def _in_order(self, source: int, ordinals: Indices) -> Indices:
        """Returns the samples of a source at these ordinals of its own order; each pass has another order."""
        passes, inside = np.divmod(ordinals, self.periods[source])
        result = np.empty_like(ordinals)
        for pass_number in np.unique(passes).tolist():
            is_here = passes == pass_number
            chosen = self.orders[source].indices(pass_number, inside[is_here])
            result[is_here] = pass_number * self.lengths[source] + chosen
        return result


def _seed_of(seed: int, part: int) -> int:
    """Returns a seed for each part, so that two parts of the same length are shuffled differently."""
    return int.from_bytes(permutation.digest("mix", seed, part, size=8), "little")
