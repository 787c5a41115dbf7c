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
    """A source with the indices of another one, and the function that measures its samples."""

    source: Any
    length: Callable[[Any], int]

    def __len__(self) -> int:
        return len(self.source)

    def where(self, index: int) -> Location:
        """Returns the location of a sample."""
        return location_of(self.source, index)


@dataclass(frozen=True, eq=False)
class LengthsOf(_Measuring):
    """The lengths of the samples. With ``raises`` a bad sample is an error; otherwise its length is -1."""

    raises: bool

    def __getitem__(self, index: int, /) -> np.int64:
        """Returns the length of a sample.

        Raises:
            Exception: from the source or the length function; of bad samples only with ``raises``.
        """
        try:
            return np.int64(operator.index(self.length(self.source[index])))
        except Exception as error:
            if self.raises or is_environment(error):
                raise
            return np.int64(-1)  # reported when the sample is read for a batch


@dataclass(frozen=True, eq=False)
class Measured(_Measuring):
    """The samples themselves, for the workers of the loader.

    A sample without a length is measured again, so that the error of the measurement becomes that of the sample.
    """

    without_length: frozenset[int]

    def __getitem__(self, index: int, /) -> Any:
        """Returns the sample of the source.

        Raises:
            Exception: from the source, or from the length function.
        """
        sample = self.source[index]
        if index in self.without_length:
            operator.index(self.length(sample))
        return sample
