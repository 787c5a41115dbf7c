"""What a loader remembers of its bad samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from mploader.engine.ipc.sample_report import BadSample
from mploader.loader.checkpoint import BAD_INDICES_KEPT, Position

EPOCHS_LISTED = 4
"""The bad samples of so many epochs are listed, however many they are. More runs than that are not read at once."""
LISTED = 1_000
"""So many are listed in any case, however old they are."""
TRACEBACKS_KEPT = 100
"""So many of an epoch keep their traceback, which is most of what a bad sample takes."""


class BadSamples:
    """The bad samples in the batches delivered so far: the recent ones are listed, and all are counted.

    So a long training with samples that are always bad does not grow epoch after epoch. Whoever calls holds a lock.
    """

    def __init__(self) -> None:
        self._listed: deque[tuple[Position, BadSample]] = deque()
        """With the place behind the batch that each belongs to, in the order in which they came."""
        self._newest_epoch = 0
        self._unlisted = 0
        self._unlisted_indices: deque[int] = deque(maxlen=BAD_INDICES_KEPT)
        """How many were bad before those, and the last of them."""
        self._start, self._before_start = Position(0, 0), 0
        """The position that was loaded, and how many samples of its epoch were bad before it."""

    def load(self, start: Position, count: int, indices: Sequence[int], in_epoch: int) -> None:
        """Starts anew at a saved position; see :meth:`until` for the rest."""
        self._listed.clear()
        self._newest_epoch = start.epoch
        self._unlisted, self._unlisted_indices = count, deque(indices, BAD_INDICES_KEPT)
        self._start, self._before_start = start, in_epoch

    def add(self, bad: Sequence[BadSample], place: Position) -> None:
        """Some samples of a delivered batch were bad; ``place`` is the one behind the batch."""
        self._newest_epoch = max(self._newest_epoch, place.epoch)
        self._listed.extend((place, sample) for sample in bad)
        while len(self._listed) > LISTED and self._listed[0][0].epoch <= self._newest_epoch - EPOCHS_LISTED:
            _, sample = self._listed.popleft()
            self._unlisted += 1
            self._unlisted_indices.append(sample.index)

    def samples(self) -> list[BadSample]:
        """Those that are listed, oldest first."""
        return [sample for _, sample in self._listed]

    def before(self, start: Position) -> int:
        """How many samples were bad in the epoch of a run before the place where the run starts."""
        return self._before_start if start == self._start else 0

    def until(self, consumed: Position) -> tuple[int, list[int], int]:
        """Returns how many were bad before a place, the last of them, and how many in the epoch of the place."""
        bad = [(place, sample.index) for place, sample in self._listed if place <= consumed]
        in_epoch = sum(place > Position(consumed.epoch, 0) for place, _ in bad)
        if self._start.epoch == consumed.epoch:
            in_epoch += self._before_start
        indices = [*self._unlisted_indices, *(index for _, index in bad)]
        return self._unlisted + len(bad), indices, in_epoch
