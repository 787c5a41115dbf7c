"""A random order of any number of samples in constant memory.

A shuffled epoch needs a permutation of the sample indices. A stored one takes 8 GB for 10^9 samples. Here it is
computed: a Feistel network enciphers the offset in the epoch, and the cipher text is the sample index.

    offset = left * b + right            with a * b >= size, a and b about sqrt(size)
    left  = (left  + F(key_0, right)) mod a
    right = (right + F(key_1, left )) mod b
    ...                                  one line a round
    index = left * b + right

Each round can be undone, so the network permutes [0, a * b). That range exceeds ``size`` by less than ``a``. A value
outside goes through the network again until it is inside ("cycle walking"), which keeps the map one-to-one.

Sources: the modular network on a * b is FE1 of Black and Rogaway, "Ciphers with Arbitrary Finite Domains"
(CT-RSA 2002); the round function F is the finaliser of SplitMix64 (Steele, Lea, Flood, OOPSLA 2014); keys
come from BLAKE2b. It mixes well, but it is not an encryption: the keys are public.

Checkpoints depend on every number in this file: with another round, key or constant, training that is resumed would
see another order. ``tests/sampling/test_permutation.py`` holds golden values, and ``FUNCTION`` names the function in
the fingerprint of a plan.
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
import numpy.typing as npt

from mploader.errors import ArgumentError

FUNCTION = "feistel-1"
"""Name of the function that this module computes. Change it when any output changes."""

MAX_SIZE = 1 << 62
"""Largest size: both halves stay below 2^31, so no sum in a round leaves 64 bits."""

# A small domain gives each round few choices, so it needs more rounds to forget where it started: over 3,000
# keys, eight rounds on six items are visibly not uniform (chi-square 9 standard deviations off), sixteen
# cannot be told from uniform over 12,000. From a dozen items on eight are enough; the border is far above.
_SMALL_SIZE = 1 << 10
_ROUNDS_SMALL = 16
_ROUNDS = 8

_MULTIPLY_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)
_ONE = np.uint64(1)


def digest(purpose: str, *numbers: int, size: int = 32) -> bytes:
    """Hashes integers of any size to ``size`` bytes (1 to 64).

    Args:
        purpose: what the bytes are for, at most 16 ASCII characters. Equal numbers give unrelated bytes for two
            purposes.
        numbers: integers >= 0 of any size. Each is hashed with its length, so (1, 23) and (12, 3) differ.
        size: number of bytes.
    """
    state = hashlib.blake2b(digest_size=size, person=purpose.encode())
    for number in numbers:
        width = (number.bit_length() + 7) // 8
        state.update(width.to_bytes(4, "little") + number.to_bytes(width, "little"))
    return state.digest()


class Permutation:
    """A permutation of [0, size), chosen by a key; ``permutation(offsets)`` returns the items at some offsets.

    Immutable, and below 1 kB for any ``size``.

    Args:
        size: number of items, 1 to 2^62.
        key: integers >= 0 that choose the permutation, such as (seed, epoch).

    Raises:
        ArgumentError: ``size`` or a part of the key is out of range.
    """

    __slots__ = ("_columns", "_keys", "_rows", "size")

    def __init__(self, size: int, *key: int) -> None:
        if not 1 <= size <= MAX_SIZE:
            raise ArgumentError(f"size={size}: expected an integer >= 1 and <= 2^62")
        if any(part < 0 for part in key):
            raise ArgumentError(f"key={key}: expected integers >= 0")
        self.size = size
        rows = math.isqrt(size - 1) + 1
        self._rows = np.uint64(rows)
        self._columns = np.uint64(-(-size // rows))
        rounds = _ROUNDS_SMALL if size < _SMALL_SIZE else _ROUNDS
        material = b"".join(digest("round keys", block, *key, size=64) for block in range(rounds // 8))
        self._keys = np.frombuffer(material, dtype="<u8").astype(np.uint64)

    def __repr__(self) -> str:
        return f"Permutation({self.size:,} items)"

    def __call__(self, offsets: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Returns the item at each offset.

        Args:
            offsets: integers in [0, size), of any shape.

        Returns:
            int64 array of the same shape; over all offsets every item comes exactly once.

        Raises:
            IndexError: an offset is out of range.
        """
        chosen = np.asarray(offsets, dtype=np.int64)
        if chosen.size and (int(chosen.min()) < 0 or int(chosen.max()) >= self.size):
            raise IndexError(f"offsets {chosen.min()} to {chosen.max()} of {self.size} items")
        values = self._network(chosen.ravel().astype(np.uint64))
        # Fewer than sqrt(size) of at least size values are outside, so one or two turns suffice, and a few more for
        # tiny sizes such as 3 of 4. The loop always ends: a cycle returns to its start, which is inside.
        outside = np.flatnonzero(values >= self.size)
        while outside.size:
            values[outside] = self._network(values[outside])
            outside = outside[values[outside] >= self.size]
        return values.astype(np.int64).reshape(chosen.shape)

    def _network(self, values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Sends values in [0, rows * columns) through all rounds."""
        left, right = np.divmod(values, self._columns)
        for turn in range(0, len(self._keys), 2):
            left += _mix(right, self._keys[turn])
            left %= self._rows
            right += _mix(left, self._keys[turn + 1])
            right %= self._columns
        left *= self._columns
        left += right
        return left


def _mix(values: npt.NDArray[np.uint64], key: np.uint64) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser on values + key, halved so that a sum with a number below 2^31 fits 64 bits."""
    mixed = values + key
    mixed ^= mixed >> _SHIFT_1
    mixed *= _MULTIPLY_1
    mixed ^= mixed >> _SHIFT_2
    mixed *= _MULTIPLY_2
    mixed ^= mixed >> _SHIFT_3
    mixed >>= _ONE
    return mixed
