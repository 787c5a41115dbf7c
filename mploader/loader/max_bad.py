"""How many bad samples an epoch may have before the loader gives up: ``max_bad_samples=``."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from mploader._util.text import clip
from mploader.engine.ipc.sample_report import BadSample
from mploader.errors import ArgumentError, SampleError

NAMED = 5
"""How many of the bad samples the error names."""
_TEXT_CHARACTERS = 300


@dataclass(frozen=True)
class MaxBad:
    """The most samples of one epoch that may be dropped or replaced.

    It is judged batch by batch in the order of the epoch, where the consumer gets the batches. So it trips at the same
    batch in every run, for any number of workers, and whatever was made ahead.

    Attributes:
        given: the argument: a count, or the share of the epoch's samples; None: no limit.
        samples: samples in an epoch of this host.
    """

    given: int | float | None
    samples: int

    @classmethod
    def of(cls, given: Any, policy: str, samples: int) -> MaxBad:
        """Checks the argument.

        Raises:
            ArgumentError: it is neither a count nor a share, or nothing is ever dropped or replaced.
        """
        if given is None:
            return cls(None, samples)
        if policy == "raise":
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
                f"max_bad_samples={given!r}: wants a whole number of at least 0, or a share of the samples as a float "
                "above 0 and up to 1 (0.01 is one in a hundred)"
            )
        return cls(count, samples)

    @property
    def most(self) -> int | None:
        """How many are allowed; of a share the whole part, of 0.29 of 100 samples 29."""
        # Through the text of the float: its binary value lies a little beside what was written.
        return int(Fraction(repr(self.given)) * self.samples) if isinstance(self.given, float) else self.given

    def is_exceeded(self, bad: int) -> bool:
        """Whether that are too many."""
        return self.most is not None and bad > self.most

    def error(self, epoch: int, bad: int, first: Sequence[BadSample]) -> SampleError:
        """Says that there are too many.

        Args:
            epoch: in which.
            bad: how many, up to the batch that was one too many.
            first: some of them.
        """
        limit = f"max_bad_samples={self.given!r}"
        if isinstance(self.given, float):
            limit += f" of {self.samples:,} samples: {self.most:,}"
        places = (f" ({sample.where})" if sample.where else "" for sample in first)
        lines = [
            f"  sample {sample.index}{place}: {clip(sample.error, _TEXT_CHARACTERS)}"
            for sample, place in zip(first[:NAMED], places, strict=False)
        ]
        return SampleError(
            f"{bad:,} samples of epoch {epoch} are bad, more than allowed ({limit}). The first are:\n"
            + "\n".join(lines)
            + "\nMend the data (`mploader verify PATH` lists what is bad) or the transform, or raise max_bad_samples="
        )
