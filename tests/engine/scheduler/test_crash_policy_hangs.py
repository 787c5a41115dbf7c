"""What is to blame for hanging workers, for samples that end them while they are read, and for kills at the start."""

from __future__ import annotations

import signal

import pytest

from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import (
    MAX_HANGS_IN_A_ROW,
    MAX_START_KILLS,
    MAX_START_KILLS_S,
    CrashPolicy,
    InHand,
    Probing,
    Sentence,
)

BATCH = 8


def policy(num_workers: int, per_epoch: bool, skips: bool = False) -> CrashPolicy:
    return CrashPolicy(num_workers, per_epoch, skips, STALLED)


def at(sample: int, epoch: int = 0) -> InHand:
    """Sample ``sample`` of an epoch in order."""
    return InHand(task=sample // BATCH, epoch=epoch, offset=sample % BATCH, sample_index=sample, place=sample)


def hang(tested: CrashPolicy, sample: int, worker: int = 0) -> bool:
    """A worker hangs on a sample and is killed. Returns whether the whole iteration is over."""
    is_general = tested.stalled(at(sample), worker)
    sentence = tested.crashed(at(sample), STALLED)
    return is_general or (sentence is not None and tested.too_many_hang(at(sample)))


def condemned(tested: CrashPolicy) -> list[int]:
    return sorted(sentence.sample_index for sentence in tested.condemned)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_two_samples_of_one_batch_that_hang_are_condemned_one_after_the_other(workers: int) -> None:
    tested = policy(workers, per_epoch=False, skips=True)
    assert not any(hang(tested, sample) for sample in (19, 19, 19, 21, 21, 21))
    assert condemned(tested) == [19, 21]


@pytest.mark.parametrize("skips", [False, True])
def test_a_sample_that_is_condemned_is_not_held_against_the_next_one(skips: bool) -> None:
    tested = policy(1, per_epoch=False, skips=skips)
    assert not any(hang(tested, 19) for _ in range(3))
    assert not hang(tested, 21)


def test_samples_that_hang_in_all_workers_at_once_are_condemned_where_bad_samples_are_skipped() -> None:
    tested = policy(2, per_epoch=False, skips=True)
    assert not any(hang(tested, sample, worker) for _ in range(3) for worker, sample in enumerate((19, 27)))
    assert condemned(tested) == [19, 27]


def test_all_workers_hanging_at_once_are_the_end_where_bad_samples_are_not_skipped() -> None:
    tested = policy(2, per_epoch=False)
    assert [hang(tested, sample, worker) for worker, sample in enumerate((19, 27))] == [False, True]


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_samples_in_a_row_that_hang_are_hardly_to_blame(workers: int) -> None:
    tested = policy(workers, per_epoch=False, skips=True)
    samples = [sample for sample in (15, 17, 16) for _ in range(3)]  # across the border of two batches
    assert [hang(tested, sample) for sample in samples] == [False] * 8 + [True]


def test_replacements_that_hang_in_one_place_count_as_a_row() -> None:
    tested = policy(1, per_epoch=False, skips=True)
    chain = [InHand(task=0, offset=5, sample_index=sample, place=5) for sample in (5, 70, 80) for _ in range(3)]
    over = [tested.crashed(each, STALLED) is not None and tested.too_many_hang(each) for each in chain]
    assert over == [False] * 8 + [True]


def test_samples_that_hang_in_other_epochs_or_that_crash_make_no_row() -> None:
    tested = policy(1, per_epoch=True, skips=True)
    for sample in range(MAX_HANGS_IN_A_ROW):
        for _ in range(3):
            tested.crashed(at(sample, epoch=sample), STALLED)
            tested.crashed(at(sample + 40), -signal.SIGSEGV)
        assert not tested.too_many_hang(at(sample, epoch=sample))
        assert not tested.too_many_hang(at(sample + 40))


def test_descriptions_that_hang_do_not_count_as_places_of_the_epoch() -> None:
    tested = policy(1, per_epoch=False, skips=True)
    for sample in (70, 80):
        for _ in range(3):
            tested.crashed(InHand(task=Probing.SAMPLE, offset=0, sample_index=sample), STALLED)
    assert not any(hang(tested, 0) for _ in range(3))


@pytest.mark.parametrize("skips", [False, True])
def test_hanging_twice_outside_any_sample_is_the_end(skips: bool) -> None:
    tested = policy(4, per_epoch=False, skips=skips)
    assert [tested.stalled(InHand(), worker=1) for _ in range(2)] == [False, True]


def test_a_sample_that_ends_workers_while_it_is_read_is_condemned_for_all_epochs() -> None:
    tested = policy(2, per_epoch=True)
    reading = [InHand(task=4, epoch=epoch, offset=1, sample_index=9, depends_on_epoch=False) for epoch in (3, 4, 3)]
    assert [tested.crashed(each, -11) for each in reading] == [None, None, Sentence(9, None, -11)]
    assert not tested.is_trying(lambda task: True)


def test_a_sample_on_trial_for_all_epochs_is_in_hand_in_one_of_them_only() -> None:
    tested = policy(2, per_epoch=True)
    tested.crashed(InHand(task=4, epoch=3, offset=1, sample_index=9, depends_on_epoch=False), -11)
    assert tested.is_trying(lambda task: True)


def test_kills_before_any_worker_was_ready_end_sooner() -> None:
    late_s = MAX_START_KILLS_S + 1
    for was_ready, count in ((False, MAX_START_KILLS), (True, MAX_START_KILLS)):
        tested = policy(2, per_epoch=False)
        said = [tested.ended_early(-signal.SIGKILL, False, late_s * n, was_ready) for n in range(count)]
        assert [text is not None for text in said] == [False] * (count - 1) + [not was_ready]


def test_a_burst_of_kills_at_the_start_is_bad_luck() -> None:
    tested = policy(2, per_epoch=False)
    burst = [tested.ended_early(-signal.SIGKILL, False, MAX_START_KILLS_S * n / 100, False) for n in range(99)]
    assert set(burst) == {None}
