"""A saved position of a loader: what it holds, how it is checked against the loader that resumes.

A *state* is a plain dict that JSON can hold, below 4 kB for any dataset::

    version           of this form
    epoch, samples    the next batch: its epoch, and how many samples of the epoch all hosts together have consumed;
                      with `bucket_by` how many batches, since batches of one number differ in size from epoch to epoch
    plan              what the global batches depend on: samples, batch size, seed, order; see `Plan.fingerprint`
    source            what tells one dataset from another; see `facts_of`
    bad_samples       how many samples were dropped or replaced so far
    bad_indices       the last of them
    bad_in_epoch      how many of them in this epoch

What all hosts together have consumed is counted: so a state means the same on any number of hosts.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping, Sized
from dataclasses import dataclass
from typing import Any, Protocol

from mploader._util.text import clip
from mploader.errors import ArgumentError
from mploader.sampling.plan import Plan
from mploader.sources.fingerprint import fingerprint_of

VERSION = 1

BAD_INDICES_KEPT = 64
_TEXT_CHARACTERS = 300


@dataclass(frozen=True, order=True)
class Position:
    """The place of the next batch of a host.

    Attributes:
        epoch: from 0.
        batch: batches of this host consumed in that epoch; elements, for a loader without a batch size.
    """

    epoch: int
    batch: int


def facts_of(source: Any) -> dict[str, str | int]:
    """What is known of a source that other data would not share.

    That is its type, its length, how many shards and classes it has, and its fingerprint, which
    :func:`mploader.sources.fingerprint.fingerprint_of` works out for arrays and lists.
    """
    facts: dict[str, str | int] = {"type": type(source).__name__, "samples": len(source)}
    for name, attribute in (("shards", "shard_sizes"), ("classes", "class_names")):
        parts = getattr(source, attribute, None)
        if isinstance(parts, Sized):
            facts[name] = len(parts)
    fingerprint = fingerprint_of(source)
    if fingerprint is not None:
        facts["fingerprint"] = clip(fingerprint, _TEXT_CHARACTERS)
    return facts


def save(
    position: Position,
    plan: Plan,
    is_batched: bool,
    source: Mapping[str, Any],
    bad_count: int,
    bad: list[int],
    bad_in_epoch: int,
) -> dict[str, Any]:
    """Builds a state; see the module's docstring."""
    return {
        "version": VERSION,
        "epoch": position.epoch,
        "samples": plan.progress(position.batch),
        "plan": _plan_facts(plan, is_batched),
        "source": dict(source),
        "bad_samples": bad_count,
        "bad_indices": bad[-BAD_INDICES_KEPT:],
        "bad_in_epoch": bad_in_epoch,
    }


def restore(state: Any, plan: Plan, is_batched: bool, source: Mapping[str, Any], strict: bool) -> Position:
    """Finds the place that a state means in this loader.

    Args:
        state: what :func:`save` has built.
        plan: of the loader that resumes.
        is_batched: whether it yields batches.
        source: :func:`facts_of` its source.
        strict: refuse a state of other data or another order.

    Raises:
        ArgumentError: this is no state, or, if ``strict``, it does not fit; the message lists what differs.
    """
    epoch, samples = _check_form(state)
    facts = _plan_facts(plan, is_batched)
    differences = _differences("source", state["source"], source) + _differences("plan", state["plan"], facts)
    if strict and differences:
        raise ArgumentError(
            "this state was saved by another loader, so its position means other samples here:\n  "
            + "\n  ".join(differences)
            + "\nResume with the data and the arguments that it was saved with; workers, memory and hosts may change "
            "as long as batch_size * hosts is the same. load_state_dict(state, strict=False) continues at this place "
            "all the same, and samples may then be left out or come twice."
        )
    if strict and samples > plan.num_samples:
        raise _damaged(state, f"samples={samples}: an epoch has {plan.num_samples}")
    samples = min(samples, plan.num_samples)
    batch, inside = plan.batch_at(samples)
    if inside and samples < plan.num_samples:
        if strict:
            raise ArgumentError(
                f"{samples} samples of the epoch were consumed, which is no multiple of the {plan.global_batch_size} "
                f"samples that {plan.shard[1]} hosts take at a time: resume on a number of hosts that divides it"
            )
    elif inside:
        batch = plan.num_batches
    return Position(epoch + 1, 0) if batch >= plan.num_batches else Position(epoch, batch)


