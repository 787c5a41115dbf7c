"""A dataset over the batches of a loader.

How an element gets from a slot into a training step, and what that asks of us (the long form is in the documentation of
the design):

* ``from_generator`` adopts a NumPy array without a copy if its dtype is exactly that of the signature, it is
  contiguous, and its address is a multiple of 64. The arrays of a slot are laid out so.
* Streams are merged by a sequential ``interleave``: it asks one stream at a time, in turn, so the order is that of
  the plan, only one thread of TensorFlow waits at any time (there may be only one), and nothing is buffered that
  ``prefetch`` does not count. Waiting is all that a stream does, so streams side by side would gain nothing.
* Every iteration knows how many batches it must give, so that a short epoch is never silent; of the dataset as a whole
  only the length of a full epoch is stated, since an epoch that is resumed half-way has fewer. Elements one by one of
  which bad ones are dropped have no length that anybody knows before, and the cardinality is UNKNOWN.
* TensorFlow takes a generator that has raised for one that is at its end. So what it iterates over here is no generator
  but asks again at each call, and raises the error again: nothing but the last batch is followed by an end.
* A ``py_func`` keeps what it captures for the life of the process. So the functions here capture a small handle that
  refers to the loader weakly; an open run keeps the loader alive, and so does the dataset.
"""

from __future__ import annotations

import functools
import itertools
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mploader._util.trees import flatten, map_structure, pack_as
from mploader.batching.ragged import Ragged
from mploader.batching.spec import ArraySpec
from mploader.errors import ClosedError, LoaderError, WorkerError
from mploader.loader.epoch_iterator import Elements, Run
from mploader.loader.loader import Loader
from mploader.tfdata import exit_guard

PREFETCH = 2
"""Batches that tf.data holds ready. The loader's own slots are the real buffer; this hides one hand-off."""

MAX_STREAMS = 16

exit_guard.install()


class _Handle:
    """What the functions inside the graph hold: the way to the loader while somebody uses it, and to open runs.

    The outermost generator of an iteration opens a run, and closes it when TensorFlow ends that generator: at the end
    of the epoch, or when the iterator is dropped, however few of the streams have been read by then.
    """

    def __init__(self, loader: Loader) -> None:
        self._loader = weakref.ref(loader)
        self._runs: dict[int, Run] = {}
        self._numbers = itertools.count()

    def open_run(self) -> Iterator[Any]:
        """Yields once: the number under which the streams find the new run, and how many batches it has."""
        loader = self._loader()
        if loader is None:
            raise ClosedError("the loader of this dataset is gone: keep a reference to the loader or to the dataset")
        number = next(self._numbers)
        unused = loader.consumption.give_back()
        if unused is not None:
            loader.rewind(unused)
        run = self._runs[number] = loader.open_run()
        consumption = loader.consumption
        consumption.open(run)
        del loader
        try:
            yield np.array([number, run.num_batches], np.int64)
        finally:
            del self._runs[number]
            run.close()
            consumption.leave(run)

    def stream(self, number: int, first: int, step: int) -> Iterator[Any]:
        """Returns an iterator of every ``step``-th batch of a run, from ``first`` on."""
        # It keeps no batch: a slot must be free as soon as TensorFlow has dropped it.
        return map(functools.partial(map_structure, _pieces), self._runs[number].batches(first, step))


class Sticky(Iterator[Any]):
    """What a generator yields; the error that it ends with is raised again at every further call."""

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._error: LoaderError | None = None

    def __next__(self) -> Any:
        """Returns the next item."""
        if self._error is not None:
            # A new one each time: one that is raised again and again grows by a traceback each time.
            raise type(self._error)(*self._error.args)
        try:
            return next(self._items)
        except StopIteration:
            raise
        except LoaderError as error:
            self._error = type(error)(*error.args)
            raise
        except BaseException as error:
            self._error = WorkerError(f"the iteration was cut off ({error!r})")
            raise


