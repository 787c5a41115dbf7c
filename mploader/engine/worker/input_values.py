"""The elements of generators: converted to the dtypes of a signature, taken apart where they are ragged, and summed up.

Used in the worker; :class:`SplitRagged` is made in the trainer and sent there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from mploader._util.text import clip
from mploader._util.trees import component_names, flatten, pack_as
from mploader.batching.codecs import texts_of
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import STRING, ArraySpec
from mploader.errors import SpecError


def convert(element: Any, layout: BatchLayout) -> list[Any]:
    """Returns the components as arrays of the dtypes of the signature, as ``tf.data`` converts them."""
    leaves = flatten_like(layout.structure, element)
    return [_convert_leaf(leaf, codec.spec) for leaf, codec in zip(leaves, layout.codecs, strict=True)]


def _convert_leaf(leaf: Any, spec: ArraySpec) -> Any:
    if not spec.is_string:
        array = np.asarray(leaf)
        return array if array.dtype == spec.dtype else array.astype(spec.dtype)
    if isinstance(leaf, (bytes, str, np.ndarray)):
        return leaf
    array = np.asarray(leaf)
    # NumPy makes numbers of an empty list, and cuts zero bytes off the ends of strings.
    return np.asarray(leaf, STRING) if array.dtype.kind in "SU" or not array.size else array


@dataclass(frozen=True)
class SplitRagged:
    """Turns the ragged components of an element into a tuple of flat values and row splits, outermost first.

    Attributes:
        specs: the structure of the element's signature. The shape of a ragged component is that of the element, whose
            first dimension has no row splits.
    """

    specs: Any

    def __call__(self, element: Any) -> Any:
        """Returns the element with tuples in place of its ragged components."""
        leaves = flatten_like(self.specs, element)
        parts = [_split(leaf, spec, name) for leaf, (spec, name) in zip(leaves, self._components, strict=True)]
        return pack_as(self.specs, parts)

    @cached_property
    def _components(self) -> list[tuple[ArraySpec, str]]:
        return list(zip(flatten(self.specs), component_names(self.specs), strict=True))


def _split(leaf: Any, spec: ArraySpec, name: str) -> Any:
    if not spec.ragged_rank:
        return leaf
    if hasattr(leaf, "flat_values") and hasattr(leaf, "nested_row_splits"):  # of TensorFlow, or of mploader
        if len(leaf.nested_row_splits) != spec.ragged_rank:
            raise SpecError(
                f"{name} has ragged_rank {spec.ragged_rank} in the signature, and the generator gave a "
                f"{type(leaf).__name__} of ragged_rank {len(leaf.nested_row_splits)}"
            )
        return (np.asarray(leaf.flat_values), *map(np.asarray, leaf.nested_row_splits))
    leaf = list(leaf) if isinstance(leaf, Iterator) else leaf
    given, splits = leaf, []
    for _ in range(spec.ragged_rank):  # nested lists
        rows: list[Any] = list(leaf) if _is_list(leaf) else [None]
        if not all(map(_is_list, rows)):
            raise SpecError(
                f"{name} has ragged_rank {spec.ragged_rank} in the signature, so lists or arrays nested at "
                f"least {spec.ragged_rank + 1} deep are expected, got {clip(repr(given), 200)}"
            )
        splits.append(np.cumsum([0, *map(len, rows)], dtype=np.int64))
        leaf = [value for row in rows for value in row]
    if not leaf:  # the sizes that a list without a value does not tell
        leaf = np.empty((0, *[size or 0 for size in spec.shape[spec.ragged_rank + 1 :]]), spec.dtype)
    return (leaf, *splits)


def _is_list(value: Any) -> bool:
    """Whether something has elements other than the characters of a string; an array of no dimension has none."""
    is_sized = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
    return is_sized and getattr(value, "shape", True) != ()


def flatten_like(structure: Any, element: Any) -> list[Any]:
    """Returns the parts of ``element`` that stand where ``structure`` has its leaves.

    Raises:
        SpecError: the two do not match.
    """
    if isinstance(structure, dict):
        if not isinstance(element, dict) or set(element) != set(structure):
            got = sorted(map(str, element)) if isinstance(element, dict) else type(element).__name__
            raise SpecError(f"the signature has a dict of {sorted(map(str, structure))}, the generator gave {got}")
        return [leaf for key, part in structure.items() for leaf in flatten_like(part, element[key])]
    if isinstance(structure, tuple):
        if not isinstance(element, tuple) or len(element) != len(structure):
            got = f"a tuple of {len(element)}" if isinstance(element, tuple) else f"a {type(element).__name__}"
            raise SpecError(f"the signature has a tuple of {len(structure)}, the generator gave {got}")
        return [
            leaf for part, value in zip(structure, element, strict=True) for leaf in flatten_like(part, value)
        ]
    return [element]


def checksum_of(leaves: list[Any], checksum: int) -> int:
    """Returns the checksum of a generator's elements so far, with those before in ``checksum``, and one more.

    Args:
        leaves: its components as they are written. Their dtypes, shapes and the lengths of strings count too.
        checksum: 0 for the first element.
    """
    for leaf in leaves:
        if isinstance(leaf, (bytes, str)) or leaf.dtype.kind in "OSU":
            texts = texts_of(leaf)
            header, data = f"{np.shape(leaf)}{[len(text) for text in texts]}", b"".join(texts)
        else:
            header, data = f"{leaf.dtype.str}{leaf.shape}", leaf.tobytes()
        checksum = google_crc32c.extend(google_crc32c.extend(checksum, header.encode()), data)
    return checksum
