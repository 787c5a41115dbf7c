"""The mistakes that everybody makes once: each ends in an error that says what to do, and leaves no process behind."""

from __future__ import annotations

import io
import pathlib
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from mploader import ArgumentError, Loader, LoaderError, ResourceError, SampleError, SourceError, SpecError, apply_to
from mploader.images import Resize
from mploader.sources import ImageFolder, TFRecordShards
from mploader.testing import Census
from tests.transforms import fail_at, large

Mistake = Callable[[pathlib.Path], Loader]


def the_transform_raises(_: pathlib.Path) -> Loader:
    return Loader(range(40), fail_at(25), batch_size=4, num_workers=2)


def a_jpeg_is_corrupt(folder: pathlib.Path) -> Loader:
    (folder / "class").mkdir()
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)).save(file, "JPEG")
    for number in range(8):
        data = file.getvalue()
        (folder / "class" / f"{number}.jpg").write_bytes(data[:100] if number == 5 else data)
    return Loader(ImageFolder(folder), apply_to(0, Resize(16, 16)), batch_size=2, num_workers=2)


def the_folder_is_empty(folder: pathlib.Path) -> Loader:
    return Loader(ImageFolder(folder), batch_size=2, num_workers=2)


def the_pattern_matches_nothing(folder: pathlib.Path) -> Loader:
    return Loader(TFRecordShards(str(folder / "*.tfrecord")), batch_size=2, num_workers=2)


def a_shape_differs(_: pathlib.Path) -> Loader:
    return Loader(range(20), lambda sample: np.zeros(4 + (sample == 9)), batch_size=4, num_workers=2)


def the_batch_is_empty(_: pathlib.Path) -> Loader:
    return Loader(range(20), batch_size=0, num_workers=2)


def the_transform_cannot_be_pickled(_: pathlib.Path) -> Loader:
    lock = threading.Lock()
    return Loader(range(20), lambda sample: (lock, sample)[1], batch_size=4, num_workers=2)


def the_memory_is_too_small(_: pathlib.Path) -> Loader:
    return Loader(range(4000), large, batch_size=1000, memory="16MiB", num_workers=2)


@pytest.mark.parametrize(
    ("mistake", "error", "message"),
    [
        (the_transform_raises, SampleError, r"sample 25 .*is rotten"),
        (a_jpeg_is_corrupt, SampleError, r"5\.jpg"),
        (the_folder_is_empty, SourceError, "image"),
        (the_pattern_matches_nothing, SourceError, r"\*\.tfrecord"),
        (a_shape_differs, SpecError, r"sample 9.*pad="),
        (the_batch_is_empty, ArgumentError, "batch_size=0"),
        (the_transform_cannot_be_pickled, ArgumentError, "variable 'lock'"),
        (the_memory_is_too_small, ResourceError, r'memory="\d+MiB" or more'),
    ],
)
def test_a_mistake_is_an_error_and_leaves_no_process(
    mistake: Mistake, error: type[LoaderError], message: str, tmp_path: pathlib.Path
) -> None:
    kept: list[Loader] = []  # as in a notebook, where the traceback of the last error keeps it

    def train() -> None:
        kept.append(mistake(tmp_path))
        list(kept[0])

    before = Census.take()
    with pytest.raises(error, match=f"(?s){message}"):
        train()
    assert before.settle() == []
