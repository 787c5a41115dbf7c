"""Fingerprints: recognise the data of a source, in bounded time.

A fingerprint is a short text: one hash, or several with a word before each, as in ``"files 5a0c..., labels 91e7..."``,
so that a message can say which of them differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mploader.sources.protocols import Fingerprinted

ARRAY_BYTES = 1 << 24
"""Bytes of an array that are hashed: all of a smaller one, otherwise blocks from its start to its end."""
ARRAY_BLOCKS = 256
ITEMS = 1 << 16
"""Items of a list that are hashed: all of a shorter one, otherwise every n-th."""
ITEM_BYTES = 1 << 10
"""Bytes of each text, bytes or array in a list that are hashed, with its length."""
NESTING = 3
"""Depth to which lists in lists are hashed."""


def fingerprint_of(source: Any) -> str | None:
    """Returns the source's own fingerprint, or a hash of an array, a range or a list; None for other sources.

    Args:
        source: items of lists and tuples count with their values if they are text, bytes, numbers, arrays, or lists
            and tuples of these; others count with their type.
    """
    if isinstance(source, Fingerprinted):
        return str(source.fingerprint())
    if not isinstance(source, (np.ndarray, range, list, tuple)):
        return None
    return hash_of(source)


def hash_of(*values: Any) -> str:
    """Hashes arrays, lists and plain values to 16 hexadecimal digits."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, np.ndarray) and not value.dtype.hasobject:
            _add_array(digest, value)
        else:
            _add(digest, value, ITEMS, NESTING)
    return digest.hexdigest()[:16]


def _add_array(digest: Any, array: np.ndarray[Any, Any]) -> None:
    digest.update(f"{_dtype(array)} {array.shape}".encode())
    if not array.ndim:
        array = array[np.newaxis]
    rows = max(1, ARRAY_BYTES // max(1, array[:1].nbytes))
    if len(array) <= rows:
        digest.update(array.tobytes())
        return
    blocks = min(ARRAY_BLOCKS, rows)
    for start in np.linspace(0, len(array) - rows // blocks, blocks).astype(np.int64):
        digest.update(array[start : start + rows // blocks].tobytes())


def _dtype(array: np.ndarray[Any, Any]) -> Any:
    return array.dtype.str if array.dtype.names is None else array.dtype.descr  # the latter takes 20 us


def _add(digest: Any, value: Any, items: int, nesting: int) -> None:
    """Adds a value with its type and length, so that the values after it cannot be mistaken for its own."""
    kind = type(value).__name__
    if isinstance(value, (str, bytes)):
        start = value[:ITEM_BYTES]
        data = start.encode("utf-8", "surrogatepass") if isinstance(start, str) else start
        digest.update(f"{kind} {len(value)} ".encode() + data)
    elif value is None or isinstance(value, (bool, int, float, complex, np.number, np.bool_, range)):
        digest.update(f"{kind} {value!r} ".encode())
    elif isinstance(value, np.ndarray) and not value.dtype.hasobject:
        first = value.flat[: ITEM_BYTES // max(1, value.itemsize)]
        digest.update(f"{_dtype(value)} {value.shape} ".encode() + first.tobytes())
    elif isinstance(value, (list, tuple, np.ndarray)):
        _add_items(digest, value, items, nesting)
    else:
        digest.update(f"{kind} ".encode())


def _add_items(digest: Any, values: Sequence[Any] | np.ndarray[Any, Any], items: int, nesting: int) -> None:
    digest.update(f"{type(values).__name__} {len(values)} ".encode())
    if nesting:
        for index in range(0, len(values), -(-len(values) // items) or 1):
            _add(digest, values[index], ITEM_BYTES, nesting - 1)
