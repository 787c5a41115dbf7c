"""Checkpoints of a loader: what they hold, and how they are checked against the loader that resumes.

A *state* is a plain dict that JSON can hold, below 4 kB for any dataset::

    version           of this form
    epoch, samples    the next batch: its epoch, and how many samples of the epoch all hosts together have consumed;
                      with `bucket_by` how many batches, since batches of one number differ in size from epoch to epoch
    plan              what the global batches depend on: samples, batch size, seed, order; see `Plan.fingerprint`
    source            what tells one dataset from another; see `facts_of`
    bad_samples       how many samples were dropped or replaced so far
    bad_indices       the last of them
    bad_in_epoch      how many of them in this epoch

It counts what all hosts together have consumed, so a state means the same on any number of hosts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Sized
from typing import Any

from mploader._util.text import clip
from mploader.errors import ArgumentError
from mploader.loader.bad_samples import INDICES_KEPT
from mploader.loader.position import Position
from mploader.sampling.plan import Plan
from mploader.sources.fingerprint import fingerprint_of

VERSION = 1

_TEXT_CHARACTERS = 300


def facts_of(source: Any) -> dict[str, str | int]:
    """Returns what is known of a source that other data would not share.

    That is its type, its length, how many shards and classes it has, and its fingerprint; see
    :func:`mploader.sources.fingerprint.fingerprint_of`.
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
    *,
    bad_count: int = 0,
    bad_indices: Sequence[int] = (),
    bad_in_epoch: int = 0,
) -> dict[str, Any]:
    """Builds a state; see the module's docstring.

    Args:
        position: the next batch.
        plan: of the loader.
        is_batched: whether it yields batches.
        source: :func:`facts_of` its source.
        bad_count: how many samples before the position were bad.
        bad_indices: the last of them.
        bad_in_epoch: how many of them in the epoch of the position.
    """
    return {
        "version": VERSION,
        "epoch": position.epoch,
        "samples": plan.progress(position.batch),
        "plan": _plan_facts(plan, is_batched),
        "source": dict(source),
        "bad_samples": bad_count,
        "bad_indices": list(bad_indices[-INDICES_KEPT:]),
        "bad_in_epoch": bad_in_epoch,
    }


def restore(state: Any, plan: Plan, is_batched: bool, source: Mapping[str, Any], strict: bool) -> Position:
    """Returns the position that a state means in this loader.

    Args:
        state: from :func:`save`.
        plan: of the loader that resumes.
        is_batched: whether it yields batches.
        source: :func:`facts_of` its source.
        strict: refuse a state of other data or of another order.

    Raises:
        ArgumentError: ``state`` is not a state, or, if ``strict``, does not fit; the message lists what differs.
    """
    epoch, samples = _check_form(state)
    facts = _plan_facts(plan, is_batched)
    differences = _differences("source", state["source"], source) + _differences("plan", state["plan"], facts)
    if strict and differences:
        raise ArgumentError(
            "this state is of other data or of another order, so its position means other samples here:\n  "
            + "\n  ".join(differences)
            + "\nResume with the data and the arguments that it was saved with; workers, memory and hosts may change "
            "as long as batch_size * hosts is the same. load_state_dict(state, strict=False) continues at its position "
            "anyway; samples may then be left out or come twice."
        )
    if strict and samples > plan.num_samples:
        raise _damaged(state, f"samples={samples}: expected at most the {plan.num_samples} of an epoch")
    samples = min(samples, plan.num_samples)
    batch, inside = plan.batch_at(samples)
    if inside and samples < plan.num_samples:
        if strict:
            raise ArgumentError(
                f"{samples} samples of the epoch were consumed: expected a multiple of the {plan.global_batch_size} "
                f"samples that {plan.shard[1]} hosts take at a time; resume on a number of hosts that divides it"
            )
    elif inside:
        batch = plan.num_batches
    return Position(epoch + 1, 0) if batch >= plan.num_batches else Position(epoch, batch)


def _plan_facts(plan: Plan, is_batched: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        name: clip(fact, _TEXT_CHARACTERS) if isinstance(fact, str) else fact
        for name, fact in plan.fingerprint().items()
    }
    # Elements one by one are the same sequence on any number of hosts.
    return facts if is_batched else {**facts, "global_batch_size": None}


def _check_form(state: Any) -> tuple[int, int]:
    if not isinstance(state, Mapping) or "version" not in state:
        raise ArgumentError(f"expected a state from Loader.state_dict(), got {clip(repr(state), _TEXT_CHARACTERS)}")
    if not isinstance(state["version"], int) or state["version"] != VERSION:
        raise ArgumentError(
            f"this state has version {state['version']!r}: expected version {VERSION}; resume with the mploader that "
            "saved it"
        )
    epoch, samples = _count(state, "epoch"), _count(state, "samples")
    for name in ("bad_samples", "bad_in_epoch"):
        _count(state, name, 0)
    bad_indices = state.get("bad_indices", [])
    if not isinstance(bad_indices, list) or not all(map(_is_count, bad_indices)):
        raise _damaged(state, f"bad_indices={bad_indices!r}: expected a list of integers >= 0")
    for name in ("plan", "source"):
        facts = state.get(name)
        is_plain = isinstance(facts, Mapping) and all(
            isinstance(fact, str) and isinstance(value, (str, int, float, type(None))) for fact, value in facts.items()
        )
        if not is_plain:
            raise _damaged(state, f"{name}={facts!r}: expected a dict of numbers and text")
    return epoch, samples


def _count(state: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """Reads a number."""
    value = state.get(name, default)
    if not _is_count(value):
        raise _damaged(state, f"{name}={value!r}: expected an integer from 0 to 2**48 - 1")
    count: int = value
    return count


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _damaged(state: Mapping[str, Any], what: str) -> ArgumentError:
    text = clip(json.dumps(state, default=repr, skipkeys=True), _TEXT_CHARACTERS)
    return ArgumentError(f"this state is damaged ({clip(what, _TEXT_CHARACTERS)}): {text}")


def _differences(what: str, saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Returns a line for each fact that differs."""
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
    """Returns a line for each hash that differs between two fingerprints, by the words before it."""
    saved, present = (dict(part.rpartition(" ")[::2] for part in text.split(", ")) for text in (before, now))
    words = [word for word in {**saved, **present} if saved.get(word) != present.get(word)]
    if "" in words or not words:  # a single hash, or a text of another form
        return [f"the data of the {what} differ (fingerprint {before} when it was saved, {now} now)"]
    return [
        f"the {word} of the {what} differ (fingerprint {saved.get(word)} when it was saved, {present.get(word)} now)"
        for word in words
    ]
