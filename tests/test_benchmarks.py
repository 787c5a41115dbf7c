"""Every benchmark runs: with tiny arguments, against a peer at most, and says what it measured as JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from mploader.synth import synthesize

ROOT = Path(__file__).resolve().parents[1]
BENCHMARKS = ROOT / "examples" / "benchmarks"
SHORT = ["--rounds", "1", "--seconds", "0.05"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    synthesize(folder, count=24, classes=2)
    return folder


def rows(script: str, *arguments: Any, path: Path = ROOT) -> dict[str, dict[str, Any]]:
    """Runs a benchmark and returns the rows of its table by their name."""
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), "--json", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(path), str(ROOT)])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return {row["name"]: row for row in json.loads(done.stdout)["rows"]}


def measured(found: dict[str, dict[str, Any]], *names: str) -> None:
    assert list(found) == list(names)
    for row in found.values():
        assert row["values"], row
        assert "NOT EQUAL" not in row["note"]


def test_compare_measures_the_same_work(photographs: Path) -> None:
    names = ["limit", "mploader, NumPy"]
    found = rows("compare", *SHORT, "--data", photographs, "--batch-size", 4, "--samples", 4000, "--only", *names)
    measured(found, *names)
    assert found["limit"]["median"] > 0


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
