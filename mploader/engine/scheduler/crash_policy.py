"""Finds out why workers end: because of a sample, because nothing works at all, or by bad luck.

Used by the supervising thread alone. Without I/O and without a clock of its own, as ``schedule`` is.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from mploader.engine.ipc.messages import Condemn
from mploader.engine.ipc.sample_report import STALLED, describe_ending
from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS

MAX_EARLY_DEATHS = 3
"""How many workers in a row may end by themselves outside any sample, before a batch is made."""
MAX_EARLY_KILLS = 30
MAX_EARLY_KILLS_S = 60.0
"""The same for workers that were ended by a signal from outside, which may be bad luck: only if it lasts so long."""
MAX_START_KILLS = 10
MAX_START_KILLS_S = 10.0
"""The same before any worker was ever ready. Sooner, because a worker that the kernel ends at each import for lack of
memory looks just so; not at once, because a burst of kills from outside must cost nothing there either."""
MAX_CONDEMNED = 64
"""How many samples of an epoch may each kill three workers before the transform, and not the data, is to blame."""
MAX_HANGS_IN_A_ROW = 3
"""How many samples that stand side by side in an epoch may hang before it is hardly the samples. It depends on the
data alone, unlike whether all workers hang at once: that needs the fewer samples, the fewer workers there are."""
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
        place: the place in the epoch of the sample in hand; negative where there is none.
        depends_on_epoch: what it was doing with that sample may go otherwise in another epoch.
    """

    task: int = NO_TASK
    epoch: int = 0
    ordinal: int = -1
    sample: int = -1
    place: int = -1
    depends_on_epoch: bool = True


class CrashPolicy:
    """Counts how workers have ended.

    Args:
        num_workers: how many there are at a time.
        per_epoch: a sample that ends its workers where an epoch may differ from the next is condemned for that epoch:
            in a transform that takes random numbers, or in a source that changes. It may cost three workers in each.
            A sentence that reached into later epochs would depend on where a run began, and on what was made ahead.
            False: for all epochs, as in any case a sample is that ends them while a source that stays is read.
        skips: bad samples are dropped or replaced, so what is condemned decides about the stream. It is then up to the
            samples alone; otherwise the first hang of all workers ends the run, as each of these samples would.
    """

    def __init__(self, num_workers: int, per_epoch: bool, skips: bool = False) -> None:
        self._num_workers = num_workers
        self._per_epoch = per_epoch
        self._skips = skips
        self._crashes: Counter[tuple[int, int]] = Counter()
        """How many workers each (epoch, sample) has killed so far."""
        self._suspects: dict[int, set[tuple[int, int]]] = {}
        """Which of these belong to a task that is not made yet."""
        self._condemned: dict[tuple[int, int], Condemn] = {}
        self._hangs: Counter[tuple[int, int]] = Counter()
        """How many samples were condemned because they hang, by (epoch, place)."""
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
        key = (at.epoch if self._per_epoch and at.depends_on_epoch else -1, at.sample)
        self._crashes[key] += 1
        self._suspects.setdefault(at.task, set()).add(key)
        if key in self._condemned or self._crashes[key] < MAX_ATTEMPTS:
            return None
        self._forget_before(at.epoch - EPOCHS_KEPT + 1)
        self._stalls.pop(_place_of(at), None)  # what hangs next is another sample
        if status == STALLED and at.place >= 0:
            self._hangs[at.epoch, at.place] += 1
        sentence = self._condemned[key] = Condemn(at.sample, key[0], status)
        return sentence

    def _forget_before(self, epoch: int) -> None:
        self._condemned = {
            key: sentence for key, sentence in self._condemned.items() if key[0] < 0 or key[0] >= epoch
        }
        self._hangs = Counter({key: count for key, count in self._hangs.items() if key[0] >= epoch})

    def too_many_hang(self, at: InHand) -> bool:
        """Whether so many samples in a row have hung, up to a condemned one, that the samples are not to blame."""
        count = self._hangs[at.epoch, at.place]
        for direction in (-1, 1):
            place = at.place + direction
            while self._hangs[at.epoch, place]:
                count += self._hangs[at.epoch, place]
                place += direction
        return count >= MAX_HANGS_IN_A_ROW

    def is_trying(self, has_task: Callable[[int], bool]) -> bool:
        """Whether a sample that has killed workers is in a batch that is still to be made, and may kill more.

        Args:
            has_task: whether a task is still to be delivered.
        """
        # A sample that is judged for each epoch by itself is another one in the next epoch.
        return any(
            has_task(task) and any(key[0] < 0 and key not in self._condemned for key in keys)
            for task, keys in self._suspects.items()
        )

    def too_many_condemned(self) -> bool:
        """Whether so many samples have killed their workers that the samples are not to blame."""
        latest = max((epoch for epoch, _ in self._condemned), default=-1)
        return sum(epoch == latest for epoch, _ in self._condemned) > MAX_CONDEMNED

    def ended_early(self, status: int, by_us: bool, now_s: float, was_ready: bool = True) -> str | None:
        """A worker has ended outside any sample. Returns what to say if that was one too many in a row.

        Args:
            status: as in :func:`mploader.engine.ipc.sample_report.describe_ending`.
            by_us: it was killed because of what it did.
            now_s: the time on a clock that never goes back.
            was_ready: some worker of the pool was ready once.
        """
        if status in _EXTERNAL_SIGNALS and not by_us:
            self._first_kill_s = self._first_kill_s if self._early_kills else now_s
            self._early_kills += 1
        else:
            self._early_deaths += 1
        kills, kills_s = (MAX_EARLY_KILLS, MAX_EARLY_KILLS_S) if was_ready else (MAX_START_KILLS, MAX_START_KILLS_S)
        too_long = self._early_kills >= kills and now_s - self._first_kill_s > kills_s
        if self._early_deaths < MAX_EARLY_DEATHS and not too_long:
            return None
        count = self._early_deaths + self._early_kills
        return f"{count} workers have ended in a row before a batch was made; the last {describe_ending(status)}"

    def stalled(self, at: InHand, worker: int) -> bool:
        """A worker has hung. Returns whether that is no longer the fault of one sample or one worker."""
        self._stalls[_place_of(at) if at.ordinal >= 0 else (NO_TASK, worker)] += 1
        outside = [count for (task, _), count in self._stalls.items() if task == NO_TASK]
        described = sum(task == DESCRIPTION for task, _ in self._stalls)  # one worker describes, the others wait
        hanging = len(outside) if self._skips else len(self._stalls)
        return max(outside, default=0) > 1 or described >= 2 or hanging >= max(2, self._num_workers)


def _place_of(at: InHand) -> tuple[int, int]:
    """Which sample of which task it is; a replacement stands in the place of the one that it replaces."""
    return at.task, at.sample if at.task == DESCRIPTION else at.ordinal
