"""The check of every batch against the plan.

Every synthetic picture is worked out again here. Of pictures from files every one is compared with its checksum, made
in the worker, and one of each batch with what the trainer makes of the file itself.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import google_crc32c
import numpy as np

from mploader.sampling.plan import Plan, SampleRandom
from stress.workload import Image, Indexed, Work, synthetic


@dataclass
class Tally:
    """What was found so far.

    Attributes:
        batches: batches checked.
        samples: samples in them.
        bad: bad samples that were rightly left out.
        lost: samples that should have come and did not.
        duplicated: samples that came and should not have.
        corrupted: samples with other content than they should have, or at the place of another.
        first_fault: what was wrong first.
    """

    batches: int = 0
    samples: int = 0
    bad: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    first_fault: str = ""

    @property
    def faults(self) -> int:
        """Samples that were lost, duplicated or corrupted."""
        return self.lost + self.duplicated + self.corrupted

    def note(self, fault: str) -> None:
        """Keeps the first fault."""
        self.first_fault = self.first_fault or fault


class Checker:
    """Compares every batch with the plan.

    Args:
        plan: what should come.
        source: where samples come from.
        work: what is made of them.
        left_out: gives the samples that the loader says are bad.
        tally: where the findings go.
    """

    def __init__(
        self, plan: Plan, source: Indexed, work: Work, left_out: Callable[[], set[int]], tally: Tally
    ) -> None:
        self._plan = plan
        self._source = source
        self._work = work
        self._left_out = left_out
        self._tally = tally
        self._random = SampleRandom(plan.seed)
        self._unreadable: dict[int, bool] = {}
        """Whether samples cannot be made here either, of those that were asked about."""

    def check(self, epoch: int, position: int, batch: dict[str, Any]) -> None:
        """Takes note of a batch."""
        tally, place = self._tally, f"epoch {epoch}, batch {position}"
        planned = self._planned(epoch, position)
        got = [int(index) for index in batch["index"]]
        missing = collections.Counter(planned) - collections.Counter(got)
        bad = {
            index for index in planned
            if self._work.is_bad(index) or (index in missing and self._is_rightly_missing(index))
        }  # fmt: skip
        wanted = [index for index in planned if index not in bad]
        tally.batches += 1
        tally.samples += len(got)
        tally.bad += len(planned) - len(wanted)
        if got != wanted:
            lost = (collections.Counter(wanted) - collections.Counter(got)).total()
            extra = (collections.Counter(got) - collections.Counter(wanted)).total()
            tally.lost += lost
            tally.duplicated += extra
            if not lost and not extra:
                tally.corrupted += sum(map(int.__ne__, got, wanted))
            tally.note(f"{place}: samples {got}, wanted {wanted}")
        self._check_content(epoch, batch, got, place)

    def end_epoch(self, epoch: int, got: int) -> None:
        """Takes note of the end of an epoch: batches that should have come and did not are lost.

        Args:
            epoch: which has ended.
            got: how many batches it had.
        """
        missing = range(got, self._plan.num_batches)
        if missing:
            self._tally.lost += sum(
                not self._work.is_bad(index) for position in missing for index in self._planned(epoch, position)
            )
            self._tally.note(f"epoch {epoch}: ended after {got} of {self._plan.num_batches} batches")

    def wrongly_left_out(self) -> list[int]:
        """Returns good samples that the loader says are bad."""
        return sorted(
            index for index in self._left_out() if not self._work.is_bad(index) and not self._is_unreadable(index)
        )

    def unreadable(self) -> list[int]:
        """Returns samples that are bad although nobody made them so."""
        return sorted(index for index, is_unreadable in self._unreadable.items() if is_unreadable)

    def _planned(self, epoch: int, position: int) -> list[int]:
        if position >= self._plan.num_batches:
            return []  # what comes behind the end of the epoch has come before
        return [int(index) for index in self._plan.batch(epoch, position)]

    def _is_rightly_missing(self, index: int) -> bool:
        """Whether the loader has said, once at least, that a sample is bad, and it is."""
        return (index in self._unreadable or index in self._left_out()) and self._is_unreadable(index)

    def _is_unreadable(self, index: int) -> bool:
        """Whether a sample cannot be made into an element here either."""
        if index not in self._unreadable:
            self._unreadable[index] = self._make(0, index) is None
        return self._unreadable[index]

    def _make(self, epoch: int, index: int) -> Image | None:
        """The picture of a sample as the trainer makes it; None if it cannot."""
        try:
            image: Image = self._work(self._source[index], self._random(epoch, index))["image"]
        except Exception:  # whatever a decoder makes of a broken file
            return None
        return image

    def _check_content(self, epoch: int, batch: dict[str, Any], got: Sequence[int], place: str) -> None:
        chosen = self._tally.batches % len(got) if got else -1
        for number, index in enumerate(got):
            element = {key: values[number] for key, values in batch.items()}
            if not self._is_right(epoch, index, element, is_chosen=number == chosen):
                self._tally.corrupted += 1
                self._tally.note(f"{place}: the content of sample {index} is not what it should be")

    def _is_right(self, epoch: int, index: int, element: dict[str, Any], *, is_chosen: bool) -> bool:
        draw = int(self._random(epoch, index).integers(2**32))
        image = element["image"]
        if int(element["draw"]) != draw or google_crc32c.value(image.tobytes()) != int(element["checksum"]):
            return False
        if self._source.source is None:
            return bool(np.array_equal(image, synthetic(index, draw, self._work.size)))
        if not is_chosen:
            return True
        made = self._make(epoch, index)
        return made is not None and np.array_equal(image, made)
