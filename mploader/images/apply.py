"""Applies an image transform to one component of a sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.checks import takes_rng
from mploader.errors import ArgumentError, SampleError


@dataclass(frozen=True)
class _WithoutRng:
    """Adapts a transform that takes the image alone to the signature (image, rng)."""

    transform: Callable[[Any], Any]

    def __call__(self, image: Any, rng: np.random.Generator) -> Any:
        return self.transform(image)

    def __repr__(self) -> str:
        return repr(self.transform)


@dataclass(frozen=True)
class _ApplyTo:
    key: int | str
    transform: Callable[..., Any]

    def __call__(self, sample: Any, rng: np.random.Generator) -> Any:
        if isinstance(sample, tuple) and isinstance(self.key, int) and -len(sample) <= self.key < len(sample):
            index = self.key % len(sample)
            return (*sample[:index], self.transform(sample[index], rng), *sample[index + 1 :])
        if isinstance(sample, dict) and self.key in sample:
            return {key: self.transform(value, rng) if key == self.key else value for key, value in sample.items()}
        if isinstance(sample, dict):
            given = f"a dict with the keys {', '.join(map(repr, sample))}"
        else:
            given = f"a tuple of {len(sample)}" if isinstance(sample, tuple) else f"{type(sample).__name__}"
        raise SampleError(
            f"apply_to({self.key!r}, ...): expected a sample with this component, but the sample is {given}."
            " Pass an index for tuples, a key for dicts"
        )

    def __repr__(self) -> str:
        return f"apply_to({self.key!r}, {self.transform!r})"


def apply_to(key: int | str, transform: Callable[..., Any]) -> Callable[[Any, np.random.Generator], Any]:
    """Makes a transform of samples from a transform of images.

    Args:
        key: of the image's component: an index in a tuple, or a key of a dict.
        transform: (image, rng) -> image, as in :mod:`mploader.images`, or (image) -> image.

    Returns:
        A callable (sample, rng) -> element, a tuple or dict as the sample is, with that component
        transformed and the others unchanged. It raises :class:`mploader.SampleError` for a sample that has
        no such component.

    Raises:
        ArgumentError: ``key`` is neither int nor str, or ``transform`` is not callable.
    """
    if isinstance(key, bool) or not isinstance(key, (int, str)):
        raise ArgumentError(f"key={key!r}: expected an index in a tuple (int) or a key of a dict (str)")
    if not callable(transform):
        raise ArgumentError(f"transform={transform!r}: expected a callable (image, rng) -> image")
    return _ApplyTo(key, transform if takes_rng(transform) else _WithoutRng(transform))
