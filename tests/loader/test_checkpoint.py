"""A saved position: the stream goes on as if nothing had happened, in another process and on any workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, Loader, ShardShuffle
from mploader.images.keras_compat import LabelledFiles
from mploader.loader.checkpoint import facts_of, restore, save
from mploader.loader.position import Position
from mploader.sampling.plan import Plan
from mploader.sources import Mix, Subset, TFRecordShards, fingerprint
from mploader.sources.base import PackedStrings
from mploader.sources.pydataset import WholeBatches
from mploader.sources.tfrecord_write import TFRecordWriter
from tests.conftest import kill_one

pytestmark = pytest.mark.usefixtures("workers_in_threads")

EPOCHS = 3
SAMPLES = 23


def jitter(sample: int, rng: np.random.Generator) -> tuple[int, float]:
    return sample, float(rng.random())


def loader_of(source: Any, **options: Any) -> Loader:
    return Loader(source, jitter, **{"batch_size": 4, "shuffle": True, "seed": 5, "num_workers": 2, **options})


def plain(batch: Any) -> Any:
    return [np.asarray(part).tolist() for part in batch]


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    text = json.dumps(state)
    assert len(text) < 4096
    return json.loads(text)  # type: ignore[no-any-return]


def saved_stream(loader: Loader) -> tuple[list[Any], list[dict[str, Any]]]:
    """All batches of some epochs, and the state before each of them and at the end."""
    stream, states = [], [through_json(loader.state_dict())]
    for _ in range(EPOCHS):
        for batch in loader:
            stream.append(plain(batch))
            states.append(through_json(loader.state_dict()))
    return stream, states


def rest_of(loader: Loader, state: dict[str, Any]) -> list[Any]:
    loader.load_state_dict(state)
    rest = []
    while loader.epoch < EPOCHS:
        rest += [plain(batch) for batch in loader]
    return rest


OPTIONS: dict[str, dict[str, Any]] = {
    "batches": {},
    "elements": {"batch_size": None},
    "not shuffled": {"shuffle": False},
    "remainder dropped": {"drop_remainder": True},
    "second of two hosts": {"shard": (1, 2)},
    "elements of a host": {"shard": (1, 3), "batch_size": None},
    "one batch an epoch": {"batch_size": 100},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_position_of_three_epochs_continues_the_stream(name: str) -> None:
    options = OPTIONS[name]
    with loader_of(range(SAMPLES), **options) as loader:
        stream, states = saved_stream(loader)
    # Other workers and other slots; moved from place to place while batches are made ahead.
    with loader_of(range(SAMPLES), **options, num_workers=1, memory="2MiB") as other:
        for consumed, state in enumerate(states):
            assert stream[:consumed] + rest_of(other, state) == stream, consumed


@pytest.mark.parametrize("kind", ["mix", "shards"])
def test_mixes_and_shard_shuffles_resume_at_every_position(kind: str, tmp_path: Path) -> None:
    def make(workers: int) -> Loader:
        if kind == "mix":
            source: Any = Mix([(range(7), 2), (range(100, 111), 1)], length=17)
            return loader_of(source, num_workers=workers)
        source = TFRecordShards(tmp_path, raw=True)
        return Loader(source, lambda data: (int(data), 0), batch_size=3, shuffle=ShardShuffle(2), num_workers=workers)

    for shard in range(5):
        with TFRecordWriter(tmp_path / f"{shard}.tfrecord") as writer:
            for place in range(4):
                writer.write(str(10 * shard + place).encode())
    with make(2) as loader:
        stream, states = saved_stream(loader)
    with make(1) as other:
        for consumed, state in enumerate(states):
            assert stream[:consumed] + rest_of(other, state) == stream


SCRIPT = """
import json, sys
from tests.loader.test_checkpoint import EPOCHS, loader_of, plain, rest_of
state, workers, memory = json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
with loader_of(range(23), num_workers=workers, memory=memory) as loader:
    print(json.dumps(rest_of(loader, state)))
