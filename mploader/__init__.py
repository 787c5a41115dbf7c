"""mploader: a multiprocessing data loader for TensorFlow.

Worker processes read shards, decode and preprocess, and write finished batches into shared memory. TensorFlow adopts
them without a copy. Nothing is lost when a worker dies, and the order of batches depends on (source, seed, epoch,
position) only. ``import mploader`` does not import TensorFlow.

The way of a batch, one module a step; read them in this order::

    plan         which samples make up batch 17 of epoch 2: pure arithmetic
    sources      the bytes of one sample; the only code that opens data files
    images       decode, resize, crop, flip
    batch        writes elements into a slot, reads batches out of it
    shapes       the same for components whose shape varies: padded, ragged
    layout       which component is stored how
    arena        the shared memory: slots, lent until the last array is gone
    worker       the child's loop: receive, fill, report
    process      starts, watches and ends one worker
    schedule     who owns which task and which slot: a state machine without I/O
    supervisor   the one thread that talks to workers (with intake: what they say; losses: how they end)
    pool         what the loader sees of all that
    loader       the object that users hold
    tfdata       the hand-off to TensorFlow
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mploader import images, sources
    from mploader.batching.ragged import Ragged
    from mploader.batching.spec import ArraySpec, Pad
    from mploader.engine.ipc.sample_report import BadSample
    from mploader.errors import (
        ArgumentError,
        ClosedError,
        LoaderError,
        ResourceError,
        SampleError,
        SourceError,
        SpecError,
        StallError,
        WorkerError,
    )
    from mploader.images import apply_to
    from mploader.loader.image_directory import image_dataset_from_directory
    from mploader.loader.loader import Loader
    from mploader.loader.pydataset import from_pydataset
    from mploader.monitoring.bottleneck import Bottleneck, Diagnosis
    from mploader.monitoring.statistics import Stage, Statistics, WorkerStatistics
    from mploader.monitoring.trace import Trace
    from mploader.sampling.bucketing import BucketBy
    from mploader.sampling.samplers import ShardShuffle
    from mploader.tfdata import from_generator

__all__ = [
    "ArgumentError",
    "ArraySpec",
    "BadSample",
    "Bottleneck",
    "BucketBy",
    "ClosedError",
    "Diagnosis",
    "Loader",
    "LoaderError",
    "Pad",
    "Ragged",
    "ResourceError",
    "SampleError",
    "ShardShuffle",
    "SourceError",
    "SpecError",
    "Stage",
    "StallError",
    "Statistics",
    "Trace",
    "WorkerError",
    "WorkerStatistics",
    "apply_to",
    "from_generator",
    "from_pydataset",
    "image_dataset_from_directory",
    "images",
    "sources",
]

__version__ = "0.1.0"

# Where each name lives. Names are imported on first use, because a worker imports this package too and needs few of
# them: what is imported here costs every worker start and every worker memory.
_HOMES = {
    "from_generator": "tfdata",
    "Loader": "loader.loader",
    "ShardShuffle": "sampling.samplers",
    "ArraySpec": "batching.spec",
    "Pad": "batching.spec",
    "Ragged": "batching.ragged",
    "BadSample": "engine.ipc.sample_report",
    "BucketBy": "sampling.bucketing",
    "Bottleneck": "monitoring.bottleneck",
    "Stage": "monitoring.statistics",
    "Statistics": "monitoring.statistics",
    "Trace": "monitoring.trace",
    "Diagnosis": "monitoring.bottleneck",
    "WorkerStatistics": "monitoring.statistics",
    "apply_to": "images",
    "from_pydataset": "loader.pydataset",
    "image_dataset_from_directory": "loader.image_directory",
}


def __getattr__(name: str) -> Any:
    """Imports a public name on first use (PEP 562)."""
    if name in ("images", "sources", "testing", "tfdata"):
        return importlib.import_module(f"mploader.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'mploader' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"mploader.{_HOMES.get(name, 'errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted([*globals(), *__all__])
