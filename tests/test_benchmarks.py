"""Every benchmark runs with tiny arguments, against one peer at most, and prints its figures as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader.cli.synthetic_data import synthesize

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
sys.path.append(str(BENCHMARKS))

import common  # noqa: E402
import epoch_boundary  # noqa: E402
import memory  # noqa: E402

SHORT = ["--rounds", "1", "--seconds", "0.05"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    synthesize(folder, count=24, classes=2)
    return folder


def rows(script: str, *arguments: Any, path: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Runs a benchmark and returns the rows of its table by their name."""
    return {row["name"]: row for row in json.loads(printed(script, "--json", *arguments, path=path))["rows"]}


def printed(script: str, *arguments: Any, path: Path = ROOT) -> str:
    """Runs a benchmark and returns what it prints."""
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def measured(found: dict[str, dict[str, Any]], *names: str) -> None:
    assert list(found) == list(names)
    for row in found.values():
        assert row["values"], row
        assert "NOT EQUAL" not in row["note"]


def test_compare_measures_the_same_work(photographs: Path) -> None:
    names = ["the decoder's limit", "mploader, NumPy"]
    found = rows("compare", *SHORT, "--data", photographs, "--batch-size", 4, "--samples", 4000, "--only", *names)
    measured(found, *names)
    assert found["the decoder's limit"]["median"] > 0


def test_a_peer_that_is_not_installed_is_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "grain.py").write_text("raise ModuleNotFoundError(\"No module named 'grain'\")")
    found = rows("compare", *SHORT, "--data", photographs, "--batch-size", 4, "--samples", 400, "--only", "Grain",
                 path=tmp_path)  # fmt: skip
    assert found["Grain"]["note"] == "skipped: not installed (No module named 'grain')"
    assert found["Grain"]["values"] == []


def test_handoff() -> None:
    names = ["mploader, NumPy"]
    measured(rows("handoff", *SHORT, "--batch-size", 4, "--samples", 4000, "--only", *names), *names)


def test_startup(photographs: Path) -> None:
    names = ["mploader, NumPy"]
    found = rows("startup", "--rounds", 1, "--data", photographs, "--batch-size", 4, "--samples", 40, "--only", *names)
    measured(found, *names)


def test_memory(photographs: Path) -> None:
    found = rows("memory", "--rounds", 1, "--data", photographs, "--batch-size", 4, "--samples", 400, "--batches", 20,
                 "--only", "mploader")  # fmt: skip
    measured(found, "mploader")
    assert found["mploader"]["median"] > 1  # MiB: an interpreter is larger


def test_recovery(photographs: Path) -> None:
    found = rows("recovery", "--rounds", 1, "--data", photographs, "--batch-size", 4, "--watch", 0)
    measured(found, "to full speed", "longest gap after the signal", "a batch, usually")


def test_plan_scale() -> None:
    measured(rows("plan_scale", "--rounds", 1, "--sizes", 1000, 10**9), "1,000 samples", "1,000,000,000 samples")


def test_shard_scale() -> None:
    measured(rows("shard_scale", "--shards", 2, 20), "2 shards", "20 shards")


def test_trainer() -> None:
    names = ["from memory", "mploader, NumPy"]
    measured(rows("trainer", *SHORT, "--batch-size", 4, "--turns", 100, "--only", *names), *names)


def test_epoch_boundary(photographs: Path) -> None:
    names = ["mploader, NumPy"]
    found = rows("epoch_boundary", *SHORT, "--data", photographs, "--batch-size", 2, "--only", *names)
    measured(found, *names)
    assert float(found[names[0]]["extra"]["boundaries"]) == 2


def test_epoch_boundary_skips_what_was_made_before_its_turn() -> None:
    taken = 0

    def batches() -> Iterator[Any]:
        nonlocal taken
        while True:
            taken += 1
            yield np.zeros((2, 4, 4, 3), np.uint8), np.zeros(2)

    measure = epoch_boundary.Boundaries(batches())
    for _ in range(3):
        before = taken
        assert measure(0.0)["boundaries"] == 2
        skipped = taken - before - 2 * epoch_boundary.EPOCH_BATCHES
        assert skipped >= epoch_boundary.EPOCH_BATCHES
        assert taken % epoch_boundary.EPOCH_BATCHES == 0


def test_statistics_cost() -> None:
    names = ["trainer, a batch is made", "trainer, a batch is delivered", "worker, a batch, each sample timed",
             "worker, a batch, one in 19 timed", "worker, its processor time is read"]  # fmt: skip
    measured(rows("statistics_cost", "--rounds", 1), *names)


def test_a_table_is_printed() -> None:
    table = printed("plan_scale", "--rounds", 2, "--sizes", 1000)
    assert "A shuffled batch of 64 samples" in table
    assert "ms, median" in table
    assert "lowest - highest" in table
    assert "1,000 samples" in table
    assert "Python" in table


def test_a_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    printed("plan_scale", "--rounds", 2, "--sizes", 1000, 2000, "--plot", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_package_that_is_missing_is_named_beside_the_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    known = metadata.version

    def version(name: str) -> str:
        if name == "opencv-python-headless":
            raise metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(metadata, "version", version)
    assert "opencv-python-headless not installed" in common.machine()


@pytest.mark.parametrize(
    ("name", "is_transport"),
    [
        ("/memfd:mploader (deleted)", True),
        ("/memfd:mploader-batch (deleted)", True),
        ("/memfd:mploader-job (deleted)", False),
        ("/usr/lib/libc.so.6", False),
    ],
)
def test_memory_leaves_out_what_batches_travel_in_and_nothing_else(name: str, is_transport: bool) -> None:
    mapping = f"7f2c60000000-7f2c60a00000 rw-s 00000000 00:01 2057                       {name}\n"
    assert (memory.TRANSPORT.search(mapping) is not None) is is_transport
