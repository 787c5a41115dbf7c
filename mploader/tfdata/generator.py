"""``from_generator`` with the generators in worker processes.

Workers send the elements of each generator in blocks. Here every generator becomes a small dataset of its own, and
TensorFlow's own ``interleave`` merges them: so the order is by construction that of ``Dataset.interleave``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from mploader._util import resources
from mploader._util.checks import seconds, whole_number
from mploader._util.trees import flatten, map_structure, pack_as
from mploader.batching.codecs import Codec, Fixed, Strings
from mploader.batching.layout import BatchLayout
from mploader.batching.spec import STRING, ArraySpec, Pad
from mploader.batching.variable_codecs import Apart
from mploader.engine.ipc.job import GeneratorJob
from mploader.engine.worker.input_values import SplitRagged
from mploader.errors import ArgumentError
from mploader.loader.epoch_iterator import Elements
from mploader.loader.generator_arguments import check_generator
from mploader.loader.generator_pool import GeneratorPool
from mploader.tfdata.pool_iteration import Handle, Sticky, can_unbatch, finish, map_assemble, tensor_spec

BLOCK_BYTES = 2**20
BLOCK_ELEMENTS = 256
CYCLE_LENGTH = 16
"""Shards that are merged at once by default. The order depends on it, so it does not depend on the machine."""


def from_generator(
    generator: Callable[..., Iterable[Any]],
    *,
    shards: Iterable[Any],
    output_signature: Any,
    args: Iterable[Any] | None = None,
    batch_size: int | None = None,
    drop_remainder: bool = False,
    num_workers: int | None = None,
    cycle_length: int | None = None,
    block_length: int = 1,
    ordered: bool = True,
    stall_timeout: float = 300.0,
) -> tf.data.Dataset:
    """``tf.data.Dataset.from_generator``, with ``generator(shard, *args)`` running in worker processes.

    The generator is called once for each item of ``shards`` in every iteration of the dataset. The elements of
    ``cycle_length`` shards are merged, ``block_length`` of each in turn, in exactly the order of
    ``Dataset.from_tensor_slices(shards).interleave(..., cycle_length, block_length, deterministic=True)``: it does not
    depend on the number of workers or on timing.

    A generator must give the same elements each time it is called with the same shard: if its worker dies, another one
    calls it again and leaves out what was delivered. One that does not repeat itself is found by a checksum.

    Args:
        generator: called in a worker; returns an iterable of elements. Needs no ``__main__`` guard, may be a lambda.
        shards: file names, ranges, numbers: anything that pickles. One call each.
        output_signature: structure (tuples, dicts) of ``tf.TensorSpec`` of known rank and ``tf.RaggedTensorSpec``.
            Elements are converted to its dtypes. For a ragged component the generator may give a ``tf.RaggedTensor``, a
            :class:`mploader.Ragged`, or nested lists.
        args: further arguments of each call. Unlike in TensorFlow they are passed as they are, not as tensors.
        batch_size: batch in the workers: each batch has elements of one shard, batches take the place of elements in
            the order, and what remains at the ends of shards comes last, put together to whole batches. Components with
            unknown dimensions cannot be batched by a worker: the merged elements are batched as ``Dataset.batch`` does.
        drop_remainder: with ``batch_size``: leave out the last batch if it is not full.
        num_workers: processes. None: as many as CPUs that this process may use.
        cycle_length: how many shards are merged at once. None: all, but no more than 16, however many workers there
            are. Each takes the memory of three blocks of elements, or batches.
        block_length: how many elements (batches) of a shard come in a row.
        ordered: False: whichever elements are ready first, in blocks; faster where shards differ much in speed.
        stall_timeout: seconds without progress before a worker is replaced.

    Returns:
        A dataset of unknown cardinality. Its workers start now and end when the dataset is collected or at exit.

    Raises:
        ArgumentError: an argument is invalid, or cannot be sent to a worker.
        ResourceError: the machine does not grant memory, processes or descriptors.
    """
    items, arguments = check_generator(generator, shards, args)
    workers = resources.usable_cpus() if num_workers is None else whole_number("num_workers", num_workers, 1)
    cycle = whole_number("cycle_length", CYCLE_LENGTH if cycle_length is None else cycle_length, 1)
    whole_number("block_length", block_length, 1)
    for name, value in (("ordered", ordered), ("drop_remainder", drop_remainder)):
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}={value!r}: expected True or False")
    if batch_size is not None:
        whole_number("batch_size", batch_size, 1)
    elif drop_remainder:
        raise ArgumentError("drop_remainder=True: expected batch_size= with it, since it is about the last batch")
    stall_timeout_s = seconds("stall_timeout", stall_timeout)
    form = _Form(output_signature, batch_size, drop_remainder)
    job = GeneratorJob(
        generator=generator, inputs=items, args=arguments, is_batched=form.is_batched, prepare=form.prepare
    )
    pool = GeneratorPool(job, form.layout, form.block_bytes, workers, min(len(items), max(cycle, workers) + 1),
                         stall_timeout_s)  # fmt: skip
    dataset = _merge(pool, form, cycle, block_length, ordered)
    if batch_size is not None and not form.is_batched:
        dataset = dataset.batch(batch_size, drop_remainder)
    return finish(dataset, pool)


class _Form:
    """How elements of a signature travel: in whole blocks where that is possible, batched or to be unbatched."""

    def __init__(self, signature: Any, batch_size: int | None, drop_remainder: bool) -> None:
        _check_signature(signature)
        components = map_structure(_array_spec, signature)
        self.components = components
        self.prepare = SplitRagged(components) if any(spec.ragged_rank for spec in flatten(components)) else None
        specs = map_structure(_parts, signature)
        fixed = all(None not in spec.shape for spec in flatten(specs))
        self.is_batched = batch_size is not None and fixed
        self.is_apart = not self.is_batched and not all(can_unbatch(spec) for spec in flatten(specs))
        self.drops_remainder = self.is_batched and drop_remainder
        element_bytes = sum(
            spec.dtype.itemsize * int(np.prod([size or 1 for size in spec.shape], dtype=np.int64))
            for spec in flatten(specs)
        )
        capacity = max(1, min(BLOCK_ELEMENTS, BLOCK_BYTES // max(1, element_bytes)))
        self.layout = BatchLayout(
            map_structure(_codec, specs), batch_size if self.is_batched and batch_size is not None else capacity,
            "the signature",
        )
        self.block_bytes = self.layout.fixed_bytes + (0 if self.layout.is_fixed else BLOCK_BYTES)
        elements = map_structure(lambda codec: tensor_spec(codec.spec), self.layout.structure)
        size = batch_size if self.drops_remainder else None
        blocks = map_structure(lambda codec: tensor_spec(codec.batch_spec(size)), self.layout.structure)
        self.stream_signature = elements if self.is_apart else blocks

    def unpack(self, blocks: Iterator[Any]) -> Iterator[Any]:
        """What a stream's dataset gets of blocks: these, or their elements where shapes differ."""
        return Elements(blocks) if self.is_apart else blocks

    def finish(self, dataset: tf.data.Dataset) -> tf.data.Dataset:
        """Turns a dataset of what streams yield into one of elements, or batches."""
        if not self.is_apart and not self.is_batched:
            dataset = dataset.unbatch()
        return dataset if self.prepare is None else map_assemble(dataset, self.components)


