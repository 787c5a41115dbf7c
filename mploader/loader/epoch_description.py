"""What all epochs of a loader have in common, as its parts need to know it."""

from __future__ import annotations

from dataclasses import dataclass

from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.loader.bad_samples import MaxBad
from mploader.loader.position import Position
from mploader.sampling.plan import Plan


@dataclass(frozen=True, kw_only=True)
class EpochDescription:
    """What an epoch consists of, the same for every epoch of a loader.

    Attributes:
        plan: which samples make up which batch.
        batch_size: samples in a full batch of this host; None: elements come one by one.
        block_size: samples that the layout has room for: the largest batch, or without a batch size the elements that
            travel together.
        sizes_vary: batches of different buckets have different sizes.
        on_bad_sample: what becomes of bad samples.
        max_bad: how many an epoch may have.
    """

    plan: Plan
    batch_size: int | None
    block_size: int
    sizes_vary: bool
    on_bad_sample: OnBadSample
    max_bad: MaxBad

    @property
    def is_batched(self) -> bool:
        """Whether the loader yields batches; otherwise it yields elements one by one."""
        return self.batch_size is not None

    @property
    def num_batches(self) -> int:
        """Batches in an epoch of this host; elements, without a batch size."""
        return self.plan.num_batches if self.is_batched else self.plan.num_host_samples

    @property
    def full_batch(self) -> int | None:
        """The size of the batch dimension, if it is the same in every batch; otherwise None."""
        is_same = self.plan.drop_remainder and not self.on_bad_sample.drops and not self.sizes_vary
        return self.batch_size if is_same else None

    def num_tasks(self, start: Position) -> int:
        """Batches from a position to the end of its epoch; blocks of elements, without a batch size."""
        left = max(0, self.num_batches - start.batch)
        return left if self.is_batched else -(-left // self.block_size)

    def position(self, epoch: int, batch: int) -> Position:
        """Returns a position in an epoch, which at the end of the epoch is the start of the next one.

        The end is the same on every host. It is not ``num_batches``: without a batch size a host may have one element
        less than others.
        """
        return Position(epoch, batch) if batch < self.plan.num_batches else Position(epoch + 1, 0)
