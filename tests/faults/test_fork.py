"""Forks by user code: what trainer and child hold of a batch stays as it is, and a worker's child does no work."""

from __future__ import annotations

import os
import select

import numpy as np
import pytest

from mploader import Loader


def numbered(sample: int) -> np.ndarray:
    return np.full((64, 64), sample, np.int32)


def fork_and_look(batch: np.ndarray, go: int) -> tuple[int, int]:
    """Forks a process that waits until ``go`` is readable and then says whether ``batch`` is as it was."""
    want = batch.copy()
    answer, write = os.pipe()
    child = os.fork()
    if child == 0:
        select.select([go], [], [], 30)
        os.write(write, b"same" if (batch == want).all() else b"changed")
        os._exit(0)
    os.close(write)
    return child, answer


def test_a_batch_that_a_fork_holds_does_not_change_when_the_trainer_goes_on() -> None:
    go, start = os.pipe()
    forks: list[tuple[int, int]] = []
    with Loader(range(400), numbered, batch_size=4, num_workers=2) as loader:
        batches = iter(loader)
        # More than there are slots that can be lent.
        forks += [fork_and_look(next(batches), go) for _ in range(12)]
        rest = [int(batch[0, 0, 0]) for batch in batches]
        assert rest == list(range(48, 400, 4)), "the trainer has gone on, over all slots that it may use"
        os.write(start, b"x")
        for child, answer in forks:
            assert os.read(answer, 10) == b"same"
            os.waitpid(child, 0)
            os.close(answer)
        now = loader.statistics()
        assert 0 < now.slots_borrowed < now.slots, "slots that a fork may read are lost, and never all of them"
    os.close(go)
    os.close(start)


def forking(sample: int) -> np.ndarray:
    if sample % 7 == 3:
        child = os.fork()
        if child == 0:
            if sample == 3:
                raise ValueError("from a child")
            return np.full((64, 64), -1, np.int32)
        os.waitpid(child, 0)
    return numbered(sample)


def test_a_child_that_a_transform_forks_does_no_work_of_the_worker(capfd: pytest.CaptureFixture[str]) -> None:
    with Loader(range(40), forking, batch_size=4, num_workers=2) as loader:
        assert [int(batch[row, 0, 0]) for batch in loader for row in range(4)] == list(range(40))
    assert "a child that the transform or the source has forked came back" in capfd.readouterr().err
