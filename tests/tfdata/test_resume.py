"""Positions in TensorFlow: what training consumed counts, and a killed training goes on where it was saved."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import pytest
import tensorflow as tf

from mploader import ArgumentError, Loader
from mploader.loader.position import Position as Place
from mploader.tfdata import Position, ResumeCallback, StatisticsCallback
from tests.resume_data import make_loader
from tests.resume_training import trained_on, uninterrupted

pytestmark = pytest.mark.usefixtures("workers_in_threads")


def start(way: str, folder: Path, kill_at: int, workers: int) -> int:
    command = [sys.executable, "-m", "tests.resume_training", way, str(folder), str(kill_at), str(workers)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, timeout=100, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr.decode()
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize(("way", "seed"), [("checkpoint", 0), ("fit", 1)])
def test_a_training_that_is_killed_trains_on_every_sample_once(way: str, seed: int, tmp_path: Path) -> None:
    # Each start costs an import of TensorFlow, so one kill has to do here: tests/resume_training.py makes any number.
    expected = uninterrupted()
    kill_at = random.Random(seed).randrange(1, len(expected))
    assert start(way, tmp_path, kill_at, 2) == -signal.SIGKILL
    assert start(way, tmp_path, 0, 3) == 0
    assert trained_on(tmp_path) == expected


@pytest.mark.processes
def test_a_position_counts_what_training_took_and_not_what_tensorflow_holds(tmp_path: Path) -> None:
    with make_loader() as loader:
        position = Position(loader)
        checkpoint = tf.train.Checkpoint(position=position)
        batches = iter(position.count(loader.as_dataset().prefetch(3)))
        taken = list(itertools.islice(batches, 5))
        while loader.statistics().batches <= 5:  # TensorFlow gets ahead
            time.sleep(0.01)
        assert loader.state_dict()["samples"] == 20
        path = checkpoint.save(str(tmp_path / "checkpoint"))
    with make_loader(1) as other:
        tf.train.Checkpoint(position=Position(other)).restore(path)
        rest = [x.numpy().ravel().tolist() for x, _ in other.as_dataset()]
    seen = [x.numpy().ravel().astype(int).tolist() for x, _ in taken]
    assert seen + [[int(sample) for sample in batch] for batch in rest] == uninterrupted()[: len(seen) + len(rest)]
    assert len(seen) + len(rest) == 8


def test_a_position_advances_through_epochs_and_repeated_datasets() -> None:
    with make_loader() as loader:
        position = Position(loader)
        for number, _ in enumerate(loader.as_dataset().repeat(2), 1):
            position.advance()
            assert (loader.position.epoch, loader.position.batch) == divmod(number, 8)
        with pytest.raises(ArgumentError, match="0 are left in epoch 1"):
            position.advance()


@pytest.mark.parametrize("way", ["break", "take"])
def test_an_iteration_that_ends_early_leaves_the_rest_of_its_epoch_out(way: str) -> None:
    with make_loader() as loader:
        position = Position(loader)
        dataset = loader.as_dataset().prefetch(8)
        for epoch in range(3):
            for number, _ in enumerate(position.count(dataset.take(3) if way == "take" else dataset), 1):
                assert (loader.position.epoch, loader.position.batch) == (epoch, number)
                if number == 1:  # TensorFlow reads to the end of the epoch
                    await_reads(loader, 8 * (epoch + 1))
                if number == 3:
                    break


def test_an_iterator_that_is_read_on_leaves_nothing_out() -> None:
    with make_loader() as loader:
        position = Position(loader)
        iterator = iter(loader.as_dataset())
        for part in range(2):
            for _ in itertools.islice(position.count(iterator), 3):
                pass
            assert (loader.position.epoch, loader.position.batch) == (0, 3 * part + 3)


def await_reads(loader: Loader, batches: int) -> None:
    deadline_s = time.monotonic() + 5
    while loader.statistics().batches < batches and time.monotonic() < deadline_s:
        time.sleep(0.01)


def test_a_look_at_the_first_batch_does_not_count() -> None:
    with make_loader() as loader:
        dataset = loader.as_dataset()
        position = Position(loader)
        peek = iter(dataset)
        next(peek)
        del peek
        list(itertools.islice(position.count(dataset), 3))
        assert (loader.position.epoch, loader.position.batch) == (0, 3)


def test_a_dataset_that_nobody_counts_has_no_position() -> None:
    with make_loader() as loader:
        next(iter(loader.as_dataset()))
        with pytest.raises(ArgumentError, match=r"mploader\.tfdata\.Position"):
            loader.state_dict()


@pytest.mark.parametrize("batch_size", [4, None])
def test_a_resumed_dataset_is_shorter_once_and_states_the_length_of_an_epoch(batch_size: int | None) -> None:
    with Loader(range(30), batch_size=batch_size, num_workers=2) as loader:
        length = len(loader)
        state = {"version": 1, "epoch": 0, "samples": 12, "plan": {}, "source": {}}
        loader.load_state_dict(state, strict=False)
        dataset = loader.as_dataset()
        assert len(dataset) == len(dataset.map(lambda x: x)) == length
        rest = tf.concat([tf.reshape(x, [-1]) for x in dataset], 0).numpy().tolist()
        assert rest == list(range(12, 30))
        assert len(list(dataset)) == length


def test_a_fit_that_stops_early_leaves_the_rest_of_its_epoch_out() -> None:
    class Stop(keras.callbacks.Callback):  # type: ignore[misc]
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            await_reads(loader, 8 * (epoch + 1))
            self.model.stop_training = batch == 2

    with make_loader() as loader:
        callback = ResumeCallback(loader)
        for epoch in range(3):
            build().fit(loader.as_dataset().prefetch(8), callbacks=[callback, Stop()], verbose=0)
            assert (loader.position.epoch, loader.position.batch) == (epoch, 3)


def build(**options: Any) -> Any:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse", **options)
    return model


class Places(keras.callbacks.Callback):  # type: ignore[misc]
    """Notes the loader's place after every epoch, and the batches in each."""

    def __init__(self, loader: Loader) -> None:
        super().__init__()
        self.loader = loader
        self.epochs: list[tuple[int, int, int]] = []
        self.batches = 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.batches += 1

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append((self.loader.position.epoch, self.loader.position.batch, self.batches))
        self.batches = 0


