"""The record of a batch, from its result to its consumer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mploader._util.shared_memory import Array
from mploader.engine.ipc.sample_report import SampleReport
from mploader.errors import LoaderError


@dataclass(kw_only=True, slots=True)
class ReadyBatch:
    """What became of a task. The scheduler keeps it with the task until a consumer takes the batch.

    Not frozen, as one is made for each batch and completed when it is handed over: whoever holds it last owns it.

    Attributes:
        samples: samples in the batch.
        size: bytes in use, of the slot or of ``overflow``.
        reports: the bad samples that were dropped or replaced.
        input: number of the generator's input; None for a batch of a plan.
        is_last: it is the last of its generator; always False for a batch of a plan.
        overflow: the batch itself, where it is not in the slot.
        error: why there is no batch.
        batch: the structure of arrays, once a consumer has it.
        got_ns: when the consumer got it, on the monotonic clock.
    """

    samples: int = 0
    size: int = 0
    reports: Sequence[SampleReport] = ()
    input: int | None = None
    is_last: bool = False
    overflow: Array | None = None
    error: LoaderError | None = None
    batch: Any = None
    got_ns: int = 0
