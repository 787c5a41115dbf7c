"""Trees of arrays: tuples and dicts, nested, with anything at the leaves. Leaves are called *components*."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any


def flatten(structure: Any) -> list[Any]:
    """Returns the components of a structure in order: tuples by position, dicts in the order of their keys."""
    if isinstance(structure, dict):
        return [leaf for value in structure.values() for leaf in flatten(value)]
    if isinstance(structure, tuple):
        return [leaf for value in structure for leaf in flatten(value)]
    return [structure]


def pack_as(structure: Any, leaves: Sequence[Any]) -> Any:
    """Returns ``leaves`` arranged as ``structure``; the inverse of :func:`flatten`."""
    return _pack(structure, iter(leaves))


def _pack(structure: Any, leaves: Iterator[Any]) -> Any:
    if isinstance(structure, dict):
        return {key: _pack(value, leaves) for key, value in structure.items()}
    if isinstance(structure, tuple):
        values = [_pack(value, leaves) for value in structure]
        # A named tuple keeps its class; it takes its fields as arguments, not as one sequence.
        return type(structure)(*values) if hasattr(structure, "_fields") else tuple(values)
    return next(leaves)


def map_structure(function: Callable[[Any], Any], structure: Any) -> Any:
    """Applies ``function`` to every component and keeps the structure."""
    return pack_as(structure, [function(leaf) for leaf in flatten(structure)])


def component_names(structure: Any, prefix: str = "element") -> list[str]:
    """Returns a readable name for each component, for messages: ``element[0]``, ``element["image"]``."""
    if isinstance(structure, dict):
        items: list[tuple[str, Any]] = [(f"{prefix}[{key!r}]", value) for key, value in structure.items()]
    elif isinstance(structure, tuple):
        items = [(f"{prefix}[{position}]", value) for position, value in enumerate(structure)]
    else:
        return [prefix]
    return [name for item_prefix, value in items for name in component_names(value, item_prefix)]
