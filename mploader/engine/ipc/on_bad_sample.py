"""What becomes of a sample that cannot be made into an element: ``on_bad_sample=``."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import Any

from mploader.engine.ipc.sample_report import ADVICE
from mploader.errors import ArgumentError
from mploader.sampling.plan import Plan


class OnBadSample(enum.Enum):
    """The policies. The trainer knows from it what to expect of a batch, the worker which samples to try.

    A further policy is one more member here.
    """

    RAISE = "raise"
    """The first bad sample is an error."""
    DROP = "drop"
    """The batch gets shorter."""
    REPLACE = "replace"
    """Another sample, chosen by the seed, comes in its place."""

    @classmethod
    def of(cls, given: Any) -> OnBadSample:
        """Reads the argument.

        Raises:
            ArgumentError: it is not the text of a policy.
        """
        for policy in cls:
            if given == policy.value:
                return policy
        names = ", ".join(repr(policy.value) for policy in cls)
        raise ArgumentError(f"on_bad_sample={given!r}: expected one of {names}")

    @property
    def raises(self) -> bool:
        """Whether a bad sample is an error."""
        return self is OnBadSample.RAISE

    @property
    def drops(self) -> bool:
        """Whether a batch may have fewer samples than planned."""
        return self is OnBadSample.DROP

    @property
    def advice(self) -> str:
        """What to do about bad data or a fault in the transform, for messages."""
        return ADVICE if self.raises else "Mend the data or the transform."

    def candidates(self, plan: Plan, epoch: int, index: int) -> Iterator[int]:
        """Yields the samples to try, in order, where the plan has the sample ``index``; the first good one is taken."""
        yield index
        if self is OnBadSample.REPLACE:
            for attempt in range(1, plan.num_samples):
                yield plan.replacement(epoch, index, attempt)
