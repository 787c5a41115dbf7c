"""The position of a consumer in the stream of a loader."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class Position:
    """Where the next batch of a host comes from.

    Attributes:
        epoch: from 0.
        batch: batches of this host consumed in that epoch; elements, for a loader without a batch size.
    """

    epoch: int
    batch: int
