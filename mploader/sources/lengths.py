"""Sources that measure the samples of another source, for batches of samples of similar length."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.environment_errors import is_environment
from mploader._util.location import Location
from mploader.sources.protocols import location_of


@dataclass(frozen=True, eq=False)
class _Measuring:
    """A source with as many samples as another one, in the same places, and the function that gives their lengths."""

    source: Any
    length: Callable[[Any], int]

    def __len__(self) -> int:
        return len(self.source)

    def where(self, index: int) -> Location:
        """Where a sample comes from."""
        return location_of(self.source, index)


@dataclass(frozen=True, eq=False)
class LengthsOf(_Measuring):
    """The lengths of the samples; -1 for a bad sample, unless bad samples are errors."""

    raises: bool

    def __getitem__(self, index: int, /) -> np.int64:
        """The length of a sample, as whatever bad data or the user's function raise."""
        try:
            return np.int64(operator.index(self.length(self.source[index])))
        except Exception as error:
            if self.raises or is_environment(error):
                raise
            return np.int64(-1)  # it is reported when its turn comes


@dataclass(frozen=True, eq=False)
class Measured(_Measuring):
    """The samples themselves, for the workers of the loader.

    One without a length is read with its length again, so what was wrong with that is an error of the sample.
    """

    without_length: frozenset[int]

    def __getitem__(self, index: int, /) -> Any:
        """The sample of the source."""
        sample = self.source[index]
        if index in self.without_length:
            operator.index(self.length(sample))
        return sample
