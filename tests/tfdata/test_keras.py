"""Loaders in ``model.fit``, ``evaluate`` and ``predict``."""

from __future__ import annotations

import gc
import os
import threading
from typing import Any

import keras
import numpy as np
import psutil
import pytest

from mploader import Loader
from mploader.loader.epoch_iterator import EpochIterator
from tests.shapes_data import with_ballast

SAMPLES = [(np.full(3, number / 30, np.float32), np.float32(number % 2)) for number in range(30)]


def make_model() -> keras.Model:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(4, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=False)
    return model


class Watch(keras.callbacks.Callback):
    """Writes down what Keras believes of the number of steps, and which steps there were."""

    def __init__(self) -> None:
        super().__init__()
        self.believed: list[int | None] = []
        self.steps: list[int] = []

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.believed.append(self.params["steps"])
        self.steps.append(0)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.steps[-1] += 1


class FailAt(keras.callbacks.Callback):
    """Raises in the middle of an epoch."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 2:
            raise RuntimeError("the disk for checkpoints is full")


def test_the_number_of_steps_is_known_from_the_first_epoch_on(capsys: pytest.CaptureFixture[str]) -> None:
    with Loader(SAMPLES, batch_size=4, num_workers=1, shuffle=True) as loader:
        watch = Watch()
        make_model().fit(loader.as_dataset(), epochs=3, verbose=2, callbacks=[watch])
    assert watch.believed == [8, 8, 8]
    assert watch.steps == [8, 8, 8]
    assert "8/8" in capsys.readouterr().out.split("Epoch 2/3")[0]


def test_fit_with_a_validation_loader_gives_what_arrays_give() -> None:
    x, y = (np.stack(parts) for parts in zip(*SAMPLES, strict=True))
    wanted = make_model().fit(x, y, batch_size=4, epochs=3, shuffle=False, verbose=0, validation_data=(x[:9], y[:9]),
                              validation_batch_size=4).history  # fmt: skip
    options: dict[str, Any] = {"batch_size": 4, "num_workers": 1}
    with Loader(SAMPLES, **options) as loader, Loader(SAMPLES[:9], **options) as held:
        model = make_model()
        got = model.fit(loader.as_dataset(), epochs=3, verbose=0, validation_data=held.as_dataset()).history
        assert got["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
        assert got["val_loss"] == pytest.approx(wanted["val_loss"], rel=1e-5)
        assert model.evaluate(held.as_dataset(), verbose=0) == pytest.approx(got["val_loss"][-1], rel=1e-5)
    with Loader(x, batch_size=7, num_workers=1) as inputs:
        np.testing.assert_allclose(
            model.predict(inputs.as_dataset(), verbose=0), model.predict(x, verbose=0), rtol=1e-4, atol=1e-6
        )


def test_early_stopping_leaves_the_loader_ready() -> None:
    with Loader(SAMPLES, batch_size=4, num_workers=1) as loader, Loader(SAMPLES, batch_size=8, num_workers=1) as held:
        stop = keras.callbacks.EarlyStopping("val_loss", min_delta=100.0, patience=1)
        dataset, validation = loader.as_dataset(), held.as_dataset()
        for _ in range(2):
            history = make_model().fit(dataset, epochs=9, verbose=0, validation_data=validation, callbacks=[stop])
            assert len(history.epoch) == 2
        assert len(list(loader)) == len(loader)


def test_steps_per_epoch_goes_on_where_it_stopped() -> None:
    with Loader(SAMPLES, batch_size=4, num_workers=1) as loader:
        watch = Watch()
        make_model().fit(loader.as_dataset().repeat(), steps_per_epoch=5, epochs=3, verbose=0, callbacks=[watch])
        assert watch.steps == [5, 5, 5]


def test_an_exception_in_a_callback_comes_out_and_the_next_fit_works() -> None:
    with Loader(SAMPLES, batch_size=4, num_workers=1) as loader:
        dataset = loader.as_dataset()
        for _ in range(3):
            with pytest.raises(RuntimeError, match="the disk for checkpoints is full"):
                make_model().fit(dataset, epochs=2, verbose=0, callbacks=[FailAt()])
        watch = Watch()
        make_model().fit(dataset, epochs=1, verbose=0, callbacks=[watch])
        assert watch.steps == [8]
        loader_pids = loader.worker_pids
        assert len(loader_pids) == 1


def census() -> dict[str, int]:
    gc.collect()
    return {
        "threads": threading.active_count(),
        "descriptors": len(os.listdir("/proc/self/fd")),
        "processes": len(psutil.Process().children()),
        "runs": sum(isinstance(thing, EpochIterator) for thing in gc.get_objects()),
    }


class IgnoresBallast(keras.Model):
    """Takes batches of a mebibyte and looks at a few numbers of them."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs["x"])


@pytest.mark.slow
@pytest.mark.parametrize("anew", [False, True])
def test_many_fits_without_growth(anew: bool) -> None:
    """One loader for all of them, or another for each. One fit alone handles 12 MiB."""

    def make() -> Loader:
        return Loader(range(24), with_ballast, batch_size=4, num_workers=1, memory="12MiB")

    model = IgnoresBallast()
    model.compile("sgd", "mse", jit_compile=False)
    loader = make()
    dataset = loader.as_dataset()
    before: dict[str, int] = {}
    for number in range(8):
        if anew:
            loader.close()
            loader = make()
            dataset = loader.as_dataset()
        model.fit(dataset, epochs=2, verbose=0)
        if number == 2:
            before, resident = census(), psutil.Process().memory_info().rss
    after = census()
    assert {name: after[name] - before[name] for name in after if after[name] > before[name]} == {}
    assert psutil.Process().memory_info().rss - resident < 40 * 2**20
    loader.close()
