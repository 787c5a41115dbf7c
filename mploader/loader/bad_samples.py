"""Bad samples as the trainer keeps them: how many an epoch may have, and a record of those that were."""

from __future__ import annotations

import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mploader._util.text import clip
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.ipc.sample_report import BadSample
from mploader.errors import ArgumentError, SampleError
from mploader.loader.position import Position

EPOCHS_LISTED = 4
"""All bad samples of the last 4 epochs are listed. A consumer does not read more epochs than that at once."""
LISTED = 1_000
"""The last 1,000 are listed in any case, however old they are."""
TRACEBACKS_KEPT = 100
"""The first 100 of an epoch keep their traceback, which is most of what a bad sample takes."""
INDICES_KEPT = 64
"""A checkpoint holds the last 64 indices."""
NAMED = 5
"""The error about too many bad samples names the first 5."""
_TEXT_CHARACTERS = 300


@dataclass(frozen=True)
class MaxBad:
    """The most samples of one epoch that may be dropped or replaced.

    It is applied batch by batch in the order of the epoch, where the consumer gets the batches. So the error comes at
    the same batch in every run, for any number of workers, and whatever was made ahead.

    Attributes:
        given: the argument: a count, or the share of the epoch's samples; None: any number.
        samples: samples in an epoch of this host.
    """

    given: int | float | None
    samples: int

    @classmethod
    def of(cls, given: Any, policy: OnBadSample, samples: int) -> MaxBad:
        """Checks the argument.

        Raises:
            ArgumentError: it is neither a count nor a share, or the policy never drops or replaces a sample.
        """
        if given is None:
            return cls(None, samples)
        if policy.raises:
            raise ArgumentError(
                f'max_bad_samples={given!r} has no meaning with on_bad_sample="raise", where the first bad sample is '
                'an error; pass on_bad_sample="drop" or "replace"'
            )
        if isinstance(given, float) and 0 < given <= 1:
            return cls(float(given), samples)
        try:
            count = operator.index(given)
        except TypeError:
            count = -1
        if isinstance(given, bool) or count < 0:
            raise ArgumentError(
                f"max_bad_samples={given!r}: expected an integer >= 0, or a share of the samples as a float above 0 "
                "and up to 1 (0.01 is one in a hundred)"
            )
        return cls(count, samples)

    @property
    def most(self) -> int | None:
        """How many are allowed; of a share the integer part, of 0.29 of 100 samples 29."""
        # Through the text of the float: its binary value differs a little from what the user wrote.
        return int(Fraction(repr(self.given)) * self.samples) if isinstance(self.given, float) else self.given

    def is_exceeded(self, bad: int) -> bool:
        """Whether ``bad`` exceeds the maximum."""
        return self.most is not None and bad > self.most

    def error(self, epoch: int, bad: int, first: Sequence[BadSample], last: BadSample) -> SampleError:
        """Returns the error that says that there are too many.

        Args:
            epoch: the epoch.
            bad: how many, including those of the batch that exceeds the maximum.
            first: some of them, oldest first.
            last: the last one, whose attributes the error gets.
        """
        allowed = f"max_bad_samples={self.given!r}"
        if isinstance(self.given, float):
            allowed += f" of {self.samples:,} samples: {self.most:,}"
        places = (f" ({sample.where})" if sample.where else "" for sample in first)
        lines = [
            f"  sample {sample.index}{place}: {clip(sample.error, _TEXT_CHARACTERS)}"
            for sample, place in zip(first[:NAMED], places, strict=False)
        ]
        return SampleError(
            f"{bad:,} samples of epoch {epoch} are bad, more than allowed ({allowed}). The first are:\n"
            + "\n".join(lines)
            + "\nCorrect the data (`mploader verify PATH` lists what is bad), the transform, or max_bad_samples=",
            index=last.index, file=last.file, byte=last.byte, kind=last.kind, traceback=last.traceback or None,
        )  # fmt: skip


class BadSampleRecord:
    """The bad samples in the batches delivered so far: the recent ones are listed, and all are counted.

    So a long training with samples that are always bad takes the same memory in every epoch. Every caller holds the
    lock of :class:`mploader.loader.progress.Progress`.
    """

    def __init__(self) -> None:
        self._listed: deque[tuple[Position, BadSample]] = deque()
        """Each with the position after its batch, in the order of delivery."""
        self._newest_epoch = 0
        self._unlisted = 0
        self._unlisted_indices: deque[int] = deque(maxlen=INDICES_KEPT)
        """How many came before those that are listed, and the last of them."""
        self._start, self._before_start = Position(0, 0), 0
        """The position that was loaded, and how many samples of its epoch were bad before it."""

    def load(self, start: Position, count: int, indices: Sequence[int], in_epoch: int) -> None:
        """Starts anew at a saved position; see :meth:`until` for the other arguments."""
        self._listed.clear()
        self._newest_epoch = start.epoch
        self._unlisted, self._unlisted_indices = count, deque(indices, INDICES_KEPT)
        self._start, self._before_start = start, in_epoch

    def add(self, bad: Sequence[BadSample], position: Position) -> None:
        """Adds the bad samples of a delivered batch; ``position`` is the one after the batch."""
        self._newest_epoch = max(self._newest_epoch, position.epoch)
        self._listed.extend((position, sample) for sample in bad)
        while len(self._listed) > LISTED and self._listed[0][0].epoch <= self._newest_epoch - EPOCHS_LISTED:
            _, sample = self._listed.popleft()
            self._unlisted += 1
            self._unlisted_indices.append(sample.index)

    def samples(self) -> list[BadSample]:
        """Returns those that are listed, oldest first."""
        return [sample for _, sample in self._listed]

    def before(self, start: Position) -> int:
        """How many samples were bad in the epoch of a position before an epoch iterator that starts there."""
        return self._before_start if start == self._start else 0

    def until(self, consumed: Position) -> tuple[int, list[int], int]:
        """Returns how many were bad before a position, the last of them, and how many of them in its epoch."""
        bad = [(position, sample.index) for position, sample in self._listed if position <= consumed]
        in_epoch = sum(position > Position(consumed.epoch, 0) for position, _ in bad)
        if self._start.epoch == consumed.epoch:
            in_epoch += self._before_start
        indices = [*self._unlisted_indices, *(index for _, index in bad)]
        return self._unlisted + len(bad), indices, in_epoch
