"""The three tasks that people ask about: each example runs as it stands and gives what plain TensorFlow gives."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from mploader.cli.synthetic_data import synthesize
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("name", "arguments", "same"),
    [
        ("generator_of_paths.py", ["photos"], "the same pixels: True"),
        ("chunks_of_an_array.py", ["1200"], "the same rows in the same order: True"),
        ("sequences.py", ["500"], "the same numbers: True"),
    ],
)
@pytest.mark.slow
def test_a_worked_example_runs_and_agrees_with_tensorflow(
    name: str, arguments: list[str], same: str, tmp_path: pathlib.Path
) -> None:
    if "photos" in arguments:
        synthesize(tmp_path / "photos", count=110)
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "examples" / name), *arguments], capture_output=True, text=True, timeout=110,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert same in done.stdout
    assert re.search(r"in worker processes:? [\d.]+/s, [\d.]+ times", done.stdout)
