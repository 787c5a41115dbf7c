"""Writes photograph-like JPEG data for trying, testing and measuring: the library behind `mploader synth`.

Fresh interpreters draw and encode the pictures (:mod:`mploader.cli.synthetic_picture`) and send them back through
pipes, each every n-th; this process takes them in turn and is the only one that writes files. So the files do
not depend on the number of processes, and whatever ends the run leaves complete files: each is written under
a temporary name, ``.NAME.PID.tmp``, and renamed when it is complete.

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
import subprocess
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from mploader._util import python_command
from mploader._util.platform_check import fcntl
from mploader._util.resources import usable_cpus
from mploader.cli.synthetic_picture import LENGTH, label_of
from mploader.errors import ArgumentError, ResourceError, WorkerError
from mploader.sources.tf_example import encode_example
from mploader.sources.tfrecord_write import TFRecordWriter

Progress = Callable[[int, int], None]
"""Called in the thread of `synthesize` for each picture as it arrives: (how many so far, of how many)."""

_TEMPORARY = re.compile(r"\.(?:\d+\.jpg|train-.*\.(?:tfrecord|tar))\.(?P<pid>\d+)\.tmp")
_DATA_SUFFIXES = (".jpg", ".tfrecord", ".tar")
# Pipes of this size let a process run a few pictures ahead while this one waits for another: the largest that
# Linux grants without privilege (/proc/sys/fs/pipe-max-size).
_PIPE_BYTES = 1 << 20
_PROGRAM = "from mploader.cli.synthetic_picture import main; main(sys.argv[1:])"


@dataclass(frozen=True)
class SynthReport:
    """What a run has written.

    Attributes:
        files: number of files: pictures or shards.
        samples: number of pictures.
        bytes: size of all files.
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
    num_processes: int | None = None,
    progress: Progress | None = None,
) -> SynthReport:
    """Writes ``count`` pictures, about 110 kB each, with labels that can be learnt from them.

    A picture is a function of (seed, its number, classes), so equal arguments give equal files, whatever
    ``num_processes`` is. Files of an earlier run with equal names are replaced. Ctrl-C and SIGTERM (where the
    program does not handle it itself) leave complete files only; what a killed run left the next one removes.

    Args:
        directory: where to write; made if it is missing. It may hold no pictures or shards but those of this
            run, since a loader would read both.
        format: "folder", "tfrecord" or "tar"; the layouts are shown at the top of this module.
        count: number of pictures, at least 1.
        classes: number of classes, at least 1 and at most ``count``. Picture i is of class i % classes.
        shard_size: pictures in a shard, at least 1; the last shard may have fewer. Not used for "folder".
        seed: any integer >= 0.
        num_processes: how many processes draw; None: as many as the CPUs that this process may use.
        progress: called for each picture as ``progress(done, count)``. What it raises ends the run.

    Raises:
        ArgumentError: an argument is out of range, or the directory holds other data.
        ResourceError: the directory cannot be written, or no process be started.
        WorkerError: a drawing process ended; the message holds what it printed.
    """
    processes = usable_cpus() if num_processes is None else num_processes
    _check(format, seed, count=count, classes=classes, shard_size=shard_size, num_processes=processes)
    folder = Path(directory)
    names = _names(format, count, classes, shard_size)
    processes = min(count, processes)
    written = 0

    def counted(samples: Iterator[_Sample]) -> Iterator[_Sample]:
        nonlocal written
        for written, sample in enumerate(samples, 1):
            if progress is not None:
                progress(written, count)
            yield sample

    try:
        _prepare(folder, names)
        with (
            _sigterm_unwinds(),
            _temporaries_removed(folder),
            _drawn(processes, count, classes, seed) as samples,
        ):
            _WRITERS[format](folder, names, counted(samples), shard_size)
        return SynthReport(len(names), count, sum((folder / name).stat().st_size for name in names))
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}, after {written} of {count} pictures: {error}. "
            f"Give a folder that can be written, with room for about {count * 110 // 1000 + 1} MB."
        ) from error


def _check(format: str, seed: int, **numbers: int) -> None:
    if format not in _WRITERS:
        raise ArgumentError(f"format={format!r}: wanted is one of {', '.join(map(repr, _WRITERS))}")
    for name, value in numbers.items():
        if value < 1:
            raise ArgumentError(f"{name}={value}: wanted is an integer of at least 1")
    if seed < 0:
        raise ArgumentError(f"seed={seed}: wanted is an integer of at least 0")
    if numbers["classes"] > numbers["count"]:
        raise ArgumentError(f"{numbers['classes']} classes, {numbers['count']} pictures: some get none")


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
    """Makes the folders, after making sure that they hold no other data."""
    expected = set(names)
    for path in itertools.chain(folder.glob("*"), folder.glob("*/*")):
        name = str(path.relative_to(folder))
        if path.suffix in _DATA_SUFFIXES and not path.name.startswith(".") and name not in expected:
            raise ArgumentError(
                f"{folder} holds {name}, which this run would not write, and a loader would read both. "
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
    """A file that gets its name once it is complete. What an error leaves, `_temporaries_removed` removes."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        yield file
    os.replace(temporary, path)


@contextlib.contextmanager
def _temporaries_removed(folder: Path) -> Iterator[None]:
    """Removes, before and after, the temporary files of this process and of those that are no more."""

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
    """SIGTERM has come."""


@contextlib.contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """Lets SIGTERM clean up before it ends the program, unless the program has its own way with it."""
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def unwind(number: int, frame: object) -> None:
        raise _Terminated

    signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except _Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _drawn(processes: int, count: int, classes: int, seed: int) -> Iterator[Iterator[_Sample]]:
    """Starts the drawing processes and gives their pictures in order; none is left on leaving."""
    with contextlib.ExitStack() as stack:
        artists = [
            stack.enter_context(_Artist(seed, classes, first, count, processes)) for first in range(processes)
        ]
        yield (
            _Sample(index, label_of(index, classes), artists[index % processes].next_picture())
            for index in range(count)
        )


class _Artist:
    """One drawing process: pictures ``first``, ``first + step``, ... below ``stop``. A context manager.

    It ends by itself when this process has died, as nobody reads its pipe then, and it leads a session of its
    own, so that Ctrl-C interrupts this process alone, which then ends it.
    """

    def __init__(self, seed: int, classes: int, first: int, stop: int, step: int) -> None:
        command = python_command.command(_PROGRAM, seed, classes, first, stop, step)
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  closed by __exit__
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._printed,
                start_new_session=True,
            )
        except OSError as error:
            self._printed.close()
            raise ResourceError(
                f"cannot start process {first} of {step} that draw pictures: {error}. Lower num_processes=."
            ) from error
        assert self._process.stdout is not None
        self._pictures = self._process.stdout
        with contextlib.suppress(PermissionError):  # beyond the user's share of pipe memory: slower, no more
            fcntl.fcntl(self._pictures, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    def next_picture(self) -> bytes:
        """Waits for the next picture of this process."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size))
        return self._read(length)

    def _read(self, size: int) -> bytes:
        data = self._pictures.read(size)
        if len(data) < size:
            status = self._process.wait()
            self._printed.seek(0)
            printed = self._printed.read()[-4096:].decode(errors="replace").strip()
            ended = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with {status}"
            raise WorkerError(f"a process that draws pictures {ended} too early. It printed:\n{printed}")
        return data

    def __enter__(self) -> _Artist:
        return self

    def __exit__(self, *exception: object) -> None:
        self._pictures.close()
        self._process.kill()
        self._process.wait()
        self._printed.close()
