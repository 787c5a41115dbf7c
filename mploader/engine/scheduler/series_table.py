"""All series and groups that are open, and what each of them needs next."""

from __future__ import annotations

from collections.abc import Iterator

from mploader.engine.scheduler.series import Group, Series
from mploader.engine.scheduler.states import IllegalEventError, Replay


class SeriesTable:
    """The open series and groups of one scheduler, by number. No number is used twice."""

    def __init__(self) -> None:
        self.open: dict[int, Series] = {}
        self.groups: dict[int, Group] = {}
        self._next_series = self._next_group = 0

    def __getitem__(self, number: int) -> Series:
        if number not in self.open:
            raise IllegalEventError(f"series {number} is not open")
        return self.open[number]

    def __contains__(self, number: int) -> bool:
        return number in self.open

    def add(self, series: Series) -> int:
        """Opens a series and returns its number."""
        number = self._next_series
        self._next_series += 1
        self.open[number] = series
        return number

    def add_input(self, number: int, max_ahead: int, group: Group | None = None) -> int:
        """Opens the output of the generator of an input and returns the number of the series."""
        return self.add(Series(max_ahead=max_ahead, input=number, replay=Replay(), group=group))

    def remove(self, number: int) -> Series | None:
        """Closes a series and returns it; None if it is not open."""
        return self.open.pop(number, None)

    # Groups

    def add_group(self, group: Group) -> int:
        """Opens a group and returns its number."""
        number = self._next_group
        self._next_group += 1
        self.groups[number] = group
        return number

    def group(self, number: int) -> Group:
        """Returns a group that is open."""
        if number not in self.groups:
            raise IllegalEventError(f"group {number} is not open")
        return self.groups[number]

    def of_input(self, group: int, number: int) -> int:
        """Returns the series over one input of a group; opens it, and those before it, if that is still to be done."""
        found = self.group(group)
        while found.opened <= number:
            self._open_next(found)
        for series, other in found.members.items():
            if other == number:
                return series
        raise IllegalEventError(f"input {number} of group {group} was delivered before")

    def open_ahead(self, group: Group) -> None:
        """Opens generators of a group, as many as may be open before they are asked for."""
        while group.may_open([self.open[series] for series in group.members]):
            self._open_next(group)

    def _open_next(self, group: Group) -> None:
        group.members[self.add_input(group.opened, group.max_ahead, group)] = group.opened
        group.opened += 1

    def served(self, number: int) -> bool:
        """A batch of a series was delivered. Returns whether that was the last one, and the series is closed."""
        series = self.open[number]
        series.delivered += 1
        if series.group is not None:
            series.group.members[number] = series.group.members.pop(number)
        if not series.is_over:
            return False
        del self.open[number]
        if series.group is not None:
            del series.group.members[number]
        return True

    # What is to be made

    def needs(self, *, is_ahead_held: bool) -> Iterator[tuple[int, int]]:
        """Yields the series and batch that each series needs next, the most urgent first.

        A batch comes first that a consumer waits for, or that stands before one; of a generator that lives nowhere
        before others, or it might never find a free worker. Then the claimed series with the fewest batches under way
        or ready, so that series side by side share the slots evenly. Then what is made ahead of time, unless that is
        held.
        """
        ranked = []
        for number, series in self.open.items():
            batch_index = series.next_pending()
            if batch_index is not None and (series.claimed or not is_ahead_held):
                is_needed, under_way = series.is_needed(batch_index), len(series.tasks) - len(series.pending)
                rank = (not is_needed, not series.claimed, is_needed and not series.is_unbound, under_way, number)
                ranked.append((rank, (number, batch_index)))
        return iter([need for _, need in sorted(ranked)])
