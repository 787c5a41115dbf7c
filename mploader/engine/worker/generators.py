"""Generators in worker processes: the worker's side of ``from_generator``.

A *stream* is the output of ``generator(shard, *args)`` for one item of ``shards``. It lives in one worker, which writes
its elements, some at a time, into slots. If the worker dies, another one opens the generator again and leaves out the
elements that are delivered already; a checksum over them tells a generator that does not repeat itself.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from mploader._util.cpu_time import CpuClock
from mploader.batching.spec import STRING, ArraySpec, component_names, flatten, pack_as
from mploader.batching.writer import Array, BatchLayout, BatchWriter, texts_of
from mploader.engine.ipc import messages, sample_report
from mploader.engine.ipc.arena import NOTHING_IN_HAND, WorkerArea
from mploader.engine.ipc.sample_report import SampleReport
from mploader.engine.worker.parent_death import end_if_forked
from mploader.errors import ArgumentError, SpecError

BLOCK_S = 0.05
"""A block of elements is sent off when it has taken so long, so that slow generators do not hold theirs back."""


@dataclass(frozen=True)
class StreamJob:
    """What the workers of a :func:`mploader.from_generator` do."""

    generator: Callable[..., Iterable[Any]]
    shards: Sequence[Any]
    args: tuple[Any, ...]
    is_batched: bool
    """True: every block but the last of a stream has as many elements as the layout's capacity."""
    prepare: Callable[[Any], Any] | None
    """Called on each element first: turns what a signature allows into arrays (ragged values, say)."""

    def arguments(self) -> dict[str, Any]:
        """What the user passed, by the name of the argument."""
        return {"generator": self.generator, "shards": self.shards, "args": self.args}


@dataclass
class _Stream:
    shard: int
    iterator: Iterator[Any]
    drawn: int = 0
    checksum: int = 0
    ended: bool = False
    failure: SampleReport | None = None
    """Why it cannot go on, while the elements before are on their way."""


class StreamFailedError(Exception):
    """The generator raised, or gave something unfit; carries the report."""

    def __init__(self, report: SampleReport) -> None:
        super().__init__(report)
        self.report = report


