"""The hand-off to TensorFlow; the only modules that import it."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mploader.tfdata.dataset import as_dataset
from mploader.tfdata.distribution import HostShard, distribute
from mploader.tfdata.generator import from_generator
from mploader.tfdata.pool_iteration import tensor_spec
from mploader.tfdata.position import Position
from mploader.tfdata.profile_merge import merge_profile

if TYPE_CHECKING:
    from mploader.tfdata.resume import ResumeCallback
    from mploader.tfdata.statistics_callback import StatisticsCallback

__all__ = [
    "HostShard", "Position", "ResumeCallback", "StatisticsCallback", "as_dataset", "distribute", "from_generator",
    "merge_profile", "tensor_spec",
]  # fmt: skip

_NEEDS_KERAS = {"ResumeCallback": "resume", "StatisticsCallback": "statistics_callback"}


def __getattr__(name: str) -> Any:
    """Imports what needs Keras on first use (PEP 562)."""
    if name not in _NEEDS_KERAS:
        raise AttributeError(f"module 'mploader.tfdata' has no attribute {name!r}")
    return getattr(importlib.import_module(f"mploader.tfdata.{_NEEDS_KERAS[name]}"), name)