def test_fit_after_a_load_trains_the_rest_of_the_epoch_without_a_warning() -> None:
    with make_loader() as loader, make_loader(1) as other:
        model, places = build(), Places(loader)
        next(batches := iter(other))
        next(batches)
        loader.load_state_dict(other.state_dict())
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*ran out of data.*")
            model.fit(loader.as_dataset(), epochs=3, callbacks=[ResumeCallback(loader), places], verbose=0)
        assert places.epochs == [(1, 0, 6), (2, 0, 8), (3, 0, 8)]
        assert not hasattr(model, "mploader_position")


def test_fit_with_several_steps_per_execution_and_with_steps_per_epoch_is_counted() -> None:
    with make_loader() as loader:
        places = Places(loader)
        build(steps_per_execution=3).fit(
            loader.as_dataset(), epochs=2, callbacks=[ResumeCallback(loader), places], verbose=0
        )
        assert [epoch[:2] for epoch in places.epochs] == [(1, 0), (2, 0)]
    with make_loader() as loader:
        places = Places(loader)
        build().fit(
            loader.as_dataset().repeat(), epochs=3, steps_per_epoch=5, callbacks=[ResumeCallback(loader), places],
            verbose=0,
        )  # fmt: skip
        assert [epoch[:2] for epoch in places.epochs] == [(0, 5), (1, 2), (1, 7)]


