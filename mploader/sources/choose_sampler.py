"""The order of a source's samples: its own, or the one that ``shuffle=`` asks for."""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader.errors import ArgumentError
from mploader.sampling.samplers import Sampler, SequentialSampler, ShardShuffle, ShardWindowSampler, ShuffledSampler
from mploader.sources.protocols import Ordered, shard_sizes_of


def sampler_for(source: Any, num_samples: int, seed: int, shuffle: bool | ShardShuffle) -> Sampler:
    """Returns the sampler that ``shuffle`` asks for.

    Args:
        source: its ``epoch_sampler(seed, shuffle) -> Sampler``, if it has one, decides; :class:`ShardShuffle` needs its
            ``shard_sizes``.
        num_samples: samples of the source in an epoch.
        seed: from 0.
        shuffle: as :class:`mploader.Loader` takes it.

    Raises:
        ArgumentError: ``shuffle`` is invalid, or the source has no shards to shuffle.
    """
    if not isinstance(shuffle, (bool, np.bool_, ShardShuffle)):
        raise ArgumentError(f"shuffle={shuffle!r}: expected True, False or a mploader.ShardShuffle")
    if isinstance(source, Ordered):
        return source.epoch_sampler(seed, shuffle)
    if isinstance(shuffle, ShardShuffle):
        sizes = shard_sizes_of(source)
        if sizes is None:
            raise ArgumentError(
                f"shuffle={shuffle!r}: expected a source with shard_sizes, such as TFRecordShards or TarShards, got a "
                f"{type(source).__name__}. Use shuffle=True, which shuffles any source"
            )
        if int(sizes.sum()) != num_samples:
            raise ArgumentError(f"shard_sizes: expected a sum of {num_samples} samples, got {sizes.sum()}")
        return ShardWindowSampler(sizes, shuffle.window, seed)
    return ShuffledSampler(num_samples, seed) if shuffle else SequentialSampler(num_samples, seed)
