"""mploader: a multiprocessing data loader for TensorFlow.

Worker processes read shards, decode and preprocess, and write finished batches into shared memory. TensorFlow adopts
them without a copy. Nothing is lost when a worker dies, and the order of batches depends on (source, seed, epoch,
position) only. ``import mploader`` does not import TensorFlow.

The folders, in the order in which the data pass through them; a folder imports only those above it, but for the public
``Loader``, which lies above ``tfdata``::

    sampling/    which samples make up batch 17 of epoch 2: pure arithmetic
    sources/     the bytes of one sample; the only code that opens data files
    images/      decode, resize, crop, flip
    batching/    writes elements into a slot, reads batches out of it
    engine/      the worker processes
      ipc/         what crosses between trainer and workers: messages, shared memory, reports
      worker/      what runs in a worker: receive, fill, report
      scheduler/   which worker makes what, and into which slot: state machines without I/O
      supervisor/  the one thread of the trainer that talks to workers, and the pool that consumers see
    monitoring/  statistics, what limits throughput, timelines
    loader/      what an epoch is, progress and checkpoints, the epoch iterator; ``Loader``, the object that users hold
    tfdata/      the hand-off to TensorFlow
    cli/         the command
    testing/     tools for the tests of users
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
