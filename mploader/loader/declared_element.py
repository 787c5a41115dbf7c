"""What elements look like, where the user says so: ``element_spec=``. Nothing is read to find out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from mploader._util.trees import flatten
from mploader.batching.choose_layout import make_layout, make_whole_layout, varying_bytes
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import STRING, ArraySpec
from mploader.errors import ArgumentError

UNKNOWN_SIZE = 256
"""A dimension that varies is taken to be this long when slots are sized. Larger batches travel outside the slots."""
STRING_BYTES = 4096
"""The same for a string, in bytes."""


class DeclaredElement:
    """One element as the user has declared it.

    Args:
        structure: an element with an ``ArraySpec`` in place of each component, from :func:`read_element_spec`.
    """

    def __init__(self, structure: Any) -> None:
        self._structure = structure
        self.component_bytes = tuple(map(_bytes_of, flatten(structure)))

    def layout(self, pad: Any, ragged: Any, batch_size: int | None) -> BatchLayout:
        """Decides how a batch lies in a slot; see :func:`mploader.batching.choose_layout.make_layout`.

        Raises:
            ArgumentError: ``pad`` or ``ragged`` do not fit, or one of them is missing for a dimension that varies.
        """
        return make_layout(self._structure, self.component_bytes, pad, ragged, batch_size, is_declared=True)

    def whole_layout(self) -> BatchLayout:
        """The same for a source whose samples are batches."""
        return make_whole_layout([self._structure])

    def varying_bytes(self, layout: BatchLayout, samples_with: Callable[[int], int]) -> int:
        """Estimates what varies of the largest batch, in bytes. It needs no sample."""
        return layout.capacity * varying_bytes(layout, self.component_bytes)


def read_element_spec(given: Any) -> Any:
    """Returns the structure of ``ArraySpec`` that ``element_spec=`` means.

    Args:
        given: a structure (tuples, dicts) of ``ArraySpec`` or pairs (shape, dtype).

    Raises:
        ArgumentError: it is something else; the message names the component.
    """
    structure = _read(given, "element_spec")
    if not flatten(structure):
        raise ArgumentError(f"element_spec={given!r}: expected at least one component")
    return structure


def _read(given: Any, name: str) -> Any:
    if isinstance(given, ArraySpec):
        if given.ragged_rank:
            raise ArgumentError(f"{name}={given!r}: expected the spec of one element; for ragged batches pass ragged=")
        return _spec(given.shape, given.dtype, name)
    if isinstance(given, dict):
        return {key: _read(part, f"{name}[{key!r}]") for key, part in given.items()}
    if isinstance(given, tuple):
        if _is_pair(given):
            return _spec(given[0], given[1], name)
        parts = [_read(part, f"{name}[{place}]") for place, part in enumerate(given)]
        return type(given)(*parts) if hasattr(given, "_fields") else tuple(parts)
    raise ArgumentError(f"{name}={given!r}: expected a mploader.ArraySpec, a pair (shape, dtype), a tuple or a dict")


def _is_pair(given: tuple[Any, ...]) -> bool:
    """Whether a tuple is (shape, dtype) rather than a structure: its second entry cannot be a part of a structure."""
    if len(given) != 2:
        return False
    shape, dtype = given
    return isinstance(shape, (tuple, list)) and not isinstance(dtype, (tuple, dict, ArraySpec))


def _spec(shape: Any, dtype: Any, name: str) -> ArraySpec:
    for size in shape:
        if size is not None and (not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 0):
            raise ArgumentError(f"{name}: shape {tuple(shape)}: expected integers >= 0, or None for a size that varies")
    try:
        found = np.dtype(dtype)
    except TypeError:
        raise ArgumentError(f"{name}: dtype {dtype!r}: expected a NumPy dtype, or bytes for strings") from None
    if found.kind in "SUO":
        found = STRING
    elif found.kind not in "biufcV" or found.names is not None or not found.itemsize:
        raise ArgumentError(f"{name}: dtype {found}: expected numbers, booleans or strings")
    return ArraySpec(tuple(size if size is None else int(size) for size in shape), found.newbyteorder("="))


def _bytes_of(spec: ArraySpec) -> int:
    count = math.prod(UNKNOWN_SIZE if size is None else size for size in spec.shape)
    return count * (STRING_BYTES if spec.is_string else spec.dtype.itemsize)
