"""Finds out why workers end: because of a sample, because nothing works at all, or by bad luck.

Used by the supervising thread alone. Without I/O and without a clock of its own, as ``schedule`` is.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mploader.messages import Condemn
from mploader.reports import describe_ending
from mploader.schedule import MAX_ATTEMPTS

MAX_EARLY_DEATHS = 3
"""How many workers in a row may end by themselves outside any sample, before a batch is made."""
MAX_EARLY_KILLS = 30
MAX_EARLY_KILLS_S = 60.0
"""The same for workers that were ended by a signal from outside, which may be bad luck: only if it lasts so long."""
MAX_CONDEMNED = 64
"""How many samples of an epoch may each kill three workers before the transform, and not the data, is to blame."""
EPOCHS_KEPT = 4
"""How long a sample stays condemned that is condemned for one epoch: runs over neighbouring epochs overlap."""

_EXTERNAL_SIGNALS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT}

NO_TASK = -1
DESCRIPTION = -2
"""In place of a task: a sample is being described."""


@dataclass(frozen=True)
class InHand:
    """What a worker was at when it ended or hung.

    Attributes:
        task: the task that it had taken up, ``DESCRIPTION``, or ``NO_TASK``.
        epoch: of that task.
        ordinal: the place in the batch of the sample in hand; negative outside any sample.
        sample: the number of that sample in the source; negative if it has none (an element of a generator).
    """

    task: int = NO_TASK
    epoch: int = 0
    ordinal: int = -1
    sample: int = -1


class Blame:
    """Counts how workers have ended.

    Args:
        num_workers: how many there are at a time.
        per_epoch: samples are condemned for one epoch, because the transform draws other random numbers in the
            next one; False: for all. So the decision is the same wherever a run begins.
    """

    def __init__(self, num_workers: int, per_epoch: bool) -> None:
        self._num_workers = num_workers
        self._per_epoch = per_epoch
        self._crashes: Counter[tuple[int, int]] = Counter()
        """How many workers each (epoch, sample) has killed so far."""
        self._suspects: dict[int, set[tuple[int, int]]] = {}
        """Which of these belong to a task that is not made yet."""
        self._condemned: dict[tuple[int, int], Condemn] = {}
        # Since the last batch was made:
        self._early_deaths = self._early_kills = 0
        self._first_kill_s = 0.0
        self._stalls: Counter[tuple[int, int]] = Counter()

    @property
    def condemned(self) -> list[Condemn]:
        """The samples that are to be treated as bad."""
        return list(self._condemned.values())

    def made(self, task: int) -> None:
        """A batch was made (or a sample described): what was in hand at deaths before was bad luck."""
        self._early_deaths = self._early_kills = 0
        self._stalls.clear()
        for key in self._suspects.pop(task, ()):
            if key not in self._condemned:
                del self._crashes[key]

    def crashed(self, at: InHand, status: int) -> Condemn | None:
        """A worker has ended with a sample in hand. Returns the sample's sentence if that was one worker too many."""
        if at.sample < 0:
            return None
        key = (at.epoch if self._per_epoch else -1, at.sample)
        self._crashes[key] += 1
        self._suspects.setdefault(at.task, set()).add(key)
        if key in self._condemned or self._crashes[key] < MAX_ATTEMPTS:
            return None
        self._condemned = {
            old: sentence for old, sentence in self._condemned.items() if old[0] < 0 or old[0] > at.epoch - EPOCHS_KEPT
        }
        sentence = self._condemned[key] = Condemn(at.sample, key[0], status)
        return sentence

    def is_trying(self, has_task: Callable[[int], bool]) -> bool:
        """Whether a sample that has killed workers is in a batch that is still to be made, and may kill more.

        Args:
            has_task: whether a task is still to be delivered.
        """
        # Samples that are judged for each epoch by itself are others in the next one.
        return not self._per_epoch and any(
            not keys <= self._condemned.keys() and has_task(task) for task, keys in self._suspects.items()
        )

    def too_many_condemned(self) -> bool:
        """Whether so many samples have killed their workers that the samples are not to blame."""
        latest = max((epoch for epoch, _ in self._condemned), default=-1)
        return sum(epoch == latest for epoch, _ in self._condemned) > MAX_CONDEMNED

    def ended_early(self, status: int, by_us: bool, now_s: float) -> str | None:
        """A worker has ended outside any sample. Returns what to say if that was one too many in a row.

        Args:
            status: as in :func:`mploader.reports.describe_ending`.
            by_us: it was killed because of what it did.
            now_s: the time on a clock that never goes back.
        """
        if status in _EXTERNAL_SIGNALS and not by_us:
            self._first_kill_s = self._first_kill_s if self._early_kills else now_s
            self._early_kills += 1
        else:
            self._early_deaths += 1
        too_long = self._early_kills >= MAX_EARLY_KILLS and now_s - self._first_kill_s > MAX_EARLY_KILLS_S
        if self._early_deaths < MAX_EARLY_DEATHS and not too_long:
            return None
        count = self._early_deaths + self._early_kills
        return f"{count} workers have ended in a row before a batch was made; the last {describe_ending(status)}"

    def stalled(self, at: InHand, worker: int) -> bool:
        """A worker has hung. Returns whether that is no longer the fault of one sample or one worker."""
        place = at.sample if at.task == DESCRIPTION else at.ordinal
        self._stalls[(at.task, place) if at.ordinal >= 0 else (NO_TASK, worker)] += 1
        outside = any(count > 1 for (task, _), count in self._stalls.items() if task == NO_TASK)
        described = sum(task == DESCRIPTION for task, _ in self._stalls)  # one worker describes, the others wait
        return outside or described >= 2 or len(self._stalls) >= max(2, self._num_workers)
