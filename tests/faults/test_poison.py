"""Samples that kill their workers: found, named and passed over, with at most three workers lost to each."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import mploader
from mploader.sampling.plan import Plan
from tests.faults.streams import BATCHES, SAMPLES, Faulty, make_loader, plain, read


def overflow_the_stack() -> None:
    ctypes.CDLL(None).memset(ctypes.c_void_p(8), 0, 8)


def raise_rt_signal() -> None:
    os.kill(os.getpid(), signal.SIGRTMIN + 3)


ENDINGS = {
    "exit 0": lambda: os._exit(0),
    "exit 1": lambda: os._exit(1),
    "abort": os.abort,
    "segfault": overflow_the_stack,
    "oom kill": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "real-time signal": raise_rt_signal,
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_poison_sample_is_named_and_the_rest_is_delivered(ending: str, recovery: Callable[[float], None]) -> None:
    source = Faulty({77: ENDINGS[ending]})
    with make_loader(source, on_bad_sample="drop") as loader:
        epoch = read(loader)
        assert epoch.missing == {77: 0}
        assert loader.statistics().restarts == 3
        (bad,) = loader.bad_samples()
    recovery(epoch.longest_pause_s)
    assert bad.index == 77
    assert "row 77 of a table" in bad.where
    assert {"exit 0": "code 0", "exit 1": "code 1", "abort": "SIGABRT", "segfault": "SIGSEGV", "oom kill": "SIGKILL",
            "real-time signal": "signal 37"}[ending] in bad.error  # fmt: skip


def test_poison_sample_is_not_tried_again_in_the_next_epoch() -> None:
    source = Faulty({77: os.abort})
    with make_loader(source, plain, on_bad_sample="drop") as loader:
        for _ in range(3):
            assert read(loader).missing == {77: 0}
        assert loader.statistics().restarts == 3
        assert loader.statistics().bad_samples == 3


@pytest.mark.parametrize("sample", [0, 77])
def test_poison_while_it_is_read_is_not_tried_again_whatever_the_transform(sample: int) -> None:
    """Sample 0 is condemned when the loader is made, before any batch is."""
    source = Faulty({sample: os.abort})
    with make_loader(source, on_bad_sample="drop") as loader:
        for _ in range(3):
            assert read(loader).missing == {sample: 0}
        assert loader.statistics().restarts == 3


def test_poison_in_a_transform_with_random_numbers_is_judged_for_each_epoch() -> None:
    """So a run that begins in epoch 1 decides as one that has seen epoch 0."""

    def abort_sometimes(sample: Any, rng: np.random.Generator) -> Any:
        if sample[0] == 77 and rng.random() < 0.5:
            os.abort()
        return {"sample": sample}

    with make_loader(transform=abort_sometimes, on_bad_sample="drop") as loader:
        epochs = [read(loader)]
        state = loader.state_dict()
        epochs += [read(loader) for _ in range(3)]
        assert loader.statistics().restarts <= 3 * 5  # the epoch that is made ahead counts
    with make_loader(transform=abort_sometimes, on_bad_sample="drop") as loader:
        loader.load_state_dict(state)
        assert [read(loader).digest for _ in range(3)] == [epoch.digest for epoch in epochs[1:]]
    assert {len(epoch.missing) for epoch in epochs} == {0, 1}


@pytest.mark.parametrize("workers", [1, 3])
def test_replacement_of_a_poison_sample_is_the_same_for_any_number_of_workers(workers: int) -> None:
    plan = Plan(SAMPLES, 16, 3, True)
    chain = [77, int(plan.replacement(0, 77, 1))]  # its first replacement is poison, too
    source = Faulty(dict.fromkeys(chain, os.abort))
    with make_loader(source, on_bad_sample="replace", num_workers=workers) as loader:
        batches = [np.array(batch["sample"][:, 0]) for batch in loader]
        assert {bad.index for bad in loader.bad_samples()} == set(chain)
        assert loader.statistics().restarts == 6
    order = plan.batches(0, 0, BATCHES)
    delivered = np.concatenate(batches)
    assert len(delivered) == SAMPLES
    wanted = [int(plan.replacement(0, index, 2 if index == 77 else 1)) if index in chain else index
              for index in map(int, order)]  # fmt: skip
    # the replacement of 77 is condemned first as a replacement of 77, and then stands in for itself elsewhere
    assert [a for a, b in zip(delivered, wanted, strict=True) if a != b] == []


def test_poison_sample_raises_by_default() -> None:
    source = Faulty({77: os.abort})
    with make_loader(source) as loader:
        with pytest.raises(mploader.SampleError, match=r"sample 77 .*killed .*SIGABRT"):
            read(loader)
        with pytest.raises(mploader.SampleError, match="sample 77"):  # errors are sticky
            next(iter(loader))
