"""What of a loader takes real worker processes: their life and death, and scripts as users write them."""

from __future__ import annotations

import gc
import os
import pathlib
import re
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil
import pytest

import mploader
from mploader import Loader
from tests.conftest import kill_all, kill_one
from tests.transforms import Squares, digest, fail_at, identity, ids, noisy, process_id, square


def gone(pids: list[int], seconds: float = 2.0) -> bool:
    """Whether processes end within some seconds."""
    deadline_s = time.monotonic() + seconds
    while any(map(psutil.pid_exists, pids)):
        if time.monotonic() > deadline_s:
            return False
        time.sleep(0.01)
    return True


def test_bytes_and_order_depend_on_neither_workers_nor_slots() -> None:
    slots = set()

    def epochs(**options: Any) -> list[str]:
        with Loader(Squares(100), noisy, batch_size=7, shuffle=True, seed=5, **options) as loader:
            slots.add(loader.statistics().slots)
            return [digest(loader) for _ in range(3)]

    expected = epochs(num_workers=1)
    assert len(set(expected)) == 3, "epochs differ"
    for workers in (2, 3, 5):
        assert epochs(num_workers=workers) == expected
    slots.clear()
    for memory in ("150KiB", "200KiB", "1MiB"):
        assert epochs(num_workers=2, memory=memory) == expected
    assert len(slots) >= 2, f"every memory holds as many slots: {slots}"


def test_workers_live_as_long_as_the_loader() -> None:
    with Loader(range(40), process_id, batch_size=2, num_workers=2) as loader:
        pids = set(loader.worker_pids)
        for _ in range(3):
            assert {int(pid) for batch in loader for pid in batch} <= pids
        assert set(loader.worker_pids) == pids


def test_killed_workers_cost_nothing() -> None:
    def transform(sample: int, rng: np.random.Generator) -> Any:
        import time

        time.sleep(0.002)
        return {"id": sample, "noise": rng.random(50)}

    with Loader(range(300), transform, batch_size=6, shuffle=True, num_workers=1) as loader:
        expected = [digest(loader) for _ in range(2)]
    with Loader(range(300), transform, batch_size=6, shuffle=True, num_workers=2) as loader:
        found, killed = [], list[int]()
        for _ in range(2):
            stream = []
            for position, batch in enumerate(loader):
                stream.append(batch)
                if position % 12 == 5:
                    killed.append(kill_one(loader, len(killed) % 2))
            found.append(digest(stream))
        assert found == expected
        assert loader.statistics().restarts >= len(set(killed)) - 1 >= 6


def test_all_workers_killed_at_once() -> None:
    with Loader(range(100), noisy, batch_size=4, num_workers=3) as loader:
        run = iter(loader)
        found = next(run)["id"].tolist()
        kill_all(loader)
        assert found + ids(run) == list(range(100))


def test_a_sample_that_kills_its_worker_is_found_and_the_rest_survives() -> None:
    def transform(sample: int) -> int:
        if sample == 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        return sample

    with Loader(range(12), transform, batch_size=4, num_workers=2, on_bad_sample="drop") as loader:
        assert [batch.tolist() for batch in loader] == [[0, 1, 2, 3], [4, 6, 7], [8, 9, 10, 11]]
        (bad,) = loader.bad_samples()
        assert (bad.index, "killed its worker 3 times" in bad.error, "SIGSEGV" in bad.error) == (5, True, True)


def test_an_unpicklable_transform_is_refused_before_any_process_starts() -> None:
    class Augment:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, sample: int) -> int:
            return sample

    lock = threading.Lock()
    before = set(psutil.Process().children())
    for transform, culprit in ((Augment(), "transform.lock"), (lambda sample: (lock, sample)[1], "variable 'lock'")):
        with pytest.raises(mploader.ArgumentError, match=re.escape(culprit)):
            Loader(range(4), transform, batch_size=2, num_workers=1)
    assert set(psutil.Process().children()) == before


class Pickled:
    """Counts how often it is pickled, in this process."""

    def __init__(self, counts: list[int]) -> None:
        self._counts = counts

    def __reduce__(self) -> Any:
        self._counts.append(1)
        return Squares, (12,)

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> int:
        raise AssertionError("workers read what it is pickled as")


class PickledTransform(Pickled):
    def __reduce__(self) -> Any:
        self._counts.append(1)
        return getattr, (np, "square")

    def __call__(self, sample: int) -> int:
        raise AssertionError("workers call what it is pickled as")


def test_source_and_transform_are_pickled_once() -> None:
    sources: list[int] = []
    transforms: list[int] = []
    with Loader(Pickled(sources), PickledTransform(transforms), batch_size=4, num_workers=2) as loader:
        assert next(iter(loader)).tolist() == [0, 1, 16, 81]
    assert (len(sources), len(transforms)) == (1, 1)


def test_a_module_that_workers_cannot_import_is_an_error_with_their_traceback(tmp_path: pathlib.Path) -> None:
    class Missing:
        def __reduce__(self) -> Any:
            return (__import__, ("a_module_that_is_not_there",))

        def __call__(self, sample: int) -> int:
            return sample

    with pytest.raises(mploader.WorkerError, match="No module named 'a_module_that_is_not_there'"):
        Loader(range(4), Missing(), batch_size=2, num_workers=2)


