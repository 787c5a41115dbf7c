"""How a pool of workers is iterated inside tf.data; used by the datasets of loaders and of generators.

How an element gets from a slot into a training step, and what follows from that:

* ``from_generator`` adopts a NumPy array without a copy if its dtype is exactly that of the signature, it is
  contiguous, and its address is a multiple of 64. The arrays of a slot are laid out so.
* Streams are merged by a sequential ``interleave``: it asks one stream at a time, in turn, so the order is that of
  the plan, only one thread of TensorFlow waits at any time (there may be only one), and nothing is buffered that
  ``prefetch`` does not count. Waiting is all that a stream does, so streams side by side would gain nothing.
* TensorFlow takes a generator that has raised for one that is at its end. So every iterator here is :class:`Sticky`: it
  is no generator, and raises its error again at each further call. Only the last batch is followed by an end.
* A ``py_func`` keeps what it captures for the life of the process. So the functions inside the graph capture a small
  :class:`Handle` that refers to its owner weakly; an open reading keeps the workers alive, and so does the dataset.
* Only dense arrays cross into the graph, since anything else would be copied. A ragged component crosses as its values
  and row splits, and is put together there; the memory stays where it is.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import tensorflow as tf

from mploader._util.trees import map_structure, pack_as
from mploader.batching.ragged import Ragged
from mploader.batching.spec import ArraySpec
from mploader.errors import ClosedError, LoaderError, WorkerError
from mploader.tfdata import exit_guard

PREFETCH = 2
"""Batches that tf.data holds ready. The loader's own slots are the real buffer; this hides one hand-off."""

exit_guard.install()


class Closable(Protocol):
    """What a handle opens."""

    def close(self) -> None:
        """TensorFlow reads no more of it."""
        ...


Owner = TypeVar("Owner")
Reading = TypeVar("Reading", bound=Closable)


class Handle(Generic[Owner, Reading]):
    """What the functions inside the graph hold: the way to the owner while it is used, and to the open readings.

    The outermost generator of an iteration opens a reading, and closes it when TensorFlow ends that generator: at the
    end of the epoch, or when the iterator is dropped, however few of the streams have been read by then.

    Args:
        owner: what is read; referred to weakly.
        open_reading: opens a reading of the owner; must not refer to the owner itself.
    """

    def __init__(self, owner: Owner, open_reading: Callable[[Owner], Reading]) -> None:
        self._owner = weakref.ref(owner)
        self._open_reading = open_reading
        self._readings: dict[int, Reading] = {}
        self._numbers = itertools.count()

    def __getitem__(self, number: int) -> Reading:
        """Returns an open reading by its number."""
        return self._readings[number]

    def dataset(
        self, describe: Callable[[Reading], tuple[int, ...]], merge: Callable[[tf.Tensor], tf.data.Dataset]
    ) -> tf.data.Dataset:
        """Returns a dataset of which each iteration opens a reading.

        Args:
            describe: what ``merge`` has to know of a reading, as integers.
            merge: returns the dataset of one reading, called once with an int64 vector in the graph: the number of the
                reading and what ``describe`` returns.
        """

        def readings() -> Iterator[Any]:
            return Sticky(self._open(describe))

        opened = tf.data.Dataset.from_generator(readings, output_signature=tf.TensorSpec((None,), tf.int64))
        return opened.flat_map(merge)

    def _open(self, describe: Callable[[Reading], tuple[int, ...]]) -> Iterator[Any]:
        owner = self._owner()
        if owner is None:
            raise ClosedError("the workers of this dataset are gone: keep a reference to the loader or to the dataset")
        number = next(self._numbers)
        reading = self._readings[number] = self._open_reading(owner)
        del owner
        try:
            yield np.array([number, *describe(reading)], np.int64)
        finally:
            del self._readings[number]
            reading.close()


class Sticky(Iterator[Any]):
    """The items of an iterator; the error that it ends with is raised again at every further call."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._error: LoaderError | None = None

    def __next__(self) -> Any:
        """Returns the next item."""
        if self._error is not None:
            raise self._error.again()
        try:
            return next(self._items)
        except StopIteration:
            raise
        except LoaderError as error:
            self._error = error.again()
            raise
        except BaseException as error:
            self._error = WorkerError(f"the iteration was cut off ({error!r})")
            raise


def finish(dataset: tf.data.Dataset, owner: object) -> tf.data.Dataset:
    """Adds the options and the prefetching that every dataset of workers has, and keeps the workers alive with it."""
    options = tf.data.Options()
    options.deterministic = True
    # An injected prefetch has no bound, and would hold slots without end.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options).prefetch(PREFETCH)
    dataset._mploader_owner = owner
    return dataset


def can_unbatch(spec: ArraySpec) -> bool:
    """Whether TensorFlow can take a block of such components apart; it crashes where an element has no values."""
    return None not in spec.shape and 0 not in spec.shape


def tensor_spec(spec: ArraySpec) -> tf.TypeSpec:
    """Returns TensorFlow's form of an :class:`ArraySpec`."""
    dtype = tf.string if spec.is_string else tf.as_dtype(spec.dtype)
    if spec.ragged_rank:
        return tf.RaggedTensorSpec(spec.shape, dtype, spec.ragged_rank, tf.int64)
    return tf.TensorSpec(spec.shape, dtype)


def pieces_of(batch: Any) -> Any:
    """Returns a batch with the dense arrays of each ragged component, (values, splits...), in its place."""
    return map_structure(
        lambda leaf: (leaf.flat_values, *leaf.nested_row_splits) if isinstance(leaf, Ragged) else leaf, batch
    )


def assemble(specs: Any, pieces: Any) -> Any:
    """Puts the ragged components of a batch or element together from their dense pieces, in the graph.

    Args:
        specs: the structure of ``ArraySpec``.
        pieces: the same structure with tensors, and (values, splits...) for each ragged component.
    """
    return pack_as(specs, [
        tf.RaggedTensor.from_nested_row_splits(piece[0], piece[1:], validate=False) if spec.ragged_rank else piece
        for spec, piece in _pairs(specs, pieces)
    ])  # fmt: skip


def map_assemble(dataset: tf.data.Dataset, specs: Any) -> tf.data.Dataset:
    """Applies :func:`assemble` to each element of a dataset of pieces."""

    def join(*pieces: Any) -> Any:  # tf.data calls it with the entries of a tuple
        is_whole = len(pieces) == 1 and not isinstance(dataset.element_spec, tuple)
        return assemble(specs, pieces[0] if is_whole else pieces)

    return dataset.map(join)


def _pairs(specs: Any, pieces: Any) -> Iterator[tuple[ArraySpec, Any]]:
    if isinstance(specs, dict):
        for key, value in specs.items():
            yield from _pairs(value, pieces[key])
    elif isinstance(specs, tuple):
        for spec, piece in zip(specs, pieces, strict=True):
            yield from _pairs(spec, piece)
    else:
        yield specs, pieces
