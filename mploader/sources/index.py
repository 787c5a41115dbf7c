"""The index of shards: where each sample starts, found by reading each shard once, then kept in index files.

There is one index file per folder and kind of shard, as ``tfrecord.mpl-index``: opening 100,000 shards then costs one
read, and one stat per shard. It lies in the folder of the shards, or in the user's cache folder if that cannot be
written or is remote. A damaged index file is built again. A shard whose size or time of change differs from the
recorded one is read again.

One change is refused: a shard that became shorter and still begins as before. It has been cut. A cut between two
samples leaves no trace in the shard itself, and only the index knows how many samples are missing.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mploader.errors import SourceError
from mploader.sources.base import FileState, Int64Array, PackedStrings
from mploader.sources.file_patterns import INDEX_SUFFIX
from mploader.sources.files import file_state
from mploader.sources.remote import is_remote
from mploader.sources.shard_table import ShardScan, ShardTable, load_table, save_table

log = logging.getLogger("mploader")

_SCAN_THREADS = 8
_SCAN_BATCH = 64  # shards per call, because a call in a thread costs as much as reading a small shard


def index_shards(
    paths: Sequence[str],
    kind: str,
    scan: Callable[[str], ShardScan],
    *,
    rebuild: bool = False,
    save_index: bool = True,
) -> ShardTable:
    """Returns the table of shards, from their index files as far as these are current.

    Args:
        paths: of the shards, in the order of the table.
        kind: "tfrecord" or "tar"; names the index file.
        scan: reads one shard; called from several threads.
        rebuild: whether to read every shard and ignore the index files.
        save_index: whether to update the index files.

    Raises:
        SourceError: a shard is missing, or has been cut since it was indexed.
        Exception: from `scan`.
    """
    folders: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        folders.setdefault(os.path.dirname(path), []).append(row)
    tables, problems = [], []
    for folder, rows in folders.items():
        index = _FolderIndex(folder, kind, scan)
        tables.append(index.table([os.path.basename(paths[row]) for row in rows], rebuild, save_index))
        problems += index.problems
    if problems:
        log.warning(
            "the index of %d of %d folders of shards cannot be saved, so these shards are read through again when they "
            "are next opened. %s", len(problems), len(folders), problems[0],
        )  # fmt: skip
    order = np.fromiter((row for rows in folders.values() for row in rows), np.int64, len(paths))
    return ShardTable.joined(tables).take(np.argsort(order, kind="stable"))


class _FolderIndex:
    """The index file of one folder and kind of shard, at the first of its paths that can be written."""

    def __init__(self, folder: str, kind: str, scan: Callable[[str], ShardScan]):
        self._folder = folder
        self._scan = scan
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        whole = folder if is_remote(folder) else os.path.realpath(folder)
        key = hashlib.sha256(os.fsencode(whole)).hexdigest()[:24]
        cached = os.path.join(cache, "mploader", "index", f"{key}-{kind}{INDEX_SUFFIX}")
        # mploader does not write to remote storage.
        self._index_paths = (cached,) if is_remote(folder) else (os.path.join(folder, kind + INDEX_SUFFIX), cached)
        self.problems: list[str] = []

    def table(self, names: list[str], rebuild: bool, save_index: bool) -> ShardTable:
        """Returns the table of these shards. Reads those whose index is not current, and updates the index file."""
        sizes, mtimes_ns = self._states(names)
        known = ShardTable.of([], [])
        rows = np.full(len(names), -1)
        current = np.zeros(len(names), bool)
        for index_path in () if rebuild else self._index_paths:
            table = load_table(index_path)
            if table is None:
                continue
            table_rows = _rows_of(table, names)
            matching = (
                (table_rows >= 0) & (table.sizes[table_rows] == sizes) & (table.mtimes_ns[table_rows] == mtimes_ns)
            )
            if not len(known.names) or matching.sum() > current.sum():
                known, rows, current = table, table_rows, matching
            if current.all():
                return known.take(rows)
        stale = np.flatnonzero(~current)
        fresh = self._read([names[row] for row in stale])
        for row, new in zip(stale.tolist(), fresh, strict=True):
            if rows[row] >= 0:
                _refuse_cut(self._path(names[row]), known, int(rows[row]), new, self._index_paths)
        everything = ShardTable.joined([known, ShardTable.of([names[row] for row in stale], fresh)])
        requested_rows = rows.copy()
        requested_rows[stale] = len(known.names) + np.arange(len(stale))
        requested = everything.take(requested_rows)
        if save_index:
            others = self._others(known, rows)
            self._save(requested if not len(others) else everything.take(np.concatenate([requested_rows, others])))
        return requested

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _states(self, names: list[str]) -> tuple[Int64Array, Int64Array]:
        states = np.empty((2, len(names)), np.int64)
        for row, name in enumerate(names):
            state = self._state(self._path(name))
            states[:, row] = state.size, state.mtime_ns
        return states[0], states[1]

    def _state(self, path: str) -> FileState:
        try:
            return file_state(path)
        except OSError as error:
            raise SourceError(f"the shard {path} cannot be opened: {error.strerror}", file=path) from error

    def _read(self, names: list[str]) -> list[ShardScan]:
        def read(batch: list[str]) -> list[ShardScan]:
            return [self._scan(self._path(name)) for name in batch]

        batches = [names[at : at + _SCAN_BATCH] for at in range(0, len(names), _SCAN_BATCH)]
        with ThreadPoolExecutor(min(_SCAN_THREADS, len(batches) or 1)) as threads:
            try:
                return [scan for scans in threads.map(read, batches) for scan in scans]
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                raise

    def _others(self, known: ShardTable, rows: Int64Array) -> Int64Array:
        """Returns the rows of shards that are not requested but still exist unchanged: their index is kept."""
        others = np.setdiff1d(np.arange(len(known.names)), rows)
        return np.array([row for row in others.tolist() if self._is_current(known, row)], np.int64)

    def _is_current(self, known: ShardTable, row: int) -> bool:
        try:
            state = file_state(self._path(known.names[row]))
        except OSError:
            return False
        return state == FileState(int(known.sizes[row]), int(known.mtimes_ns[row]))

    def _save(self, table: ShardTable) -> None:
        problems = []
        for index_path in self._index_paths:
            problem = _saving_problem(index_path, table)
            if problem is None:
                return
            problems.append(f"{index_path}: {problem}")
        self.problems.append("; ".join(problems) + ".")


def _saving_problem(index_path: str, table: ShardTable) -> str | None:
    try:
        save_table(index_path, table)
    except OSError as error:
        return error.strerror or type(error).__name__
    return None


def _rows_of(table: ShardTable, names: list[str]) -> Int64Array:
    """Returns the row of each name, int64, -1 for a name without one."""
    if table.names == PackedStrings.of(names):
        return np.arange(len(names))
    row_of = {name: row for row, name in enumerate(table.names)}
    return np.fromiter((row_of.get(name, -1) for name in names), np.int64, len(names))


def _refuse_cut(path: str, known: ShardTable, row: int, new: ShardScan, index_paths: Sequence[str]) -> None:
    starts = known.starts
    expected = known.offsets[starts[row] : starts[row + 1]]
    readable = new.offsets[: len(new.offsets) - new.damaged]
    if new.state.size >= known.sizes[row] or len(readable) >= len(expected):
        return
    if not np.array_equal(readable, expected[: len(readable)]) or (len(readable) and new.head != known.heads[row]):
        return
    raise SourceError(
        f"{path} has been cut: it held {len(expected)} samples in {known.sizes[row]} bytes when it was "
        f"indexed, and the first {len(readable)} of them in {new.state.size} bytes are left. Probably a copy was "
        "interrupted or a disk was full: copy the shard again. If it is shorter on purpose, run "
        f"`mploader index --rebuild` on it, or delete {' and '.join(filter(os.path.exists, index_paths))}.",
        file=path,
    )
