"""Writes photograph-like JPEG data for trying, testing and measuring: the library behind ``mploader synth``.

A :class:`mploader.Loader` draws the pictures: its source is their numbers, its transform draws and encodes one
(:class:`mploader.cli.synthetic_picture.Draw`). It yields them in order for any number of workers, and only this process
writes files. An interrupted run leaves complete files only: each is written under a temporary name, ``.NAME.PID.tmp``,
and renamed when it is complete.

Layouts, for 1,000 pictures of 10 classes in shards of 256::

    folder     DIR/class_00/000000.jpg ... DIR/class_09/000999.jpg
    tfrecord   DIR/train-00000-of-00004.tfrecord ...    tf.train.Example with "image/encoded" (bytes),
               "image/class/label" (int64, from 0) and "image/filename", named as in TensorFlow's ImageNet
    tar        DIR/train-000000.tar ...                 000000.jpg, 000000.cls (the label in digits), ...
"""

from __future__ import annotations

import contextlib
import io
import itertools
import os
import re
import signal
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from mploader._util.resources import usable_cpus
from mploader.cli.signals import unhandled_raise
from mploader.cli.synthetic_picture import Draw, label_of
from mploader.errors import ArgumentError, ResourceError
from mploader.loader.loader import Loader
from mploader.sources.tf_example import encode_example
from mploader.sources.tfrecord_write import TFRecordWriter

Progress = Callable[[int, int], None]
"""Called in the thread of `synthesize` before each picture is written: (number of this one from 1, of how many)."""

BATCH_SIZE = 8
"""Pictures in a batch of the loader: few, so that progress is smooth, and enough to hide the cost of a batch."""

_TEMPORARY = re.compile(r"\.(?:\d+\.jpg|train-.*\.(?:tfrecord|tar))\.(?P<pid>\d+)\.tmp")
_DATA_SUFFIXES = (".jpg", ".tfrecord", ".tar")


@dataclass(frozen=True)
class SynthReport:
    """What a run has written.

    Attributes:
        files: number of files: pictures or shards.
        samples: number of pictures.
        bytes: size of all files together.
    """

    files: int
    samples: int
    bytes: int


@dataclass(frozen=True)
class _Sample:
    index: int
    label: int
    jpeg: bytes


def synthesize(
    directory: str | os.PathLike[str],
    *,
    format: str = "folder",
    count: int = 1000,
    classes: int = 10,
    shard_size: int = 256,
    seed: int = 0,
    num_workers: int | None = None,
    progress: Progress | None = None,
) -> SynthReport:
    """Writes ``count`` pictures, about 110 kB each, with labels that can be learnt from them.

    A picture is a function of (seed, its number, classes), so equal arguments give equal files, for any
    ``num_workers``. Files of an earlier run with equal names are replaced. Ctrl-C and SIGTERM (where the program does
    not handle it itself) leave complete files only. The next run removes what a killed run left.

    Args:
        directory: where to write; made if it is missing. It may hold no pictures or shards except those of this
            run, since a loader would read both.
        format: "folder", "tfrecord" or "tar"; the layouts are shown at the top of this module.
        count: number of pictures, at least 1.
        classes: number of classes, at least 1 and at most ``count``. Picture i is of class i % classes.
        shard_size: pictures in a shard, at least 1; the last shard may have fewer. Not used for "folder".
        seed: any integer >= 0.
        num_workers: processes that draw. None: as many as the CPUs that this process may use.
        progress: called for each picture as ``progress(done, count)``. An exception from it ends the run.

    Raises:
        ArgumentError: an argument is out of range, or the directory holds other data.
        ResourceError: the directory cannot be written, or the machine does not grant processes or memory.
        WorkerError: no worker can be kept alive; the message holds what the last one printed.
    """
    workers = usable_cpus() if num_workers is None else num_workers
    _check(format, seed, count=count, classes=classes, shard_size=shard_size, num_workers=workers)
    folder = Path(directory)
    names = _names(format, count, classes, shard_size)
    written = 0

    def counted(samples: Iterator[_Sample]) -> Iterator[_Sample]:
        nonlocal written
        for done, sample in enumerate(samples, 1):
            if progress is not None:
                progress(done, count)
            yield sample
            written = done

    try:
        _prepare(folder, names)
        with _sigterm_unwinds(), _temporaries_removed(folder), _drawn(count, classes, seed, workers) as samples:
            _WRITERS[format](folder, names, counted(samples), shard_size)
        return SynthReport(len(names), count, sum((folder / name).stat().st_size for name in names))
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}, after {written} of {count} pictures: {error}. "
            f"Give a folder that can be written, with room for about {count * 110 // 1000 + 1} MB."
        ) from error