def _plan_facts(plan: Plan, is_batched: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: clip(fact, _TEXT_CHARACTERS) if isinstance(fact, str) else fact
        for name, fact in plan.fingerprint().items()
    }
    # An element has no company: one by one they are the same sequence on any number of hosts.
    return facts if is_batched else {**facts, "global_batch_size": None}


def _check_form(state: Any) -> tuple[int, int]:
    if not isinstance(state, Mapping) or "version" not in state:
        raise ArgumentError(f"this is no state of a loader: {clip(repr(state), _TEXT_CHARACTERS)}")
    if not isinstance(state["version"], int) or state["version"] != VERSION:
        raise ArgumentError(
            f"this state has version {state['version']!r} and this mploader reads version {VERSION}: resume with the "
            "mploader that saved it"
        )
    epoch, samples = _count(state, "epoch"), _count(state, "samples")
    for name in ("bad_samples", "bad_in_epoch"):
        _count(state, name, 0)
    bad_indices = state.get("bad_indices", [])
    if not isinstance(bad_indices, list) or not all(map(_is_count, bad_indices)):
        raise _damaged(state, f"bad_indices={bad_indices!r}: wants a list of whole numbers")
    for name in ("plan", "source"):
        facts = state.get(name)
        is_plain = isinstance(facts, Mapping) and all(
            isinstance(fact, str) and isinstance(value, (str, int, float, type(None))) for fact, value in facts.items()
        )
        if not is_plain:
            raise _damaged(state, f"{name}={facts!r}: wants a dict of numbers and text")
    return epoch, samples


