"""Positions that count what training consumed, whatever TensorFlow has read ahead.

TensorFlow takes batches before they are trained on, so neither the loader nor ``tf.data`` knows how far training is.
Training has to count: a `Position` in a ``tf.train.Checkpoint``, or a `ResumeCallback` in ``model.fit``. Both
save the position together with the weights, so that the two cannot disagree: after a crash between two saves, weights
and position go back to the same step.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import tensorflow as tf

from mploader.loader.core import CoreOwner, core_of


class Position(tf.train.experimental.PythonState):  # type: ignore[misc]
    """The position of a loader as a part of a ``tf.train.Checkpoint``.

    ::

        position = mploader.tfdata.Position(loader)
        checkpoint = tf.train.Checkpoint(model=model, optimizer=optimizer, position=position)
        checkpoint.restore(manager.latest_checkpoint)  # continues where the saved model was
        for batch in position.count(loader.as_dataset()):
            train_step(batch)
            manager.save()

    Or call :meth:`advance` after each step. Make it before the dataset is read. One object counts one training run;
    with several replicas in this process, a step that takes a batch for each is ``advance(replicas)``.

    Args:
        loader: the loader whose batches are trained on.
    """

    def __init__(self, loader: CoreOwner) -> None:
        super().__init__()
        self._core = core_of("Position", loader)
        self._consumption = self._core.progress.consumption
        self._iterations = 0
        """How many were begun with :meth:`count`."""
        self._consumption.is_counted = True

    def advance(self, batches: int = 1) -> None:
        """Counts batches as consumed (elements, for a loader without a batch size).

        Raises:
            ArgumentError: TensorFlow has read fewer batches than that.
        """
        self._core.progress.consume(self._consumption.advance(batches))

    def count(self, batches: Iterable[Any]) -> Iterator[Any]:
        """Yields what a dataset of the loader yields, and counts each batch as consumed when it hands it out.

        An iteration that ends early (``break``, ``dataset.take(n)``) leaves the rest of its epoch out, as it does
        without a count; the next one counts from the epoch that it reads. Of an iterator, which may be read on, nothing
        is left out. A dataset that passes over batches (``skip``, ``filter``) cannot be counted.
        """
        iterator = iter(batches)
        is_new = iterator is not batches
        if is_new:
            self._consumption.give_up()
            self._iterations += 1
        number = self._iterations
        try:
            for batch in iterator:
                self.advance()
                yield batch
        finally:
            if is_new and number == self._iterations:
                self._consumption.give_up()

    def serialize(self) -> str:
        """The loader's state as JSON; called when a checkpoint is saved."""
        return json.dumps(self._core.state())

    def deserialize(self, string_value: str | bytes) -> None:
        """Lets the loader continue at a saved state; called when a checkpoint is restored.

        Raises:
            ArgumentError: the state is of other data or another order.
        """
        self._core.load(json.loads(string_value), strict=True)

    def __repr__(self) -> str:
        consumed = self._core.progress.consumed
        return f"<Position: epoch {consumed.epoch}, batch {consumed.batch}>"
