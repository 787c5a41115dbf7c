"""A Keras callback that reports what the loader does: scalars, a line for each epoch, and steps in its timeline."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mploader._util import resources
from mploader.loader.core import CoreOwner, core_of
from mploader.monitoring.bottleneck import explain
from mploader.monitoring.statistics import Statistics

SCALARS: Mapping[str, Callable[[Statistics], float]] = {
    "loader/samples_per_s": lambda epoch: epoch.samples_per_s,
    "loader/waiting": lambda epoch: epoch.waiting,
    "loader/waited_s": lambda epoch: epoch.waited_s,
    "loader/computing_s": lambda epoch: epoch.computing_s,
    "loader/read_s": lambda epoch: sum(worker.read_s for worker in epoch.workers),
    "loader/transform_s": lambda epoch: sum(worker.transform_s for worker in epoch.workers),
    "loader/write_s": lambda epoch: sum(worker.write_s for worker in epoch.workers),
    "loader/batches_copied": lambda epoch: epoch.batches_copied,
    "loader/bad_samples": lambda epoch: epoch.bad_samples,
    "loader/restarts": lambda epoch: epoch.restarts,
}
"""The scalars of each epoch; the names are those of :class:`mploader.Statistics`."""


# What tf.summary.scalar writes; that function itself needs TensorBoard to be installed where training runs.
_SCALAR = tf.compat.v1.SummaryMetadata(plugin_data={"plugin_name": "scalars"})


class StatisticsCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Reports on a loader during ``model.fit``: a line and scalars for each epoch, and training steps in its timeline.

    Args:
        loader: the loader that training reads.
        log_dir: the folder of TensorBoard; scalars are written to its sub-folder ``loader``, one point for each epoch.
            None: no scalars.
        print_line: called with the line of each epoch. None: no lines.
    """

    def __init__(
        self,
        loader: CoreOwner,
        log_dir: str | os.PathLike[str] | None = None,
        print_line: Callable[[str], Any] | None = print,
    ) -> None:
        super().__init__()
        self._pool = core_of("StatisticsCallback", loader).pool
        self._print_line = print_line
        self._folder = None if log_dir is None else os.path.join(os.fspath(log_dir), "loader")
        self._writer: Any = None
        self._before = self._pool.statistics()
        self._step_ns = 0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Opens a file of scalars; each ``fit`` has one."""
        if self._folder is not None:
            self._writer = tf.summary.create_file_writer(self._folder)

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Takes a snapshot, so that the epoch has its own numbers."""
        self._before = self._pool.statistics()

    def on_train_batch_begin(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A training step begins."""
        self._step_ns = time.monotonic_ns()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """A training step has ended."""
        trace = self._pool.trace
        if trace is not None:
            trace.add_span(f"step {batch}", self._step_ns, time.monotonic_ns())

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Writes the scalars and prints the line."""
        passed = self._pool.statistics().since(self._before)
        if self._writer is not None:
            with self._writer.as_default():
                for name, value in SCALARS.items():
                    tf.summary.write(name, np.float32(value(passed)), step=epoch, metadata=_SCALAR)
            self._writer.flush()
        if self._print_line is not None:
            self._print_line(f"epoch {epoch + 1}: {describe(passed)}")

    def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
        """Closes the file of scalars."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def describe(statistics: Statistics) -> str:
    """Returns some of the statistics in one line."""
    diagnosis = explain(statistics, resources.usable_cpus())
    line = (
        f"{statistics.samples_per_s:,.0f} samples/s, training waited {diagnosis.waiting:.0%} of its time for data, "
        f"workers busy {diagnosis.busy:.0%}; bottleneck: {diagnosis.bottleneck.value}"
    )
    extras = [
        f"{count:,} {name}" for name, count in (("bad samples", statistics.bad_samples),
                                                ("workers replaced", statistics.restarts)) if count
    ]  # fmt: skip
    return "; ".join([line, *extras])
