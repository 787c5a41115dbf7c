"""The arguments of a loader, checked before any process starts."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from typing import Any

from mploader._util import resources
from mploader._util.checks import check_source, check_transform, path_text, seconds, whole_number
from mploader.engine.ipc.on_bad_sample import OnBadSample
from mploader.errors import ArgumentError
from mploader.loader.bad_samples import MaxBad
from mploader.loader.declared_element import read_element_spec
from mploader.sampling.bucketing import BucketBy
from mploader.sampling.plan import Plan
from mploader.sampling.samplers import ShardShuffle, arrange


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a user wants of a loader. Attributes that are not listed are those of :class:`mploader.Loader`.

    Attributes:
        plan: which samples make up which batch; without buckets.
        batch_size: samples in the largest batch of this host; None: elements come one by one.
        sizes_vary: buckets have batches of different sizes.
        max_bad: how many bad samples an epoch may have.
        element_spec: the structure of ``ArraySpec`` of one element; None: it is probed.
        memory_bytes: what slots may take; None: chosen by :mod:`mploader.loader.sizing`.
    """

    plan: Plan
    batch_size: int | None
    sizes_vary: bool = False
    num_workers: int
    on_bad_sample: OnBadSample
    max_bad: MaxBad
    pad: Any = None
    ragged: Any = False
    bucket_by: BucketBy | None = None
    element_spec: Any = None
    memory_bytes: int | None = None
    stall_timeout_s: float
    trace: str | None = None

    @classmethod
    def of(
        cls,
        source: Any,
        transform: Any = None,
        *,
        batch_size: int | None,
        shuffle: bool | ShardShuffle = False,
        seed: int = 0,
        drop_remainder: bool = False,
        num_workers: int | None = None,
        shard: tuple[int, int] = (0, 1),
        on_bad_sample: str = "raise",
        max_bad_samples: int | float | None = None,
        pad: Any = None,
        ragged: Any = False,
        bucket_by: BucketBy | None = None,
        element_spec: Any = None,
        memory: int | str | None = None,
        stall_timeout: float = 300.0,
        trace: str | os.PathLike[str] | None = None,
    ) -> Options:
        """Checks the arguments of :class:`mploader.Loader`.

        Raises:
            ArgumentError: an argument is invalid.
        """
        num_samples = check_source(source)
        check_transform(transform)
        if bucket_by is not None and not isinstance(bucket_by, BucketBy):
            raise ArgumentError(f"bucket_by={bucket_by!r}: expected a mploader.BucketBy or None")
        size = None if batch_size is None else whole_number("batch_size", batch_size, 1)
        if bucket_by is not None:
            size = bucket_by.largest_batch(size)
        policy = OnBadSample.of(on_bad_sample)
        plan = Plan(num_samples, size or 1, seed, bool(shuffle), drop_remainder, shard)
        plan = dataclasses.replace(plan, own_order=arrange(source, num_samples, plan.seed, shuffle))
        if not plan.num_batches:
            raise ArgumentError(
                f"an epoch would be empty: {num_samples} samples do not fill one batch of {plan.global_batch_size}, "
                "and drop_remainder=True leaves out what does not"
            )
        return cls(
            plan=plan,
            batch_size=size,
            sizes_vary=bucket_by is not None and len(set(bucket_by.batch_sizes or ())) > 1,
            num_workers=resources.usable_cpus() if num_workers is None else whole_number("num_workers", num_workers, 1),
            on_bad_sample=policy,
            max_bad=MaxBad.of(max_bad_samples, policy, plan.num_host_samples),
            pad=pad,
            ragged=ragged,
            bucket_by=bucket_by,
            element_spec=None if element_spec is None else read_element_spec(element_spec),
            memory_bytes=None if memory is None else resources.parse_bytes(memory, "memory"),
            stall_timeout_s=seconds("stall_timeout", stall_timeout),
            trace=None if trace is None else path_text("trace", trace, "the name of a file"),
        )
