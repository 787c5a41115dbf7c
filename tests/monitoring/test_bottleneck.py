"""The diagnosis of real loaders: a test makes each part the bottleneck in turn, and the diagnosis has to find it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from mploader import Bottleneck, Diagnosis, Loader, Statistics
from mploader.monitoring.bottleneck import explain


class Numbers:
    """A source that waits, without using a processor."""

    def __init__(self, pause_s: float = 0.0) -> None:
        self.pause_s = pause_s

    def __len__(self) -> int:
        return 400

    def __getitem__(self, index: int) -> int:
        if self.pause_s:
            time.sleep(self.pause_s)
        return index


def picture(sample: int) -> np.ndarray:
    return np.full(64, sample % 256, np.uint8)


def slow_picture(sample: int) -> np.ndarray:
    time.sleep(0.003)
    return picture(sample)


def calculated_picture(sample: int) -> np.ndarray:
    """Uses 3 ms of processor time."""
    end = time.thread_time() + 0.003
    while time.thread_time() < end:
        pass
    return picture(sample)


def sometimes_slow_picture(sample: int) -> np.ndarray:
    if sample % 100 == 50:
        time.sleep(0.5)
    return picture(sample)


def large_picture(sample: int) -> np.ndarray:
    return np.zeros((2**20,), np.uint8)


def undisturbed(statistics: Statistics) -> Statistics:
    """The same on an idle machine: a test machine is busy with other tests."""
    workers = tuple(
        dataclasses.replace(worker, cpu_s=worker.cpu_s + worker.queued_s, queued_s=0.0) for worker in statistics.workers
    )
    return dataclasses.replace(statistics, workers=workers)


def take(loader: Loader, count: int, between: Callable[[int], None] = lambda number: None) -> Diagnosis:
    """Takes some batches and returns the diagnosis on them, as of an undisturbed machine with two processors."""
    batches = endless(loader)
    next(batches)
    before = loader.statistics()
    for number in range(count):
        next(batches)
        between(number)
    return explain(undisturbed(loader.statistics().since(before)), cpus=2)


def endless(loader: Loader) -> Iterator[np.ndarray]:
    while True:
        yield from loader


def test_training_is_the_bottleneck_when_the_consumer_hardly_waits() -> None:
    with Loader(Numbers(), picture, batch_size=4, num_workers=2) as loader:
        diagnosis = take(loader, 20, between=lambda number: time.sleep(0.03))
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis
    assert diagnosis.waiting < 0.05
    assert "num_workers=1 is enough" in diagnosis.change
    assert diagnosis.expected > diagnosis.samples_per_s


def test_decoding_is_the_bottleneck_when_all_processors_are_busy_with_the_transform() -> None:
    with Loader(Numbers(), calculated_picture, batch_size=4, num_workers=2) as loader:
        diagnosis = take(loader, 40)
    assert diagnosis.bottleneck is Bottleneck.DECODING, diagnosis
    assert diagnosis.transforming > 0.5 > diagnosis.reading
    assert "transform cheaper" in diagnosis.change


def test_one_worker_for_two_processors_is_too_few() -> None:
    with Loader(Numbers(), calculated_picture, batch_size=4, num_workers=1) as loader:
        diagnosis = take(loader, 30)
    assert diagnosis.bottleneck is Bottleneck.TOO_FEW_WORKERS, diagnosis
    assert diagnosis.change == "num_workers=2"
    assert diagnosis.expected == pytest.approx(2 * diagnosis.samples_per_s, rel=0.2)


def test_reading_is_the_bottleneck_when_workers_wait_in_the_source() -> None:
    with Loader(Numbers(pause_s=0.003), picture, batch_size=4, num_workers=2) as loader:
        diagnosis = take(loader, 40)
    assert diagnosis.bottleneck is Bottleneck.READING, diagnosis
    assert diagnosis.reading > 0.5
    assert diagnosis.change.startswith("num_workers=4")


def test_a_list_of_batches_is_found_as_slots_held_downstream() -> None:
    kept = []
    with Loader(Numbers(), large_picture, batch_size=8, num_workers=2) as loader:
        for batch in loader:
            kept.append(batch)
            if len(kept) == 30:
                break
        diagnosis = loader.explain()
    assert diagnosis.bottleneck is Bottleneck.SLOTS_HELD, diagnosis
    assert diagnosis.statistics.batches_copied > 0
    assert "keep fewer batches" in diagnosis.change


def test_two_slots_for_four_workers_mean_too_little_memory() -> None:
    with Loader(Numbers(), slow_picture, batch_size=4, num_workers=4) as loader:
        slot_bytes = loader.statistics().slot_bytes
    with Loader(Numbers(), slow_picture, batch_size=4, num_workers=4, memory=2 * slot_bytes) as loader:
        assert loader.statistics().slots == 2
        diagnosis = take(loader, 40)
    assert diagnosis.bottleneck is Bottleneck.TOO_LITTLE_MEMORY, diagnosis
    assert diagnosis.change.startswith('memory="')
    assert diagnosis.full > 0


def test_workers_that_are_killed_again_and_again_are_the_bottleneck() -> None:
    with Loader(Numbers(), slow_picture, batch_size=4, num_workers=2) as loader:

        def kill(number: int) -> None:
            pids = loader.worker_pids
            if number % 5 == 0 and pids:
                with contextlib.suppress(ProcessLookupError):  # the one that was killed before
                    os.kill(pids[0], signal.SIGKILL)

        diagnosis = take(loader, 40, between=kill)
    assert diagnosis.bottleneck is Bottleneck.WORKERS_LOST, diagnosis
    assert "see the log" in diagnosis.change


def test_other_programs_that_use_the_processors_are_reported() -> None:
    with Loader(Numbers(), calculated_picture, batch_size=4, num_workers=2) as loader:
        sum(1 for _ in loader)
        statistics = loader.statistics()
    queueing = dataclasses.replace(
        statistics,
        workers=tuple(
            dataclasses.replace(worker, cpu_s=0.5 * worker.busy_s, queued_s=0.5 * worker.busy_s)
            for worker in statistics.workers
        ),
    )
    diagnosis = explain(queueing, cpus=4)
    assert diagnosis.bottleneck is Bottleneck.DECODING, diagnosis
    assert "queue for a processor 50%" in diagnosis.reason


def test_idle_workers_and_free_slots_mean_handing_over() -> None:
    with Loader(Numbers(), picture, batch_size=1, num_workers=2) as loader:
        sum(1 for _ in loader)
        statistics = loader.statistics()
    idle = tuple(dataclasses.replace(worker, busy_s=0.01) for worker in statistics.workers)
    waiting = dataclasses.replace(statistics, workers=idle, waited_s=statistics.started_s + 1, full_s=0.0, copied_s=0.0)
    diagnosis = explain(waiting, cpus=2)
    assert diagnosis.bottleneck is Bottleneck.HANDING_OVER, diagnosis
    assert "batch_size" in diagnosis.change


def test_there_is_no_diagnosis_before_two_batches() -> None:
    with Loader(Numbers(), picture, batch_size=1, num_workers=1) as loader:
        diagnosis = loader.explain()
        assert diagnosis.bottleneck is Bottleneck.NOTHING_MEASURED, diagnosis
        batches = iter(loader)
        for delivered in ("0 batches were delivered", "1 batch was delivered"):
            next(batches)
            diagnosis = loader.explain()
            assert diagnosis.bottleneck is Bottleneck.NOTHING_MEASURED, diagnosis
            assert diagnosis.reason.startswith(f"{delivered}, the first of all left out")


def test_the_first_batch_is_not_left_out_if_it_was_counted() -> None:
    with Loader(Numbers(), picture, batch_size=1, num_workers=1) as loader:
        next(iter(loader))
        diagnosis = explain(loader.statistics(), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.NOTHING_MEASURED, diagnosis
    assert diagnosis.reason.startswith("1 batch was delivered;")


def test_there_is_no_diagnosis_in_a_long_step_that_has_not_ended() -> None:
    first = dataclasses.replace(measured(), batches=2, seconds=3.0, waited_s=0.008, started_s=0.0, computing_s=0.0002)
    diagnosis = explain(first, cpus=2)
    assert diagnosis.bottleneck is Bottleneck.NOTHING_MEASURED, diagnosis
    assert "a step counts when it has ended" in diagnosis.reason
    diagnosis = explain(dataclasses.replace(first, computing_s=2.9), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis


def test_a_diagnosis_shows_itself() -> None:
    with Loader(Numbers(), slow_picture, batch_size=4, num_workers=1) as loader:
        sum(1 for _ in loader)
        diagnosis = loader.explain()
    lines = str(diagnosis).splitlines()
    assert [line.split(":")[0] for line in lines] == ["bottleneck", "why", "change", "expect", "numbers"]
    assert diagnosis.bottleneck.value in lines[0]
    assert diagnosis._repr_html_().count("<tr>") == 4
    with pytest.raises(dataclasses.FrozenInstanceError):
        diagnosis.change = ""  # type: ignore[misc]


def test_one_slow_sample_in_many_is_found() -> None:
    with Loader(Numbers(), sometimes_slow_picture, batch_size=4, num_workers=2) as loader:
        diagnosis = take(loader, 100)
    assert diagnosis.bottleneck is Bottleneck.DECODING, diagnosis
    assert "even out the work" in diagnosis.change


def test_a_pause_every_few_batches_is_not_the_fault_of_the_loader() -> None:
    with Loader(Numbers(), slow_picture, batch_size=4, num_workers=2) as loader:
        diagnosis = take(loader, 61, between=lambda number: time.sleep(0.6 if number % 20 == 0 else 0.0))
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis
    assert diagnosis.statistics.full_waited_s < 0.5 * diagnosis.statistics.full_s


def measured(workers: int = 2) -> Statistics:
    with Loader(Numbers(), picture, batch_size=4, num_workers=workers) as loader:
        sum(1 for _ in loader)
        return loader.statistics()


def shares(
    statistics: Statistics, *, busy: float, waiting: float, full: float, stuck: float = 0.0, **stages: float
) -> Statistics:
    """The same with ten seconds of the consumer's time, and shares of it; ``stages`` are shares of the busy time."""
    times = {"read_s": 0.0, "transform_s": 0.0, "write_s": 0.0, "queued_s": 0.0, "cpu_s": 1.0, **stages}
    workers = tuple(
        dataclasses.replace(
            worker, busy_s=10 * busy, **{name: 10 * busy * share for name, share in times.items()}
        )
        for worker in statistics.workers
    )
    return dataclasses.replace(
        statistics, workers=workers, waited_s=statistics.started_s + 10 * waiting, computing_s=10 * (1 - waiting),
        copied_s=0.0, full_s=10 * full, full_waited_s=10 * stuck, borrowed_slot_s=20.0, batches=2000,
    )  # fmt: skip


