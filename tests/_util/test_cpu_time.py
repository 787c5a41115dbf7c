"""The processor time of a process."""

from __future__ import annotations

import os
from typing import Any

import pytest

from mploader._util.cpu_time import CpuClock


def test_the_totals_grow_with_what_is_calculated() -> None:
    clock = CpuClock()
    first = clock.read()
    while (last := clock.read()).used_ns == first.used_ns:
        sum(range(1000))
    assert last.used_ns > first.used_ns > 0
    assert last.queued_ns >= first.queued_ns >= 0


def test_a_kernel_that_does_not_report_queues(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise FileNotFoundError

    monkeypatch.setattr(os, "open", refuse)
    times = CpuClock().read()
    assert times.used_ns > 0
    assert times.queued_ns == 0
