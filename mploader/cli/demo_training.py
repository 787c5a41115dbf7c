"""Training for the demo: a small classifier, and an epoch of training that is measured. Imports TensorFlow."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import psutil
import tensorflow as tf

from mploader.cli.console import Advance
from mploader.cli.demo_samples import Augment, plain_elements
from mploader.loader.loader import Loader
from mploader.sampling.plan import Plan
from mploader.sources import Source


@dataclass(frozen=True)
class LoaderUse:
    """What one epoch took of a loader.

    Attributes:
        workers_cpu_s: CPU seconds of the worker processes; they may have worked for the next epoch, too.
        most_borrowed: the most slots that the consumer borrowed at once.
        slots: number of slots.
        batches: number of batches delivered.
        batches_copied: number of them that were copied out of their slots.
        restarts: number of workers that were replaced.
    """

    workers_cpu_s: float
    most_borrowed: int
    slots: int
    batches: int
    batches_copied: int
    restarts: int


@dataclass(frozen=True)
class EpochReport:
    """What one epoch of training cost.

    Attributes:
        images: pictures trained on.
        seconds: from asking for the first batch to the end of the last step.
        waited_s: the part of these seconds in which training waited for a batch.
        accuracy: share of the pictures that were classified correctly, each before the step that learnt from it.
        trainer_cpu_s: CPU seconds of this process, training included.
        use: what it took of the loader; None without a loader.
    """

    images: int
    seconds: float
    waited_s: float
    accuracy: float
    trainer_cpu_s: float
    use: LoaderUse | None

    @property
    def images_per_s(self) -> float:
        """Pictures a second."""
        return self.images / self.seconds


def classifier(size: int, classes: int, batch_size: int) -> keras.Model:
    """A network that learns within seconds on a CPU, so that feeding it is the harder part.

    It is returned after two steps with black pictures, because the first step compiles the network, which belongs to no
    epoch. The second step, with another batch size, compiles it for all sizes: a plain pipeline may end with a short
    batch.
    """

    def convolution(x: Any, filters: int, side: int, stride: int) -> Any:
        x = keras.layers.Conv2D(filters, side, strides=stride, padding="same", use_bias=False)(x)
        return keras.layers.ReLU()(keras.layers.BatchNormalization(momentum=0.9)(x))

    pictures = keras.Input((size, size, 3), dtype="uint8")
    x = keras.layers.Rescaling(1 / 127.5, -1)(pictures)
    for filters, side, stride in ((16, 8, 8), (32, 3, 2), (64, 3, 2)):
        x = convolution(x, filters, side, stride)
    # The largest value shows that an object is there, even if it covers a small part of the picture.
    x = keras.layers.Concatenate()([keras.layers.GlobalAveragePooling2D()(x), keras.layers.GlobalMaxPooling2D()(x)])
    model = keras.Model(pictures, keras.layers.Dense(classes)(x))
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # As an object: for a single class, Keras takes the name "accuracy" for binary accuracy.
    accuracy = keras.metrics.SparseCategoricalAccuracy("accuracy")
    model.compile(keras.optimizers.Adam(3e-3), loss, metrics=[accuracy])
    for count in (batch_size, batch_size + 1):
        model.train_on_batch(np.zeros((count, size, size, 3), np.uint8), np.zeros(count, np.int64))
    return model


def plain_dataset(source: Source, plan: Plan, epoch: int, steps: int, augment: Augment) -> tf.data.Dataset:
    """The first batches of an epoch from a plain pipeline: a Python generator in this process, and Pillow."""
    order = plan.batches(epoch, 0, steps).tolist()
    signature = (tf.TensorSpec((augment.size, augment.size, 3), tf.uint8), tf.TensorSpec((), tf.int64))
    elements = tf.data.Dataset.from_generator(
        lambda: plain_elements(source, order, augment, plan.seed), output_signature=signature
    )
    return elements.batch(plan.batch_size).prefetch(2)


def train_epoch(
    model: keras.Model, dataset: tf.data.Dataset, steps: int, advance: Advance, loader: Loader | None = None
) -> EpochReport:
    """Trains on the first ``steps`` batches of a dataset, one step after the other, and measures it.

    Raises:
        LoaderError: the loader has failed.
    """
    meter = None if loader is None else _Meter(loader)
    images, waited_s, correct = 0, 0.0, 0.0
    started_s, trainer_cpu_s = time.perf_counter(), time.process_time()
    batches = iter(dataset)
    for step in range(steps):
        asked_s = time.perf_counter()
        batch = _next(batches, loader)
        waited_s += time.perf_counter() - asked_s
        if batch is None:
            break
        model.reset_metrics()
        results = model.train_on_batch(*batch, return_dict=True)
        images += len(batch[1])
        correct += float(results["accuracy"]) * len(batch[1])
        if meter is not None:
            meter.look()
        rate = images / (time.perf_counter() - started_s)
        advance(step + 1, f"{rate:,.0f} images/s, accuracy {correct / images:.0%}")
    return EpochReport(
        images=images,
        seconds=time.perf_counter() - started_s,
        waited_s=waited_s,
        accuracy=correct / max(1, images),
        trainer_cpu_s=time.process_time() - trainer_cpu_s,
        use=None if meter is None else meter.use(),
    )


def _next(batches: Any, loader: Loader | None) -> Any:
    try:
        return next(batches, None)
    except tf.errors.OpError:
        if loader is not None:
            # TensorFlow holds the loader's error as text, among its own frames. The loader raises the error itself.
            iter(loader)
        raise


class _Meter:
    """Measures the workers and slots of a loader over one epoch."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader
        self._most_borrowed = 0
        self._before = loader.statistics()
        self._cpu_before = _cpu_seconds(loader.worker_pids)

    def look(self) -> None:
        """Notes how many slots are borrowed now."""
        self._most_borrowed = max(self._most_borrowed, self._loader.statistics().slots_borrowed)

    def use(self) -> LoaderUse:
        """Returns what the epoch took so far."""
        now = self._loader.statistics()
        cpu_now = _cpu_seconds(self._loader.worker_pids)
        return LoaderUse(
            # The CPU time of a worker that was replaced is lost; its replacement begins at zero.
            workers_cpu_s=sum(seconds - self._cpu_before.get(pid, 0.0) for pid, seconds in cpu_now.items()),
            most_borrowed=self._most_borrowed,
            slots=now.slots,
            batches=now.batches - self._before.batches,
            batches_copied=now.batches_copied - self._before.batches_copied,
            restarts=now.restarts - self._before.restarts,
        )


def _cpu_seconds(pids: Sequence[int]) -> dict[int, float]:
    """CPU seconds of each process that still exists."""
    seconds = {}
    for pid in pids:
        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.NoSuchProcess:
            continue
        seconds[pid] = times.user + times.system
    return seconds