def as_dataset(loader: Loader) -> tf.data.Dataset:
    """Returns a dataset of the loader's batches; see :meth:`mploader.Loader.as_dataset`."""
    handle = _Handle(loader)
    streams = min(loader.num_workers, MAX_STREAMS)
    specs = loader.element_spec
    # Elements of one shape cross in the blocks that they travel in, which TensorFlow takes apart; others one by one.
    in_blocks = not loader.is_batched and all(can_unbatch(spec) for spec in flatten(specs))
    one_by_one = not loader.is_batched and not in_blocks
    if one_by_one:
        streams = 1
    signature = map_structure(_piece_specs, map_structure(_block_spec, specs) if in_blocks else specs)
    is_open = not loader.is_batched and loader.drops_bad  # nobody knows before how many are left
    is_ragged = any(spec.ragged_rank for spec in flatten(specs))

    def stream(number: Any, first: Any) -> Iterator[Any]:
        batches = handle.stream(int(number), int(first), streams)
        return Elements(batches) if one_by_one else batches

    def merge(run: tf.Tensor) -> tf.data.Dataset:
        number, num_batches = tf.unstack(run)

        def make_stream(first: tf.Tensor) -> tf.data.Dataset:
            elements = tf.data.Dataset.from_generator(stream, output_signature=signature, args=(number, first))
            if not is_ragged:
                return elements
            # Inside the stream, where tf.data does not make it a parallel map, which would hold batches.
            return elements.map(lambda *pieces: _assemble(specs, pieces if isinstance(signature, tuple) else pieces[0]))

        merged = tf.data.Dataset.range(streams).interleave(make_stream, cycle_length=streams, block_length=1)
        if in_blocks:
            merged = merged.unbatch()
        if is_open:
            return merged
        return merged.apply(tf.data.experimental.assert_cardinality(num_batches))

    def open_run() -> Iterator[Any]:
        return Sticky(handle.open_run())

    runs = tf.data.Dataset.from_generator(open_run, output_signature=tf.TensorSpec((2,), tf.int64))
    dataset = runs.flat_map(merge)
    if not is_open:
        dataset = _state_cardinality(dataset, len(loader))
    options = tf.data.Options()
    options.deterministic = True
    # An injected prefetch has no bound, and would hold slots without end.
    options.experimental_optimization.inject_prefetch = False
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options).prefetch(PREFETCH)
    dataset._mploader_loader = loader  # keeps the loader alive as long as the dataset
    return dataset


def _state_cardinality(dataset: tf.data.Dataset, cardinality: int) -> tf.data.Dataset:
    """States a length that an iteration may fall short of, which ``assert_cardinality`` would not let pass.

    The first ``cardinality`` elements of a dataset without end are as many; and what TensorFlow takes for one without
    end here, an empty dataset repeated for ever, ends at once when it is read.
    """
    nothing = dataset.take(0).filter(lambda *_: False).repeat()
    return dataset.concatenate(nothing).take(cardinality)


def can_unbatch(spec: ArraySpec) -> bool:
    """Whether TensorFlow can take a block of such components apart; it crashes where an element has no values."""
    return None not in spec.shape and 0 not in spec.shape


def tensor_spec(spec: ArraySpec) -> tf.TypeSpec:
    """Returns TensorFlow's form of an :class:`ArraySpec`."""
    dtype = tf.string if spec.is_string else tf.as_dtype(spec.dtype)
    if spec.ragged_rank:
        return tf.RaggedTensorSpec(spec.shape, dtype, spec.ragged_rank, tf.int64)
    return tf.TensorSpec(spec.shape, dtype)


def _block_spec(spec: ArraySpec) -> ArraySpec:
    return ArraySpec((None, *spec.shape), spec.dtype)


def _pieces(leaf: Any) -> Any:
    """What crosses into the graph for one component: dense arrays only, since anything else would be copied."""
    return (leaf.flat_values, *leaf.nested_row_splits) if isinstance(leaf, Ragged) else leaf


def _piece_specs(spec: ArraySpec) -> Any:
    if not spec.ragged_rank:
        return tensor_spec(spec)
    batch, inner = spec.shape[0], spec.shape[1 + spec.ragged_rank :]
    splits = [tf.TensorSpec([None if batch is None else batch + 1], tf.int64)]
    splits += [tf.TensorSpec([None], tf.int64)] * (spec.ragged_rank - 1)
    return (tensor_spec(ArraySpec((None, *inner), spec.dtype)), *splits)


def _assemble(specs: Any, pieces: Any) -> Any:
    """Puts ragged tensors together from their pieces, in the graph; their memory stays where it is."""
    return pack_as(specs, [
        tf.RaggedTensor.from_nested_row_splits(piece[0], piece[1:], validate=False) if spec.ragged_rank else piece
        for spec, piece in _pairs(specs, pieces)
    ])  # fmt: skip


def _pairs(specs: Any, pieces: Any) -> Iterator[tuple[ArraySpec, Any]]:
    if isinstance(specs, dict):
        for key, value in specs.items():
            yield from _pairs(value, pieces[key])
    elif isinstance(specs, tuple):
        for spec, piece in zip(specs, pieces, strict=True):
            yield from _pairs(spec, piece)
    else:
        yield specs, pieces
