"""Chooses the codec of each component of an element, from its spec and from ``pad=`` and ``ragged=``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from mploader._util.trees import component_names, flatten, pack_as
from mploader.batching.codecs import Codec, Fixed, Strings
from mploader.batching.layout import DECLARED, FIRST_ELEMENT, MAX_RANK, BatchLayout
from mploader.batching.spec import ArraySpec, Pad
from mploader.batching.variable_codecs import Apart, Padded, PaddedStrings, RaggedRows, Whole
from mploader.errors import ArgumentError, SpecError

BLOCK_BYTES = 2**20
BLOCK_SAMPLES = 256


def make_layout(
    structure: Any,
    component_bytes: Sequence[int],
    pad: Any,
    ragged: Any,
    batch_size: int | None,
    *,
    is_declared: bool = False,
) -> BatchLayout:
    """Returns the layout of the batches of a loader.

    Args:
        structure: an element with an :class:`ArraySpec` in place of each component.
        component_bytes: bytes of each component of one element.
        pad: the loader's argument: None, a value, a :class:`Pad`, or a structure of these.
        ragged: the loader's argument: a bool or the number of dimensions that vary, or a structure of these.
        batch_size: samples in the largest batch; None: elements stay apart and are sent in blocks.
        is_declared: the structure is ``element_spec=`` rather than that of the first element, so that only dimensions
            that are None in it vary.

    Raises:
        ArgumentError: ``pad`` or ``ragged`` do not fit the element, or a dimension that varies has neither.
    """
    specs, names = flatten(structure), component_names(structure)
    pads = _spread("pad", pad, structure, names)
    ranks = _spread("ragged", ragged, structure, names)
    codecs = [
        _codec(
            spec, _pad_of(one_pad, spec, name, pad), _rank_of(rank, spec, name, ragged), batch_size, name, is_declared
        )
        for spec, one_pad, rank, name in zip(specs, pads, ranks, names, strict=True)
    ]
    capacity = batch_size
    if capacity is None:
        # In blocks, so that an element costs a fraction of a message.
        capacity = max(1, min(BLOCK_SAMPLES, BLOCK_BYTES // max(1, sum(component_bytes))))
    return BatchLayout(pack_as(structure, codecs), capacity, DECLARED if is_declared else FIRST_ELEMENT)


def make_whole_layout(structures: Sequence[Any]) -> BatchLayout:
    """Returns the layout for a source whose samples are batches.

    Args:
        structures: some batches, each with an :class:`ArraySpec` in place of each component.

    Raises:
        SpecError: the batches differ in more than sizes, or a component has no batch dimension.
    """
    names = component_names(structures[0])
    codecs = []
    for component, name in enumerate(names):
        specs = [flatten(structure)[component] for structure in structures if component_names(structure) == names]
        kinds = {(spec.dtype, len(spec.shape)) for spec in specs}
        if len(specs) < len(structures) or len(kinds) > 1 or not specs[0].shape:
            raise SpecError(
                f"{name} is not an array of the same dtype and number of dimensions, at least one, in every batch: "
                f"{', '.join(map(repr, structures))}"
            )
        sizes = [{spec.shape[axis] for spec in specs} for axis in range(1, len(specs[0].shape))]
        shape = (None, *(found.pop() if len(found) == 1 else None for found in sizes))
        codecs.append(Whole(ArraySpec(shape, specs[0].dtype)))
    return BatchLayout(pack_as(structures[0], codecs), 1)


def varying_bytes(layout: BatchLayout, component_bytes: Sequence[int]) -> int:
    """Estimates the bytes of one element beyond ``layout.fixed_bytes``, from the component bytes of a sample."""
    total = 0
    for codec, size in zip(layout.codecs, component_bytes, strict=True):
        spec = codec.batch_spec(None)
        if not isinstance(codec, Fixed):
            # Padded to a given shape. The shape of a whole batch does not say how many samples it has.
            is_known = not spec.is_string and not isinstance(codec, Whole) and None not in spec.shape[1:]
            total += spec.dtype.itemsize * math.prod(size or 0 for size in spec.shape[1:]) if is_known else size
            total += 8 * (1 + spec.ragged_rank)
    return total


def _spread(name: str, value: Any, structure: Any, names: list[str]) -> list[Any]:
    """Returns an entry for each component: those of a structure, or one value for all."""
    if not isinstance(value, (dict, tuple)):
        return [value] * len(names)
    if component_names(value) != names:
        raise ArgumentError(
            f"{name}={value!r}: expected one value for all components or the components {names} of the element, with "
            f"None where nothing varies, got {component_names(value)}"
        )
    return flatten(value)


def _pad_of(value: Any, spec: ArraySpec, name: str, given: Any) -> Pad | None:
    """The padding of one component, with its value in the component's dtype."""
    if value is None or not spec.shape:
        return None  # a number has nothing to pad
    pad = value if isinstance(value, Pad) else Pad(value)
    if pad.shape is not None and len(pad.shape) != len(spec.shape):
        raise ArgumentError(
            f"pad={given!r}: expected a Pad.shape of {len(spec.shape)} dimensions for {name}, got {len(pad.shape)}"
        )
    if isinstance(pad.value, (bool, np.bool_)) and spec.dtype != bool:
        raise ArgumentError(f"pad={given!r}: expected the value to pad {name} with, such as pad=0, or mploader.Pad")
    return Pad(_filling(pad.value, spec, name, given), pad.shape, pad.multiple_of)


