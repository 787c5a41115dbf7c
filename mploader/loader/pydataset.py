"""``from_pydataset``: makes the batches of a ``keras.utils.PyDataset`` in worker processes."""

from __future__ import annotations

from typing import Any

from mploader.errors import ArgumentError
from mploader.loader.loader import Loader
from mploader.sources.pydataset import ChangingBatches, WholeBatches


def from_pydataset(
    dataset: Any,
    *,
    num_workers: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
    memory: int | str | None = None,
    stall_timeout: float = 300.0,
) -> Any:
    """Makes the batches of a ``keras.utils.PyDataset`` (or ``Sequence``) in worker processes.

    ``model.fit(mploader.from_pydataset(ds))`` takes the place of ``model.fit(ds)``; the class stays as it is. Its
    arguments ``workers``, ``use_multiprocessing`` and ``max_queue_size`` are not used.

    * ``__getitem__(i)`` is called in the workers, once for each i and epoch, for batches that are whole then. A worker
      that dies is replaced and its batch made again. The batches come in order, or shuffled.
    * ``on_epoch_begin`` and ``on_epoch_end`` are called in this process, on the object that was passed: before the
      first batch of an epoch is asked for, and when its last batch was handed over (that is a few steps before the
      training on it ends, because ``tf.data`` takes batches ahead). An epoch that is given up half-way has no end. If
      the class has one of these methods, workers get the object anew at each epoch; arrays that did not change are
      not sent again. Otherwise they keep the object as it was when this function was called.
    * ``fit()`` shuffles the batches of a ``PyDataset`` unless it is told not to, and never those of a
      ``tf.data.Dataset``: pass ``shuffle=True`` here for that.

    The arrays that the object holds are shared by the workers and read-only there: a ``__getitem__`` that fills an
    array of its own must make it. A worker imports what the class needs. That is Keras, and with it the backend, for a
    class that derives from one of Keras: some seconds at the start and 0.5 GB a worker with TensorFlow.

    Args:
        dataset: has ``__getitem__(i)``, which returns a batch: an array, a tuple ``(x, y, sample_weight)`` or a dict,
            of arrays or nested; and ``num_batches`` or ``__len__``, the same for all epochs.
        num_workers: processes. None: as many as CPUs that this process may use.
        shuffle: whether the batches come in another order in each epoch.
        seed: of the shuffle.
        memory, stall_timeout: see :class:`mploader.Loader`.

    Returns:
        A ``tf.data.Dataset`` of the batches, with known cardinality. Dimensions in which the first, the second or the
        last batch differ are None, and the batch dimension always is. Its attribute ``loader`` is the
        :class:`mploader.Loader` behind it.

    Raises:
        ArgumentError: it is not such a dataset, is infinite, or cannot be pickled.
        LoaderError: see :class:`mploader.Loader`.
    """
    length = _length(dataset)
    changes = _overrides(dataset, "on_epoch_begin") or _overrides(dataset, "on_epoch_end")
    source = (ChangingBatches if changes else WholeBatches)(dataset, length)
    loader = Loader(
        source, batch_size=1, shuffle=shuffle, seed=seed, num_workers=num_workers, memory=memory,
        stall_timeout=stall_timeout,
    )  # fmt: skip
    made = loader.as_dataset()
    made.loader = loader
    return made


def _length(dataset: Any) -> int:
    if isinstance(dataset, type):
        raise ArgumentError(f"from_pydataset: expected an object, got the class {dataset.__name__}; pass an instance")
    if not hasattr(dataset, "__getitem__") or not (hasattr(dataset, "num_batches") or hasattr(dataset, "__len__")):
        raise ArgumentError(
            "from_pydataset: expected a keras.utils.PyDataset, with __getitem__ and __len__, got a "
            f"{type(dataset).__name__}"
        )
    length = dataset.num_batches if hasattr(dataset, "num_batches") else len(dataset)
    if length is None:
        raise ArgumentError(
            f"{type(dataset).__name__}.num_batches is None: expected the number of batches of an epoch, as an infinite "
            "dataset has no epochs"
        )
    if not int(length):
        raise ArgumentError(f"{type(dataset).__name__}: expected at least one batch, got none")
    return int(length)


def _overrides(dataset: Any, name: str) -> bool:
    """Whether a method does something: the class has it, and it is not the empty one of Keras."""
    method = getattr(dataset, name, None)
    module = str(getattr(method, "__module__", ""))
    return method is not None and module.partition(".")[0] not in ("keras", "tf_keras", "tensorflow")
