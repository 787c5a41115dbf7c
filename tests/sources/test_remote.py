"""Shards behind URLs: what fsspec opens, in the trainer and in workers, through faults of the network."""

from __future__ import annotations

import errno
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fsspec")
pytest.importorskip("aiohttp")

import fsspec

from mploader import Loader, ShardShuffle
from mploader._util import retry
from mploader.errors import ResourceError, SourceError
from mploader.sources import TarShards, TFRecordShards, remote
from mploader.sources.choose_sampler import sampler_for
from mploader.sources.tfrecord_write import TFRecordWriter
from tests.http_storage import Storage, serve

SHARDS, RECORDS = 4, 30


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(retry, "RETRY_PAUSES_S", (0.01, 0.01, 0.01))
    return tmp_path / "cache" / "mploader" / "index"


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for shard in range(SHARDS):
        with TFRecordWriter(folder / f"{shard}.tfrecord") as writer:
            for place in range(RECORDS):
                writer.write(f"{shard}:{place:04d}:".encode() + bytes(2_000))
    return folder


@pytest.fixture
def storage(shards: Path) -> Iterator[Storage]:
    with serve(shards) as found:
        yield found


def names(samples: Any) -> list[str]:
    return [bytes(sample)[:6].decode() for sample in samples]


ALL = [f"{shard}:{place:04d}" for shard in range(SHARDS) for place in range(RECORDS)]


def test_globs_folders_and_braces_of_urls_mean_the_same_shards(storage: Storage, shards: Path) -> None:
    local = TFRecordShards(shards, raw=True)
    patterns = ["/*.tfrecord", "/{0..3}.tfrecord", "/"]
    for pattern in patterns:
        source = TFRecordShards(storage.url + pattern, raw=True)
        assert names(source) == ALL
        assert source.fingerprint() == local.fingerprint()  # the same data, wherever they lie
    assert source.where(31) == f"{storage.url}/1.tfrecord, record 1 at byte {local._offsets[31]}"
    assert names(pickle.loads(pickle.dumps(source))) == ALL


def test_the_memory_file_system_is_read_in_its_process(shards: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tfrecord"):
        memory.pipe(f"/bucket/{path.name}", path.read_bytes())
    source = TFRecordShards("memory://bucket/*.tfrecord", raw=True)
    assert names(source) == ALL
    assert names(TFRecordShards("memory://bucket", raw=True)) == ALL


def test_tar_shards_are_read_from_a_url(tmp_path: Path) -> None:
    import tarfile

    for number in range(3):
        (tmp_path / f"{number}.txt").write_text(str(number))
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for number in range(3):
            archive.add(tmp_path / f"{number}.txt", f"{number}.txt")
    with serve(tmp_path) as storage:
        assert [sample["txt"] for sample in TarShards(f"{storage.url}/a.tar")] == [b"0", b"1", b"2"]


def test_the_index_is_kept_in_the_cache_folder_until_the_shard_changes(
    storage: Storage, shards: Path, cache: Path
) -> None:
    TFRecordShards(f"{storage.url}/*.tfrecord", raw=True)
    assert len(list(cache.iterdir())) == 1
    assert not list(shards.glob("*.mpl-index"))
    read = len(storage.requests)
    assert read == SHARDS
    TFRecordShards(f"{storage.url}/*.tfrecord", raw=True)
    assert len(storage.requests) == read
    with TFRecordWriter(shards / "0.tfrecord") as writer:
        writer.write(b"new")
    assert len(TFRecordShards(f"{storage.url}/*.tfrecord", raw=True, rebuild=True)) == (SHARDS - 1) * RECORDS + 1


def test_workers_read_urls_through_an_overloaded_server_and_lost_connections(storage: Storage) -> None:
    source = TFRecordShards(f"{storage.url}/*.tfrecord", raw=True)
    with Loader(source, len, batch_size=10, num_workers=2) as loader:
        storage.failures = ["503", "drop", "503", "drop", "429"]
        assert [batch.tolist() for batch in loader] == [[2_007] * 10] * 12
    assert not storage.failures
    assert not loader.bad_samples()


def test_a_storage_that_stays_broken_is_an_error_and_no_bad_sample(storage: Storage) -> None:
    source = TFRecordShards(f"{storage.url}/*.tfrecord", raw=True)
    storage.failures = ["503"] * 4
    with pytest.raises(OSError, match="failed 4 times, the last time with ClientResponseError: 503") as told:
        source[0]
    assert told.value.filename == f"{storage.url}/0.tfrecord"
    assert names([source[0]]) == ["0:0000"]
    with pytest.raises(SourceError, match="no file matches"):
        TFRecordShards(f"{storage.url}/none-*.tfrecord")
    assert ResourceError is not SourceError


def test_a_short_answer_is_asked_for_again_and_is_no_bad_sample(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    for path in shards.glob("*.tfrecord"):
        memory.pipe(f"/short/{path.name}", path.read_bytes())
    source = TFRecordShards("memory://short/*.tfrecord", raw=True)
    cuts = [7, 1]
    whole = type(memory).cat_file

    def cut(*arguments: Any, **options: Any) -> bytes:
        data: bytes = whole(*arguments, **options)
        return data[: -cuts.pop()] if cuts else data

    monkeypatch.setattr(type(memory), "cat_file", cut)
    assert names([source[0]]) == ["0:0000"]
    assert not cuts
    cuts.extend([1] * 4)
    with pytest.raises(
        OSError, match=r"failed 4 times, .* ConnectionError: expected 2023 bytes .* got 2022"
    ) as told:
        source[1]
    assert told.value.errno == errno.EIO


def test_a_server_without_ranges_is_refused_before_it_costs_a_download_a_sample(storage: Storage) -> None:
    storage.knows_ranges = False
    source = TFRecordShards(f"{storage.url}/0.tfrecord", raw=True)
    with pytest.raises(SourceError, match="Range requests"):
        source[3]


def test_a_shard_shuffle_takes_few_requests_a_shard_and_a_full_shuffle_one_a_sample(storage: Storage) -> None:
    requests = {}
    for shuffle in (True, ShardShuffle(window=2)):
        source = TFRecordShards(f"{storage.url}/*.tfrecord", raw=True)
        order = sampler_for(source, len(source), 0, shuffle)
        storage.requests.clear()
        read = names(source[int(index)] for index in order.indices(0, np.arange(len(source))))
        assert sorted(read) == ALL
        requests[shuffle is True] = len(storage.requests) / SHARDS
    assert requests[True] > RECORDS / 2
    assert requests[False] < RECORDS / 6


def test_a_scheme_that_needs_another_package_says_so() -> None:
    with pytest.raises(SourceError, match="nonsense://x"):
        TFRecordShards("nonsense://x/*.tfrecord")
    assert not remote.is_remote("/data/odd://name")
    assert not remote.is_remote("data/shard.tfrecord")