class Streams:
    """The open generators of one worker."""

    def __init__(self, job: StreamJob, area: WorkerArea) -> None:
        self._job = job
        self._area = area
        self._open: dict[int, _Stream] = {}
        self._clock = CpuClock()
        self._pid = os.getpid()

    def draw(self, message: messages.Draw, layout: BatchLayout, memory: Array) -> tuple[BatchWriter, messages.Drawn]:
        """Writes the next elements of a stream.

        Returns:
            The writer, and the result to send once the block is where it belongs.

        Raises:
            StreamFailedError: the generator raised, or an element does not fit.
        """
        started_ns, cpu = time.monotonic_ns(), self._clock.read()
        if message.skip >= 0:
            self._start(message, layout)
        stream = self._open.get(message.run)
        writer = BatchWriter(layout, memory)
        generator_ns = write_ns = 0
        if stream is not None:
            try:
                generator_ns, write_ns = self._fill(stream, writer, layout, started_ns)
            except StreamFailedError as failure:
                if not writer.count:
                    raise
                stream.failure = failure.report  # the next task is to fail; what came before is delivered
        self._area.step(NOTHING_IN_HAND)
        is_last = stream is None or stream.ended
        if is_last:
            self._open.pop(message.run, None)
        used, now = writer.finish(), self._clock.read()
        result = messages.Drawn(
            message.task, message.attempt, message.slot, message.generation, writer.count, used, started_ns,
            time.monotonic_ns() - started_ns, generator_ns, write_ns, now.used_ns - cpu.used_ns,
            now.queued_ns - cpu.queued_ns, int(is_last), stream.checksum if stream else 0,
        )  # fmt: skip
        return writer, result

    def _fill(
        self, stream: _Stream, writer: BatchWriter, layout: BatchLayout, started_ns: int
    ) -> tuple[int, int]:
        """Draws elements until the block is full, old enough or the last; returns the ns in the generator and after."""
        generator_ns = write_ns = 0
        if stream.failure is not None:
            raise StreamFailedError(stream.failure)
        while not stream.ended and writer.count < layout.capacity:
            before = time.monotonic_ns()
            if writer.count and not self._job.is_batched and before - started_ns > BLOCK_S * 1e9:
                break
            leaves = self._next(stream, layout)
            made = time.monotonic_ns()
            generator_ns += made - before
            if leaves is not None:
                self._pass_by(stream, leaves, layout, writer)
            write_ns += time.monotonic_ns() - made
        return generator_ns, write_ns

    def forget(self, run: int) -> None:
        """Closes a generator. What its ``finally`` raises is printed: nobody waits for its elements any more."""
        stream = self._open.pop(run, None)
        close = getattr(stream and stream.iterator, "close", None)
        if close is None:
            return
        try:
            close()
        except BaseException as error:  # user code
            print(sample_report.traceback_of(error), file=sys.stderr)

    def _start(self, message: messages.Draw, layout: BatchLayout) -> None:
        self.forget(message.run)
        stream = _Stream(message.stream, iter(()))
        self._area.step(0)
        try:
            stream.iterator = iter(self._job.generator(self._job.shards[message.stream], *self._job.args))
        except BaseException as error:  # user code
            raise StreamFailedError(self._report(stream, error)) from None
        self._open[message.run] = stream
        while stream.drawn < message.skip and not stream.ended:
            leaves = self._next(stream, layout)
            if leaves is not None:
                self._pass_by(stream, leaves, layout)
        if stream.drawn < message.skip or stream.checksum != message.checksum:
            raise StreamFailedError(self._report(stream, SpecError(
                f"its worker was lost, and when the generator was started again its first {message.skip} elements were "
                f"not the same (it gave {stream.drawn}). A generator must give the same elements each time it is "
                "called with the same shard: derive random numbers from the shard"
            )))  # fmt: skip

    def _next(self, stream: _Stream, layout: BatchLayout) -> list[Any] | None:
        """Returns the components of the next element in the dtypes of the signature; None at the end."""
        self._area.step(stream.drawn)
        try:
            element = next(stream.iterator)
        except StopIteration:
            stream.ended = True
            return None
        except BaseException as error:  # user code: SystemExit and KeyboardInterrupt included
            raise StreamFailedError(self._report(stream, error)) from None
        finally:
            end_if_forked(self._pid)
        try:
            if self._job.prepare is not None:
                element = self._job.prepare(element)
            return _convert(element, layout)
        except Exception as error:
            raise StreamFailedError(self._report(stream, error)) from None

    def _pass_by(
        self, stream: _Stream, leaves: list[Any], layout: BatchLayout, writer: BatchWriter | None = None
    ) -> None:
        """Counts an element, and writes it if there is a writer."""
        try:
            checksum = checksum_of(leaves, stream.checksum)
            if writer is not None:
                writer.add(pack_as(layout.structure, leaves))
        except Exception as error:
            raise StreamFailedError(self._report(stream, error)) from None
        stream.checksum = checksum
        stream.drawn += 1

    def _report(self, stream: _Stream, error: BaseException) -> SampleReport:
        where = f"element {stream.drawn} of {generator_of(self._job.shards[stream.shard])}"
        report = sample_report.report_exception(stream.drawn, where, error)
        return dataclasses.replace(report, group="generator") if report.group == "content" else report


def generator_of(shard: Any) -> str:
    """Names the generator of one item of ``shards``, for messages."""
    try:
        return f"generator({sample_report.clip(repr(shard), 200)})"
    except Exception:  # user code
        return f"generator(a {type(shard).__name__})"


def _convert(element: Any, layout: BatchLayout) -> list[Any]:
    """Returns the components as arrays of the dtypes of the signature, as ``tf.data`` converts them."""
    leaves = flatten_like(layout.structure, element)
    return [_convert_leaf(leaf, codec.spec) for leaf, codec in zip(leaves, layout.codecs, strict=True)]


def _convert_leaf(leaf: Any, spec: ArraySpec) -> Any:
    if not spec.is_string:
        array = np.asarray(leaf)
        return array if array.dtype == spec.dtype else array.astype(spec.dtype)
    if isinstance(leaf, (bytes, str, np.ndarray)):
        return leaf
    array = np.asarray(leaf)
    # NumPy makes numbers of an empty list, and cuts zero bytes off the ends of strings.
    return np.asarray(leaf, STRING) if array.dtype.kind in "SU" or not array.size else array


@dataclass(frozen=True)
class SplitRagged:
    """Turns the ragged components of an element into a tuple of flat values and row splits, outermost first.

    Attributes:
        specs: the structure of the element's signature. The shape of a ragged component is that of the element, whose
            first dimension has no row splits.
    """

    specs: Any

    def __call__(self, element: Any) -> Any:
        """Returns the element with tuples in place of its ragged components."""
        leaves = flatten_like(self.specs, element)
        parts = [_split(leaf, spec, name) for leaf, (spec, name) in zip(leaves, self._components, strict=True)]
        return pack_as(self.specs, parts)

    @cached_property
    def _components(self) -> list[tuple[ArraySpec, str]]:
        return list(zip(flatten(self.specs), component_names(self.specs), strict=True))