"""


def test_a_new_process_with_other_workers_and_slots_continues_in_mid_epoch() -> None:
    with loader_of(range(SAMPLES)) as loader:
        stream, states = saved_stream(loader)
    for consumed, workers, memory in ((9, 1, "1MiB"), (12, 3, "64MiB")):
        run = subprocess.run(
            [sys.executable, "-c", SCRIPT, json.dumps(states[consumed]), str(workers), memory],
            check=True, capture_output=True, text=True, timeout=60, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert stream[:consumed] + json.loads(run.stdout) == stream


@pytest.mark.processes
def test_a_position_after_faults_is_the_position_without_them() -> None:
    with loader_of(range(SAMPLES)) as loader:
        stream, states = saved_stream(loader)
    with loader_of(range(SAMPLES)) as loader:
        seen = []
        for number, batch in enumerate(loader):
            seen.append(plain(batch))
            if number in (0, 2):
                kill_one(loader, 0)
            assert through_json(loader.state_dict()) == states[number + 1]
        state = states[3]
        assert stream[:3] + rest_of(loader, state) == stream
        assert seen == stream[: len(seen)]


class Counting:
    """Notes each read in a file, as they happen in the workers."""

    def __init__(self, log: Path) -> None:
        self._log = log

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> int:
        with open(self._log, "a") as log:
            log.write(f"{index}\n")
        return index


@pytest.mark.parametrize("batch_size", [4, None])
def test_nothing_is_read_to_get_to_a_position(tmp_path: Path, batch_size: int | None) -> None:
    log = tmp_path / "reads"
    state = {"version": 1, "epoch": 0, "samples": 24, "plan": {}, "source": {}}
    with Loader(Counting(log), batch_size=batch_size, num_workers=1) as loader:
        described = log.read_text().split()  # what tells the loader of the elements; it begins no batch by itself
        loader.load_state_dict(state, strict=False)
        assert np.concatenate([np.ravel(batch) for batch in loader]).tolist() == list(range(24, 40))
    read = [int(line) for line in log.read_text().split()[len(described) :]]
    assert read[:16] == list(range(24, 40))  # behind it come the first of epoch 1


def decode_most(sample: int) -> int:
    if sample in (0, 3, 7, 8, 15):
        raise ValueError(f"sample {sample} is bad")
    return sample


BAD_OPTIONS: dict[str, dict[str, Any]] = {
    "dropped elements": {"batch_size": None},
    "dropped shuffled elements": {"batch_size": None, "shuffle": True},
    "dropped of batches": {"batch_size": 4, "shuffle": True},
    "dropped elements of a host": {"batch_size": None, "shuffle": True, "shard": (1, 3)},
    "replaced elements": {"batch_size": None, "shuffle": True, "on_bad_sample": "replace"},
    "replaced of batches": {"batch_size": 4, "shuffle": True, "on_bad_sample": "replace"},
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_bad_samples_are_counted_across_a_resume_from_every_position(name: str) -> None:
    options = {"on_bad_sample": "drop", "num_workers": 1, "seed": 2, **BAD_OPTIONS[name]}
    facts = ("epoch", "samples", "bad_samples", "bad_in_epoch")
    with Loader(range(16), decode_most, **options) as loader:
        stream, states = [], [through_json(loader.state_dict())]
        for _ in range(2):
            for batch in loader:
                stream.append(np.ravel(batch).tolist())
                states.append(through_json(loader.state_dict()))
        end = loader.state_dict()
    if options["on_bad_sample"] == "drop" and "shard" not in options:
        assert end["bad_samples"] == 10
    with Loader(range(16), decode_most, **options) as other:
        for consumed, state in enumerate(states):
            other.load_state_dict(state)
            rest = []
            while other.epoch < 2:
                rest += [np.ravel(batch).tolist() for batch in other]
            assert stream[:consumed] + rest == stream
            assert [other.state_dict()[fact] for fact in facts] == [end[fact] for fact in facts]


def test_four_kilobytes_hold_a_state_with_any_number_of_bad_samples() -> None:
    def fail(sample: int) -> int:
        if sample:
            raise ValueError("bad" * 1000)
        return sample

    with Loader(range(10**3), fail, batch_size=50, num_workers=1, on_bad_sample="drop") as loader:
        list(loader)
        state = through_json(loader.state_dict())
    assert state["bad_samples"] == 999
    assert state["bad_indices"][-1] == 999


def test_other_data_or_another_order_is_refused_with_what_differs(tmp_path: Path) -> None:
    for number in range(3):
        with TFRecordWriter(tmp_path / f"{number}.tfrecord") as writer:
            for place in range(5):
                writer.write(bytes([number, place]))

    def make(pattern: str = "*", **options: Any) -> Loader:
        source = TFRecordShards(tmp_path / f"{pattern}.tfrecord", raw=True)
        return Loader(source, len, **{"batch_size": 5, "num_workers": 1, **options})

    with make() as loader:
        next(iter(loader))
        state = through_json(loader.state_dict())
    with make("[01]") as fewer, pytest.raises(ArgumentError, match=r"source samples: 15 when .*, 10 now") as told:
        fewer.load_state_dict(state)
    assert "source shards: 3 when it was saved, 2 now" in str(told.value)
    assert "the names of the source differ (fingerprint " in str(told.value)
    assert "strict=False" in str(told.value)
    with make(seed=1, shuffle=True, batch_size=3) as other:
        with pytest.raises(ArgumentError, match="plan seed: 0 when it was saved, 1 now") as told:
            other.load_state_dict(state)
        assert "plan order: 'sequential'" in str(told.value)
        assert "plan global batch size: 5 when it was saved, 3 now" in str(told.value)
        assert other.position == loader.position.__class__(0, 0)
        other.load_state_dict(state, strict=False)
        assert len(list(other)) == 4  # sample 5 lies in batch 1 of 5
    for number in (2,):
        with TFRecordWriter(tmp_path / f"{number}.tfrecord") as writer:
            for place in range(5):
                writer.write(bytes(place))
    with make() as changed, pytest.raises(ArgumentError, match="the record places of the source differ") as told:
        changed.load_state_dict(state)
    assert "the names" not in str(told.value)


def labelled(names: list[str], labels: Any) -> LabelledFiles:
    return LabelledFiles(PackedStrings.of(names), None if labels is None else np.asarray(labels))


class Held:
    """Stands for a PyDataset; what it holds tells it from another."""

    def __init__(self, values: Any, workers: int = 1) -> None:
        self.values = values
        self._workers = workers


ALIKE: dict[str, tuple[Any, Any, str]] = {
    "labels": (labelled(["/d/a/1", "/d/b/1"], [0, 1]), labelled(["/d/a/1", "/d/b/1"], [1, 0]), "the labels"),
    "files": (labelled(["/d/a/1", "/d/b/1"], [0, 1]), labelled(["/d/a/1", "/d/b/2"], [0, 1]), "the files"),
    "attributes": (WholeBatches(Held([1, 2]), 2), WholeBatches(Held([1, 3]), 2), "the attributes"),
    "numbers": ([1, 2], [1, 3], "the data"),
    "texts": (["ab", "c"], ["a", "bc"], "the data"),
    "pairs": ([("a", 1), ("b", 2)], [("a", 1), ("b", 3)], "the data"),
    "arrays": (np.arange(3), np.arange(1, 4), "the data"),
    "dtypes": (np.arange(3), np.arange(3.0), "the data"),
    "objects": (np.array(["a", 1], object), np.array(["a", 2], object), "the data"),
    "ranges": (range(3), range(1, 4), "the data"),
    "lists of arrays": ([np.arange(3)], [np.arange(1, 4)], "the data"),
    "a part of a whole": (Subset([1, 2], [0]), Subset([1, 3], [0]), "the data"),
}


@pytest.mark.parametrize("name", ALIKE)
def test_other_data_of_the_same_number_are_told_apart(name: str) -> None:
    saved, other, what = ALIKE[name]
    plan = Plan(len(saved), 1)
    state = through_json(save(Position(0, 0), plan, True, facts_of(saved)))
    assert restore(state, plan, True, facts_of(saved), strict=True) == Position(0, 0)
    message = rf"{what} of the source differ \(fingerprint \S+ when it was saved, \S+ now"
    with pytest.raises(ArgumentError, match=message):
        restore(state, plan, True, facts_of(other), strict=True)


def test_a_fingerprint_stays_where_only_the_folder_or_the_workers_change() -> None:
    here, there = (labelled([f"/{root}/a/1", f"/{root}/b/1"], [0, 1]) for root in ("here", "there"))
    assert here.fingerprint() == there.fingerprint()
    assert labelled(["/d/a"], None).fingerprint() == labelled(["/e/a"], None).fingerprint()
    assert WholeBatches(Held(1), 2).fingerprint() == WholeBatches(Held(1, workers=4), 2).fingerprint()


def test_a_fingerprint_of_large_data_reads_a_bounded_part_from_start_to_end() -> None:
    class Noting(list[str]):
        read = 0

        def __getitem__(self, place: Any) -> Any:
            self.read += 1
            return super().__getitem__(place)

    many = Noting(["x"] * 200_000)
    fingerprint.fingerprint_of(many)
    assert 0 < many.read <= fingerprint.ITEMS
    large = np.zeros(3 * fingerprint.ARRAY_BYTES, np.uint8)
    known = fingerprint.fingerprint_of(large)
    for place in (0, -1):
        large[place] = 1
        assert fingerprint.fingerprint_of(large) != known
        large[place] = 0
    assert fingerprint.fingerprint_of(large.reshape(4, -1)) != known
    assert fingerprint.fingerprint_of(object()) is None


NO_STATES: list[tuple[Any, str]] = [
    ({}, "expected a state"),
    ([], "expected a state"),
    ({"version": 99}, "version 99"),
    ({"version": 1, "epoch": 0}, "damaged"),
    ({"version": 1, "epoch": -1, "samples": 0, "plan": {}, "source": {}}, "damaged"),
    ({"version": 1, "epoch": "x", "samples": 0, "plan": {}, "source": {}}, "damaged"),
]
DAMAGED = [
    ("epoch", 1.5), ("epoch", 10**30), ("epoch", True), ("samples", 11), ("samples", None), ("bad_samples", None),
    ("bad_samples", "x"), ("bad_in_epoch", -1), ("bad_indices", 3), ("bad_indices", [None]), ("bad_indices", [-1]),
    ("plan", []), ("plan", {1: 2}), ("plan", {"seed": np.arange(2)}), ("source", None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), DAMAGED)
def test_a_damaged_state_is_refused(name: str, value: Any, numbers: Loader) -> None:
    state = {**numbers.state_dict(), name: value}
    with pytest.raises(ArgumentError, match=rf"this state is damaged \({name}="):
        numbers.load_state_dict(state)
    if (name, value) != ("samples", 11):  # more than there are is a place, if the data may be others
        with pytest.raises(ArgumentError, match="this state is damaged"):
            numbers.load_state_dict(state, strict=False)


def test_what_is_no_state_is_refused(numbers: Loader) -> None:
    for state, message in NO_STATES:
        with pytest.raises(ArgumentError, match=message):
            numbers.load_state_dict(state)


@pytest.fixture
def numbers() -> Any:
    with Loader(range(10), batch_size=2, num_workers=1) as loader:
        yield loader


def test_a_run_under_way_is_not_affected_by_a_load(numbers: Loader) -> None:
    start = numbers.state_dict()
    run = iter(numbers)
    next(run)
    middle = numbers.state_dict()
    numbers.load_state_dict(start)
    assert [batch.tolist() for batch in run] == [[2, 3], [4, 5], [6, 7], [8, 9]]
    numbers.load_state_dict(middle)
    assert [batch.tolist() for batch in numbers] == [[2, 3], [4, 5], [6, 7], [8, 9]]
