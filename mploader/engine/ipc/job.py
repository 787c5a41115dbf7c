"""What the workers of a pool do: all that they need to make any batch. Pickled once, unpickled in each worker."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from mploader._util.checks import takes_rng
from mploader._util.text import clip
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.sampling.plan import Plan
from mploader.sources.protocols import changes_between_epochs


class Job(Protocol):
    """What a pool and its supervisor ask of a job, whatever its batches are made of."""

    @property
    def inputs(self) -> Sequence[Any]:
        """What the generators are called with, by number; empty without generators."""
        ...

    @property
    def skips_bad(self) -> bool:
        """Whether bad samples are left out or replaced, so that condemning a sample changes the stream."""
        ...

    @property
    def depends_on_epoch(self) -> bool:
        """Whether a sample may go otherwise in another epoch."""
        ...

    @property
    def advice(self) -> str:
        """What errors about bad data advise."""
        ...

    @property
    def arguments(self) -> dict[str, Any]:
        """What the user passed, by the name of the argument, to name the one that cannot be pickled."""
        ...


@dataclass(frozen=True, kw_only=True)
class SampleJob:
    """Batches of samples of a source, as a plan orders them.

    Attributes:
        source: gives samples by number.
        transform: makes an element of a sample; None: the sample is the element.
        plan: which samples make up which batch.
        on_bad_sample: what becomes of bad samples.
        is_batched: False: a task is not a batch of the plan but a block of many, of one sample each.
    """

    source: Any
    transform: Callable[..., Any] | None
    plan: Plan
    on_bad_sample: OnBadSample
    is_batched: bool

    @property
    def inputs(self) -> Sequence[Any]:
        """See :class:`Job`."""
        return ()

    @property
    def skips_bad(self) -> bool:
        """See :class:`Job`."""
        return not self.on_bad_sample.raises

    @property
    def depends_on_epoch(self) -> bool:
        """See :class:`Job`: the transform takes random numbers, or the source changes."""
        return self.takes_rng or self.source_changes

    @property
    def advice(self) -> str:
        """See :class:`Job`."""
        return self.on_bad_sample.advice

    @property
    def arguments(self) -> dict[str, Any]:
        """See :class:`Job`."""
        return {"source": self.source, "transform": self.transform}

    @property
    def takes_rng(self) -> bool:
        """Whether the transform takes a random generator."""
        return self.transform is not None and takes_rng(self.transform)

    @property
    def source_changes(self) -> bool:
        """Whether the source may be another one in each epoch."""
        return changes_between_epochs(self.source)


@dataclass(frozen=True, kw_only=True)
class GeneratorJob:
    """The elements of generators, one generator for each input.

    Attributes:
        generator: called as ``generator(input, *args)``.
        inputs: what it is called with, by number.
        args: further arguments of each call.
        is_batched: True: every block but the last of an input has as many elements as the layout's capacity.
        prepare: called on each element first, to turn what a signature allows into arrays (ragged values, say).
    """

    generator: Callable[..., Iterable[Any]]
    inputs: Sequence[Any]
    args: tuple[Any, ...] = ()
    is_batched: bool = False
    prepare: Callable[[Any], Any] | None = None

    @property
    def skips_bad(self) -> bool:
        """See :class:`Job`; an element of a generator cannot be left out."""
        return False

    @property
    def depends_on_epoch(self) -> bool:
        """See :class:`Job`; a generator gives the same elements each time."""
        return False

    @property
    def advice(self) -> str:
        """See :class:`Job`."""
        return "An element cannot be left out: correct the generator."

    @property
    def arguments(self) -> dict[str, Any]:
        """See :class:`Job`; the public name of the inputs is ``shards``."""
        return {"generator": self.generator, "shards": self.inputs, "args": self.args}


@dataclass(frozen=True)
class ProbeResult:
    """What one sample shows of the element.

    Attributes:
        structure: the element with an ``ArraySpec`` in place of each component.
        component_bytes: bytes of each component.
    """

    structure: Any
    component_bytes: tuple[int, ...]


def generator_name(value: Any) -> str:
    """Names the generator of an input by the input itself, for messages."""
    try:
        return f"generator({clip(repr(value), 200)})"
    except Exception:  # user code
        return f"generator(a {type(value).__name__})"
