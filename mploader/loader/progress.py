"""What of a loader's stream was consumed: by the user's loop, or by training that TensorFlow reads ahead of."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mploader.engine.ipc.sample_report import BadSample
from mploader.errors import ArgumentError
from mploader.loader.bad_samples import BadSampleRecord
from mploader.loader.position import Position


class Progress:
    """Where a loader is in its stream. Used on any thread.

    Attributes:
        lock: held to change what follows. Reentrant, because a signal handler may call the loader at any moment.
        next: where the next epoch iterator starts.
        consumed: the position after the last consumed batch.
        consumption: what was consumed of epochs that TensorFlow reads.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.next = self.consumed = Position(0, 0)
        self.consumption = Consumption()
        self._bad = BadSampleRecord()

    def load(self, start: Position, bad_count: int, bad_indices: Sequence[int], bad_in_epoch: int) -> None:
        """Continues at a saved position; see :func:`mploader.loader.checkpoint.save`."""
        with self.lock:
            self.next = self.consumed = start
            self._bad.load(start, bad_count, bad_indices, bad_in_epoch)
            self.consumption.clear()

    def consume(self, position: Position) -> None:
        """Notes that all batches before a position were consumed. Takes no lock: called for every element."""
        self.consumed = position

    def record_bad(self, bad: Sequence[BadSample], position: Position) -> None:
        """Records the bad samples of a delivered batch; ``position`` is the one after the batch."""
        with self.lock:
            self._bad.add(bad, position)

    def bad_samples(self) -> list[BadSample]:
        """Returns the bad samples that are listed, oldest first."""
        with self.lock:
            return self._bad.samples()

    def bad_before(self, start: Position) -> int:
        """How many samples were bad in the epoch of a position before an epoch iterator that starts there."""
        with self.lock:
            return self._bad.before(start)

    def snapshot(self) -> tuple[Position, tuple[int, list[int], int]]:
        """Returns what was consumed, and what :meth:`BadSampleRecord.until` says of it."""
        with self.lock:
            return self.consumed, self._bad.until(self.consumed)


class Consumption:
    """Counts what training has consumed of epochs that TensorFlow reads ahead.

    Used by `mploader.tfdata`, on any thread. Epochs are consumed one after the other, in the order in which they were
    opened. An epoch that is given up half-way is passed over as soon as batches of a later one are counted. TensorFlow
    may have read it to its end by then, so the counter calls :meth:`give_up` where an iteration ends or another one
    begins. If nothing of an epoch was counted when the next one is opened, it was a look ahead (Keras takes one to
    build a model, and one at the end of each epoch): the next one then starts where it started.
    """

    def __init__(self) -> None:
        self._opened: deque[_Opened] = deque()
        self._lock = threading.RLock()  # a collected iterator may leave its epoch in the middle of a call
        self.is_counted = False
        """Whether training counts; otherwise it is unknown what of an opened epoch was consumed."""
        self._is_last = False

    @property
    def opened(self) -> bool:
        """Whether TensorFlow is reading an epoch, or was the last to read one."""
        with self._lock:
            return self._is_last or any(not opened.is_left for opened in self._opened)

    def open(self, reading: Reading) -> None:
        """TensorFlow starts to read an epoch."""
        with self._lock:
            self._is_last = True
            self._opened.append(_Opened(reading))

    def note_direct(self) -> None:
        """A batch was consumed without TensorFlow. Takes no lock: called for every batch, or element."""
        self._is_last = False

    def give_back(self) -> Position | None:
        """Before an epoch is opened: where it has to start because the one before was only looked at; else None.

        An epoch that was read to its end was not: a repeated dataset opens the next epoch while the last batches of
        this one wait for training.
        """
        with self._lock:
            last = self._opened[-1] if self._opened else None
            if not self.is_counted or last is None or last.consumed:
                return None
            if last.reading.delivered >= last.reading.num_batches and not last.is_given_up:
                return None
            self._opened.pop()
            return last.reading.position_after(0)

    def leave(self, reading: Reading) -> None:
        """TensorFlow reads no more of an epoch: it is at the end, or was given up."""
        with self._lock:
            for opened in self._opened:
                opened.is_left = opened.is_left or opened.reading is reading
            if not self.is_counted:  # or every epoch of a long training would be kept
                self._opened = deque(opened for opened in self._opened if not opened.is_left)

    def give_up(self) -> None:
        """Training does not want what is left of the epochs that are open now."""
        with self._lock:
            for opened in self._opened:
                opened.is_given_up = True

    def clear(self) -> None:
        """The loader continues somewhere else."""
        with self._lock:
            self._is_last = False
            self._opened.clear()

    def advance(self, batches: int, *, at_most: bool = False) -> Position:
        """Counts batches, or elements of a loader without a batch size.

        Args:
            batches: how many.
            at_most: count no more than there were to read, instead of raising.

        Returns:
            The position after them.

        Raises:
            ArgumentError: TensorFlow has read fewer batches than that.
        """
        with self._lock:
            while True:
                if not self._opened:
                    raise ArgumentError(f"advance({batches}): no dataset of this loader was read yet")
                current = self._opened[0]
                left = current.reading.countable - current.consumed
                is_cut = current.is_left and current.reading.delivered < current.reading.num_batches
                if len(self._opened) > 1 and (left == 0 or is_cut or current.is_given_up):
                    self._opened.popleft()
                    continue
                if at_most and len(self._opened) == 1:
                    batches = min(batches, left)
                if batches <= left:
                    current.consumed += batches
                    return current.reading.position_after(current.consumed)
                if len(self._opened) == 1:
                    raise ArgumentError(
                        f"advance({batches}) counts more batches than were read: {left} are left in epoch "
                        f"{current.reading.epoch}"
                    )
                batches -= left
                self._opened.popleft()


class Reading(Protocol):
    """What :class:`Consumption` asks of an epoch iterator."""

    @property
    def epoch(self) -> int:
        """The epoch that it reads."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches (or elements) from its start to the end of the epoch."""
        ...

    @property
    def countable(self) -> int:
        """As ``num_batches``, without those that were dropped; final once everything is delivered."""
        ...

    @property
    def delivered(self) -> int:
        """Batches (or elements) handed out so far."""
        ...

    def position_after(self, count: int) -> Position:
        """The position after the first ``count`` batches (or elements)."""
        ...


@dataclass
class _Opened:
    reading: Reading
    consumed: int = 0
    is_left: bool = False
    is_given_up: bool = False
