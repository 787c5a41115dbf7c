"""The data of tests/test_resume_tf.py, in a module that workers can import without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np

from mploader import Loader

SAMPLES, BATCH, EPOCHS = 30, 4, 3


def element(sample: int) -> tuple[Any, Any]:
    return np.float32([sample]), np.float32([0])


def make_loader(workers: int = 2, **options: Any) -> Loader:
    return Loader(
        range(SAMPLES), element, **{"batch_size": BATCH, "shuffle": True, "seed": 7, "num_workers": workers, **options}
    )
