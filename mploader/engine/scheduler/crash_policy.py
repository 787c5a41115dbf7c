"""Decides why workers end: because of a sample, because nothing works at all, or by bad luck.

Used by the supervisor thread alone. Without I/O and without a clock of its own, as the scheduler is.
"""

from __future__ import annotations

import enum
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

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
"""How long a sample stays condemned that is condemned for one epoch: iterators over neighbouring epochs overlap."""

_EXTERNAL_SIGNALS = {-signal.SIGKILL, -signal.SIGTERM, -signal.SIGHUP, -signal.SIGINT}


class Probing(enum.Enum):
    """In place of a task."""

    SAMPLE = enum.auto()
    """A sample is being probed."""


TaskInHand = int | Probing | None


@dataclass(frozen=True, kw_only=True)
class InHand:
    """What a worker was doing when it ended or hung.

    Attributes:
        task: the task that it had begun; None for none.
        epoch: of that task.
        offset: the sample in hand, by its offset in the batch, or the element of the generator; None outside any.
        sample_index: the number of that sample in the source; None for an element of a generator.
        place: the number of that sample in the order of the epoch; None where there is none.
        depends_on_epoch: the work on that sample may go otherwise in another epoch.
    """

    task: TaskInHand = None
    epoch: int = 0
    offset: int | None = None
    sample_index: int | None = None
    place: int | None = None
    depends_on_epoch: bool = True

    @property
    def key(self) -> tuple[TaskInHand, int | None]:
        """Which sample of which task it is; a replacement stands in the place of the one that it replaces."""
        return self.task, self.sample_index if self.task is Probing.SAMPLE else self.offset


@dataclass(frozen=True)
class Sentence:
    """A sample is to be treated as bad from now on.

    Attributes:
        sample_index: its number in the source.
        epoch: the epoch in which that holds; None: in all.
        status: how the last worker ended that it killed.
    """

    sample_index: int
    epoch: int | None
    status: int


class CrashPolicy:
    """Counts how workers have ended.

    Args:
        num_workers: how many there are at a time.
        per_epoch: a sample that ends its workers where an epoch may differ from the next is condemned for that epoch:
            in a transform that takes random numbers, or in a source that changes. It may cost three workers in each.
            A sentence that reached into later epochs would depend on where an iterator began, and on what was made
            ahead. False: for all epochs. In any case a sample is condemned for all epochs that ends its workers while a
            source that stays is read.
        skips: bad samples are dropped or replaced, so what is condemned decides about the stream. It then depends on
            the samples alone; otherwise the first hang of all workers ends the iteration, as each of these samples
            would.
        stalled: the status of a worker that was killed because it made no progress.

    Attributes:
        num_workers: see above; may grow.
    """

    def __init__(self, num_workers: int, per_epoch: bool, skips: bool, stalled: int) -> None:
        self.num_workers = num_workers
        self._per_epoch = per_epoch
        self._skips = skips
        self._stalled = stalled
        self._crashes: Counter[tuple[int | None, int]] = Counter()
        """How many workers each (epoch, sample) has killed so far."""
        self._suspects: dict[TaskInHand, set[tuple[int | None, int]]] = {}
        """Which of these belong to a task that is not made yet."""
        self._condemned: dict[tuple[int | None, int], Sentence] = {}
        self._hangs: Counter[tuple[int, int]] = Counter()
        """How many samples were condemned because they hang, by (epoch, place)."""
        # Since the last batch was made:
        self._early_deaths = self._early_kills = 0
        self._first_kill_s = 0.0
        self._stalls: Counter[tuple[TaskInHand, int | None]] = Counter()

    @property
    def condemned(self) -> list[Sentence]:
        """The samples that are to be treated as bad."""
        return list(self._condemned.values())

    def made(self, task: TaskInHand) -> None:
        """A batch was made (or a sample probed): what was in hand at deaths before was bad luck."""
        self._early_deaths = self._early_kills = 0
        self._stalls.clear()
        for key in self._suspects.pop(task, ()):
            if key not in self._condemned:
                del self._crashes[key]

    def crashed(self, at: InHand, status: int) -> Sentence | None:
        """A worker has ended with a sample in hand. Returns the sample's sentence if that was one worker too many."""
        if at.sample_index is None:
            return None
        key = (at.epoch if self._per_epoch and at.depends_on_epoch else None, at.sample_index)
        self._crashes[key] += 1
        self._suspects.setdefault(at.task, set()).add(key)
        if key in self._condemned or self._crashes[key] < MAX_ATTEMPTS:
            return None
        self._forget_before(at.epoch - EPOCHS_KEPT + 1)
        self._stalls.pop(at.key, None)  # what hangs next is another sample
        if status == self._stalled and at.place is not None:
            self._hangs[at.epoch, at.place] += 1
        sentence = self._condemned[key] = Sentence(at.sample_index, key[0], status)
        return sentence

    def _forget_before(self, epoch: int) -> None:
        self._condemned = {
            key: sentence for key, sentence in self._condemned.items() if key[0] is None or key[0] >= epoch
        }
        self._hangs = Counter({key: count for key, count in self._hangs.items() if key[0] >= epoch})

    def too_many_hang(self, at: InHand) -> bool:
        """Whether so many samples in a row have hung, up to a condemned one, that the samples are not to blame."""
        if at.place is None:
            return False
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
            isinstance(task, int) and has_task(task)
            and any(key[0] is None and key not in self._condemned for key in keys)
            for task, keys in self._suspects.items()
        )  # fmt: skip

    def too_many_condemned(self) -> bool:
        """Whether so many samples have killed their workers that the samples are not to blame."""
        counts = Counter(epoch for epoch, _ in self._condemned)
        epochs = [epoch for epoch in counts if epoch is not None]
        return counts[max(epochs) if epochs else None] > MAX_CONDEMNED

    def ended_early(self, status: int, by_us: bool, now_s: float, was_ready: bool = True) -> int | None:
        """A worker has ended outside any sample.

        Args:
            status: its exit code, or minus the number of the signal that ended it.
            by_us: it was killed because of what it did.
            now_s: the time on a clock that never goes back, in seconds.
            was_ready: some worker of the pool was ready once.

        Returns:
            How many have ended in a row, if that is one too many; otherwise None.
        """
        if status in _EXTERNAL_SIGNALS and not by_us:
            self._first_kill_s = self._first_kill_s if self._early_kills else now_s
            self._early_kills += 1
        else:
            self._early_deaths += 1
        kills, kills_s = (MAX_EARLY_KILLS, MAX_EARLY_KILLS_S) if was_ready else (MAX_START_KILLS, MAX_START_KILLS_S)
        lasts_too_long = self._early_kills >= kills and now_s - self._first_kill_s > kills_s
        if self._early_deaths < MAX_EARLY_DEATHS and not lasts_too_long:
            return None
        return self._early_deaths + self._early_kills

    def stalled(self, at: InHand, worker: int) -> bool:
        """A worker has hung. Returns whether that is no longer the fault of one sample or one worker."""
        self._stalls[at.key if at.offset is not None else (None, worker)] += 1
        outside = [count for (task, _), count in self._stalls.items() if task is None]
        probed = sum(task is Probing.SAMPLE for task, _ in self._stalls)  # one worker probes, the others wait
        hanging = len(outside) if self._skips else len(self._stalls)
        return max(outside, default=0) > 1 or probed >= 2 or hanging >= max(2, self.num_workers)