def _merge(pool: GeneratorPool, form: _Form, cycle: int, block_length: int, ordered: bool) -> tf.data.Dataset:
    """The datasets of all streams, merged, behind them the rests of batches."""
    handle = Handle(pool, GeneratorPool.open_pass)
    signature = form.stream_signature

    def stream(number: Any, shard: Any) -> Iterator[Any]:
        return Sticky(form.unpack(handle[int(number)].blocks(int(shard))))

    def any_stream(number: Any) -> Iterator[Any]:
        return Sticky(form.unpack(handle[int(number)].any_blocks()))

    def rests(number: Any) -> Iterator[Any]:
        return _rebatch(handle[int(number)].rests(), form.layout.capacity, form.drops_remainder)

    shards = len(pool.job.inputs)

    def merge(reading: tf.Tensor) -> tf.data.Dataset:
        number = reading[0]

        def make_stream(shard: tf.Tensor) -> tf.data.Dataset:
            return form.finish(tf.data.Dataset.from_generator(stream, output_signature=signature, args=(number, shard)))

        if ordered:
            merged = tf.data.Dataset.range(shards).interleave(make_stream, cycle, block_length)
        else:
            merged = form.finish(tf.data.Dataset.from_generator(any_stream, output_signature=signature, args=(number,)))
        if form.is_batched:
            merged = merged.concatenate(
                tf.data.Dataset.from_generator(rests, output_signature=signature, args=(number,))
            )
        return merged

    return handle.dataset(lambda _: (), merge)


def _rebatch(rests: list[Any], batch_size: int, drop_remainder: bool) -> Iterator[Any]:
    """Puts incomplete batches together to whole ones; only the last may be short, and may be left out."""
    if not rests:
        return
    leaves = [np.concatenate(parts) for parts in zip(*map(flatten, rests), strict=True)]
    stop = len(leaves[0]) // batch_size * batch_size if drop_remainder else len(leaves[0])
    for start in range(0, stop, batch_size):
        yield pack_as(rests[0], [leaf[start : start + batch_size] for leaf in leaves])


def _check_signature(signature: Any) -> None:
    leaves = flatten(signature)
    for leaf in leaves:
        if not isinstance(leaf, (tf.TensorSpec, tf.RaggedTensorSpec)):
            raise ArgumentError(
                f"output_signature: expected a structure (tuples, dicts) of tf.TensorSpec and tf.RaggedTensorSpec, got "
                f"{leaf!r}"
            )
        if leaf.shape.rank is None:
            raise ArgumentError(f"output_signature: {leaf!r}: expected a known rank; use None for unknown sizes")
        if isinstance(leaf, tf.RaggedTensorSpec) and not leaf.ragged_rank:
            raise ArgumentError(f"output_signature: {leaf!r} has no ragged dimension; use tf.TensorSpec")
    if not leaves:
        raise ArgumentError("output_signature: expected at least one component, got an empty structure")


def _array_spec(spec: Any) -> ArraySpec:
    dtype = STRING if spec.dtype == tf.string else np.dtype(spec.dtype.as_numpy_dtype)
    ragged_rank = spec.ragged_rank if isinstance(spec, tf.RaggedTensorSpec) else 0
    return ArraySpec(tuple(spec.shape), dtype, ragged_rank)


def _parts(spec: Any) -> Any:
    """The arrays that a component of the signature travels as."""
    component = _array_spec(spec)
    if not component.ragged_rank:
        return component
    values = ArraySpec((None, *component.shape[component.ragged_rank + 1 :]), component.dtype)
    splits = np.dtype(spec.row_splits_dtype.as_numpy_dtype)
    return (values, *[ArraySpec((None,), splits)] * component.ragged_rank)


def _codec(spec: ArraySpec) -> Codec:
    if spec.is_string and None not in spec.shape:
        return Strings(spec)
    return Fixed(spec) if spec.is_fixed else Apart(spec, Pad())