def _filling(value: Any, spec: ArraySpec, name: str, given: Any) -> Any:
    if spec.is_string:
        if value is None or (not isinstance(value, (bytes, str)) and value == 0):
            return b""  # pad=0 for every component means the empty string here
        if isinstance(value, (bytes, str)):
            return value.encode() if isinstance(value, str) else value
    else:
        with np.errstate(all="ignore"):
            filling = _cast(0 if value is None else value, spec.dtype)
        if filling is not None:
            return filling
    raise ArgumentError(f"pad={given!r}: expected a value of {spec.dtype}, the dtype of {name}, got {value!r}")


def _cast(value: Any, dtype: np.dtype[Any]) -> Any:
    """Returns the value in a dtype, or None if that changes it. Rounding to a shorter float is allowed."""
    try:
        found = np.asarray(value).astype(dtype)[()]
        exact = bool(found == value) or bool(found != found and value != value)
    except (TypeError, ValueError, OverflowError):
        return None
    # Kind V: bfloat16 and the like. A float may be rounded (0.1), but not to infinity.
    is_rounded = dtype.kind in "fcV" and bool(np.isfinite(complex(found)))
    return found if exact or is_rounded else None


def _rank_of(value: Any, spec: ArraySpec, name: str, given: Any) -> int:
    """How many dimensions of one component are ragged."""
    if value is None or value is False or not spec.shape:
        return 0
    if not isinstance(value, int) or not 0 <= value <= len(spec.shape):
        raise ArgumentError(
            f"ragged={given!r}: expected True (the first dimension varies) or how many of the {len(spec.shape)} first "
            f"dimensions of {name}, of shape {spec.shape}, vary, got {value!r}"
        )
    return int(value)


def _codec(
    spec: ArraySpec, pad: Pad | None, ragged_rank: int, batch_size: int | None, name: str, is_declared: bool
) -> Codec:
    if len(spec.shape) >= MAX_RANK:
        raise SpecError(f"{name} has {len(spec.shape)} dimensions; a batch stores at most {MAX_RANK - 1}")
    if pad is not None and ragged_rank:
        raise ArgumentError(f"pad= and ragged= are both given for {name}: a component is either padded or ragged")
    if ragged_rank:
        if None in spec.shape[ragged_rank:]:
            raise ArgumentError(f"ragged={ragged_rank} for {name} of shape {spec.shape}: expected all sizes behind the "
                                f"first {ragged_rank} in element_spec=")  # fmt: skip
        varying = ArraySpec((None,) * ragged_rank + spec.shape[ragged_rank:], spec.dtype)
        return RaggedRows(varying, ragged_rank) if batch_size is not None else Apart(varying, Pad())
    if pad is not None:
        if is_declared and pad.shape is None and None not in spec.shape:
            return Strings(spec) if spec.is_string else Fixed(spec)
        varying = spec if is_declared else ArraySpec((None,) * len(spec.shape), spec.dtype)
        if batch_size is None:
            return Apart(varying, pad)
        return PaddedStrings(varying, pad) if spec.is_string else Padded(varying, pad)
    if None in spec.shape:
        if batch_size is None:
            return Apart(spec, Pad())
        raise ArgumentError(
            f"element_spec: {name} has shape {spec.shape}, and sizes that vary cannot be batched as they are: pass "
            "pad= or ragged="
        )
    return Strings(spec) if spec.is_string else Fixed(spec)
