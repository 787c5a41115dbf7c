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

    Which source a place takes its sample from is a fixed pattern. With ``w`` the part of a source's weight in the sum
    of all, a window of n places holds ``w * n`` samples of it to within less than one, for every window that starts
    with the mix, and with two sources for every window. With three or more no pattern can do that everywhere (see
    `mploader.sampling.mixture`): a window that starts anywhere is then within two, and in most mixes within one.

    A mix has no end: its numbers go on behind `len`, into the next epochs. So every sample of a source comes once
    before any comes again; then the source starts again, in another random order where the loader shuffles. The
    proportions hold across the borders of epochs, and any place is found in constant time.

    A sample has the number of its place in the mix without shuffling: a sample that comes again has another number, and
    so other random numbers in a transform, even in one epoch. A bad sample is replaced by one of the same source.

    Args:
        sources: a dict of source to weight, or pairs of them (for sources that cannot be keys, such as lists).
            Weights are positive numbers; only their ratio counts.
        length: samples in an epoch. None: until the first source has come to its end.

    Raises:
        ArgumentError: there is no source, or a weight, a source or the length cannot be meant.
    """

    is_endless = True

    def __init__(self, sources: Mapping[Any, float] | Iterable[tuple[Any, float]], *, length: int | None = None):
        wanted = "wanted is a dict of source to weight, or pairs (source, weight)"
        try:
            given = iter(sources.items() if isinstance(sources, Mapping) else sources)
        except TypeError:
            raise ArgumentError(f"Mix: sources={sources!r}: {wanted}") from None
        pairs = list(given)
        if not pairs:
            raise ArgumentError("Mix({}): name at least one source and its weight")
        if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
            raise ArgumentError(f"Mix: {wanted}")
        self._sources = tuple(checked_source(source) for source, _ in pairs)
        self._weights = mixture.whole_weights([weight for _, weight in pairs])
        self._length = self._until_first_end() if length is None else whole_number("Mix: length", length, 1)
        if self._length > permutation.MAX_SIZE:
            raise ArgumentError(f"Mix: length={length!r}: wanted is at most {permutation.MAX_SIZE}")

    @property
    def sources(self) -> tuple[Any, ...]:
        """The parts."""
        return self._sources

    @property
    def weights(self) -> tuple[int, ...]:
        """The proportions of the parts as whole numbers; see `mploader.sampling.mixture.whole_weights`."""
        return self._weights

    def locate(self, index: int) -> tuple[int, int]:
        """The part that a sample is of, and its number there."""
        source, ordinal = self._ordinal(index)
        part = self._sources[source]
        return source, ordinal if is_endless(part) else ordinal % len(part)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int, /) -> Any:
        """The sample at a place of the mix without shuffling.

        Raises:
            IndexError: the place is before the start; -1 is the last one of the first epoch.
        """
        source, inside = self.locate(index)
        return self._sources[source][inside]

    def __iter__(self) -> Iterator[Any]:
        """The samples of the first epoch without shuffling."""
        return (self[index] for index in range(len(self)))

    def where(self, index: int) -> Location:
        """What the part says of the sample."""
        source, inside = self.locate(index)
        return where_is(self._sources[source], inside)

    def fingerprint(self) -> str:
        """A hash of the parts' fingerprints, the proportions and the length."""
        return combined_fingerprint("Mix", self._length, self._weights, *self._sources)

    def epoch_sampler(self, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
        """The order of an epoch: the pattern, with each part in the order that ``shuffle`` asks for."""
        orders = tuple(
            sampler_for(source, len(source), _seed_of(seed, place), shuffle)
            for place, source in enumerate(self._sources)
        )
        lengths = tuple(0 if is_endless(source) else len(source) for source in self._sources)
        periods = tuple(len(source) for source in self._sources)
        return MixedSampler(self._weights, orders, lengths, periods, self._length)

    def __repr__(self) -> str:
        total = sum(self._weights)
        parts = [f"{weight / total:.4g}: {short(source)}"
                 for weight, source in zip(self._weights, self._sources, strict=True)]  # fmt: skip
        return f"Mix of {len(self._sources)} sources, {len(self)} samples an epoch: {{{', '.join(parts)}}}"

    def _ordinal(self, index: int) -> tuple[int, int]:
        place = operator.index(index)
        place += len(self) if place < 0 else 0
        if not 0 <= place < permutation.MAX_SIZE:
            raise IndexError(f"sample {operator.index(index)} of a mix of {len(self)} samples an epoch")
        sources, ordinals = mixture.pattern_of(self._weights).locate(np.array([place]))
        return int(sources[0]), int(ordinals[0])

    def _until_first_end(self) -> int:
        """Places before the first one that would need a sample behind the end of its source."""
        pattern = mixture.pattern_of(self._weights)
        return min(
            int(pattern.samples_of(place, np.array([len(source)]))[0]) for place, source in enumerate(self._sources)
        )


@dataclass(frozen=True)
class MixedSampler:
    """The order of a `Mix`: places follow the pattern, and each source follows an order of its own, pass after pass.

    Attributes:
        weights: the proportions, as whole numbers.
        orders: the order of each source.
        lengths: samples in a pass of each source, after which numbers start again; 0 if they go on for ever.
        periods: samples in a pass of each source.
        length: places in an epoch.
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
        """Which samples of a source the ordinals of its own order mean; each pass has its order."""
        passes, inside = np.divmod(ordinals, self.periods[source])
        result = np.empty_like(ordinals)
        for number in np.unique(passes):
            is_here = passes == number
            chosen = self.orders[source].indices(int(number), inside[is_here])
            result[is_here] = int(number) * self.lengths[source] + chosen
        return result


def _seed_of(seed: int, place: int) -> int:
    """A seed for each part, so that two parts of one length are not shuffled alike."""
    return int.from_bytes(permutation.digest("mix", seed, place, size=8), "little")
