"""Random generators for transforms, and the other arguments that a transform takes by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.random import PCG64, Generator
from numpy.random.bit_generator import ISeedSequence

from mploader._util.checks import whole_number
from mploader.sampling import permutation


class SampleRandom:
    """Random generators for transforms: one stream for each (seed, epoch, sample index).

    A transform draws the same numbers for a sample in every run, on any worker and after any fault. Streams of
    different samples, epochs or seeds are independent: a 256-bit hash of the key is the initial state and increment of
    a PCG64 (O'Neill, "PCG", 2014). This skips NumPy's ``SeedSequence`` and takes 3 us instead of 12, so that each call
    can return a new Generator, which the user may keep.

    Args:
        seed: any integer >= 0; the loader's.

    Raises:
        ArgumentError: ``seed`` is not such an integer.
    """

    def __init__(self, seed: int) -> None:
        self._seed = whole_number("seed", seed, 0)

    def __call__(self, epoch: int, index: int, attempt: int = 0) -> Generator:
        """Returns the generator of one sample.

        Args:
            epoch: from 0.
            index: the sample, from 0.
            attempt: chooses one of several streams for a sample. The loader leaves it at 0: a sample that is read
                again after a fault must get the same stream.

        Returns:
            A new ``numpy.random.Generator``. Its ``spawn`` is not available.
        """
        state = _State(permutation.digest("sample", self._seed, epoch, index, attempt))
        # NumPy documents and checks for ISeedSequence; its type hints name only the concrete class.
        return Generator(PCG64(state))  # type: ignore[arg-type]


class TransformArguments:
    """The arguments that a transform takes by name.

    Args:
        parameters: which of ``rng``, ``epoch`` and ``index`` it takes.
        seed: the loader's.
    """

    def __init__(self, parameters: frozenset[str], seed: int) -> None:
        self._takes_rng = "rng" in parameters
        self._takes_epoch = "epoch" in parameters
        self._takes_index = "index" in parameters
        self._random = SampleRandom(seed)

    def __call__(self, epoch: int, index: int) -> dict[str, Any]:
        """Returns the keyword arguments for one sample of an epoch."""
        arguments: dict[str, Any] = {}
        if self._takes_rng:
            arguments["rng"] = self._random(epoch, index)
        if self._takes_epoch:
            arguments["epoch"] = epoch
        if self._takes_index:
            arguments["index"] = index
        return arguments


class _State(ISeedSequence):
    """Passes 32 random bytes to PCG64, in place of a SeedSequence that would hash a seed again."""

    __slots__ = ("_state",)

    def __init__(self, state: bytes) -> None:
        self._state = state

    def generate_state(self, n_words: int, dtype: npt.DTypeLike = np.uint32) -> npt.NDArray[np.uint32 | np.uint64]:
        """Called once by PCG64, for four uint64 words."""
        return np.frombuffer(self._state, dtype=dtype, count=n_words)
