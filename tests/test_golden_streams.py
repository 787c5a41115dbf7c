"""Streams whose bytes stay the same from release to release: a change of one belongs into the changelog.

Each stream is kept as the SHA-256 of its batches: structure, dtypes, shapes and bytes, two epochs long. Everything in
them is made by arithmetic alone, so no decoder, resizer or machine has a part in the values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest

from mploader import BucketBy, Loader, Pad, ShardShuffle
from mploader.images import RandomFlip, RandomResizedCrop
from mploader.sources import Concat, Mix

SAMPLES = 101
EPOCHS = 2


class Shards:
    """Numbers that lie in shards of different sizes."""

    shard_sizes = np.array([7, 13, 1, 20, 9, 31, 20])

    def __len__(self) -> int:
        return int(self.shard_sizes.sum())

    def __getitem__(self, index: int) -> int:
        return index


def numbers(count: int = SAMPLES) -> np.ndarray[Any, Any]:
    return np.arange(count, dtype=np.int64) * 7 + 3


def noisy(sample: Any, rng: np.random.Generator) -> dict[str, Any]:
    return {"sample": sample, "noise": rng.integers(0, 2**31, (3, 2)), "uniform": rng.random(2)}


def cropped(sample: Any, rng: np.random.Generator) -> Any:
    """The box and the mirroring of a random-resized crop, and the pixels in the box, unscaled."""
    height, width = 60 + int(sample) % 7, 80 + int(sample) % 11
    image = (np.arange(height * width * 3) * (int(sample) + 1) % 251).astype(np.uint8).reshape(height, width, 3)
    box = RandomResizedCrop(16, 16).view(height, width, rng).box
    inside = image[box.top : box.top + box.height, box.left : box.left + box.width]
    flipped = RandomFlip()(np.ascontiguousarray(inside), rng)
    return np.array([box.top, box.left, box.height, box.width]), np.int64(flipped[0].sum()), flipped[:2, :2].copy()


def sequence(sample: Any) -> dict[str, Any]:
    length = int(sample) % 23 + 1
    return {"ids": np.arange(length, dtype=np.int32) + int(sample), "name": f"sample {int(sample)}"}


def odd(sample: Any) -> Any:
    if int(sample) % 9 == 0:
        raise ValueError("a bad sample")
    return sample


def generated(start: int) -> Iterator[tuple[int, Any]]:
    for step in range(start % 5 + 3):
        yield start * 100 + step, np.full(2, step, np.float32)


def read_all(loader: Loader) -> Iterator[Any]:
    with loader:
        for _ in range(EPOCHS):
            yield from loader


STREAMS: dict[str, tuple[Callable[[], Iterable[Any]], str]] = {
    "plain": (
        lambda: read_all(Loader(numbers(), batch_size=8, num_workers=2)),
        "066a4aa2f008b8b14faf35d9481bb7e7dc03f17137c4263ca3dcbe3e1b36baf4",
    ),
    "shuffled": (
        lambda: read_all(Loader(numbers(), batch_size=8, shuffle=True, seed=5, num_workers=2)),
        "7638dab26d02a6c6971a3e4764b4f598677d72544b4a31e747c6518e3f66b4c9",
    ),
    "shuffled, the remainder dropped": (
        lambda: read_all(Loader(numbers(), batch_size=8, shuffle=True, drop_remainder=True, num_workers=2)),
        "c36107daa7ce1be4bd20ba2d5c68c18ad0a9a519f67eababa10702d851dee0bf",
    ),
    "random numbers in the transform": (
        lambda: read_all(Loader(numbers(), noisy, batch_size=8, shuffle=True, seed=1, num_workers=2)),
        "1b583d4bc2ecf875c7ca126d36aaf3387d6645470ea99aa889155625a7f4c5c8",
    ),
    "crops": (
        lambda: read_all(Loader(numbers(), cropped, batch_size=8, shuffle=True, seed=2, num_workers=2)),
        "3900f0164df0f6c36a2ccb83880a872a663f3da47ec2f7fe72b0354747988a2c",
    ),
    "elements": (
        lambda: read_all(Loader(numbers(), noisy, batch_size=None, shuffle=True, seed=3, num_workers=2)),
        "59b09501d308ca2d1d32ba88cf6113eaa0120c8508fc6e0d8ed777c56e77d9fa",
    ),
    "host 1 of 3": (
        lambda: read_all(Loader(numbers(), batch_size=4, shuffle=True, seed=4, shard=(1, 3), num_workers=2)),
        "fbbabe8a05066b19c5f74060a40df26e9fe5ed532f2870078278af735c21ee13",
    ),
    "windows of shards": (
        lambda: read_all(Loader(Shards(), batch_size=8, shuffle=ShardShuffle(window=3), seed=6, num_workers=2)),
        "5ba2dc7b78f253e83d588c8900d16adb0afc1c406d51d0230826e8f2afa0cdda",
    ),
    "mix of three": (
        lambda: read_all(
            Loader(Mix([(numbers(), 0.5), (numbers(17), 0.3), (numbers(40), 0.2)]), batch_size=8, shuffle=True, seed=7,
                   num_workers=2)
        ),
        "8e2b426c0f15413aac53ef4d060025b9742d126450dd2717bfd84e78cfb366ae",
    ),
    "mix of two, in order": (
        lambda: read_all(Loader(Mix([(numbers(), 9), (numbers(17), 1)]), batch_size=8, num_workers=2)),
        "6c6e54cd51392a36ae940041658403f3a82c06b69ec3f0324e63b34d56dc2acc",
    ),
    "concatenated": (
        lambda: read_all(Loader(Concat([numbers(), numbers(17)]), batch_size=8, shuffle=True, num_workers=2)),
        "eabb50fafc22f731f57d44443837f991a76557eb8f014660a1838e4b85620762",
    ),
    "buckets": (
        lambda: read_all(
            Loader(numbers(), sequence, batch_size=8, shuffle=True, seed=8, pad={"ids": Pad(0), "name": None},
                   bucket_by=BucketBy(numbers() % 23 + 1, [8, 16]), num_workers=2)
        ),
        "9e6201fc665bba8d24b22aa95195a189d029cb7bfd4480df5622baa7a2bc72eb",
    ),
    "ragged": (
        lambda: read_all(
            Loader(numbers(), sequence, batch_size=8, shuffle=True, seed=9, ragged={"ids": True, "name": False},
                   num_workers=2)
        ),
        "a451dc6f613bb645546518586709396be8ce18ce7a7bff3f8e6531b8a17f11ba",
    ),
    "bad samples dropped": (
        lambda: read_all(
            Loader(numbers(), odd, batch_size=8, shuffle=True, seed=10, on_bad_sample="drop", num_workers=2)
        ),
        "a733077c3881cb002fc677f598b929359fa2b8726cec71a7f16b5c1730fb028a",
    ),
    "bad samples replaced": (
        lambda: read_all(
            Loader(numbers(), odd, batch_size=8, shuffle=True, seed=11, on_bad_sample="replace", num_workers=2)
        ),
        "1439a107fc3d53fb54c75023a3e6f8f40c2614e815330e96e0271d84b93a5818",
    ),
}  # fmt: skip


def update(digest: Any, part: Any) -> None:
    """Takes a batch into a digest: what it is made of, and every byte of it."""
    if isinstance(part, dict):
        digest.update(f"dict {list(part)}".encode())
        part = tuple(part.values())
    if isinstance(part, tuple):
        digest.update(f"tuple {len(part)}".encode())
        for item in part:
            update(digest, item)
    elif hasattr(part, "nested_row_splits"):
        digest.update(b"ragged")
        update(digest, (part.flat_values, *part.nested_row_splits))
    elif part.dtype == object:
        digest.update(f"text {part.shape} {part.tolist()}".encode())
    else:
        digest.update(f"{part.dtype.str} {part.shape}".encode() + np.ascontiguousarray(part).tobytes())


def digest_of(batches: Iterable[Any]) -> str:
    digest = hashlib.sha256()
    for batch in batches:
        update(digest, batch)
    return digest.hexdigest()


@pytest.mark.usefixtures("workers_in_threads")
@pytest.mark.parametrize("name", STREAMS)
def test_a_stream_is_what_it_was(name: str) -> None:
    make, expected = STREAMS[name]
    assert digest_of(make()) == expected


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [
        (None, "581813d0035c8254272474972405035d2d4bf89f8da77b9a0146ab92ad3b80af"),
        (4, "bddc0c382b31c437852aa20c684ce56b26b6f450252c229c304d825247a33eac"),
    ],
)
def test_the_stream_of_generators_is_what_it_was(batch_size: int | None, expected: str) -> None:
    import tensorflow as tf

    from mploader import from_generator

    signature = (tf.TensorSpec((), tf.int64), tf.TensorSpec((2,), tf.float32))
    dataset = from_generator(
        generated, shards=range(13), output_signature=signature, batch_size=batch_size, cycle_length=3, num_workers=2
    )
    assert digest_of(batch for _ in range(EPOCHS) for batch in dataset.as_numpy_iterator()) == expected
