"""Checks of arguments that several entry points share: each says what it got and what it wants."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import os
from collections.abc import Callable
from typing import Any

from mploader.errors import ArgumentError


def whole_number(name: str, value: Any, low: int) -> int:
    """Returns a whole number as an int, NumPy's integers included.

    Raises:
        ArgumentError: it is something else (True and 4.0 are), or less than ``low``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low:
        raise ArgumentError(f"{name}={value!r}: wants a whole number of at least {low}")
    return number


def seconds(name: str, value: Any) -> float:
    """Returns a positive, finite number of seconds as a float, NumPy's numbers included.

    Raises:
        ArgumentError: it is something else.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ArgumentError(f"{name}={value!r}: wants a positive number of seconds")
    return float(value)


def path_text(name: str, value: Any, wanted: str) -> str:
    """Returns the path of a file or folder as text.

    Raises:
        ArgumentError: it is neither text nor a path, or empty; ``wanted`` says what it names.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ArgumentError(f"{name}={value!r}: wants {wanted}, as text or a path")
    return text


def takes_rng(transform: Callable[..., Any]) -> bool:
    """Whether a callable takes ``(sample, rng)`` rather than ``(sample)``.

    It does if it has a second positional parameter that has no default or is called ``rng``.
    """
    try:
        parameters = list(inspect.signature(transform).parameters.values())
    except (TypeError, ValueError):  # a built-in without a signature
        return False
    positional = [
        parameter for parameter in parameters
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]  # fmt: skip
    return len(positional) >= 2 and (positional[1].default is inspect.Parameter.empty or positional[1].name == "rng")


def check_source(source: Any) -> int:
    """Returns how many samples a source has.

    Raises:
        ArgumentError: it is no source, or has none.
    """
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ArgumentError(
            f"source is a {type(source).__name__}; it needs __len__ and __getitem__(int). "
            "For a generator use mploader.from_generator"
        )
    num_samples = len(source)
    if num_samples == 0:
        raise ArgumentError(f"source has no samples: {source!r}"[:500])
    return num_samples


def check_transform(transform: Any) -> None:
    """Checks that a transform can be called with a sample, or is None.

    Raises:
        ArgumentError: it cannot.
    """
    if transform is None:
        return
    if not callable(transform):
        raise ArgumentError(f"transform is a {type(transform).__name__}; it must be callable, or None")
    try:
        signature = inspect.signature(transform)
    except (TypeError, ValueError):  # a built-in without a signature
        return
    try:
        signature.bind(*(None, None) if takes_rng(transform) else (None,))
    except TypeError as error:
        raise ArgumentError(
            f"transform cannot be called: {error}. Wanted is transform(sample) or transform(sample, rng), not "
            f"{signature}"
        ) from None
