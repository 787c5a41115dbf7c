"""``mploader bench`` and ``mploader show``: their output."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import re
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from mploader import Loader, Statistics, WorkerError
from mploader.cli.benchmark import BenchReport, Measured, bench
from mploader.cli.decoder_limit import decoder_limit
from mploader.cli.image_grid import CELL, draw
from mploader.cli.main import main
from mploader.cli.sample_images import NO_LABEL, LabelledPicture
from mploader.cli.synthetic_data import synthesize
from mploader.engine.supervisor import worker_process
from mploader.errors import ArgumentError, SampleError
from mploader.monitoring.bottleneck import Bottleneck, explain

pytestmark = pytest.mark.usefixtures("workers_in_threads")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    directory = tmp_path_factory.mktemp("data")
    synthesize(directory / "folder", count=24, classes=3)
    synthesize(directory / "tar", format="tar", count=24, classes=3)
    return directory


@pytest.mark.processes
def test_bench_prints_a_row_for_each_number_of_workers(
    data: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--workers", "1,2", "--seconds", "0.3", "--size", "32", "--batch-size", "4"]
    assert main(["bench", str(data / "folder"), *options]) == 0
    printed = capsys.readouterr().out
    assert [int(number) for number in re.findall(r"^ +(\d+) +[\d,]+ +\d+%", printed, re.MULTILINE)] == [1, 2]
    assert re.search(r"^the decoder's limit: [\d,]+ samples/s \(\d+ bare process", printed, re.MULTILINE)
    assert re.search(r"^why: ", printed, re.MULTILINE)
    assert re.search(r"recommended: Loader\(source, transform, batch_size=4, num_workers=[12]\)", printed)


DIAGNOSIS = explain(Statistics(), cpus=2)


def report_of(**speeds: float) -> BenchReport:
    """The results for one worker, and perhaps for two."""
    rows = [Measured({"one": 1, "two": 2}[name], speed, DIAGNOSIS) for name, speed in speeds.items()]
    return BenchReport(2, 100.0, tuple(rows), 10)


def test_the_fewest_workers_that_are_fast_enough_are_recommended() -> None:
    assert report_of(one=97, two=100).recommended.workers == 1
    assert report_of(one=90, two=100).recommended.workers == 2
    assert report_of(one=100, two=50).recommended.workers == 1


def test_each_number_of_workers_is_measured_in_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = iter([90.0, 110.0])
    monkeypatch.setattr("mploader.cli.benchmark.decoder_limit", lambda *_: next(limits))
    report = bench(range(100), str, batch_size=10, workers=[3, 1, 3], seconds=0.05)
    assert report.decoder_limit_samples_per_s == 100, "the mean of before and after"
    assert [row.workers for row in report.measured] == [1, 3]
    assert all(row.samples_per_s > 0 and row.diagnosis.statistics.batches >= 2 for row in report.measured)


def fail(sample: int) -> int:
    raise ValueError(f"sample {sample} is bad")


def test_a_transform_that_fails_in_a_bare_process_is_reported() -> None:
    with pytest.raises(WorkerError, match="ValueError: sample 0 is bad"):
        decoder_limit(range(10), fail, 1, 0.1)


@pytest.mark.processes
def test_bench_leaves_bad_samples_out_and_says_so(data: pathlib.Path, tmp_path: pathlib.Path) -> None:
    def transform(sample: int) -> int:
        if sample % 10 == 3:
            raise ValueError("a bad sample")
        return sample

    report = bench(range(100), transform, batch_size=10, workers=[1], seconds=0.1)
    assert report.decoder_limit_samples_per_s > 0
    assert "bad samples were left out: `mploader verify PATH` lists them" in str(report)
    with pytest.raises(SampleError, match="sample 0 failed in worker 0: ValueError: sample 0 is bad"):
        bench(range(10), fail, workers=[1], seconds=0.1)


def test_bench_advises_no_number_of_workers_that_it_measured_not_to_be_faster() -> None:
    report = report_of(one=97, two=98)
    few = dataclasses.replace(DIAGNOSIS, bottleneck=Bottleneck.TOO_FEW_WORKERS, change="num_workers=2")
    one, two = dataclasses.replace(report.measured[0], diagnosis=few), report.measured[1]
    told = str(dataclasses.replace(report, measured=(one, two)))
    assert "change:     none" in told
    assert "more workers were measured and are not faster" in told
    alone = str(dataclasses.replace(report, measured=(one,)))
    assert "change:     num_workers=2 (measure it: --workers)" in alone


def print_much(sample: int) -> int:
    print("a line that is no answer")
    sys.stderr.write("w" * 70_000)  # more than a pipe holds
    return sample


def test_what_a_transform_prints_in_a_bare_process_is_not_an_answer() -> None:
    assert decoder_limit(range(10), print_much, 1, 0.05) > 0


def wait_for_ever(_: int) -> None:
    threading.Event().wait()


def test_a_transform_that_hangs_in_a_bare_process_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mploader.cli.decoder_limit.ANSWER_S", 3.0)
    with pytest.raises(WorkerError, match=r"no answer within 3 s: the source or the transform hangs"):
        decoder_limit(range(10), wait_for_ever, 1, 0.1)


def tell_conditions(_: int) -> None:
    block = np.ones(2**23, np.uint8)
    heap = next(line for line in open("/proc/self/maps") if "[heap]" in line).split()[0].split("-")  # noqa: SIM115
    kept = int(heap[0], 16) <= block.ctypes.data < int(heap[1], 16)
    raise ValueError(f"threads {[os.environ.get(name) for name in worker_process._SINGLE_THREADED]}, kept {kept}")


def test_modules_in_the_current_folder_are_not_taken_for_those_of_python(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulthandler.py").write_text("raise ImportError('not this one')")
    (tmp_path / "tempfile.py").write_text("raise ImportError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert decoder_limit(range(10), None, 1, 0.05) > 0


@pytest.mark.processes
def test_a_bare_process_works_under_the_conditions_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")  # as the user wants it
    monkeypatch.delenv("OPENCV_FOR_THREADS_NUM", raising=False)
    with pytest.raises(WorkerError, match="ValueError: threads") as bare:
        decoder_limit(range(10), tell_conditions, 1, 0.1)
    with pytest.raises(SampleError, match="ValueError: threads") as worker:
        Loader(range(10), tell_conditions, batch_size=1, num_workers=1)
    told = [re.findall(r"ValueError: (threads.*)", str(error.value))[0] for error in (bare, worker)]
    assert told[0] == told[1]
    assert told[0].startswith("threads ['3', ")
    assert told[0].endswith("'1'], kept True")


@pytest.mark.parametrize("workers", ["0", "1,x", ""])
def test_bench_refuses_invalid_numbers_of_workers(
    data: pathlib.Path, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", str(data / "folder"), "--workers", workers]) == 1
    assert "--workers" in capsys.readouterr().err


@pytest.mark.parametrize("layout", ["folder", "tar"])
def test_show_draws_each_picture_with_its_label(
    data: pathlib.Path, layout: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grid.png"
    options = ["--output", str(output), "--batches", "2", "--batch-size", "4", "--size", "64"]
    assert main(["show", str(data / layout), *options]) == 0
    assert "2 batches" in capsys.readouterr().out
    with Image.open(output) as page:
        pixels = np.asarray(page.convert("RGB"))
    # Eight pictures of 64 x 64, in cells of their own: as many centres that are not white.
    centres = pixels[6 + CELL // 2 :: CELL + 20, 6 + CELL // 2 :: CELL + 6]
    assert (centres.min(axis=-1) < 250).sum() == 8


def test_show_counts_one_batch_and_takes_endings_in_capitals(
    data: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "grid.PNG"
    options = ["--output", str(output), "--batches", "1", "--batch-size", "4", "--size", "64"]
    assert main(["show", str(data / "folder"), *options]) == 0
    assert capsys.readouterr().out.startswith("1 batch, ")
    assert output.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["grid.txt", "grid", "grid.jpg", "png", ".png"])
def test_show_writes_a_png_under_no_other_name(
    data: pathlib.Path, name: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["show", str(data / "folder"), "--output", str(tmp_path / name)])
    assert ended.value.code == 2
    assert f"expected a name that ends in .png, got {str(tmp_path / name)!r}" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_show_names_the_command_that_lists_bad_files(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    synthesize(tmp_path / "data", count=2, classes=1)
    bad = tmp_path / "data" / "class_00" / "000001.jpg"
    bad.write_bytes(b"")
    assert main(["show", str(tmp_path / "data"), "--no-shuffle", "--output", str(tmp_path / "grid.png")]) == 1
    told, advice = capsys.readouterr().err.splitlines()
    assert f"{bad} is empty (0 bytes)" in told
    assert advice == f"`mploader verify {tmp_path / 'data'}` lists all bad samples."
    assert not (tmp_path / "grid.png").exists()


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
    assert main(["show", str(data / "folder"), "--augment", "my_augmentation:red", "--output", str(output)]) == 0
    with Image.open(output) as page:
        colours = np.asarray(page).reshape(-1, 3)
    assert (colours == (255, 0, 0)).all(axis=1).sum() == 24 * 32 * 32


@pytest.mark.parametrize("name", ["missing_module:x", "os:missing", "os", ":x"])
def test_a_name_that_cannot_be_imported_is_refused(
    data: pathlib.Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(data / "folder"), "--augment", name]) == 1
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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_do_not_change_other_values(bad: float) -> None:
    picture = np.full((1, 8, 8, 3), 51.0, np.float32)
    picture[0, 0, 0] = bad
    page = np.asarray(draw([picture], columns=1))
    left = top = 6 + (CELL - 8) // 2
    assert tuple(page[top + 4, left + 4]) == (51, 51, 51)
    assert tuple(page[top, left]) == ((255,) * 3 if bad == np.inf else (0,) * 3)


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
    assert LabelledPicture(unchanged)(sample, np.random.default_rng(0)) == (b"jpeg", label)


def unchanged(image: object, rng: np.random.Generator) -> object:
    return image


def test_a_sample_without_a_picture_names_its_keys() -> None:
    with pytest.raises(SampleError, match="'text', 'id'"):
        LabelledPicture(unchanged)({"text": b"", "id": 1}, np.random.default_rng(0))
