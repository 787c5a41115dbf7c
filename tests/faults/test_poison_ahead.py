"""A sample that kills its workers is in hand in one epoch only, so that three workers are lost to it and no more."""

from __future__ import annotations

from mploader import Loader
from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import CrashPolicy, InHand
from tests.faults import raising


def test_the_epoch_made_ahead_waits_while_a_sample_is_suspect() -> None:
    with Loader(range(20), raising.slow_poison, batch_size=5, num_workers=3, on_bad_sample="drop") as loader:
        for _ in range(2):
            assert [sample for batch in loader for sample in batch.tolist()] == [n for n in range(20) if n != 13]
        assert loader.statistics().restarts == 3


def test_a_sample_is_suspect_until_its_batch_is_made_or_cancelled() -> None:
    policy = CrashPolicy(2, per_epoch=False, skips=False, stalled=STALLED)
    at = InHand(task=4, epoch=0, offset=1, sample_index=9)
    assert not policy.is_trying(lambda task: True)
    policy.crashed(at, -11)
    assert policy.is_trying(lambda task: task == 4)
    assert not policy.is_trying(lambda task: False), "its batch is cancelled"
    policy.made(4)
    assert not policy.is_trying(lambda task: True)
    assert [policy.crashed(at, -11) is None for _ in range(3)] == [True, True, False]
    assert not policy.is_trying(lambda task: True), "it is condemned"


def test_samples_that_are_judged_for_each_epoch_hold_nothing_up() -> None:
    policy = CrashPolicy(2, per_epoch=True, skips=False, stalled=STALLED)
    policy.crashed(InHand(task=4, epoch=0, offset=1, sample_index=9), -11)
    assert not policy.is_trying(lambda task: True)
