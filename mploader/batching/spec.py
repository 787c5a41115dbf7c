"""The structure, shapes and dtypes of elements and batches.

An *element* is what a transform returns for one sample: an array, a tuple, or a dict of arrays, Python numbers and
strings; tuples and dicts may nest. Its arrays, numbers and strings are its *components*. A batch has the same
structure with a leading batch dimension. This module reads shapes and dtypes and copies no array.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.checks import whole_number
from mploader._util.trees import component_names, flatten, pack_as
from mploader.errors import ArgumentError, SpecError

STRING = np.dtype(object)
"""The dtype of a string component: batches hold Python ``bytes`` in an object array, TensorFlow sees ``tf.string``."""


@dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of one component of a batch.

    Attributes:
        shape: sizes of the dimensions, None for a dimension that varies from batch to batch. For a loader with
            a batch size the first entry is the batch dimension.
        dtype: NumPy dtype in native byte order; ``object`` for a string component.
        ragged_rank: for a ragged component, how many dimensions behind the batch vary within a batch: batches hold
            a :class:`mploader.Ragged`, TensorFlow sees a ``tf.RaggedTensor`` of this ragged rank. 0 for others.
    """

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]
    ragged_rank: int = 0

    @property
    def is_string(self) -> bool:
        """Whether the component holds ``bytes``."""
        return self.dtype == STRING

    @property
    def is_fixed(self) -> bool:
        """Whether every dimension is known and the elements are plain memory."""
        return not self.is_string and None not in self.shape

    def __repr__(self) -> str:
        shape = ", ".join("None" if size is None else str(size) for size in self.shape)
        comma = "," if len(self.shape) == 1 else ""
        ragged = f", ragged_rank={self.ragged_rank}" if self.ragged_rank else ""
        return f"ArraySpec(({shape}{comma}), {'bytes' if self.is_string else self.dtype}{ragged})"


@dataclass(frozen=True)
class Pad:
    """How components of different shapes are padded to one shape.

    Attributes:
        value: the padding value; None: 0, or an empty string.
        shape: the size of each dimension in the batch, None for the longest of the batch. A larger element is an error.
            Without a shape, every dimension is padded to the longest.
        multiple_of: sizes that vary are rounded up to a multiple of this, so that a compiled training step sees fewer
            shapes.

    Raises:
        ArgumentError: ``shape`` or ``multiple_of`` is invalid.
    """

    value: Any = None
    shape: tuple[int | None, ...] | None = None
    multiple_of: int = 1

    def __post_init__(self) -> None:
        if self.shape is not None:
            try:
                shape = tuple(size if size is None else whole_number("size", size, 0) for size in self.shape)
            except (ArgumentError, TypeError):
                raise ArgumentError(
                    f"Pad: shape={self.shape!r}: expected a tuple with a size >= 0 or None for each dimension"
                ) from None
            object.__setattr__(self, "shape", shape)
        object.__setattr__(self, "multiple_of", whole_number("Pad: multiple_of", self.multiple_of, 1))


def describe_element(element: Any) -> Any:
    """Returns an element with an :class:`ArraySpec` in place of each component.

    Raises:
        SpecError: a component is not an array, a number or a string.
    """
    names = component_names(element)
    leaves = flatten(element)
    if not leaves:
        raise SpecError(f"the element {element!r:.200} has no components; return at least one array or number")
    return pack_as(element, [_describe(leaf, name) for leaf, name in zip(leaves, names, strict=True)])


def _describe(leaf: Any, name: str) -> ArraySpec:
    if isinstance(leaf, (bytes, str)):
        return ArraySpec((), STRING)
    if isinstance(leaf, (list, set, Mapping)) or leaf is None:
        raise SpecError(
            f"{name} is a {type(leaf).__name__}; a component must be an array, a number, bytes or str. "
            "Return a tuple or dict of components, or convert it with numpy.asarray()"
        )
    if isinstance(leaf, np.ma.MaskedArray):
        raise SpecError(f"{name} is a masked array, and its mask would be lost; return array.filled(value)")
    array = np.asarray(leaf)
    if array.dtype.kind in "SU" or (array.dtype == STRING and _all_strings(array)):
        return ArraySpec(array.shape, STRING)
    is_memory = array.dtype.kind in "biufcV" and array.dtype.itemsize > 0  # "V0" has none
    if not is_memory or array.dtype.names is not None or array.dtype.hasobject:
        raise SpecError(
            f"{name} is a {type(leaf).__name__} of dtype {array.dtype}; "
            "a component must be an array of numbers or booleans, a number, bytes or str"
        )
    return ArraySpec(array.shape, array.dtype.newbyteorder("="))


def _all_strings(array: np.ndarray[Any, Any]) -> bool:
    return all(isinstance(value, (bytes, str)) for value in array.flat)
