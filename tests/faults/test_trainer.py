"""The trainer may die, be interrupted or exit at any moment: its workers go with it, and it exits as it should."""

from __future__ import annotations

import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from mploader.testing import Census
from tests.conftest import REPOSITORY, is_in_time

Start = Callable[[str], subprocess.Popen[str]]

GONE_S = 10.0
"""When workers have to be gone. They promise to be within a second, but a machine may be busy; one that does not notice
that its trainer is gone stays for longer than this."""
EXIT_S = 3.0
"""How long a trainer may take to exit."""

HEAD = """
import os, signal, sys, time
import mploader

def element(sample):
    time.sleep(0.002)
    return sample

"""
ITERATE = (
    HEAD
    + """
loader = mploader.Loader(range(10**6), element, batch_size=4, num_workers=2)
print("ready", flush=True)
for batch in loader:
    pass
"""
)


@pytest.fixture
def start(tmp_path: pathlib.Path) -> Iterator[Callable[[str], subprocess.Popen[str]]]:
    """Runs a program text as a trainer of its own; kills those that are left when the test ends."""
    trainers: list[subprocess.Popen[str]] = []

    def run(text: str) -> subprocess.Popen[str]:
        script = tmp_path / f"script{len(trainers)}.py"
        script.write_text(text)
        trainers.append(
            subprocess.Popen(
                [sys.executable, str(script)], env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
                stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            )
        )  # fmt: skip
        return trainers[-1]

    yield run
    for trainer in trainers:
        trainer.kill()
        trainer.communicate()


def await_line(trainer: subprocess.Popen[str], line: str) -> None:
    """Reads what a trainer prints up to a line."""
    assert trainer.stdout is not None
    while (read := trainer.stdout.readline()) != line + "\n":
        assert read, trainer.communicate()[1]


def processes() -> int:
    return len(Census.take(f"MPLOADER_CENSUS={os.environ['MPLOADER_CENSUS']}").processes)


def wait_until_alone() -> None:
    deadline_s = time.monotonic() + GONE_S
    while left := processes():
        assert time.monotonic() < deadline_s, f"{left} processes are left {GONE_S:g} s later"
        time.sleep(0.02)


def leave(trainer: subprocess.Popen[str], line: str) -> tuple[float, int, str]:
    """Waits for a trainer and its workers to end.

    Returns:
        How many seconds the trainer has taken from the moment when it printed a line, its exit code, its errors.
    """
    await_line(trainer, line)
    started_s = time.monotonic()
    _, errors = trainer.communicate(timeout=60)
    took_s = time.monotonic() - started_s
    wait_until_alone()
    return took_s, trainer.returncode, errors


def test_a_killed_trainer_takes_its_workers_along(start: Start) -> None:
    chance = random.Random(5)
    for _ in range(5):
        trainers = [start(ITERATE) for _ in range(4)]
        for trainer in trainers:
            await_line(trainer, "ready")
        for trainer in trainers:
            time.sleep(chance.uniform(0, 0.1))
            os.kill(trainer.pid, signal.SIGKILL)
        for trainer in trainers:
            trainer.communicate()
        wait_until_alone()


@pytest.mark.parametrize("milliseconds", [0, 20, 50, 150, 300])
def test_a_trainer_killed_while_its_workers_start(milliseconds: int, start: Start) -> None:
    trainer = start(HEAD + "print('go', flush=True)\nmploader.Loader(range(99), element, batch_size=4)")
    await_line(trainer, "go")
    time.sleep(milliseconds / 1000)
    trainer.kill()
    trainer.communicate()
    wait_until_alone()


@pytest.mark.parametrize("how", ["os._exit(0)", "os.execv('/bin/true', ['true'])", "os.abort()"])
def test_a_trainer_that_leaves_without_a_word(how: str, start: Start) -> None:
    text = ITERATE.replace("    pass", f"    {how}")
    trainer = start(text)
    trainer.communicate(timeout=30)
    wait_until_alone()


def test_sigterm_ends_trainer_and_workers(start: Start) -> None:
    trainer = start(ITERATE)
    await_line(trainer, "ready")
    trainer.terminate()
    trainer.communicate(timeout=10)
    assert trainer.returncode == -signal.SIGTERM
    wait_until_alone()


