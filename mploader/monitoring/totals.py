"""Where the value of a statistic comes from, written beside its field, and the sums that follow from it.

A field of :class:`~mploader.monitoring.statistics.WorkerStatistics` or ``Statistics`` carries an :class:`Origin` in its
metadata. Summing, snapshots, differences and the printed text all work from that, so a new statistic is one field.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

GATHERED = 64
"""How many events are added up at once."""

Record = TypeVar("Record", bound="DataclassInstance")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where the value of a field comes from, and how it is shown.

    Attributes:
        owner: the class of the events that are added up, or of the record that the value is read from.
        attribute: the attribute of it. None: each event counts as one. Nanoseconds (``_ns``) become seconds.
        is_total: whether the value only grows, so that two snapshots have a difference.
        line: the line of the text that shows the value, or of a worker the head of its column; "" shows it nowhere.
        text: how the value is shown, as a format string.
        unit: the value is divided by it before it is shown.
    """

    owner: type
    attribute: str | None
    is_total: bool
    line: str
    text: str
    unit: float

    @property
    def is_time(self) -> bool:
        """Whether the value is in nanoseconds where it comes from."""
        return self.attribute is not None and self.attribute.endswith("_ns")

    def scaled(self, value: int) -> float:
        """Returns a value as the field has it: in seconds if it is a time."""
        return value / 1e9 if self.is_time else value

    def show(self, value: float) -> str:
        """Returns the value as text."""
        return self.text.format(value if self.unit == 1 else value / self.unit)


def total(owner: type, attribute: str | None, line: str = "", text: str = "{:,}", unit: float = 1) -> Any:
    """A field whose value only grows: the sum over all events of a class, or a total that a record keeps."""
    return _field(owner, attribute, True, line, text, unit)


def state(owner: type, attribute: str | None, line: str = "", text: str = "{:,}", unit: float = 1) -> Any:
    """A field whose value is read from a record as it is now."""
    return _field(owner, attribute, False, line, text, unit)


def _field(owner: type, attribute: str | None, is_total: bool, line: str, text: str, unit: float) -> Any:
    origin = Origin(owner=owner, attribute=attribute, is_total=is_total, line=line, text=text, unit=unit)
    return dataclasses.field(default=0.0 if origin.is_time else 0, metadata={"origin": origin})


def origins(record: type) -> Mapping[str, Origin]:
    """The origins of the fields of a record, by name; fields without one are left out."""
    return _origins(record)


@functools.cache
def _origins(record: Any) -> Mapping[str, Origin]:
    return {
        field.name: field.metadata["origin"] for field in dataclasses.fields(record) if "origin" in field.metadata
    }


def values(record: type, owner: Any) -> dict[str, float]:
    """Returns the values of those fields of a record that are read from ``owner``, as they are now."""
    found = {}
    for name, origin in origins(record).items():
        if origin.owner is type(owner):
            assert origin.attribute is not None, f"{name}: expected an attribute of {origin.owner.__name__}"
            found[name] = origin.scaled(getattr(owner, origin.attribute))
    return found


def difference(new: Record, old: Record) -> Record:
    """Returns ``new`` with the totals of ``old`` taken off."""
    names = (name for name, origin in origins(type(new)).items() if origin.is_total)
    return dataclasses.replace(new, **{name: getattr(new, name) - getattr(old, name) for name in names})


def is_earlier(old: Any, new: Any) -> bool:
    """Whether no total of ``old`` exceeds that of ``new``."""
    names = (name for name, origin in origins(type(new)).items() if origin.is_total)
    return all(getattr(old, name) <= getattr(new, name) for name in names)


class Sums:
    """The running sums behind the fields of one record that add up events.

    Events are gathered and added up many at a time, which takes a third of the time that it takes one by one.

    Args:
        record: the class of the record.
        events: the classes of the events, which are named tuples.
    """

    def __init__(self, record: type, *events: Any) -> None:
        self._pending: dict[type, list[Any]] = {kind: [] for kind in events}
        self._sums = {
            name: _Sum(origin, None if origin.attribute is None else origin.owner._fields.index(origin.attribute))  # type: ignore[attr-defined]
            for name, origin in origins(record).items() if origin.owner in events
        }  # fmt: skip

    def add(self, event: Any) -> None:
        """Adds one event."""
        pending = self._pending[type(event)]
        pending.append(event)
        if len(pending) >= GATHERED:
            self._add_up()

    def values(self) -> dict[str, float]:
        """Returns the sums so far, by the name of the field."""
        self._add_up()
        return {name: entry.origin.scaled(entry.value) for name, entry in self._sums.items()}

    def _add_up(self) -> None:
        for kind in self._pending:
            # Taken away first: a signal handler may come back here, and must not add the same events up.
            pending, self._pending[kind] = self._pending[kind], []
            columns = list(zip(*pending, strict=True))
            for entry in self._sums.values():
                if entry.origin.owner is kind and pending:
                    entry.value += len(pending) if entry.place is None else sum(columns[entry.place])


@dataclass
class _Sum:
    """One running sum: of one place of the events, or their number."""

    origin: Origin
    place: int | None
    value: int = 0
