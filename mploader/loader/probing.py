"""What elements look like, learned from a few of them before the first batch is made."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from mploader._util.trees import component_names
from mploader.batching.choose_layout import make_layout, make_whole_layout, varying_bytes
from mploader.batching.layout import BatchLayout
from mploader.engine.ipc.job import ProbeResult
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.engine.scheduler.crash_policy import MAX_HANGS_IN_A_ROW
from mploader.errors import LoaderError, SampleError, SpecError, StallError

SAMPLES_TO_PROBE = 8
"""How many samples are tried before a loader gives up finding a good one. As many, spread over the source, tell how
much the size of elements varies."""


class ProbedElement:
    """One element as workers make it of some samples.

    Args:
        probe: lets a worker make the element of one sample; raises LoaderError.
        num_samples: of the source.
        policy: what becomes of bad samples; with "drop" and "replace" a good one is looked for.
        is_whole: whether the samples of the source are batches.

    Raises:
        SampleError: none of the samples that were tried is good.
        StallError: workers hang at their start or on these samples.
        LoaderError: the pool has failed or is closed.
    """

    def __init__(
        self, probe: Callable[[int], ProbeResult], num_samples: int, policy: OnBadSample, is_whole: bool
    ) -> None:
        self._pool_probe = probe
        self._last = num_samples - 1
        self._policy = policy
        self._is_whole = is_whole
        self._probed: dict[int, ProbeResult] = {}
        self._first = self._first_good()
        self.component_bytes = self._first.component_bytes

    def layout(self, pad: Any, ragged: Any, batch_size: int | None) -> BatchLayout:
        """Decides how a batch lies in a slot; see :func:`mploader.batching.choose_layout.make_layout`.

        Raises:
            ArgumentError: ``pad`` or ``ragged`` do not fit the element.
        """
        return make_layout(self._first.structure, self.component_bytes, pad, ragged, batch_size)

    def whole_layout(self) -> BatchLayout:
        """The same for a source whose samples are batches.

        Raises:
            SpecError: the batches differ in more than sizes.
        """
        return make_whole_layout([description.structure for description in self._spread().values()])

    def varying_bytes(self, layout: BatchLayout, samples_with: Callable[[int], int]) -> int:
        """Estimates what varies of a batch, in bytes: of the largest, if each sample that was probed filled a batch.

        Args:
            layout: how a batch lies in a slot.
            samples_with: how many samples a batch has that a sample is in.
        """
        names = component_names(self._first.structure)
        return max(
            samples_with(index) * varying_bytes(layout, other.component_bytes)
            for index, other in self._spread().items() if component_names(other.structure) == names
        )  # fmt: skip

    def _first_good(self) -> ProbeResult:
        first: LoaderError | None = None
        hung = 0
        for index in sorted({*self._indices(), *range(min(self._last + 1, SAMPLES_TO_PROBE))}):
            try:
                return self._probe(index)
            except SampleError as error:
                first, hung = first or error, 0
            except StallError as error:
                first, hung = first or error, hung + 1
                # A hang that ended all workers comes again each time.
                if self._policy.raises or hung == MAX_HANGS_IN_A_ROW:
                    raise
        assert first is not None
        if self._policy.raises:
            raise first
        raise _none_is_good(first, self._policy)

    def _indices(self) -> list[int]:
        if self._is_whole:
            return [0, min(1, self._last), self._last]  # two as Keras does, and the last, which tends to be shorter
        return [round(self._last * part / SAMPLES_TO_PROBE) for part in range(SAMPLES_TO_PROBE)]

    def _probe(self, index: int) -> ProbeResult:
        if index not in self._probed:
            self._probed[index] = self._pool_probe(index)
        return self._probed[index]

    def _spread(self) -> dict[int, ProbeResult]:
        """Probes samples here and there, those that are good; the others are reported when their batch is made."""
        bad = (SampleError, SpecError) if self._policy.raises else (SampleError, SpecError, StallError)
        for index in self._indices():
            with suppress(*bad):
                self._probe(index)
        return dict(sorted(self._probed.items()))


def _none_is_good(first: LoaderError, policy: OnBadSample) -> SampleError:
    return SampleError(
        f"none of the samples that were tried could be made into an element, and on_bad_sample={policy.value!r} needs "
        f"a good one to learn shapes and dtypes from (or pass element_spec=). The first of them:\n\n{first}",
        index=first.index, file=first.file, byte=first.byte, kind=first.kind, reason=first.reason,
        traceback=first.traceback, worker=first.worker,
    )  # fmt: skip
