"""The examples of training and of NumPy batches run as they stand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mploader.cli.synthetic_data import synthesize

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    synthesize(directory / "folder", count=96, classes=4)
    synthesize(directory / "shards", format="tfrecord", count=96, classes=4, shard_size=40)
    return directory


def run_example(name: str, *arguments: str, temporary: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    command = [sys.executable, str(ROOT / "examples" / name), *arguments]
    done = subprocess.run(command, env=environment, cwd=temporary, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert list(temporary.iterdir()) == []
    return done.stdout


def test_train_image_folder(data: Path, tmp_path: Path) -> None:
    out = run_example("train_image_folder.py", str(data / "folder"), temporary=tmp_path)
    assert "96 images of 4 classes" in out
    assert "Epoch 2/2" in out
    assert "6 batches, 192 samples" in out


def test_train_tfrecord(data: Path, tmp_path: Path) -> None:
    out = run_example("train_tfrecord.py", str(data / "shards" / "*.tfrecord"), temporary=tmp_path)
    assert "96 records in 3 shards" in out
    assert "ArraySpec((32, 128, 128, 3), uint8)" in out
    assert "Epoch 2/2" in out


def test_numpy_batches_makes_data_without_a_folder(tmp_path: Path) -> None:
    assert "300 images, mean [0." in run_example("numpy_batches.py", temporary=tmp_path)