@pytest.mark.parametrize("moment", ["start", "next", "close"])
def test_ctrl_c_is_one_traceback_and_exit_code_130(moment: str, start: Start) -> None:
    before = {"start": "", "next": ""}
    before[moment] = "print('ready', flush=True)"
    text = f"""{HEAD}
def stuck(sample):
    if sample:
        time.sleep(100)
    return sample

{before["start"]}
for attempt in range(1000 if {moment == "start"} else 1):
    loader = mploader.Loader(range(1000), stuck, batch_size=4, num_workers=2)
    if {moment == "start"}:
        loader.close()
if {moment == "close"}:
    iterator = iter(loader)
    thread = loader._core.pool._thread
    def join(join=thread.join):
        thread.join = join
        print("ready", flush=True)
        time.sleep(100)
    thread.join = join
    loader.close()
{before["next"]}
next(iter(loader))
"""
    trainer = start(text)
    await_line(trainer, "ready")
    if moment != "close":
        time.sleep(0.4)
    os.killpg(trainer.pid, signal.SIGINT)  # as a terminal does: to the whole group
    _, errors = trainer.communicate(timeout=20)
    assert trainer.returncode == -signal.SIGINT, errors
    assert errors.count("Traceback (most recent call last)") == 1, errors
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert moment != "close" or ", in close" in errors, errors
    wait_until_alone()


@pytest.mark.parametrize(("end", "code"), [("sys.exit(3)", 3), ("1 / 0", 1), ("break", 0)])
def test_an_exit_in_the_middle_keeps_its_code_and_is_quick(end: str, code: int, start: Start) -> None:
    text = (
        ITERATE.replace("    pass", f"    print('leaving', flush=True)\n    {end}")
        + "\nkept = iter(loader)\nnext(kept)"
    )

    def attempt() -> float:
        took_s, found, errors = leave(start(text), "leaving")
        assert found == code, errors
        assert errors.count("Traceback") == (1 if code == 1 else 0), errors
        return took_s

    assert is_in_time(attempt, EXIT_S)


LIVE_ITERATOR = (
    HEAD
    + """
import tensorflow as tf
for _ in range(2):
    dataset = mploader.Loader(range(10**6), element, batch_size=4, num_workers=2).as_dataset().prefetch(4)
    iterator = iter(dataset)
    for _ in range(3):
        next(iterator)
print("done", flush=True)
"""
)


READ_AHEAD = (
    HEAD
    + """
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

def slow(batch):
    tf.numpy_function(time.sleep, [1], [])  # a thread of TensorFlow is in here when the interpreter begins to end
    return batch

dataset = mploader.Loader(range(100), element, batch_size=4, num_workers=1).as_dataset().map(slow)
"""
)
ONE_DEVICE = """
iterator = iter(dataset.prefetch(4))
next(iterator)
"""
TWO_DEVICES = """
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
iterator = iter(strategy.experimental_distribute_dataset(dataset))
next(iterator)
"""
ERROR = """
def bad(batch):
    tf.debugging.assert_none_equal(batch[0], 4 + tf.cast(slow(0), tf.int64), "the second batch")
    return batch

iterator = iter(dataset.map(bad).prefetch(4))
next(iterator)
next(iterator)
"""
STUCK = """
def stuck(sample):
    time.sleep(1000 if sample == 9 else 0)
    return sample

dataset = mploader.Loader(range(100), stuck, batch_size=4, num_workers=1).as_dataset()
iterator = iter(dataset.prefetch(4))
next(iterator)
"""
STUCK_ELSEWHERE = """
import threading

def generator():
    yield 1
    threading.Event().wait()

other = tf.data.Dataset.from_generator(generator, output_signature=tf.TensorSpec((), tf.int64))
iterators = iter(dataset), iter(other.prefetch(1))
next(iterators[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("program", "error"),
    [
        pytest.param(ONE_DEVICE, "", id="one device"),
        pytest.param(TWO_DEVICES, "", id="two devices"),
        pytest.param(ERROR, "the second batch", id="the traceback of an error refers to the iterator"),
        pytest.param(STUCK, "", id="a batch that does not come"),
        pytest.param(STUCK_ELSEWHERE, "", id="a generator of the user's that waits for ever"),
    ],
)
def test_an_exit_while_a_thread_of_tensorflow_is_in_python(program: str, error: str, start: Start) -> None:
    trainer = start(READ_AHEAD + program)
    _, errors = trainer.communicate(timeout=50)
    assert trainer.returncode == bool(error), errors
    assert error in errors
    assert "Fatal Python error" not in errors
    wait_until_alone()


@pytest.mark.slow
@pytest.mark.timeout(0)  # as many programs as MPLOADER_EXITS says, each with a limit of its own
def test_an_exit_with_a_live_tensorflow_iterator(start: Start) -> None:
    for _ in range(int(os.environ.get("MPLOADER_EXITS", "1"))):
        # How long TensorFlow takes to exit is its own affair; whether it exits at all is ours, too.
        _, code, errors = leave(start(LIVE_ITERATOR), "done")
        assert code == 0, errors
        assert "Fatal Python error" not in errors
        assert "ClosedError" not in errors, "a thread that reads ahead is no reason for a warning"
