"""mploader and its peers, each set up for throughput as its documentation says, in a function of a few lines.

A function takes the work (:class:`Work`) and returns an endless stream of batches ``(images, labels)``: uint8
(batch, height, width, 3) and integers (batch,). It imports its library, so a peer that is not installed raises
ModuleNotFoundError. All call the same transform on the same samples. Grain, PyTorch and SPDL are iterated directly, all
others as ``tf.data`` datasets.
"""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Sample = tuple[Any, int]


@dataclass(frozen=True)
class Work:
    """The work of every contender.

    Attributes:
        source: the samples. It has ``paths`` and ``labels`` where tf.data reads the same files.
        transform: (sample) -> (uint8 (height, width, 3), label).
        shape: shape of an image.
        batch_size: samples in a batch; only full batches are made.
        workers: processes or threads.
    """

    source: Any
    transform: Callable[[Sample], Sample]
    shape: tuple[int, ...]
    batch_size: int
    workers: int

    def sample(self, index: int) -> Sample:
        """Makes one element."""
        return self.transform(self.source[index])

    def batch(self, indices: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Makes one batch."""
        samples = [self.sample(index) for index in indices]
        return np.stack([image for image, _ in samples]), np.array([label for _, label in samples])


def mploader_dataset(work: Work) -> Iterator[Any]:
    """This package, through ``as_dataset()``."""
    import mploader

    loader = mploader.Loader(work.source, work.transform, batch_size=work.batch_size, num_workers=work.workers,
                             drop_remainder=True)  # fmt: skip
    return forever(loader.as_dataset())


def mploader_numpy(work: Work) -> Iterator[Any]:
    """This package, as NumPy batches without TensorFlow."""
    import mploader

    loader = mploader.Loader(work.source, work.transform, batch_size=work.batch_size, num_workers=work.workers,
                             drop_remainder=True)  # fmt: skip
    return forever(loader)


def torch_loader(work: Work) -> Iterator[Any]:
    """PyTorch DataLoader, worker processes by spawn, batches as torch tensors."""
    from torch.utils.data import DataLoader

    loader = DataLoader(Samples(work), batch_size=work.batch_size, num_workers=work.workers, drop_last=True,
                        multiprocessing_context="spawn", persistent_workers=True)  # fmt: skip
    return forever(loader)


def torch_dataset(work: Work) -> Iterator[Any]:
    """The same, passed to TensorFlow as users do: ``from_generator`` over ``tensor.numpy()``."""
    return from_batches(lambda: ((images.numpy(), labels.numpy()) for images, labels in torch_loader(work)), work)


def grain_loader(work: Work) -> Iterator[Any]:
    """Grain, worker processes by mp_prefetch, batches as NumPy arrays."""
    import grain
    from absl import flags

    flags.FLAGS(["benchmark"], known_only=True)
    samples = grain.MapDataset.source(work.source).map(work.transform).repeat().to_iter_dataset()
    options = grain.MultiprocessingOptions(num_workers=work.workers, per_worker_buffer_size=2)
    return iter(samples.batch(work.batch_size, drop_remainder=True).mp_prefetch(options))


def spdl_pipeline(work: Work) -> Iterator[Any]:
    """SPDL: threads in this process, no TensorFlow."""
    from spdl.pipeline import PipelineBuilder

    def stack(samples: list[Sample]) -> Any:
        return np.stack([image for image, _ in samples]), np.array([label for _, label in samples])

    pipeline = (
        PipelineBuilder()
        .add_source(itertools.cycle(range(len(work.source))))
        .pipe(work.sample, concurrency=work.workers, output_order="input")
        .aggregate(work.batch_size)
        .pipe(stack)
        .add_sink(2)
        .build(num_threads=work.workers)
    )
    pipeline.start()
    return iter(pipeline)


def keras_pydataset(work: Work) -> Iterator[Any]:
    """Keras PyDataset with worker processes, through the adapter that ``Model.fit`` uses, into tf.data."""
    from keras.src.trainers.data_adapters.py_dataset_adapter import PyDatasetAdapter
    from keras.utils import PyDataset

    class Batches(PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return len(work.source) // work.batch_size

        def __getitem__(self, index: int) -> Any:
            return work.batch(range(index * work.batch_size, (index + 1) * work.batch_size))

    made = Batches(workers=work.workers, use_multiprocessing=True, max_queue_size=2 * work.workers)
    adapter = PyDatasetAdapter(made, shuffle=False)
    adapter.on_epoch_begin()
    return forever(adapter.get_tf_dataset())


def huggingface(work: Work) -> Iterator[Any]:
    """Hugging Face Datasets, ``to_tf_dataset(num_workers=...)``, which converts all integers to int64."""
    import datasets
    import tensorflow as tf

    indices = datasets.Dataset.from_dict({"index": list(range(len(work.source)))})

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        images, labels = work.batch([int(row["index"]) for row in rows])
        return {"index": labels, "image": images, "label": labels}

    made = indices.to_tf_dataset(work.batch_size, columns=["index", "image", "label"], shuffle=False,
                                 collate_fn=collate, drop_remainder=True, num_workers=work.workers)  # fmt: skip
    return forever(made.map(lambda batch: (tf.cast(batch["image"], tf.uint8), batch["label"])))


def pool_imap(work: Work) -> Iterator[Any]:
    """multiprocessing.Pool.imap feeding ``from_generator``, batched by tf.data."""
    pool = multiprocessing.get_context("spawn").Pool(work.workers, _start_pool_worker, (work,))

    def samples() -> Iterator[Sample]:
        # imap takes its tasks as fast as it can, so it gets them in portions.
        for start in itertools.count(0, 1024):
            yield from pool.imap(_pool_sample, [index % len(work.source) for index in range(start, start + 1024)], 8)

    return from_samples(samples, work)


def from_generator(work: Work) -> Iterator[Any]:
    """Plain ``from_generator`` in this process, batched by tf.data."""
    return from_samples(lambda: map(work.sample, itertools.cycle(range(len(work.source)))), work)


def from_samples(samples: Callable[[], Iterable[Sample]], work: Work) -> Iterator[Any]:
    """Wraps a generator of samples, as TensorFlow's documentation shows."""
    import tensorflow as tf

    signature = tf.TensorSpec(work.shape, tf.uint8), tf.TensorSpec((), tf.int64)
    made = tf.data.Dataset.from_generator(samples, output_signature=signature)
    return iter(made.batch(work.batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE))


def from_batches(batches: Callable[[], Iterable[Any]], work: Work) -> Iterator[Any]:
    """Wraps a generator of whole batches."""
    import tensorflow as tf

    signature = tf.TensorSpec((None, *work.shape), tf.uint8), tf.TensorSpec((None,), tf.int64)
    return iter(tf.data.Dataset.from_generator(batches, output_signature=signature).prefetch(2))


def forever(batches: Iterable[Any]) -> Iterator[Any]:
    """Yields epoch after epoch."""
    while True:
        yield from batches


class Samples:
    """The work as a PyTorch map-style dataset."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def __len__(self) -> int:
        return len(self.work.source)

    def __getitem__(self, index: int) -> Sample:
        return self.work.sample(index)


_work: list[Work] = []


def _start_pool_worker(work: Work) -> None:
    _work.append(work)


def _pool_sample(index: int) -> Sample:
    return _work[0].sample(index)