@contextlib.contextmanager
def _drawn(count: int, classes: int, seed: int, num_workers: int) -> Iterator[Iterator[_Sample]]:
    """Draws pictures in worker processes and gives them in order. On leaving no worker is left."""
    batch_size = min(BATCH_SIZE, -(-count // num_workers))  # a few pictures are spread over all workers as well
    workers = min(num_workers, -(-count // batch_size))
    with Loader(range(count), Draw(seed, classes), batch_size=batch_size, num_workers=workers) as loader:
        pictures = (jpeg for batch in loader for jpeg in batch)
        yield (_Sample(index, label_of(index, classes), jpeg) for index, jpeg in enumerate(pictures))


def _check(format: str, seed: int, **numbers: int) -> None:
    if format not in _WRITERS:
        raise ArgumentError(f"format={format!r}: expected one of {', '.join(map(repr, _WRITERS))}")
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{name}={value}: expected an integer >= 1")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: expected an integer >= 0")
    classes, count = numbers["classes"], numbers["count"]
    if classes > count:
        raise ArgumentError(f"classes={classes}, count={count}: expected at least one picture for each class")


def _names(format: str, count: int, classes: int, shard_size: int) -> list[str]:
    """The files of a run, relative to its directory, in the order of writing."""
    if format == "folder":
        digits = max(2, len(str(classes - 1)))
        return [f"class_{label_of(index, classes):0{digits}d}/{index:06d}.jpg" for index in range(count)]
    shards = -(-count // shard_size)
    if format == "tar":
        return [f"train-{shard:06d}.tar" for shard in range(shards)]
    return [f"train-{shard:05d}-of-{shards:05d}.tfrecord" for shard in range(shards)]


def _prepare(folder: Path, names: list[str]) -> None:
    """Makes the folders, after a check that they hold no other data."""
    expected = set(names)
    for path in itertools.chain(folder.glob("*"), folder.glob("*/*")):
        name = str(path.relative_to(folder))
        if path.suffix in _DATA_SUFFIXES and not path.name.startswith(".") and name not in expected:
            raise ArgumentError(
                f"{folder} holds {name}, which this run does not write, and a loader would read both. "
                "Give an empty folder, or remove the old data."
            )
    for parent in sorted({(folder / name).parent for name in names}):
        parent.mkdir(parents=True, exist_ok=True)


def _write_folder(folder: Path, names: list[str], samples: Iterator[_Sample], shard_size: int) -> None:
    for name, sample in zip(names, samples, strict=True):
        with _appearing(folder / name) as file:
            file.write(sample.jpeg)


def _write_tfrecord(folder: Path, names: list[str], samples: Iterator[_Sample], shard_size: int) -> None:
    for name in names:
        with TFRecordWriter(folder / name) as writer:
            for sample in itertools.islice(samples, shard_size):
                features = {
                    "image/encoded": sample.jpeg,
                    "image/class/label": sample.label,
                    "image/filename": f"{sample.index:06d}.jpg",
                }
                writer.write(encode_example(features))


def _write_tar(folder: Path, names: list[str], samples: Iterator[_Sample], shard_size: int) -> None:
    for name in names:
        with (
            _appearing(folder / name) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar,
        ):
            for sample in itertools.islice(samples, shard_size):
                for extension, data in (("jpg", sample.jpeg), ("cls", str(sample.label).encode())):
                    # All else, times and owners too, stays at zero: equal arguments give equal bytes.
                    member = tarfile.TarInfo(f"{sample.index:06d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


_WRITERS = {"folder": _write_folder, "tfrecord": _write_tfrecord, "tar": _write_tar}


@contextlib.contextmanager
def _appearing(path: Path) -> Iterator[IO[bytes]]:
    """A file that gets its name once it is complete. `_temporaries_removed` removes it after an error."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        yield file
    os.replace(temporary, path)


@contextlib.contextmanager
def _temporaries_removed(folder: Path) -> Iterator[None]:
    """Removes, before and after the block, the temporary files of this process and of processes that have ended."""

    def remove() -> None:
        for path in itertools.chain(folder.glob(".*.tmp"), folder.glob("*/.*.tmp")):
            match = _TEMPORARY.fullmatch(path.name)
            if match and (int(match["pid"]) == os.getpid() or not psutil.pid_exists(int(match["pid"]))):
                path.unlink(missing_ok=True)

    remove()
    try:
        yield
    finally:
        remove()


class _Terminated(BaseException):
    """SIGTERM has arrived."""


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Cleans up on SIGTERM before it ends the program, unless the program handles it itself."""
    try:
        with unhandled_raise([signal.SIGTERM], lambda _: _Terminated()):
            yield
    except _Terminated:
        os.kill(os.getpid(), signal.SIGTERM)
