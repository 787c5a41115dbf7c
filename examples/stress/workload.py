"""What the stress test loads, and the check of every batch against the plan.

A synthetic picture is a function of the sample's index and of the random number that its transform draws, so the
trainer can work out each picture that it gets. Pictures from files are checked by their checksum, made in the worker.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from mploader.images import Resize, apply_to
from mploader.plan import Plan, SampleRandom

Image = npt.NDArray[np.uint8]

_KEYS = ("image/encoded", "image", "jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Indexed:
    """A source whose samples know their index.

    Attributes:
        source: where samples come from; None for synthetic ones.
        length: how many there are.
    """

    source: Any
    length: int

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[int, Any]:
        return index, None if self.source is None else self.source[index]


@dataclass(frozen=True)
class Work:
    """The transform.

    Attributes:
        size: height and width of pictures, in pixels.
        bad_rate: the part of all samples that are bad, from 0 to 1; which ones is a function of their index.
    """

    size: int
    bad_rate: float

    def is_bad(self, index: int) -> bool:
        """Whether a sample is one of the bad ones."""
        return int(google_crc32c.value(b"bad %d" % index)) < self.bad_rate * 2**32

    def __call__(self, sample: tuple[int, Any], rng: np.random.Generator) -> dict[str, Any]:
        """Makes an element: picture, index, the number drawn, and the picture's checksum."""
        index, record = sample
        if self.is_bad(index):
            raise ValueError(f"sample {index} is bad on purpose")
        draw = int(rng.integers(2**32))
        image = synthetic(index, draw, self.size) if record is None else self._decode(record, rng)
        return {"image": image, "index": index, "draw": draw, "checksum": google_crc32c.value(image.tobytes())}

    def _decode(self, record: Any, rng: np.random.Generator) -> Image:
        key = 0 if isinstance(record, tuple) else next(key for key in _KEYS if key in record)
        image: Image = apply_to(key, Resize(self.size, self.size))(record, rng)[key]
        return np.ascontiguousarray(image)


def synthetic(index: int, draw: int, size: int) -> Image:
    """The picture of a synthetic sample: uint8 (size, size, 3)."""
    row = (np.arange(size * 3, dtype=np.uint32) * (2 * (index % 1000) + 1) + draw).astype(np.uint8)
    column = (np.arange(size, dtype=np.uint32) * (draw % 251 + 1)).astype(np.uint8)
    image: Image = (column[:, np.newaxis] ^ row).reshape(size, size, 3)
    return image


@dataclass
class Checker:
    """Compares every batch with the plan.

    Attributes:
        plan: what should come.
        work: what is made of it.
        is_synthetic: whether pictures can be worked out here.
        batches: batches checked.
        samples: samples in them.
        bad: bad samples that were rightly left out.
        lost: samples that should have come and did not.
        duplicated: samples that came and should not have.
        corrupted: samples with other content than they should have.
        first_fault: what was wrong first.
    """

    plan: Plan
    work: Work
    is_synthetic: bool
    batches: int = 0
    samples: int = 0
    bad: int = 0
    lost: int = 0
    duplicated: int = 0
    corrupted: int = 0
    first_fault: str = ""
    _random: SampleRandom = field(init=False)

    def __post_init__(self) -> None:
        self._random = SampleRandom(self.plan.seed)

    def check(self, epoch: int, position: int, batch: dict[str, Any]) -> None:
        """Takes note of a batch."""
        planned = [int(index) for index in self.plan.batch(epoch, position)]
        wanted = [index for index in planned if not self.work.is_bad(index)]
        got = [int(index) for index in batch["index"]]
        place = f"epoch {epoch}, batch {position}"
        self.batches += 1
        self.samples += len(got)
        self.bad += len(planned) - len(wanted)
        if got != wanted:
            self.lost += (collections.Counter(wanted) - collections.Counter(got)).total()
            self.duplicated += (collections.Counter(got) - collections.Counter(wanted)).total()
            self._note(f"{place}: samples {got}, wanted {wanted}")
        for number, index in enumerate(got):
            element = {key: values[number] for key, values in batch.items()}
            if not self._is_right(epoch, index, element):
                self.corrupted += 1
                self._note(f"{place}: the content of sample {index} is not what it should be")

    def _is_right(self, epoch: int, index: int, element: dict[str, Any]) -> bool:
        draw = int(self._random(epoch, index).integers(2**32))
        image = element["image"]
        if int(element["draw"]) != draw or google_crc32c.value(image.tobytes()) != int(element["checksum"]):
            return False
        return not self.is_synthetic or bool(np.array_equal(image, synthetic(index, draw, self.work.size)))

    def _note(self, fault: str) -> None:
        self.first_fault = self.first_fault or fault
