"""Exact resume of ``model.fit``: the position as a part of the weights that Keras saves.

Apart from the other modules, because it imports Keras, which others need not.
"""

from __future__ import annotations

import json
from typing import Any

import keras
import numpy as np

from mploader.errors import ArgumentError
from mploader.loader.core import CoreOwner, core_of

# Keras saves whatever in a model's attributes is of this class, which has no public name in every version.
_Saveable: Any = next(base for base in keras.Layer.__mro__ if base.__name__ == "KerasSaveable")


class _SavedState(_Saveable):  # type: ignore[misc]
    """The position as a part of a model's weights file."""

    def __init__(self, callback: ResumeCallback) -> None:
        self._callback = callback
        self.restored = ""

    def _obj_type(self) -> str:
        return "Layer"

    def save_own_variables(self, store: Any) -> None:
        """Called by ``model.save_weights``."""
        store["state"] = np.frombuffer(json.dumps(self._callback.state_dict()).encode(), np.uint8)

    def load_own_variables(self, store: Any) -> None:
        """Called by ``model.load_weights``; weights that were saved without a position have none."""
        if "state" in store.keys():  # noqa: SIM118  the store is no mapping
            self.restored = np.array(store["state"], np.uint8).tobytes().decode()


class _EndOfEpoch:
    """A true value for ``model.stop_training`` that can be told from one that another callback sets."""

    def __bool__(self) -> bool:
        return True


class ResumeCallback(keras.callbacks.Callback):  # type: ignore[misc]
    """Counts what ``model.fit`` has trained on, and resumes there together with ``keras.callbacks.BackupAndRestore``.

    ::

        model.fit(
            loader.as_dataset(), epochs=90,
            callbacks=[keras.callbacks.BackupAndRestore(folder, save_freq=1000), ResumeCallback(loader)],
        )

    The position is saved inside of the weights file that ``BackupAndRestore`` writes (and so does ``ModelCheckpoint``
    during ``fit``). When that is restored, the loader continues at the batch after the last one of the saved weights,
    and the epoch that was interrupted has as many steps as were left of it. Put it behind ``BackupAndRestore``. Without
    that callback it keeps ``loader.state_dict()`` right, which other callbacks may save. ``double_checkpoint=True``
    makes Keras survive a kill while it writes the file.

    A step of ``fit`` must be a batch of the loader: it cannot count one whose dataset was filtered, shortened
    (``take``, ``skip``; pass ``steps_per_epoch``) or batched again behind the loader, nor one under a strategy of
    several hosts, where TensorFlow cuts each batch into several steps.

    Args:
        loader: the loader that ``fit`` trains on, by :meth:`mploader.Loader.as_dataset`.
    """

    def __init__(self, loader: CoreOwner) -> None:
        super().__init__()
        self._core = core_of("ResumeCallback", loader)
        self._consumption = self._core.progress.consumption
        self._saved = _SavedState(self)
        self._epoch = 0
        """The epoch of ``fit`` under way; it counts on across restarts."""
        self._done = 0
        """Batches of this epoch of ``fit`` that were trained on, those before a restart included."""
        self._begun = 0
        """Batches of the step under way; they count once it has ended, at the first call that needs them counted."""
        self._is_resumed = False
        self._is_rest = False
        """Whether this epoch of ``fit`` is what was left of an interrupted one."""
        self._end_of_epoch = _EndOfEpoch()
        self._consumption.is_counted = True

    def state_dict(self) -> dict[str, Any]:
        """The loader's state, and how far ``fit`` is in its own epochs."""
        self._settle()
        return {**self._core.state(), "fit": {"epoch": self._epoch, "batch": self._done}}

    def set_model(self, model: Any) -> None:
        """Called by Keras; from here on the position is a part of what the model saves."""
        super().set_model(model)
        self._saved.restored = ""
        model.mploader_position = self._saved

    def on_train_begin(self, logs: Any = None) -> None:
        """Called by Keras before the first epoch; ``BackupAndRestore`` restores here too.

        Raises:
            ArgumentError: the model trains under a strategy of several hosts.
        """
        _check_one_host(self.model.distribute_strategy)
        self._begun, self._is_resumed = 0, False
        self._consumption.give_up()  # what an earlier fit has left of its last epoch
        # The loader may have been moved by hand. Epochs of fit with steps_per_epoch are not those of the loader.
        self._done = self._core.progress.next.batch if self._steps == self._core.description.num_batches else 0
        self._resume()
        if self._is_resumed:
            # Keras counts its epochs from 0 again once it has been interrupted twice in one; the position does not.
            self.model._initial_epoch = self._epoch
        self._is_rest = self._done > 0

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras; the last moment to move the loader, for a restore by a callback behind this one."""
        self._resume()
        if not self._is_resumed:
            self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Called by Keras before each step, or before each ``steps_per_execution`` steps."""
        self._begun = max(1, self.model.steps_per_execution)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Called by Keras after each step, or after each ``steps_per_execution`` steps."""
        self._settle()
        if self._is_rest and self._steps is not None and self._done >= self._steps and not self.model.stop_training:
            # Keras would read on and warn that the data ran out.
            self.model.stop_training = self._end_of_epoch

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras."""
        if self.model.stop_training is self._end_of_epoch:
            self.model.stop_training = False
        self._epoch += 1
        self._done, self._is_rest = 0, False
        if self._is_resumed and self._epoch >= self.params["epochs"]:
            self.model.stop_training = True

    def on_train_end(self, logs: Any = None) -> None:
        """Called by Keras; what the model saves from now on has no position."""
        del self.model.mploader_position

    @property
    def _steps(self) -> int | None:
        steps: int | None = self.params["steps"]
        return steps

    def _is_at_end(self) -> bool:
        """Whether this epoch of ``fit`` was trained on to its end."""
        if self._steps is not None:
            return self._done >= self._steps
        # Of a dataset of unknown length an epoch of fit is what is left of one of the loader.
        return self._done > 0 and self._core.progress.consumed.batch == 0

    def _settle(self) -> None:
        """Counts the step that has just been trained. Saving does it too, so the order of callbacks does not matter."""
        begun, self._begun = self._begun, 0
        if begun:
            self._core.progress.consume(self._consumption.advance(begun, at_most=True))
            self._done += begun

    def _resume(self) -> None:
        """Takes up a position that was restored with the weights."""
        if not self._saved.restored:
            return
        state = json.loads(self._saved.restored)
        self._saved.restored = ""
        self._core.load(state, strict=True)
        self._epoch, self._done = state["fit"]["epoch"], state["fit"]["batch"]
        if self._is_at_end():
            self._epoch, self._done = self._epoch + 1, 0  # saved at the last step, before Keras closed the epoch
        self._is_resumed, self._is_rest = True, self._done > 0


def _check_one_host(strategy: Any) -> None:
    replicas = strategy.num_replicas_in_sync
    here = 1 if replicas == 1 else len(strategy.extended.worker_devices)  # the default strategy has no devices
    if replicas > here:
        raise ArgumentError(
            f"ResumeCallback cannot count here: {replicas} replicas train, {here} of them on this host, and under "
            "fit() TensorFlow cuts each host's batch into a piece for every replica of all hosts, so a batch lasts "
            "several steps. Write the training loop with mploader.tfdata.distribute, and count with a "
            "mploader.tfdata.Position"
        )
