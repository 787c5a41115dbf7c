"""Pictures with labels, found in samples of any source, for ``mploader bench``, ``show`` and ``demo``.

Workers import this module, so it imports nothing heavy.
"""

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
        """Returns the transformed picture, and the label; ``NO_LABEL`` where there is none.

        Raises:
            SampleError: the sample has no picture.
        """
        picture, label = find_picture(sample)
        if picture is None:
            raise SampleError(
                f"no picture is found in {kind_of(sample)}: expected (picture, label), or a dict with one of the keys "
                f"{', '.join(PICTURE_KEYS)}. Name a transform of your own with --transform module:function"
            )
        number = label_number(label)
        return self.transform(picture, rng), NO_LABEL if number is None else number


def find_picture(sample: Any) -> tuple[Any, Any]:
    """Returns the encoded picture and the label of a sample as they are in it; None for what it does not have."""
    if isinstance(sample, tuple) and len(sample) == 2:
        return sample
    if not isinstance(sample, dict):
        return None, None
    picture = next((sample[key] for key in PICTURE_KEYS if key in sample), None)
    return picture, next((sample[key] for key in LABEL_KEYS if key in sample), None)


def label_number(label: Any) -> int | None:
    """A label as a number: a number, an array or list of one, or digits. None for anything else."""
    if isinstance(label, (list, np.ndarray)) and len(label) == 1:
        label = label[0]
    if isinstance(label, bytes):
        text = label.strip()
        return int(text) if text.isdigit() and len(text) < 10 else None
    return int(label) if isinstance(label, (int, np.integer)) else None


def kind_of(sample: Any) -> str:
    """What a sample is, for messages: its keys, or its type."""
    if isinstance(sample, dict):
        return f"a sample with the keys {', '.join(map(repr, sample))}"
    return f"a sample of type {type(sample).__name__}"
