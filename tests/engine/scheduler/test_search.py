"""The scheduler in small worlds: every interleaving of events is tried, and none may lose, double or stick."""

from __future__ import annotations

import pickle
from collections import deque

import pytest

from tests.engine.scheduler.scheduler_world import Chances, Setting, World

ENVIRONMENT = {"kill", "hang", "die", "fail", "close", "hold", "grow"}
"""Events that may happen, and that cannot be counted on: progress must be possible without them."""


class Search:
    """Every state that a world can come to."""

    def __init__(self, first: World) -> None:
        self.found = {first.key(): 0}
        self.complete: list[int] = []
        self.before: dict[int, set[int]] = {0: set()}
        """From which states a state is reached by an event that can be counted on."""
        self.todo = deque([(0, pickle.dumps(first))])
        while self.todo:
            self.expand(*self.todo.popleft())

    def expand(self, number: int, frozen: bytes) -> None:
        world: World = pickle.loads(frozen)
        if not world.open_series():
            self.complete.append(number)
            world.settle()
            return
        for event, argument in list(world.events()):
            after: World = pickle.loads(frozen)  # five times as quick as a deep copy
            after.do(event, argument)
            key = after.key()
            if key not in self.found:
                self.found[key] = len(self.found)
                self.before[self.found[key]] = set()
                self.todo.append((self.found[key], pickle.dumps(after)))
            if event not in ENVIRONMENT:
                self.before[self.found[key]].add(number)

    def stuck(self) -> int:
        """How many states cannot reach the end."""
        reached = set(self.complete)
        todo = list(reached)
        while todo:
            for number in self.before[todo.pop()] - reached:
                reached.add(number)
                todo.append(number)
        return len(self.found) - len(reached)


@pytest.mark.parametrize(
    "setting",
    [
        pytest.param(Setting(Chances(kills=2)), id="two workers, three tasks, two slots, two kills"),
        pytest.param(Setting(Chances(kills=1), slots=1), id="one slot"),
        pytest.param(Setting(Chances(kills=1), workers=1, lengths=(2, 2)), id="two series that want the same slots"),
        pytest.param(Setting(Chances(), lengths=(2, 1), reserved=2), id="nothing is ever borrowed"),
        pytest.param(Setting(Chances(kills=1, closes=1), workers=1, lengths=(2, 1)), id="a series is closed"),
        pytest.param(Setting(Chances(hangs=1), backlog=1), id="a worker hangs, and may never die"),
        pytest.param(Setting(Chances(hangs=1, closes=1), lengths=(2,), backlog=1), id="a series is closed in a hang"),
        pytest.param(Setting(Chances(kills=1, failures=1), lengths=(2,)), id="a batch is impossible"),
        pytest.param(
            Setting(Chances(kills=3), workers=1, lengths=(2,), offset=None), id="a batch kills its workers"
        ),
        pytest.param(Setting(Chances(kills=1), workers=1, lengths=(4,), backwards=True), id="the last batch is first"),
        pytest.param(
            Setting(Chances(kills=1), workers=1, lengths=(3, 2), slots=1, backwards=True),
            id="the last batches of two series are first",
        ),
        pytest.param(
            Setting(Chances(kills=1, holds=1), workers=1, lengths=(1, 2), ahead=frozenset({1})),
            id="a series is made ahead and held back",
        ),
        pytest.param(
            Setting(Chances(kills=1, closes=1), lengths=(3,), generators=frozenset({0})), id="a generator is closed"
        ),
        pytest.param(
            Setting(Chances(hangs=1), lengths=(3,), backlog=1, generators=frozenset({0})),
            id="the worker of a generator hangs",
        ),
        pytest.param(
            Setting(Chances(kills=2), lengths=(2,), slots=3, generators=frozenset({0}), max_ahead=3),
            id="kills between the end of a generator and the cancel of what lies beyond it",
        ),
        pytest.param(
            Setting(Chances(kills=1, closes=1), workers=1, lengths=(2, 2), generators=frozenset({1})),
            id="an epoch beside a generator",
        ),
        pytest.param(
            Setting(Chances(kills=1, growths=1), workers=1, lengths=(2, 1), slots=1), id="slots are added meanwhile"
        ),
        pytest.param(
            Setting(Chances(closes=1), workers=1, lengths=(2, 1), slots=1, ahead=frozenset({0})),
            id="a batch is spilled while its series is closed",
        ),
    ],
)  # fmt: skip
@pytest.mark.slow
def test_every_interleaving_delivers_each_task_once_and_none_is_stuck(setting: Setting) -> None:
    search = Search(World(setting))
    assert search.complete
    assert not search.stuck(), f"{search.stuck()} of {len(search.found)} states cannot reach the end"
