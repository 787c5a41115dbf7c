"""``mploader bench`` and ``mploader show``: what they print and write."""

from __future__ import annotations

import pathlib
import re

import numpy as np
import pytest
from PIL import Image

from mploader import WorkerError, cli
from mploader.bench import BenchReport, bench, measure_limit
from mploader.errors import ArgumentError, SampleError
from mploader.pictures import NO_LABEL, find_picture
from mploader.show import CELL, draw
from mploader.synth import synthesize


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("data")
    synthesize(directory / "folder", count=24, classes=3)
    synthesize(directory / "tar", format="tar", count=24, classes=3)
    return directory


def test_bench_prints_a_row_for_each_number_of_workers(
    data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--workers", "1,2", "--seconds", "0.3", "--size", "32", "--batch-size", "4"]
    assert cli.main(["bench", str(data / "folder"), *options]) == 0
    printed = capsys.readouterr().out
    assert [int(number) for number in re.findall(r"^ +(\d+) +[\d,]+ +\d+%", printed, re.MULTILINE)] == [1, 2]
    assert "limit of this machine for these files" in printed
    assert re.search(r"^limit: ", printed, re.MULTILINE)
    assert re.search(r"recommended: Loader\(source, transform, batch_size=4, num_workers=[12]\)", printed)


def test_the_fewest_workers_that_are_fast_enough_are_recommended() -> None:
    report = bench(range(100), str, batch_size=10, workers=[1, 2], seconds=0.1)
    one, two = report.measured

    def recommended(first: float, second: float) -> int:
        measured = tuple(
            type(one)(row.workers, speed, row.verdict) for row, speed in ((one, first), (two, second))
        )
        return BenchReport(2, 100.0, measured, 10).recommended.workers

    assert recommended(97, 100) == 1
    assert recommended(90, 100) == 2
    assert recommended(100, 50) == 1


def fail(sample: int) -> int:
    raise ValueError(f"sample {sample} is bad")


def test_a_transform_that_fails_in_a_bare_process_is_told() -> None:
    with pytest.raises(WorkerError, match="ValueError: sample 0 is bad"):
        measure_limit(range(10), fail, 1, 0.1)


@pytest.mark.parametrize("workers", ["0", "1,x", ""])
def test_bench_refuses_numbers_that_are_none(
    data: pathlib.Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench", str(data / "folder"), "--workers", workers]) == 1
    assert "wants numbers of at least 1" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_show_draws_each_picture_with_its_label(
    data: pathlib.Path, layout: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grid.png"
    options = ["--output", str(output), "--batches", "2", "--batch-size", "4", "--size", "64"]
    assert cli.main(["show", str(data / layout), *options]) == 0
    assert "2 batches" in capsys.readouterr().out
    with Image.open(output) as page:
        pixels = np.asarray(page.convert("RGB"))
    # Eight pictures of 64 x 64, in cells of their own: as many centres that are not white.
    centres = pixels[6 + CELL // 2 :: CELL + 20, 6 + CELL // 2 :: CELL + 6]
    assert (centres.min(axis=-1) < 250).sum() == 8


AUGMENT = """
import numpy as np
def red(image, rng):
    return np.full((32, 32, 3), (255, 0, 0), np.uint8)
"""


def test_show_applies_a_transform_of_the_users(
    data: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_augmentation.py").write_text(AUGMENT)
    monkeypatch.syspath_prepend(tmp_path)
    output = tmp_path / "grid.png"
    assert cli.main(["show", str(data / "folder"), "--augment", "my_augmentation:red", "--output", str(output)]) == 0
    with Image.open(output) as page:
        colours = np.asarray(page).reshape(-1, 3)
    assert (colours == (255, 0, 0)).all(axis=1).sum() == 24 * 32 * 32


@pytest.mark.parametrize("name", ["missing_module:x", "os:missing", "os", ":x"])
def test_a_name_that_cannot_be_imported_is_refused(
    data: pathlib.Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["show", str(data / "folder"), "--augment", name]) == 1
    assert repr(name) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("picture", "grey"),
    [
        (np.full((1, 8, 8, 3), 51, np.uint8), 51),
        (np.full((1, 8, 8, 1), 0.2, np.float32), 51),
        (np.full((1, 8, 8, 3), 51.0, np.float32), 51),
        (np.full((1, 8, 8, 3), -0.6, np.float32), 51),
    ],
    ids=["bytes", "0 to 1, one channel", "0 to 255", "-1 to 1"],
)
def test_pictures_of_every_range_look_the_same(picture: np.ndarray, grey: int) -> None:
    page = np.asarray(draw([(picture, np.array([7]))], columns=1))
    assert tuple(page[6 + CELL // 2, 6 + CELL // 2]) == (grey, grey, grey)


def test_batches_without_pictures_are_refused() -> None:
    with pytest.raises(ArgumentError, match=r"no component is a batch of pictures.*int64 \(4,\)"):
        draw([np.arange(4)])


@pytest.mark.parametrize(
    ("sample", "label"),
    [
        ((b"jpeg", 3), 3),
        ({"jpg": b"jpeg", "cls": b"12\n", "__key__": "a"}, 12),
        ({"image/encoded": b"jpeg", "image/class/label": np.array([5])}, 5),
        ({"image": b"jpeg", "caption": b"a cat"}, NO_LABEL),
        ({"png": b"jpeg", "label": b"cat"}, NO_LABEL),
    ],
)
def test_picture_and_label_are_found_in_samples_of_every_source(sample: object, label: int) -> None:
    assert find_picture(sample) == (b"jpeg", label)


def test_a_sample_without_a_picture_names_its_keys() -> None:
    with pytest.raises(SampleError, match="'text', 'id'"):
        find_picture({"text": b"", "id": 1})
