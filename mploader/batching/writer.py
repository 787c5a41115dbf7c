"""Writes the elements of one batch into the memory of a slot.

Components of one shape are written to their place as soon as an element is made. Components that vary are kept until
the last element has come, measured, and written once. How a component is stored is up to its codec.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader._util.shared_memory import Array
from mploader._util.trees import component_names
from mploader.batching.layout import FIRST_ELEMENT, BatchLayout
from mploader.batching.spec import ArraySpec
from mploader.errors import SpecError


class BatchWriter:
    """Writes the elements of one batch to a slot. A worker makes one for each task.

    Args:
        layout: how the batch lies in the memory.
        memory: the slot, a 1-d uint8 array.
    """

    def __init__(self, layout: BatchLayout, memory: Array) -> None:
        self._layout = layout
        self._memory = memory
        self._codecs = layout.codecs
        self._names = component_names(layout.structure)
        self._fixed = layout.fixed_arrays(memory)
        self._kept: list[list[Any]] = [[] for _ in self._codecs]
        self.count = 0

    @property
    def layout(self) -> BatchLayout:
        """How the batch lies in the memory."""
        return self._layout

    @property
    def capacity(self) -> int:
        """Elements in a full batch."""
        return self._layout.capacity

    def add(self, element: Any) -> None:
        """Adds one element; a refused element leaves the batch unchanged.

        Raises:
            SpecError: the element does not fit the layout.
            Exception: NumPy, or an object of the user, raised it during the conversion.
        """
        leaves: list[Any] = []
        if not _collect(element, self._layout.structure, leaves):
            raise SpecError(
                f"the element has the components {component_names(element)}, "
                f"but {self._layout.model} has {self._names}; return the same structure for every sample"
            )
        accepted: list[tuple[list[Any], Any]] = []
        for component, (leaf, codec) in enumerate(zip(leaves, self._codecs, strict=True)):
            check_component(leaf, codec.spec, self._names[component], self._layout.model)
            target = self._fixed[component]
            if target is not None:
                target[self.count] = leaf
            else:
                accepted.append((self._kept[component], codec.accept(leaf, self._names[component])))
        for kept, value in accepted:  # only now: a refused element must leave nothing behind
            kept.append(value)
        self.count += 1

    def finish(self) -> int:
        """Writes the kept components and returns the bytes in use. If they exceed the slot, nothing is written."""
        shapes = self._measure()
        used = self._layout.used_bytes(shapes)
        if used <= len(self._memory):
            arrays = self._layout.open(self._memory, self.count, shapes)
            for codec, target, group, values in zip(self._codecs, self._fixed, arrays, self._kept, strict=True):
                if target is None:
                    codec.write(group, values)
        return used

    def write_to(self, memory: Array) -> None:
        """Writes the whole batch to other memory (1-d uint8) of at least the bytes that :meth:`finish` returned."""
        arrays = self._layout.open(memory, self.count, self._measure())
        for codec, target, group, values in zip(self._codecs, self._fixed, arrays, self._kept, strict=True):
            codec.write(group, values if target is None else target[: self.count])

    def _measure(self) -> list[list[tuple[int, ...]]]:
        return [
            codec.measure(values if target is None else target[: self.count])
            for codec, target, values in zip(self._codecs, self._fixed, self._kept, strict=True)
        ]


def _collect(element: Any, structure: Any, leaves: list[Any]) -> bool:
    """Appends the components of ``element`` in the order of ``structure``; returns False if they do not match."""
    # Without generator expressions, which take four times as long: this is called for every sample.
    if isinstance(structure, tuple):
        if not isinstance(element, tuple) or len(element) != len(structure):
            return False
        for value, part in zip(element, structure, strict=True):  # noqa: SIM110
            if not _collect(value, part, leaves):
                return False
        return True
    if isinstance(structure, dict):
        if not isinstance(element, dict) or len(element) != len(structure):
            return False
        for key, part in structure.items():
            if key not in element or not _collect(element[key], part, leaves):
                return False
        return True
    leaves.append(element)
    return not isinstance(element, (dict, tuple))


_PYTHON_TYPES = {np.dtype(np.int64): int, np.dtype(np.float64): float, np.dtype(np.bool_): bool}
"""The type of the Python numbers that a dtype stores; NumPy itself refuses an int that is out of range."""


def check_component(leaf: Any, spec: ArraySpec, name: str, model: str) -> None:
    """Checks one component of an element against its spec.

    Args:
        leaf: the component.
        spec: what is expected.
        name: of the component, for messages.
        model: what defines the spec, for messages: the first element or a signature.

    Raises:
        SpecError: the component has another kind, dtype or shape.
    """
    # Fast path: nearly every component is such an array or number.
    if type(leaf) is np.ndarray:
        if leaf.dtype == spec.dtype and leaf.shape == spec.shape and not leaf.dtype.hasobject:
            return
    elif spec.shape == () and (
        type(leaf) is _PYTHON_TYPES.get(spec.dtype) or (isinstance(leaf, np.generic) and leaf.dtype == spec.dtype)
    ):
        return
    if isinstance(leaf, np.ma.MaskedArray):
        raise SpecError(f"{name} is a masked array, and its mask would be lost; return array.filled(value)")
    if spec.is_string:
        if not isinstance(leaf, (bytes, str)) and np.asarray(leaf).dtype.kind not in "SUO":
            raise SpecError(f"{name} is a {type(leaf).__name__}, but {model} has bytes there")
        shape = () if isinstance(leaf, (bytes, str)) else np.shape(leaf)
    elif isinstance(leaf, np.ndarray):
        shape = leaf.shape
        if leaf.dtype != spec.dtype and leaf.dtype.newbyteorder("=") != spec.dtype:
            raise SpecError(
                f"{name} has dtype {leaf.dtype}, but {model} has {spec.dtype}; "
                "convert it in the transform with .astype()"
            )
    else:
        shape = ()
        if not _is_number_of(leaf, spec.dtype):
            raise SpecError(f"{name} is {leaf!r:.200}, which does not fit the dtype {spec.dtype} of {model}")
    if len(shape) != len(spec.shape) or any(
        expected is not None and got != expected for got, expected in zip(shape, spec.shape, strict=False)
    ):
        advice = (
            ". Make the shapes equal in the transform (images.Resize), or declare that they vary with pad= or ragged= "
            "(ragged=2: in two dimensions)"
        )
        raise SpecError(
            f"{name} has shape {shape}, but {model} has {spec.shape}" + (advice if model == FIRST_ELEMENT else "")
        )


def _is_number_of(leaf: Any, dtype: np.dtype[Any]) -> bool:
    """Whether a number can be stored in a dtype; a float may be rounded, but not to infinity."""
    number = np.asarray(leaf)
    if number.shape or isinstance(leaf, list) or not np.can_cast(number.dtype, dtype, "same_kind"):
        return False
    with np.errstate(all="ignore"):
        stored = number.astype(dtype)
        if dtype.kind in "iu":
            return bool(stored == number)
        return dtype.kind not in "fc" or bool(np.isfinite(stored) or not np.isfinite(number))
