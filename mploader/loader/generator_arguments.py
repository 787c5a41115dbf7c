"""Checks of the arguments of ``from_generator`` that need no framework."""

from __future__ import annotations

import inspect
from typing import Any

from mploader.errors import ArgumentError


def check_generator(generator: Any, shards: Any, args: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """Checks the arguments of ``from_generator`` and returns the shards as a list and ``args`` as a tuple.

    Raises:
        ArgumentError: an argument is invalid.
    """
    if not callable(generator):
        raise ArgumentError(f"generator: expected a callable that takes a shard, got a {type(generator).__name__}")
    try:
        items = list(shards)
    except TypeError:
        raise ArgumentError(
            f"shards: expected an iterable, one item for each call of the generator, got a {type(shards).__name__}"
        ) from None
    if not items:
        raise ArgumentError("shards is empty: generator(shard) is called once for each item of it")
    if isinstance(shards, (str, bytes)):
        raise ArgumentError(f"shards={shards!r}: expected a list of items, such as [{shards!r}]")
    if args is not None and not isinstance(args, (tuple, list)):
        raise ArgumentError(f"args={args!r}: expected a tuple of further arguments, such as ({args!r},)")
    arguments = () if args is None else tuple(args)
    try:
        inspect.signature(generator).bind(items[0], *arguments)
    except ValueError:
        pass  # a built-in without a signature
    except TypeError as error:
        raise ArgumentError(f"generator cannot be called with a shard and {len(arguments)} args: {error}") from None
    return items, arguments
