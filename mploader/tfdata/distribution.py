"""Datasets of loaders under ``tf.distribute``: every host reads its own share, and TensorFlow divides nothing.

Any dataset of a loader turns automatic sharding off, as the shares come from ``shard=``. Three ways to use one:

* `distribute` (or ``strategy.distribute_datasets_from_function`` with a loader of your own): each replica gets a batch
  of the loader in each step, so ``batch_size`` is that of a replica.
* ``strategy.experimental_distribute_dataset``, which ``model.fit`` calls: TensorFlow cuts each batch into as many
  pieces as there are replicas on all hosts, so ``batch_size`` is that of all of them together. With several hosts each
  one cuts its own batch so, and a batch lasts as many steps as there are hosts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from mploader.loader.core import CoreOwner
from mploader.tfdata.dataset import as_dataset


class HostShard(tuple[int, int]):
    """What a loader on one host has to know: the pair (index, count) for ``shard=``, and the number of replicas."""

    num_replicas_in_sync: int
    """Replicas on all hosts."""

    @classmethod
    def of(cls, context: tf.distribute.InputContext) -> HostShard:
        """Returns the host shard of TensorFlow's context."""
        shard = cls((context.input_pipeline_id, context.num_input_pipelines))
        shard.num_replicas_in_sync = context.num_replicas_in_sync
        return shard

    def get_per_replica_batch_size(self, global_batch_size: int) -> int:
        """The batch size of a replica, as ``tf.distribute.InputContext`` works it out.

        Raises:
            ValueError: the global batch cannot be divided evenly.
        """
        if global_batch_size % self.num_replicas_in_sync:
            raise ValueError(
                f"a global batch of {global_batch_size} samples cannot be divided over {self.num_replicas_in_sync} "
                "replicas evenly"
            )
        return global_batch_size // self.num_replicas_in_sync


def distribute(loader_fn: Callable[[HostShard], CoreOwner], strategy: Any) -> Any:
    """Distributes loaders: ``distribute(lambda shard: Loader(source, batch_size=32, shard=shard), strategy)``.

    A step takes one batch for each replica: replica r of R on this host gets batch ``step * R + r`` of its loader.

    Args:
        loader_fn: makes the loader of this host; called once, with a :class:`HostShard`. ``batch_size`` is that of one
            replica: ``shard.get_per_replica_batch_size(256)``.
        strategy: a ``tf.distribute.Strategy``.

    Returns:
        A ``tf.distribute.DistributedDataset``. Each iteration is the next epoch.
    """

    def make(context: tf.distribute.InputContext) -> tf.data.Dataset:
        return as_dataset(loader_fn(HostShard.of(context)))

    return strategy.distribute_datasets_from_function(make)
