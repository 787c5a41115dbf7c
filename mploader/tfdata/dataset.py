"""A dataset over the batches of a loader; :mod:`mploader.tfdata.pool_iteration` says how it reads them.

Every iteration knows how many batches it has to give, so that a short epoch is never silent; of the dataset as a whole
only the length of a full epoch is stated, since an epoch that is resumed half-way has fewer. Where elements come one by
one and bad ones are dropped, their number is unknown before, and the cardinality is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import tensorflow as tf

from mploader._util.trees import flatten, map_structure
from mploader.batching.spec import ArraySpec
from mploader.loader.core import CoreOwner, LoaderCore, core_of
from mploader.loader.epoch_iterator import Elements, EpochIterator
from mploader.tfdata.pool_iteration import Handle, can_unbatch, finish, map_assemble, pieces_of, tensor_spec

MAX_STREAMS = 16


class _CountedEpoch:
    """An epoch that TensorFlow reads; the loader's consumption knows of it from the start to the close."""

    def __init__(self, core: LoaderCore) -> None:
        self._consumption = core.progress.consumption
        unused = self._consumption.give_back()
        if unused is not None:
            core.rewind(unused)
        self.epoch: EpochIterator = core.open_epoch()
        self._consumption.open(self.epoch)

    def close(self) -> None:
        """TensorFlow reads no more of it."""
        self.epoch.close()
        self._consumption.leave(self.epoch)


def as_dataset(loader: CoreOwner) -> tf.data.Dataset:
    """Returns a dataset of the loader's batches; see :meth:`mploader.Loader.as_dataset`.

    Raises:
        ArgumentError: it is not a loader.
    """
    core = core_of("as_dataset", loader)
    handle = Handle(core, _CountedEpoch)
    streams = min(core.options.num_workers, MAX_STREAMS)
    description, specs = core.description, core.element_spec
    # Elements of one shape cross in the blocks that they travel in, which TensorFlow takes apart; others one by one.
    in_blocks = not description.is_batched and all(can_unbatch(spec) for spec in flatten(specs))
    one_by_one = not description.is_batched and not in_blocks
    if one_by_one:
        streams = 1
    signature = map_structure(_piece_specs, map_structure(_block_spec, specs) if in_blocks else specs)
    is_open = not description.is_batched and description.on_bad_sample.drops  # the number of elements is unknown
    is_ragged = any(spec.ragged_rank for spec in flatten(specs))

    def stream(number: Any, first: Any) -> Iterator[Any]:
        # It keeps no batch: a slot must be free as soon as TensorFlow has dropped it.
        batches = map(pieces_of, handle[int(number)].epoch.batches(int(first), streams))
        return Elements(batches) if one_by_one else batches

    def merge(reading: tf.Tensor) -> tf.data.Dataset:
        number, num_batches = reading[0], reading[1]

        def make_stream(first: tf.Tensor) -> tf.data.Dataset:
            elements = tf.data.Dataset.from_generator(stream, output_signature=signature, args=(number, first))
            # Inside the stream, where tf.data does not make it a parallel map, which would hold batches.
            return map_assemble(elements, specs) if is_ragged else elements

        merged = tf.data.Dataset.range(streams).interleave(make_stream, cycle_length=streams, block_length=1)
        if in_blocks:
            merged = merged.unbatch()
        if is_open:
            return merged
        return merged.apply(tf.data.experimental.assert_cardinality(num_batches))

    dataset = handle.dataset(lambda reading: (reading.epoch.num_batches,), merge)
    if not is_open:
        dataset = _state_cardinality(dataset, description.num_batches)
    return finish(dataset, core)


def _state_cardinality(dataset: tf.data.Dataset, cardinality: int) -> tf.data.Dataset:
    """States a length that an iteration may fall short of, which ``assert_cardinality`` would not allow.

    The first ``cardinality`` elements of a dataset without end are as many; and what TensorFlow takes for one without
    end here, an empty dataset repeated for ever, ends at once when it is read.
    """
    nothing = dataset.take(0).filter(lambda *_: False).repeat()
    return dataset.concatenate(nothing).take(cardinality)


def _block_spec(spec: ArraySpec) -> ArraySpec:
    return ArraySpec((None, *spec.shape), spec.dtype)


def _piece_specs(spec: ArraySpec) -> Any:
    """The specs of the dense arrays that a component crosses as."""
    if not spec.ragged_rank:
        return tensor_spec(spec)
    batch, inner = spec.shape[0], spec.shape[1 + spec.ragged_rank :]
    splits = [tf.TensorSpec([None if batch is None else batch + 1], tf.int64)]
    splits += [tf.TensorSpec([None], tf.int64)] * (spec.ragged_rank - 1)
    return (tensor_spec(ArraySpec((None, *inner), spec.dtype)), *splits)
