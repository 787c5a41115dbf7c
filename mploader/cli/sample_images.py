"""Pictures with labels, found in samples of any source: what ``mploader bench`` and ``mploader show`` start from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from mploader.errors import SampleError

PICTURE_KEYS = ("image/encoded", "image", "jpg", "jpeg", "png", "webp")
LABEL_KEYS = ("image/class/label", "label", "cls")
NO_LABEL = -1


@dataclass(frozen=True)
class LabelledPicture:
    """A transform of samples to (picture, label).

    Attributes:
        transform: (image, rng) -> image, as in :mod:`mploader.images`.
    """

    transform: Callable[..., Any]

    def __call__(self, sample: Any, rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], int]:
        """Returns what the transform makes of the picture, and the label; ``NO_LABEL`` where there is none."""
        data, label = find_picture(sample)
        return self.transform(data, rng), label


def find_picture(sample: Any) -> tuple[Any, int]:
    """Finds the encoded picture and the label in a sample.

    Raises:
        SampleError: it has no picture.
    """
    if isinstance(sample, tuple) and len(sample) == 2:
        return sample[0], _number(sample[1])
    if isinstance(sample, dict):
        for key in PICTURE_KEYS:
            if key in sample:
                return sample[key], _number(next((sample[name] for name in LABEL_KEYS if name in sample), NO_LABEL))
    given = f"the keys {', '.join(map(repr, sample))}" if isinstance(sample, dict) else f"a {type(sample).__name__}"
    raise SampleError(
        f"no picture is found in {given}; looked for {', '.join(PICTURE_KEYS)} in a dict, or (picture, label). "
        "Name a transform of your own with --transform module:function"
    )


def _number(label: Any) -> int:
    """A label as a number: a number, an array or list of one, or digits; ``NO_LABEL`` for anything else."""
    if isinstance(label, (list, np.ndarray)) and len(label) == 1:
        label = label[0]
    if isinstance(label, bytes):
        text = label.strip()
        return int(text) if text.isdigit() and len(text) < 10 else NO_LABEL
    return int(label) if isinstance(label, (int, np.integer)) else NO_LABEL
