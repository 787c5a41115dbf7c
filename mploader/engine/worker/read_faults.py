"""Fault points in the reads of sources; installed in a worker for which such a fault is set."""

from __future__ import annotations

from mploader._util import fault_points
from mploader.sources import files


def install() -> None:
    """Replaces the function that reads samples by one that reaches "record opened" and "record half read"."""
    files.read_record = _read_with_faults


def _read_with_faults(descriptor: int, path: str, offset: int, size: int) -> bytes:
    fault_points.reach("record opened")
    if not fault_points.is_set("record half read"):
        return files.read_exactly(descriptor, path, offset, size)
    half = files.read_exactly(descriptor, path, offset, size // 2)
    fault_points.reach("record half read")
    return half + files.read_exactly(descriptor, path, offset + len(half), size - len(half))