def test_a_closed_loader_says_so_and_can_be_closed_again() -> None:
    loader = Loader(range(100), square, batch_size=2, num_workers=2)
    pids = loader.worker_pids
    run = iter(loader)
    next(run)
    loader.close()
    loader.close()
    assert gone(pids)
    for use in (lambda: next(run), lambda: iter(loader)):
        with pytest.raises(mploader.ClosedError, match="closed"):
            use()


def test_a_loader_that_nobody_holds_ends_its_workers() -> None:
    loader = Loader(range(100), square, batch_size=2, num_workers=2)
    pids = loader.worker_pids
    batch = next(iter(loader))
    del loader
    gc.collect()
    assert gone(pids)
    assert batch[1].tolist() == [0, 1]


def test_descriptors_and_threads_come_back() -> None:
    def census() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    Loader(range(8), square, batch_size=2, num_workers=2).close()  # imports and caches
    gc.collect()
    before = census()
    for _ in range(3):
        with Loader(range(8), square, batch_size=2, num_workers=2) as loader:
            list(loader)
    del loader
    gc.collect()
    assert census() == before


def test_a_signal_handler_may_use_the_loader_at_any_moment() -> None:
    with Loader(range(1000), square, batch_size=1, num_workers=1) as loader:
        snapshots = []

        def handler(*_: object) -> None:
            snapshots.append((loader.statistics(), loader.state_dict()))

        end, main = threading.Event(), threading.main_thread().ident
        assert main is not None

        def send() -> None:
            while not end.wait(0.001):
                signal.pthread_kill(main, signal.SIGUSR1)

        sender = threading.Thread(target=send)
        before = signal.signal(signal.SIGUSR1, handler)  # not SIGALRM: that one ends a test that hangs
        try:
            sender.start()
            assert len(list(loader)) == 1000
        finally:
            end.set()
            sender.join()
            signal.signal(signal.SIGUSR1, before)
        assert snapshots


def test_a_fork_of_the_trainer_is_told_to_make_its_own_loader() -> None:
    with Loader(range(100), square, batch_size=2, num_workers=1) as loader:
        run = iter(loader)
        next(run)
        child = os.fork()
        if child == 0:
            try:
                next(run)
            except mploader.ClosedError as error:
                os._exit(0 if "fork" in str(error) else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(list(run)) == 49


def test_a_loader_made_in_a_thread_that_ends_lives_on() -> None:
    made: list[Loader] = []
    thread = threading.Thread(target=lambda: made.append(Loader(range(100), square, batch_size=2, num_workers=2)))
    thread.start()
    thread.join()
    assert ids(iter(made[0])) == list(range(100))


def test_a_loader_inside_a_worker_of_another() -> None:
    def transform(sample: int) -> int:
        with Loader([1, 2, 3], identity, batch_size=3, num_workers=1) as inner:
            return int(next(iter(inner)).sum()) + sample

    with Loader(range(4), transform, batch_size=2, num_workers=1) as loader:
        assert [batch.tolist() for batch in loader] == [[6, 7], [8, 9]]


def test_an_exception_in_the_transform_names_the_sample_its_place_and_the_way_out() -> None:
    loader = Loader(Squares(40), fail_at(25), batch_size=4, num_workers=2)
    pids = loader.worker_pids
    run = iter(loader)
    assert next(run)[:, 0].tolist() == [0, 1, 4, 9]
    with pytest.raises(mploader.SampleError) as caught:
        next(run)
    text = str(caught.value)
    assert "sample 5 (squares.txt, line 6 at byte 40) failed in worker" in text
    assert "ValueError: sample 25 is rotten" in text
    assert 'on_bad_sample="drop"' in text
    assert 'raise ValueError(f"sample {sample} is rotten")' in text, "the worker's traceback with its source lines"
    for again in (lambda: next(run), lambda: iter(loader), lambda: list(loader)):
        with pytest.raises(mploader.SampleError, match="rotten"):
            again()
    assert gone(pids)


def test_a_script_needs_no_guard_and_its_workers_no_tensorflow(run_script: Callable[..., Any]) -> None:
    done = run_script(
        """
import sys
import tensorflow as tf
import mploader

offset = 5

def add(sample):
    return sample + offset, any(name.startswith("tensorflow") for name in sys.modules)

loader = mploader.Loader(range(6), add, batch_size=3, num_workers=2)
print([(x.numpy().tolist(), imported.numpy().tolist()) for x, imported in loader.as_dataset()])
"""
    )
    assert done.stdout == "[([5, 6, 7], [False, False, False]), ([8, 9, 10], [False, False, False])]\n"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("way", ["file", "standard input", "cell of a notebook"])
def test_functions_of_a_script_reach_its_workers(way: str, run_script: Callable[..., Any]) -> None:
    done = run_script(
        """
import mploader

offset = 5

def add(sample):
    return sample + offset

for transform in add, lambda sample: 2 * sample:
    with mploader.Loader(range(6), transform, batch_size=3, num_workers=2) as loader:
        print([batch.tolist() for batch in loader])
""",
        way=way,
    )
    assert done.stdout.splitlines() == ["[[5, 6, 7], [8, 9, 10]]", "[[0, 2, 4], [6, 8, 10]]"]
    assert "Traceback" not in done.stderr


def test_import_mploader_is_light(run_script: Callable[..., Any]) -> None:
    done = run_script(
        "import mploader, sys\n"
        "mploader.Loader, mploader.sources.ImageFolder, mploader.images.Resize\n"
        "heavy = ('tensorflow', 'keras', 'cv2', 'PIL', 'google.protobuf', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert done.stdout.strip() == "[]"
