"""A training script that is killed and started again; run by tests/test_resume_tf.py.

Usage: python -m tests.resume_training WAY FOLDER KILL_AT [WORKERS]
       python -m tests.resume_training many WAY FOLDER [RUNS]    (20 runs; each is killed twice, after random steps)

WAY is "checkpoint" (a loop with tf.train.Checkpoint) or "fit" (model.fit with BackupAndRestore). Every training step
appends the step's number in the model's life and its samples to FOLDER/steps. At step KILL_AT of this process it kills
itself; 0: it goes on to the end. What a step trains on after the last save is rolled back with the weights, so of the
lines of one step number the last one counts.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mploader.tfdata import Position, ResumeCallback
from tests.resume_data import EPOCHS, make_loader


def note(folder: Path, step: int, samples: Any) -> None:
    with open(folder / "steps", "a") as log:
        log.write(" ".join(str(int(number)) for number in (step, *np.ravel(samples))) + "\n")


def by_checkpoint(folder: Path, kill_at: int, workers: int) -> None:
    loader = make_loader(workers)
    step = tf.Variable(0, dtype=tf.int64)
    position = Position(loader)
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(step=step, position=position), str(folder / "saved"), 2)
    manager.restore_or_initialize()
    steps_here = 0
    while loader.epoch < EPOCHS:
        for x, _ in position.count(loader.as_dataset()):
            note(folder, int(step), x)
            step.assign_add(1)
            if int(step) % 3 == 0:
                manager.save()
            steps_here += 1
            if steps_here == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)


def by_fit(folder: Path, kill_at: int, workers: int) -> None:
    loader = make_loader(workers)

    class Noting(keras.Model):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            tf.py_function(lambda step, x: note(folder, int(step), x), [self.optimizer.iterations, data[0]], [])
            return super().train_step(data)

    class Kill(keras.callbacks.Callback):  # type: ignore[misc]
        steps = 0

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.steps += 1
            if self.steps == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    inputs = keras.Input((1,))
    model = Noting(inputs, keras.layers.Dense(1)(inputs))
    model.compile("sgd", "mse", run_eagerly=False)
    callbacks = [
        keras.callbacks.BackupAndRestore(str(folder / "saved"), save_freq=3, double_checkpoint=True),
        ResumeCallback(loader),
    ]
    if workers % 2:  # the order of the two must not matter
        callbacks.reverse()
    model.fit(loader.as_dataset(), epochs=EPOCHS, callbacks=[*callbacks, Kill()], verbose=0, shuffle=False)


def trained_on(folder: Path) -> list[list[int]]:
    """The samples of each step in the life of the model that is left."""
    steps: dict[int, list[int]] = {}
    for line in (folder / "steps").read_text().splitlines():
        step, *samples = map(int, line.split())
        # A later start goes back to the last save: what came after it is no part of the model any more.
        steps = {other: seen for other, seen in steps.items() if other < step}
        steps[step] = samples
    assert list(steps) == list(range(len(steps)))
    return list(steps.values())


def uninterrupted() -> list[list[int]]:
    """The samples of each step of a training that nothing kills."""
    with make_loader(1) as loader:
        return [x.ravel().astype(int).tolist() for _ in range(EPOCHS) for x, _ in loader]


def many_kills(way: str, folder: Path, runs: int) -> bool:
    """Trains ``runs`` times, each time killed twice after random steps, and returns whether all were exact."""
    expected = uninterrupted()
    exact = 0
    for run in range(runs):
        kills = [*random.Random(run).choices(range(1, len(expected) // 2), k=2), 0]
        home = folder / f"{way}-{run}"
        home.mkdir(parents=True)
        statuses = []
        for workers, kill_at in enumerate(kills, 1):
            command = [sys.executable, "-m", "tests.resume_training", way, str(home), str(kill_at), str(workers)]
            statuses.append(subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode)
        exact += statuses == [-signal.SIGKILL, -signal.SIGKILL, 0] and trained_on(home) == expected
        print(f"run {run}: killed after {kills[0]} and {kills[1]} steps, {exact} of {run + 1} exact", flush=True)
    return exact == runs


if __name__ == "__main__":
    if sys.argv[1] == "many":
        runs = int(sys.argv[4]) if len(sys.argv) > 4 else 20
        sys.exit(0 if many_kills(sys.argv[2], Path(sys.argv[3]), runs) else 1)
    way = {"checkpoint": by_checkpoint, "fit": by_fit}[sys.argv[1]]
    way(Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]) if len(sys.argv) > 4 else 2)
