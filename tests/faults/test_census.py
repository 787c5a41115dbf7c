"""The fixtures of these tests find what they say they find."""

from __future__ import annotations

import os
import pathlib
import tempfile
import threading

import pytest

from mploader.testing import Census
from tests.faults import conftest, work
from tests.faults.streams import make_loader, plain


def token() -> str:
    return f"MPLOADER_CENSUS={os.environ['MPLOADER_CENSUS']}"


def test_a_loader_that_is_still_referred_to_is_found() -> None:
    before = Census.take(token())
    loader = make_loader(transform=plain)
    left = "\n".join(before.settle(0.0))
    assert "mploader.engine.worker.main" in left
    assert "thread 'mploader supervisor' runs" in left
    assert "/memfd:mploader" in left
    loader.close()
    assert before.settle() == []


def test_temporary_files_are_found(tmp_path: pathlib.Path) -> None:
    folder = pathlib.Path(os.environ["TMPDIR"])
    assert conftest.temporary_files(folder, tmp_path) == []
    data = tmp_path / ".tar.mpl-index.1-2.tmp"
    data.touch()
    with tempfile.NamedTemporaryFile() as file:
        left = conftest.temporary_files(folder, tmp_path)
    assert left == [f"the temporary file {path} is left" for path in (file.name, data)]
    data.unlink()


def test_workers_of_a_test_that_hangs_print_their_stacks(
    tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    transform = work.Once(tmp_path, "sleep")
    with make_loader(range(60), transform, shuffle=False, num_workers=1) as loader:
        batches = iter(loader)
        while not (tmp_path / "happened").exists():
            threading.Event().wait(0.01)
        conftest.dump_workers(token())
        text = ""
        while "in sleep" not in text:
            threading.Event().wait(0.01)
            text += capfd.readouterr().err
        del batches