def test_a_strategy_of_several_hosts_is_refused() -> None:
    # A stand-in: the fit of Keras 3.15 fails under such a strategy before it calls a callback.
    strategy = SimpleNamespace(num_replicas_in_sync=2, extended=SimpleNamespace(worker_devices=("CPU:0",)))
    with make_loader(1) as loader:
        callback = ResumeCallback(loader)
        callback.set_model(SimpleNamespace(distribute_strategy=strategy))
        with pytest.raises(ArgumentError, match="2 replicas train, 1 of them on this host"):
            callback.on_train_begin()


class Stop(keras.callbacks.Callback):  # type: ignore[misc]
    """Fails when the second epoch begins, behind the save at the end of the first."""

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        if epoch == 1:
            raise KeyboardInterrupt


@pytest.mark.parametrize("is_known", [True, False], ids=["length known", "length unknown"])
def test_a_training_saved_at_the_end_of_an_epoch_goes_on_with_the_next(tmp_path: Path, is_known: bool) -> None:
    places = []
    for is_first in (True, False):
        with make_loader(1) as loader:
            dataset = loader.as_dataset()
            if not is_known:
                dataset = dataset.filter(lambda *_: True)
            places.append(Places(loader))
            callbacks = [keras.callbacks.BackupAndRestore(str(tmp_path)), ResumeCallback(loader), places[-1]]
            with contextlib.suppress(KeyboardInterrupt):
                build().fit(dataset, epochs=3, callbacks=[*callbacks, *[Stop()] * is_first], verbose=0)
    assert places[0].epochs == [(1, 0, 8)]
    assert places[1].epochs == [(2, 0, 8), (3, 0, 8)]


@pytest.mark.processes
def test_weights_saved_during_fit_hold_the_position_and_load_into_any_model(tmp_path: Path) -> None:
    path = str(tmp_path / "{epoch}-{batch}.weights.h5")
    with make_loader() as loader:
        save = keras.callbacks.ModelCheckpoint(path, save_weights_only=True, save_freq=3)
        build().fit(loader.as_dataset(), epochs=1, callbacks=[save, ResumeCallback(loader)], verbose=0)
    saved = sorted(tmp_path.glob("*.h5"))
    assert len(saved) == 2
    build().load_weights(saved[0])  # without the callback the position is passed over


def fail_at_3_and_9(sample: int) -> int:
    if sample in (3, 9):
        raise ValueError("rotten")
    return sample


def test_dropped_elements_do_not_make_a_position_lag() -> None:
    with Loader(range(16), fail_at_3_and_9, batch_size=None, num_workers=2, on_bad_sample="drop") as loader:
        position = Position(loader)
        for epoch in range(3):
            for element in position.count(loader.as_dataset()):
                sample, place = int(element), loader.position
                # The next one, or where that one is known to be bad the one behind it.
                behind = {Place(epoch, sample + 1), Place(epoch, sample + 2)} if sample < 15 else {Place(epoch + 1, 0)}
                assert place in behind
            assert loader.position == Place(epoch + 1, 0)
        with pytest.raises(ArgumentError, match="0 are left in epoch 2"):
            position.advance()


def test_a_position_is_known_again_after_numpy_batches_or_a_load() -> None:
    with make_loader() as loader:
        start = loader.state_dict()
        next(iter(loader.as_dataset()))
        with pytest.raises(ArgumentError, match=r"mploader\.tfdata\.Position"):
            loader.state_dict()
        loader.load_state_dict(start)
        assert loader.state_dict() == start
        peek = iter(loader.as_dataset())
        next(peek)
        batches = iter(loader)
        next(batches)
        with pytest.raises(ArgumentError, match=r"mploader\.tfdata\.Position"):
            loader.state_dict()  # the dataset is still being read
        del peek
        next(batches)
        assert (loader.state_dict()["epoch"], loader.state_dict()["samples"]) == (1, 8)


@pytest.mark.parametrize("kind", [Position, ResumeCallback, StatisticsCallback])
def test_a_dataset_is_refused_in_place_of_a_loader(kind: Any) -> None:
    with make_loader() as loader, pytest.raises(ArgumentError, match=r"PrefetchDataset\): expected the mploader"):
        kind(loader.as_dataset())
