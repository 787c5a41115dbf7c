"""A generator over image paths with preprocessing: in plain from_generator and in worker processes.

    python examples/generator_of_paths.py [FOLDER]

The generator opens, decodes and resizes one picture after the other. Only its argument changes: it gets a share of the
paths, so that several generators can run at once.
"""

import pathlib
import sys
import tempfile
import time

import numpy as np
import tensorflow as tf
from PIL import Image

import mploader
from mploader.cli.synthetic_data import synthesize


def pictures(paths):
    """The generator: one call for each share of the paths."""
    for path in paths:
        with Image.open(path) as picture:
            yield np.asarray(picture.convert("RGB").resize((160, 160)))


def measure(dataset):
    """Reads a dataset twice and measures the second time; returns pictures per second and their sum."""
    for _ in range(2):
        started, count, total = time.perf_counter(), 0, 0
        for batch in dataset:
            count += len(batch)
            total += int(tf.reduce_sum(tf.cast(batch, tf.int64)))
    return count / (time.perf_counter() - started), total


with tempfile.TemporaryDirectory() as temporary:
    if len(sys.argv) == 1:
        synthesize(temporary, count=400)
    paths = sorted(map(str, pathlib.Path(sys.argv[-1] if len(sys.argv) > 1 else temporary).rglob("*.jpg")))
    signature = tf.TensorSpec((160, 160, 3), tf.uint8)

    plain = tf.data.Dataset.from_generator(lambda: pictures(paths), output_signature=signature).batch(32).prefetch(2)
    plain_speed, plain_total = measure(plain)

    shares = [paths[start : start + 50] for start in range(0, len(paths), 50)]
    spread = mploader.from_generator(pictures, shards=shares, output_signature=signature, batch_size=32)
    speed, total = measure(spread)

    print(f"{len(paths)} pictures; the same pixels: {total == plain_total}")
    print(f"plain from_generator: {plain_speed:.0f} pictures/s; in worker processes: {speed:.0f}/s, "
          f"{speed / plain_speed:.1f} times")  # fmt: skip
