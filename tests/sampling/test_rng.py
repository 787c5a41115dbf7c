"""Random streams of samples: reproducible, independent of each other, and safe to keep."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mploader.errors import ArgumentError
from mploader.sampling.rng import SampleRandom


def test_a_stream_depends_on_seed_epoch_sample_and_attempt_alone() -> None:
    keys = list(itertools.product((0, 1, 2**64, 2**64 + 1), (0, 1), (0, 1, 2**32), (0, 1)))
    draws = {key: SampleRandom(key[0])(*key[1:]).integers(0, 2**63, 4).tolist() for key in keys}
    assert len({tuple(values) for values in draws.values()}) == len(keys)
    for key in reversed(keys):
        assert SampleRandom(key[0])(*key[1:]).integers(0, 2**63, 4).tolist() == draws[key]


def test_golden_values_that_augmentation_relies_on() -> None:
    generator = SampleRandom(0)(1, 2)
    assert generator.integers(0, 2**32, 3).tolist() == [900477710, 888003582, 905933332]
    assert SampleRandom(2**100)(0, 0).integers(0, 2**32, 2).tolist() == [4091159245, 150298753]


def test_a_generator_that_was_kept_goes_on_undisturbed() -> None:
    random = SampleRandom(3)
    kept = random(0, 0)
    first = kept.random(4)
    random(0, 1).random(4)
    assert np.concatenate([first, kept.random(4)]).tolist() == random(0, 0).random(8).tolist()


def test_first_draws_of_successive_samples_and_epochs_are_independent() -> None:
    random = SampleRandom(0)
    draws = np.array([[random(epoch, index).random(2) for index in range(2_000)] for epoch in range(4)])
    uniform = draws.reshape(-1)
    counts = np.bincount((uniform * 64).astype(int), minlength=64)
    chi_square = ((counts - uniform.size / 64) ** 2 / (uniform.size / 64)).sum()
    assert abs(chi_square - 63) < 4.5 * np.sqrt(2 * 63)
    bound = 4.5 / np.sqrt(2_000)
    first = draws[:, :, 0]
    assert abs(np.corrcoef(first[0, :-1], first[0, 1:])[0, 1]) < bound  # neighbouring samples
    assert abs(np.corrcoef(first[0], draws[0, :, 1])[0, 1]) < bound  # first and second draw
    for one, other in itertools.combinations(first, 2):  # epochs
        assert abs(np.corrcoef(one, other)[0, 1]) < bound


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ArgumentError, match="seed=-1"):
        SampleRandom(-1)
