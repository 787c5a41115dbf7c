"""Which parameters of a transform are filled, and which callables are refused."""

from __future__ import annotations

import functools
import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, images
from mploader._util.checks import check_transform, transform_parameters


class Instance:
    def __call__(self, sample: Any, rng: np.random.Generator, *, index: int) -> Any:
        return sample

    def method(self, sample: Any, epoch: int) -> Any:
        return sample

    @classmethod
    def of_class(cls, sample: Any, index: int) -> Any:
        return sample


def cropped(sample: Any, size: int, rng: np.random.Generator) -> Any:
    return sample


@functools.wraps(cropped)
def wrapped(*args: Any, **kwargs: Any) -> Any:
    return cropped(*args, **kwargs)


@pytest.mark.parametrize(
    ("transform", "parameters"),
    [
        (lambda sample: 1, set()),
        (lambda sample, rng: 1, {"rng"}),
        (lambda sample, index, rng, epoch: 1, {"rng", "epoch", "index"}),
        (lambda sample, *, epoch: 1, {"epoch"}),
        (lambda *samples, index: 1, {"index"}),
        (lambda index: 1, set()),  # the sample, whatever its name
        (lambda rng, epoch: 1, {"epoch"}),
        (lambda sample, rng=None, epoch=3: 1, set()),
        (lambda sample, size=3, *rest, **options: 1, set()),
        (lambda sample, /, index: 1, {"index"}),
        (Instance(), {"rng", "index"}),
        (Instance().method, {"epoch"}),
        (Instance.of_class, {"index"}),
        (functools.partial(cropped, size=3), {"rng"}),
        (functools.partial(cropped, size=3, rng=None), set()),
        (functools.partial(Instance().method, epoch=3), set()),
        (functools.partial(wrapped, size=3), {"rng"}),
        (images.RandomFlip(), {"rng"}),
        (images.apply_to(0, images.RandomFlip()), {"rng"}),
        (images.apply_to(0, lambda image: image), set()),
        (images.apply_to(0, lambda image, epoch, index: image), {"epoch", "index"}),
        (operator.itemgetter(0), set()),
        (np.asarray, set()),
        (np.negative, set()),
        (len, set()),
        (max, set()),  # without a signature
        (str, set()),
        (math.sqrt, set()),
    ],
)
def test_a_transform_takes_parameters_by_name(transform: Callable[..., Any], parameters: set[str]) -> None:
    assert transform_parameters(transform) == parameters
    check_transform(transform)


@pytest.mark.parametrize(
    ("transform", "reason"),
    [
        (lambda: 1, "takes no sample"),
        (lambda *, sample: 1, "takes no sample"),
        (lambda **sample: 1, "takes no sample"),
        (lambda sample, generator: 1, "'generator'"),
        (lambda sample, rng, size: 1, "'size'"),
        (lambda sample, *, size: 1, "'size'"),
        (lambda sample, rng, /: 1, "'rng' is passed by name"),
        (cropped, "'size'"),
        (wrapped, "'size'"),
        (operator.add, "'b'"),
        (5, "transform=5: expected a callable or None"),
    ],
)
def test_another_parameter_without_a_default_is_refused(transform: Any, reason: str) -> None:
    with pytest.raises(ArgumentError, match=reason) as caught:
        check_transform(transform)
    assert str(caught.value).startswith("transform")
