"""What is to blame for the end of a worker: a sample, everything, or neither."""

from __future__ import annotations

import signal

import pytest

from mploader.engine.ipc.sample_report import STALLED
from mploader.engine.scheduler.crash_policy import (
    EPOCHS_KEPT,
    MAX_CONDEMNED,
    MAX_EARLY_DEATHS,
    MAX_EARLY_KILLS,
    MAX_EARLY_KILLS_S,
    CrashPolicy,
    InHand,
    Probing,
    Sentence,
)
from mploader.engine.scheduler.scheduler import MAX_ATTEMPTS

SEGV = -signal.SIGSEGV
KILL = -signal.SIGKILL


def policy(num_workers: int, per_epoch: bool, skips: bool = False) -> CrashPolicy:
    return CrashPolicy(num_workers, per_epoch, skips, STALLED)


def at(sample: int | None, epoch: int = 0, task: int = 1) -> InHand:
    return InHand(task=task, epoch=epoch, offset=0, sample_index=sample)


def condemn(tested: CrashPolicy, sample: int | None, epoch: int = 0) -> Sentence | None:
    """Lets a sample kill as many workers as it takes."""
    return [tested.crashed(at(sample, epoch), SEGV) for _ in range(MAX_ATTEMPTS)][-1]


@pytest.mark.parametrize(("per_epoch", "epoch"), [(True, 4), (False, None)])
def test_a_sample_that_has_killed_three_workers_is_condemned_once(per_epoch: bool, epoch: int) -> None:
    tested = policy(2, per_epoch)
    sentence = Sentence(7, epoch, SEGV)
    assert [tested.crashed(at(7, epoch=4), SEGV) for _ in range(5)] == [None, None, sentence, None, None]
    assert tested.condemned == [sentence]


def test_deaths_in_other_epochs_count_where_a_sample_is_the_same_in_all() -> None:
    for per_epoch, last in ((True, None), (False, Sentence(7, None, SEGV))):
        tested = policy(2, per_epoch)
        assert [tested.crashed(at(7, epoch), SEGV) for epoch in range(3)] == [None, None, last]


def test_a_batch_that_is_made_clears_the_samples_that_were_in_it_and_no_others() -> None:
    tested = policy(2, per_epoch=True)
    for _ in range(MAX_ATTEMPTS - 1):
        tested.crashed(at(7, task=1), SEGV)
        tested.crashed(at(8, task=2), SEGV)
    tested.made(1)
    assert tested.crashed(at(7, task=1), SEGV) is None, "it was bad luck: counted from the start"
    assert tested.crashed(at(8, task=2), SEGV) == Sentence(8, 0, SEGV)


def test_a_sentence_stays_when_its_batch_is_made() -> None:
    tested = policy(2, per_epoch=False)
    condemn(tested, 7)
    tested.made(1)
    assert tested.condemned == [Sentence(7, None, SEGV)]
    assert tested.crashed(at(7, task=2), SEGV) is None, "every worker knows, this one was told too late"


def test_sentences_of_epochs_long_over_are_forgotten() -> None:
    tested = policy(2, per_epoch=True)
    for epoch in range(EPOCHS_KEPT + 1):
        condemn(tested, sample=epoch, epoch=epoch)
    assert [sentence.epoch for sentence in tested.condemned] == list(range(1, EPOCHS_KEPT + 1))


def test_an_element_of_a_generator_is_never_condemned() -> None:
    tested = policy(2, per_epoch=False)
    assert condemn(tested, sample=None) is None
    assert tested.condemned == []


@pytest.mark.parametrize("per_epoch", [True, False])
def test_so_many_condemned_samples_of_one_epoch_are_not_to_blame(per_epoch: bool) -> None:
    tested = policy(2, per_epoch)
    for sample in range(MAX_CONDEMNED):
        condemn(tested, sample)
    assert not tested.too_many_condemned()
    condemn(tested, 1000, epoch=1)
    assert tested.too_many_condemned() is not per_epoch, "those of another epoch are others"
    condemn(tested, 1001, epoch=0)
    condemn(tested, 1002, epoch=0)
    assert tested.too_many_condemned() is not per_epoch, "what counts is the latest epoch"


def test_a_suspect_is_on_trial_until_it_is_condemned_or_its_batch_is_delivered() -> None:
    tested = policy(2, per_epoch=False)
    assert not tested.is_trying(lambda task: True)
    tested.crashed(at(7), SEGV)
    assert tested.is_trying(lambda task: task == 1)
    assert not tested.is_trying(lambda task: False)
    condemn(tested, 7)
    assert not tested.is_trying(lambda task: True)
    other = policy(2, per_epoch=True)
    other.crashed(at(7), SEGV)
    assert not other.is_trying(lambda task: True), "in the next epoch it is another sample"


@pytest.mark.parametrize(("status", "by_us"), [(1, False), (0, False), (SEGV, False), (KILL, True)])
def test_workers_that_end_in_a_row_before_a_batch_is_made(status: int, by_us: bool) -> None:
    tested = policy(2, per_epoch=True)
    for _ in range(MAX_EARLY_DEATHS - 1):
        assert tested.ended_early(status, by_us, 0.0) is None
    tested.made(1)
    for _ in range(MAX_EARLY_DEATHS - 1):
        assert tested.ended_early(status, by_us, 0.0) is None
    assert tested.ended_early(status, by_us, 0.0) == 3


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_kills_from_outside_may_be_bad_luck_unless_they_last(number: signal.Signals) -> None:
    tested = policy(2, per_epoch=True)
    for kill in range(2 * MAX_EARLY_KILLS):
        assert tested.ended_early(-number, False, 100.0 + kill / 1000) is None, "many, in a moment"
    assert tested.ended_early(-number, False, 100.0 + MAX_EARLY_KILLS_S + 1) is not None
    tested = policy(2, per_epoch=True)
    for kill in range(MAX_EARLY_KILLS - 1):
        assert tested.ended_early(-number, False, 100.0 * kill) is None, "few, for long"


def test_one_sample_that_hangs_is_not_everything() -> None:
    tested = policy(3, per_epoch=True)
    assert not any(tested.stalled(InHand(task=1, offset=4, sample_index=9), worker) for worker in (0, 1, 2, 0))


def test_as_many_places_that_hang_as_there_are_workers_are_everything() -> None:
    tested = policy(3, per_epoch=True)
    places = [InHand(task=task, offset=0, sample_index=task) for task in range(3)]
    assert [tested.stalled(place, 0) for place in places] == [False, False, True]
    tested.made(0)
    assert not tested.stalled(places[0], 0)
    alone = policy(1, per_epoch=True)
    assert [alone.stalled(place, 0) for place in places[:2]] == [False, True], "a single worker gets a second chance"


def test_a_worker_that_hangs_twice_outside_any_sample_is_everything() -> None:
    tested = policy(8, per_epoch=True)
    assert [tested.stalled(InHand(), worker) for worker in (0, 1, 0)] == [False, False, True]


def test_two_samples_that_hang_while_they_are_described_are_everything() -> None:
    tested = policy(8, per_epoch=True)
    found = [tested.stalled(InHand(task=Probing.SAMPLE, offset=0, sample_index=sample), 0) for sample in (5, 5, 6)]
    assert found == [False, False, True]
