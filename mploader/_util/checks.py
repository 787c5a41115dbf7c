"""Checks of arguments that several entry points share. A message says what was expected and what was given."""

from __future__ import annotations

import inspect
import math
import numbers
import operator
import os
from collections.abc import Callable
from typing import Any

from mploader.errors import ArgumentError

TRANSFORM_PARAMETERS = frozenset({"rng", "epoch", "index"})
"""What a transform may take by name besides the sample."""


def whole_number(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns an integer as an ``int``, NumPy's included.

    Raises:
        ArgumentError: ``value`` is not an integer (True and 4.0 are not), less than ``low`` or more than ``high``.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = low - 1
    if isinstance(value, bool) or number < low or (high is not None and number > high):
        raise ArgumentError(
            f"{name}={value!r}: expected an integer >= {low}" + ("" if high is None else f" and <= {high}")
        )
    return number


def seconds(name: str, value: Any) -> float:
    """Returns a positive, finite number of seconds as a float, NumPy's numbers included.

    Raises:
        ArgumentError: ``value`` is not such a number.
    """
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        raise ArgumentError(f"{name}={value!r}: expected a positive number of seconds")
    return float(value)


def path_text(name: str, value: Any, expected: str) -> str:
    """Returns the path of a file or folder as text.

    Args:
        name: the argument, for the message.
        value: the path.
        expected: what the path should be, for the message: "the name of a file".

    Raises:
        ArgumentError: ``value`` is neither text nor a path, or empty.
    """
    text = os.fspath(value) if isinstance(value, (str, os.PathLike)) else None
    if not isinstance(text, str) or not text:
        raise ArgumentError(f"{name}={value!r}: expected {expected}, as text or a path")
    return text


def check_source(source: Any) -> int:
    """Returns how many samples a source has.

    Raises:
        ArgumentError: ``source`` is not a source, or has no samples.
    """
    if not hasattr(source, "__getitem__") or not hasattr(source, "__len__"):
        raise ArgumentError(
            f"source: expected an object with __len__ and __getitem__(int), got a {type(source).__name__}. "
            "For a generator use mploader.from_generator"
        )
    num_samples = len(source)
    if num_samples == 0:
        raise ArgumentError(f"source={source!r:.500}: expected at least one sample, got none")
    return num_samples


def check_transform(transform: Any) -> None:
    """Checks that a transform can be called with a sample, or is None.

    Raises:
        ArgumentError: it cannot.
    """
    if transform is None:
        return
    if not callable(transform):
        raise ArgumentError(f"transform={transform!r:.200}: expected a callable or None")
    transform_parameters(transform)


def transform_parameters(transform: Callable[..., Any]) -> frozenset[str]:
    """Returns which of ``rng``, ``epoch`` and ``index`` a transform takes: those that it names without a default.

    The first positional parameter is the sample, whatever its name. A callable without a signature, as some built-ins
    are, takes the sample alone.

    Raises:
        ArgumentError: the transform takes no sample, or has another parameter without a default.
    """
    try:
        signature = inspect.signature(transform)
    except (TypeError, ValueError):
        return frozenset()
    parameters = list(signature.parameters.values())
    is_first_sample = bool(parameters) and parameters[0].kind not in (
        inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    )  # fmt: skip
    if not is_first_sample:
        raise _transform_error(signature, "it takes no sample")
    taken = set()
    for parameter in parameters[1:]:
        if parameter.default is not parameter.empty or parameter.kind in (
            parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD
        ):  # fmt: skip
            continue
        if parameter.name not in TRANSFORM_PARAMETERS:
            raise _transform_error(signature, f"nothing is passed for {parameter.name!r}, which has no default")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            raise _transform_error(signature, f"{parameter.name!r} is passed by name, but is positional-only")
        taken.add(parameter.name)
    return frozenset(taken)


def _transform_error(signature: inspect.Signature, reason: str) -> ArgumentError:
    return ArgumentError(
        "transform: expected a callable (sample) that may also take rng, epoch and index by name, got signature "
        f"{signature}: {reason}"
    )