def _count(state: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number as a state holds it."""
    value = state.get(name, default)
    if not _is_count(value):
        raise _damaged(state, f"{name}={value!r}: wants a whole number from 0 to 2**48 - 1")
    count: int = value
    return count


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _damaged(state: Mapping[str, Any], what: str) -> ArgumentError:
    text = clip(json.dumps(state, default=repr, skipkeys=True), _TEXT_CHARACTERS)
    return ArgumentError(f"this state is damaged ({clip(what, _TEXT_CHARACTERS)}): {text}")


def _differences(what: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """A line for each fact that differs."""
    lines = []
    for name in {**saved, **present}:
        before, now = saved.get(name), present.get(name)
        if before == now:
            continue
        if name == "fingerprint" and before is not None and now is not None:
            lines += _fingerprint_differences(what, str(before), str(now))
        else:
            lines.append(f"{what} {name.replace('_', ' ')}: {before!r} when it was saved, {now!r} now")
    return lines


def _fingerprint_differences(what: str, before: str, now: str) -> list[str]:
    """Which of the hashes in two fingerprints that differ do, by the words before them."""
    saved, present = (dict(part.rpartition(" ")[::2] for part in text.split(", ")) for text in (before, now))
    words = [word for word in {**saved, **present} if saved.get(word) != present.get(word)]
    if "" in words or not words:  # a single hash, or a text of the user's that is made otherwise
        return [f"the data of the {what} differ (fingerprint {before} when it was saved, {now} now)"]
    return [
        f"the {word} of the {what} differ (fingerprint {saved.get(word)} when it was saved, {present.get(word)} now)"
        for word in words
    ]


class Consumption:
    """Counts what training has consumed of runs that TensorFlow reads ahead. Used by `mploader.tfdata`, on any thread.

    Runs are consumed one after the other, in the order in which they were opened. One that is given up half-way is
    passed over as soon as batches of a later one are counted. TensorFlow may have read it to its end by then; so
    whoever counts says with :meth:`give_up` where an iteration ends or another one begins. One of which nothing was
    counted when the next is opened was a look ahead (Keras takes one to build a model, and one at the end of each
    epoch) and gives its place back.
    """

    def __init__(self) -> None:
        self._runs: deque[_Opened] = deque()
        self._lock = threading.RLock()  # a collected iterator may leave its run in the middle of a call
        self.is_counted = False
        """Whether somebody counts; otherwise nobody knows what of an opened run was consumed."""
        self._is_last = False

    @property
    def opened(self) -> bool:
        """Whether TensorFlow is reading a run, or was the last to read one."""
        with self._lock:
            return self._is_last or any(not opened.is_left for opened in self._runs)

    def open(self, run: Reading) -> None:
        """TensorFlow starts to read a run."""
        with self._lock:
            self._is_last = True
            self._runs.append(_Opened(run))

    def note_direct(self) -> None:
        """A batch was consumed without TensorFlow. Takes no lock: every batch comes here, or every element."""
        self._is_last = False

    def give_back(self) -> Position | None:
        """Before a run is opened: the start of a run that was only looked at, where the new one is to start instead.

        A run that was read to its end is none: a repeated dataset opens the next run while the last batches of this
        one wait to be trained on.
        """
        with self._lock:
            last = self._runs[-1] if self._runs else None
            if not self.is_counted or last is None or last.consumed:
                return None
            if last.run.delivered >= last.run.num_batches and not last.is_given_up:
                return None
            self._runs.pop()
            return last.run.place_after(0)

    def leave(self, run: Reading) -> None:
        """TensorFlow reads no more of a run: it is at its end, or was given up."""
        with self._lock:
            for opened in self._runs:
                opened.is_left = opened.is_left or opened.run is run
            if not self.is_counted:  # or every run of a long training would be kept
                self._runs = deque(opened for opened in self._runs if not opened.is_left)

    def give_up(self) -> None:
        """Nobody will train on what is left of the runs that are open now."""
        with self._lock:
            for opened in self._runs:
                opened.is_given_up = True

    def clear(self) -> None:
        """The loader continues somewhere else."""
        with self._lock:
            self._is_last = False
            self._runs.clear()

    def advance(self, batches: int, *, at_most: bool = False) -> Position:
        """Counts batches, or elements of a loader without a batch size.

        Args:
            batches: how many.
            at_most: count no more than were there to read, instead of raising.

        Returns:
            The place of the next one.

        Raises:
            ArgumentError: TensorFlow has not even read so many.
        """
        with self._lock:
            while True:
                if not self._runs:
                    raise ArgumentError(f"advance({batches}): no dataset of this loader was read yet")
                current = self._runs[0]
                left = current.run.countable - current.consumed
                is_cut = current.is_left and current.run.delivered < current.run.num_batches
                if len(self._runs) > 1 and (left == 0 or is_cut or current.is_given_up):
                    self._runs.popleft()
                    continue
                if at_most and len(self._runs) == 1:
                    batches = min(batches, left)
                if batches <= left:
                    current.consumed += batches
                    return current.run.place_after(current.consumed)
                if len(self._runs) == 1:
                    raise ArgumentError(
                        f"advance({batches}) counts more batches than were read: {left} are left in epoch "
                        f"{current.run.epoch}"
                    )
                batches -= left
                self._runs.popleft()


class Reading(Protocol):
    """What :class:`Consumption` asks of a run."""

    @property
    def epoch(self) -> int:
        """The epoch that it reads."""
        ...

    @property
    def num_batches(self) -> int:
        """Batches (or elements) from its start to the end of the epoch."""
        ...

    @property
    def countable(self) -> int:
        """As ``num_batches``, without those that were dropped; right once everything is delivered."""
        ...

    @property
    def delivered(self) -> int:
        """Batches (or elements) handed out so far."""
        ...

    def place_after(self, count: int) -> Position:
        """The place behind the first ``count`` batches (or elements) of the run."""
        ...


@dataclass
class _Opened:
    run: Reading
    consumed: int = 0
    is_left: bool = False
    is_given_up: bool = False
