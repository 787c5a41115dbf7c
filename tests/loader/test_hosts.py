"""Several hosts: one sequence of global batches however it is split, and TensorFlow's strategies on top of it."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader import ArgumentError, Loader
from tests.resume_data import SAMPLES

pytestmark = pytest.mark.usefixtures("workers_in_threads")

GLOBAL_BATCH = 12


def hosts_of(count: int, batch_size: int | None, **options: Any) -> list[Loader]:
    size = None if batch_size is None else batch_size // count
    return [
        Loader(range(SAMPLES), batch_size=size, shuffle=True, seed=7, num_workers=1, shard=(index, count), **options)
        for index in range(count)
    ]


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def close(loaders: Iterable[Loader]) -> None:
    for loader in loaders:
        loader.close()


def together(loaders: list[Loader]) -> list[list[int]]:
    """The global batches of one epoch, or of the rest of one."""
    shares = [[np.ravel(batch).tolist() for batch in loader] for loader in loaders]
    assert len({len(share) for share in shares}) == 1  # every host makes the same number of batches
    return [joined(parts) for parts in zip(*shares, strict=True)]


@pytest.mark.parametrize("drop_remainder", [False, True])
def test_any_number_of_hosts_makes_the_same_global_batches(drop_remainder: bool) -> None:
    sequences = []
    for count in (1, 2, 3, 4):
        loaders = hosts_of(count, GLOBAL_BATCH, drop_remainder=drop_remainder)
        sequences.append([together(loaders) for _ in range(2)])
        close(loaders)
    assert all(sequence == sequences[0] for sequence in sequences)
    assert sum(map(len, sequences[0][0])) == (24 if drop_remainder else SAMPLES)


@pytest.mark.parametrize(("saved_on", "resumed_on"), [(4, 2), (1, 3), (3, 4)])
def test_a_run_saved_on_some_hosts_resumes_on_others(saved_on: int, resumed_on: int) -> None:
    loaders = hosts_of(saved_on, GLOBAL_BATCH)
    others = hosts_of(resumed_on, GLOBAL_BATCH)
    epochs, states = [], []
    for _ in range(2):
        iterators = [iter(loader) for loader in loaders]
        epochs.append([])
        for parts in zip(*iterators, strict=True):
            epochs[-1].append(joined(part.tolist() for part in parts))
            found = [loader.state_dict() for loader in loaders]
            assert all(state == found[0] for state in found)  # any host may save
            states.append((len(epochs) - 1, len(epochs[-1]), found[0]))
    for epoch, batches, state in states:
        for other in others:
            other.load_state_dict(json.loads(json.dumps(state)))
        rest = together(others)
        expected = epochs[epoch][batches:] or (epochs[epoch + 1] if epoch + 1 < len(epochs) else rest)
        assert rest == expected
    close([*loaders, *others])


def test_elements_of_several_hosts_resume_on_others() -> None:
    loaders, others = hosts_of(3, None), hosts_of(2, None)
    (alone,) = hosts_of(1, None)
    order = [int(element) for element in alone]
    iterators = [iter(loader) for loader in loaders]
    taken = [int(next(iterator)) for _ in range(4) for iterator in iterators]
    assert taken == order[:12]
    for other in others:
        other.load_state_dict(loaders[0].state_dict())
    assert [sample for pair in zip(*others, strict=True) for sample in map(int, pair)] == order[12:]
    close([alone, *loaders, *others])


def test_hosts_with_unequal_shares_of_elements_save_the_same_position() -> None:
    loaders, others = hosts_of(4, None), hosts_of(4, None)  # 30 samples: hosts 0 and 2 have 7 elements, 1 and 3 have 8
    (alone,) = hosts_of(1, None)
    order = [int(element) for element in alone]
    iterators = [iter(loader) for loader in loaders]
    taken = [int(next(iterator)) for _ in range(7) for iterator in iterators]
    states = [loader.state_dict() for loader in loaders]
    assert taken == order[:28]
    assert all(state == states[0] for state in states)
    for other in others:
        other.load_state_dict(json.loads(json.dumps(states[0])))
    assert [int(element) for other in others for element in other] == order[28:]
    assert [len(list(other)) for other in others] == [7, 8, 7, 8]  # and the next epoch is whole
    assert [int(element) for iterator in iterators for element in iterator] == order[28:]
    assert {(state["epoch"], state["samples"]) for state in (loader.state_dict() for loader in loaders)} == {(1, 0)}
    close([alone, *loaders, *others])


def test_hosts_that_do_not_divide_the_global_batch_are_refused() -> None:
    loaders = hosts_of(2, GLOBAL_BATCH)
    next(iter(loaders[0]))
    state = loaders[0].state_dict()
    with Loader(range(SAMPLES), batch_size=5, shuffle=True, seed=7, num_workers=1, shard=(0, 2)) as other:
        with pytest.raises(ArgumentError, match="plan global batch size: 12 when it was saved, 10 now"):
            other.load_state_dict(state)
    close(loaders)


class PortTakenError(Exception):
    """Somebody else listens where TensorFlow was told to."""


def read(way: str, environments: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Runs tests/distributed_reading.py in some processes at once and returns what they print."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.distributed_reading", way], cwd=Path(__file__).parents[2], text=True,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "0", **environment},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for environment in environments
    ]  # fmt: skip
    with ThreadPoolExecutor() as threads:
        try:
            # Whichever ends first: one that fails leaves the others waiting for it.
            outputs = {threads.submit(process.communicate, timeout=100): process for process in processes}
            for done in as_completed(outputs):
                errors = done.result()[1]
                if outputs[done].returncode and "Could not start gRPC server" in errors:
                    raise PortTakenError(errors)
                assert outputs[done].returncode == 0, errors
                assert "shard" not in errors.lower()  # TensorFlow warns of data that it cannot divide
            return [json.loads(done.result()[0].split("RESULT ", 1)[1]) for done in outputs]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def plain_batches(batch_size: int) -> list[list[int]]:
    with Loader(range(SAMPLES), batch_size=batch_size, shuffle=True, seed=7, num_workers=1) as loader:
        return [batch.tolist() for batch in loader]


@pytest.mark.slow
def test_two_replicas_of_one_process_share_the_batches() -> None:
    (result,) = read("mirrored", [{}])
    for way in ("experimental_distribute_dataset", "distribute_datasets_from_function", "distribute"):
        assert [joined(replicas) for replicas in result[way]] == plain_batches(4), way
    assert result["fit"] == {"epochs": 2, "place": [2, 0]}


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.socket()) for _ in range(count)]
        for found in sockets:
            found.bind(("127.0.0.1", 0))
        return [int(found.getsockname()[1]) for found in sockets]


def read_on_workers(count: int) -> list[dict[str, Any]]:
    """Several processes of a cluster. A port may be taken between being found free and being used: then others are."""
    for _ in range(5):
        cluster = {"worker": [f"127.0.0.1:{port}" for port in free_ports(count)]}
        tasks = [{"cluster": cluster, "task": {"type": "worker", "index": index}} for index in range(count)]
        with contextlib.suppress(PortTakenError):
            return read("workers", [{"TF_CONFIG": json.dumps(task)} for task in tasks])
    raise AssertionError("every port that was found free was taken")


@pytest.mark.slow
def test_two_processes_of_a_multi_worker_strategy_share_the_batches() -> None:
    results = read_on_workers(2)
    for way in ("distribute_datasets_from_function", "distribute"):
        steps = zip(*(result[way] for result in results), strict=True)
        assert [joined(joined(replicas) for replicas in step) for step in steps] == plain_batches(4), way
    # TensorFlow cuts each host's batch into as many pieces as there are replicas, so a batch lasts two steps.
    pieces = [[joined(replicas) for replicas in result["experimental_distribute_dataset"]] for result in results]
    wholes = [[first + second for first, second in zip(host[::2], host[1::2], strict=True)] for host in pieces]
    assert [joined(parts) for parts in zip(*wholes, strict=True)] == plain_batches(8)
