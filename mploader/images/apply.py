"""Applies an image transform to one component of a sample and leaves the others unchanged."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mploader._util.checks import transform_parameters
from mploader.errors import ArgumentError, SampleError


@dataclass(frozen=True)
class _ApplyTo:
    """See :func:`apply_to`. Its signature names what the inner transform takes, so that only this is passed."""

    key: int | str
    transform: Callable[..., Any]
    parameters: frozenset[str]
    __signature__: inspect.Signature = field(init=False, compare=False)

    def __post_init__(self) -> None:
        sample = inspect.Parameter("sample", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        named = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY if name != "rng" else sample.kind)
            for name in sorted(self.parameters, reverse=True)  # rng first, which may also be passed by position
        ]
        object.__setattr__(self, "__signature__", inspect.Signature([sample, *named]))

    def __call__(self, sample: Any, rng: np.random.Generator | None = None, **named: int) -> Any:
        if isinstance(sample, tuple) and isinstance(self.key, int) and -len(sample) <= self.key < len(sample):
            index = self.key % len(sample)
            return (*sample[:index], self._transformed(sample[index], rng, named), *sample[index + 1 :])
        if isinstance(sample, dict) and self.key in sample:
            return {
                key: self._transformed(value, rng, named) if key == self.key else value
                for key, value in sample.items()
            }
        if isinstance(sample, dict):
            given = f"a dict with the keys {', '.join(map(repr, sample))}"
        else:
            given = f"a tuple of {len(sample)}" if isinstance(sample, tuple) else f"a {type(sample).__name__}"
        raise SampleError(
            f"apply_to({self.key!r}, ...): expected a tuple with this position or a dict with this key, got {given}"
        )

    def _transformed(self, image: Any, rng: np.random.Generator | None, named: dict[str, int]) -> Any:
        return self.transform(image, rng=rng, **named) if "rng" in self.parameters else self.transform(image, **named)

    def __repr__(self) -> str:
        return f"apply_to({self.key!r}, {self.transform!r})"


def apply_to(key: int | str, transform: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a transform of samples from a transform of images.

    Args:
        key: where the image is: a position in a tuple, or a key of a dict.
        transform: (image, rng) -> image, as in :mod:`mploader.images`, or (image) -> image. It may take ``epoch`` and
            ``index`` by name as well, as a loader's transform.

    Returns:
        A callable (sample, rng) -> element that takes what ``transform`` takes. The element is a tuple or dict as the
        sample is, with that component transformed and the others unchanged. It raises :class:`mploader.SampleError`
        for a sample without such a component.

    Raises:
        ArgumentError: ``key`` is neither an int nor a str, or ``transform`` cannot be called with an image.
    """
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise ArgumentError(f"key={key!r}: expected a position in a tuple (int) or a key of a dict (str)")
    if not callable(transform):
        raise ArgumentError(f"transform={transform!r:.200}: expected a callable (image, rng) or (image)")
    return _ApplyTo(key, transform, transform_parameters(transform))