def test_slots_full_of_ready_batches_are_not_the_fault_of_the_loader() -> None:
    many = dataclasses.replace(shares(measured(), busy=0.17, waiting=0.16, full=0.69, stuck=0.11), batches=4000)
    diagnosis = explain(many, cpus=2)
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis
    assert "handing over 400 batches/s" in diagnosis.reason
    assert "before it waits" not in diagnosis.effect  # it does wait now and then
    diagnosis = explain(shares(measured(), busy=0.2, waiting=0.7, full=0.81, stuck=0.6), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.DECODING, diagnosis
    assert "even out the work" in diagnosis.change


def test_slots_that_fill_while_the_consumer_computes_mean_uneven_steps() -> None:
    jitter = shares(measured(), busy=0.63, waiting=0.36, full=0.47, stuck=0.01)
    diagnosis = explain(dataclasses.replace(jitter, batches=200), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis
    assert "uneven" in diagnosis.reason
    assert "num_workers" not in diagnosis.change
    assert diagnosis.expected == pytest.approx(diagnosis.samples_per_s / 0.64)  # the rest is training's own


def test_uneven_steps_need_the_slots_that_memory_did_not_allow() -> None:
    jitter = shares(measured(), busy=0.63, waiting=0.36, full=0.47)
    diagnosis = explain(dataclasses.replace(jitter, batches=200, slots_wanted=40, slot_bytes=2**20), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.TRAINING, diagnosis
    assert 'memory="40MiB"' in diagnosis.change


def test_more_workers_than_processors_queue_for_each_other() -> None:
    crowded = shares(measured(8), busy=0.98, waiting=0.95, full=0.0, transform_s=0.95, cpu_s=0.25, queued_s=0.75)
    diagnosis = explain(crowded, cpus=2)
    assert diagnosis.bottleneck is Bottleneck.DECODING, diagnosis
    assert "other programs" not in diagnosis.reason
    assert "8 workers are more than the 2 processors" in diagnosis.reason
    assert diagnosis.change.startswith("num_workers=2 is as fast")
    assert diagnosis.expected < 2 * diagnosis.samples_per_s


def test_workers_that_wait_as_well_may_be_more_than_the_processors() -> None:
    some = shares(measured(3), busy=0.98, waiting=0.95, full=0.0, transform_s=0.95, cpu_s=0.5, queued_s=0.25)
    assert "num_workers" not in explain(some, cpus=2).change


def test_more_workers_than_processors_that_others_use_too() -> None:
    crowded = shares(measured(8), busy=0.98, waiting=0.95, full=0.0, transform_s=0.95, cpu_s=0.1, queued_s=0.9)
    diagnosis = explain(crowded, cpus=1)
    assert "8 workers are more than the processor" in diagnosis.reason
    crowded = dataclasses.replace(crowded, workers=crowded.workers[:4])
    diagnosis = explain(crowded, cpus=2)
    assert "4 workers are more than the 2 processors" in diagnosis.reason
    assert "other programs" in diagnosis.reason
    assert diagnosis.change.startswith("num_workers=2 is as fast")
    assert diagnosis.expected == pytest.approx(5 * diagnosis.samples_per_s)  # two processors in place of 0.4


def test_writing_is_the_bottleneck_when_elements_are_large_and_cheap() -> None:
    diagnosis = explain(shares(measured(), busy=0.93, waiting=0.9, full=0.0, write_s=0.92, transform_s=0.02), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.WRITING, diagnosis
    assert "smaller" in diagnosis.change


def test_one_lost_worker_in_a_long_time_is_not_the_bottleneck() -> None:
    busy = shares(measured(), busy=0.4, waiting=0.9, full=0.0)

    def losing(restarts: int) -> Diagnosis:
        first, *others = busy.workers
        workers = (dataclasses.replace(first, restarts=restarts), *others)
        return explain(dataclasses.replace(busy, workers=workers), cpus=2)

    assert losing(1).bottleneck is not Bottleneck.WORKERS_LOST
    assert "1 worker was lost" in losing(1).reason
    assert losing(20).bottleneck is Bottleneck.WORKERS_LOST
    assert "20 workers were lost" in losing(20).reason


def test_a_lost_worker_counts_by_the_time_that_it_costs() -> None:
    busy = shares(measured(), busy=0.7, waiting=0.9, full=0.0)
    first, second = busy.workers
    losing = dataclasses.replace(busy, workers=(dataclasses.replace(first, restarts=1, batches=1000), second))
    assert explain(dataclasses.replace(losing, start_s=0.5), cpus=2).bottleneck is not Bottleneck.WORKERS_LOST
    assert explain(dataclasses.replace(losing, start_s=5.0), cpus=2).bottleneck is Bottleneck.WORKERS_LOST
    again = dataclasses.replace(first, restarts=1, batches=1)  # and its batch is made again
    slow = dataclasses.replace(losing, start_s=0.5, workers=(again, dataclasses.replace(second, batches=1)))
    assert explain(slow, cpus=2).bottleneck is Bottleneck.WORKERS_LOST


def test_a_loss_among_few_large_batches_is_not_the_bottleneck_of_busy_workers() -> None:
    busy = shares(measured(), busy=0.92, waiting=0.9, full=0.0, transform_s=0.9)
    first, second = busy.workers
    losing = dataclasses.replace(
        busy, batches=15, start_s=0.5, workers=(dataclasses.replace(first, restarts=1), second)
    )
    assert explain(losing, cpus=2).bottleneck is Bottleneck.DECODING
    # Workers that idle and are lost among few batches may have stalled: that time is not measured.
    idle = shares(losing, busy=0.2, waiting=0.9, full=0.0)
    diagnosis = explain(dataclasses.replace(idle, batches=15), cpus=2)
    assert diagnosis.bottleneck is Bottleneck.WORKERS_LOST
    assert "costs little" not in diagnosis.reason


def test_a_loss_costs_nothing_while_the_slots_are_full_of_ready_batches() -> None:
    ahead = shares(measured(), busy=0.2, waiting=0.2, full=0.7)
    first, second = ahead.workers
    ahead = dataclasses.replace(ahead, start_s=4.0, workers=(dataclasses.replace(first, restarts=1), second))
    assert explain(ahead, cpus=2).bottleneck is Bottleneck.TRAINING


def test_the_start_of_a_worker_is_measured_whenever_a_snapshot_is_taken() -> None:
    with Loader(Numbers(), picture, batch_size=4, num_workers=1) as loader:
        before = loader.statistics()
        sum(1 for _ in loader)
        later = loader.statistics()
    assert 0 < before.start_s == later.start_s == later.since(before).start_s < later.seconds