def _split(leaf: Any, spec: ArraySpec, name: str) -> Any:
    if not spec.ragged_rank:
        return leaf
    if hasattr(leaf, "flat_values") and hasattr(leaf, "nested_row_splits"):  # of TensorFlow, or of mploader
        if len(leaf.nested_row_splits) != spec.ragged_rank:
            raise SpecError(
                f"{name} has ragged_rank {spec.ragged_rank} in the signature, and the generator gave a "
                f"{type(leaf).__name__} of ragged_rank {len(leaf.nested_row_splits)}"
            )
        return (np.asarray(leaf.flat_values), *map(np.asarray, leaf.nested_row_splits))
    leaf = list(leaf) if isinstance(leaf, Iterator) else leaf
    given, splits = leaf, []
    for _ in range(spec.ragged_rank):  # nested lists
        rows: list[Any] = list(leaf) if _is_list(leaf) else [None]
        if not all(map(_is_list, rows)):
            raise SpecError(
                f"{name} has ragged_rank {spec.ragged_rank} in the signature, so it wants lists or arrays nested at "
                f"least {spec.ragged_rank + 1} deep, and the generator gave {sample_report.clip(repr(given), 200)}"
            )
        splits.append(np.cumsum([0, *map(len, rows)], dtype=np.int64))
        leaf = [value for row in rows for value in row]
    if not leaf:  # the sizes that a list without a value does not tell
        leaf = np.empty((0, *[size or 0 for size in spec.shape[spec.ragged_rank + 1 :]]), spec.dtype)
    return (leaf, *splits)


def _is_list(value: Any) -> bool:
    """Whether something has elements other than the characters of a string; an array of no dimension has none."""
    is_sized = hasattr(value, "__len__") and not isinstance(value, (str, bytes))
    return is_sized and getattr(value, "shape", True) != ()


def flatten_like(structure: Any, element: Any) -> list[Any]:
    """Returns the parts of ``element`` that stand where ``structure`` has its leaves.

    Raises:
        SpecError: the two do not match.
    """
    if isinstance(structure, dict):
        if not isinstance(element, dict) or set(element) != set(structure):
            got = sorted(map(str, element)) if isinstance(element, dict) else type(element).__name__
            raise SpecError(f"the signature has a dict of {sorted(map(str, structure))}, the generator gave {got}")
        return [leaf for key, part in structure.items() for leaf in flatten_like(part, element[key])]
    if isinstance(structure, tuple):
        if not isinstance(element, tuple) or len(element) != len(structure):
            got = f"a tuple of {len(element)}" if isinstance(element, tuple) else f"a {type(element).__name__}"
            raise SpecError(f"the signature has a tuple of {len(structure)}, the generator gave {got}")
        return [
            leaf for part, value in zip(structure, element, strict=True) for leaf in flatten_like(part, value)
        ]
    return [element]


def checksum_of(leaves: list[Any], checksum: int) -> int:
    """Returns the checksum of a generator's elements so far, with those before in ``checksum``, and one more.

    Args:
        leaves: its components as they are written. Their dtypes, shapes and the lengths of strings count too.
        checksum: 0 for the first element.
    """
    for leaf in leaves:
        if isinstance(leaf, (bytes, str)) or leaf.dtype.kind in "OSU":
            texts = texts_of(leaf)
            header, data = f"{np.shape(leaf)}{[len(text) for text in texts]}", b"".join(texts)
        else:
            header, data = f"{leaf.dtype.str}{leaf.shape}", leaf.tobytes()
        checksum = google_crc32c.extend(google_crc32c.extend(checksum, header.encode()), data)
    return checksum


def check_generator(generator: Any, shards: Any, args: Any) -> tuple[list[Any], tuple[Any, ...]]:
    """Checks the arguments of ``from_generator`` and returns the shards as a list and ``args`` as a tuple.

    Raises:
        ArgumentError: an argument cannot be meant.
    """
    if not callable(generator):
        raise ArgumentError(f"generator is a {type(generator).__name__}; it must be a callable that takes a shard")
    try:
        items = list(shards)
    except TypeError:
        raise ArgumentError(
            f"shards is a {type(shards).__name__}; it must be iterable, one item for each call of the generator"
        ) from None
    if not items:
        raise ArgumentError("shards is empty: generator(shard) is called once for each item of it")
    if isinstance(shards, (str, bytes)):
        raise ArgumentError(f"shards is the string {shards!r}; pass a list of items, such as [{shards!r}]")
    if args is not None and not isinstance(args, (tuple, list)):
        raise ArgumentError(f"args={args!r}: wants a tuple of further arguments, such as ({args!r},)")
    arguments = () if args is None else tuple(args)
    try:
        inspect.signature(generator).bind(items[0], *arguments)
    except ValueError:
        pass  # a built-in without a signature
    except TypeError as error:
        raise ArgumentError(f"generator cannot be called with a shard and {len(arguments)} args: {error}") from None
    return items, arguments
