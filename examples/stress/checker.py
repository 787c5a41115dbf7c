"""Checks every batch against the plan.

Every synthetic picture is computed again here. A picture from a file is compared with its checksum from the worker, and
one picture of each batch with the one that the trainer makes from the file.
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
    """The results so far.

    Attributes:
        batches: batches checked.
        samples: samples in them.
        bad: bad samples that were left out, as they should be.
        lost: samples of the plan that did not arrive.
        duplicated: samples that arrived and are not in the plan.
        corrupted: samples with wrong content, or in the wrong order.
        first_fault: description of the first fault.
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
        plan: the expected batches.
        source: the source of the loader.
        work: the transform of the loader.
        left_out: returns the samples that the loader reports as bad.
        tally: counts the results.
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
        """By sample index, for those that were tried: whether the trainer cannot make the sample either."""

    def check(self, epoch: int, batch_index: int, batch: dict[str, Any]) -> None:
        """Checks a batch."""
        tally, where = self._tally, f"epoch {epoch}, batch {batch_index}"
        planned = self._planned(epoch, batch_index)
        got = [int(index) for index in batch["index"]]
        missing = collections.Counter(planned) - collections.Counter(got)
        bad = {
            index for index in planned
            if self._work.is_bad(index) or (index in missing and self._is_rightly_missing(index))
        }  # fmt: skip
        expected = [index for index in planned if index not in bad]
        tally.batches += 1
        tally.samples += len(got)
        tally.bad += len(planned) - len(expected)
        if got != expected:
            lost = (collections.Counter(expected) - collections.Counter(got)).total()
            extra = (collections.Counter(got) - collections.Counter(expected)).total()
            tally.lost += lost
            tally.duplicated += extra
            if not lost and not extra:
                tally.corrupted += sum(map(int.__ne__, got, expected))
            tally.note(f"{where}: samples {got}, expected {expected}")
        self._check_content(epoch, batch, got, where)

    def end_epoch(self, epoch: int, got: int) -> None:
        """Checks the end of an epoch: batches of the plan that did not arrive are lost.

        Args:
            epoch: the epoch that ended.
            got: how many batches it had.
        """
        missing = range(got, self._plan.num_batches)
        if missing:
            self._tally.lost += sum(
                not self._work.is_bad(index) for batch_index in missing for index in self._planned(epoch, batch_index)
            )
            self._tally.note(f"epoch {epoch}: ended after {got} of {self._plan.num_batches} batches")

    def wrongly_left_out(self) -> list[int]:
        """Returns good samples that the loader reports as bad."""
        return sorted(
            index for index in self._left_out() if not self._work.is_bad(index) and not self._is_unreadable(index)
        )

    def unreadable(self) -> list[int]:
        """Returns samples that are bad and not by :meth:`Work.is_bad`."""
        return sorted(index for index, is_unreadable in self._unreadable.items() if is_unreadable)

    def _planned(self, epoch: int, batch_index: int) -> list[int]:
        if batch_index >= self._plan.num_batches:
            return []  # the plan has no such batch
        return [int(index) for index in self._plan.batch(epoch, batch_index)]

    def _is_rightly_missing(self, index: int) -> bool:
        """Whether the loader has reported a sample as bad, and it is."""
        return (index in self._unreadable or index in self._left_out()) and self._is_unreadable(index)

    def _is_unreadable(self, index: int) -> bool:
        """Whether the trainer cannot make an element of the sample either."""
        if index not in self._unreadable:
            self._unreadable[index] = self._make(0, index) is None
        return self._unreadable[index]

    def _make(self, epoch: int, index: int) -> Image | None:
        """The picture of a sample as the trainer makes it; None if it cannot."""
        try:
            image: Image = self._work(self._source[index], self._random(epoch, index))["image"]
        except Exception:  # decoders raise anything on a broken file
            return None
        return image

    def _check_content(self, epoch: int, batch: dict[str, Any], got: Sequence[int], where: str) -> None:
        chosen = self._tally.batches % len(got) if got else -1
        for offset, index in enumerate(got):
            element = {key: values[offset] for key, values in batch.items()}
            if not self._is_right(epoch, index, element, is_chosen=offset == chosen):
                self._tally.corrupted += 1
                self._tally.note(f"{where}: the content of sample {index} is wrong")

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
