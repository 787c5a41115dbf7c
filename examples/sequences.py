"""Sequences of different lengths, padded and ragged: in plain TensorFlow and in worker processes.

    python examples/sequences.py [SAMPLES]

Each sample is a text that Python cuts into pieces and turns into numbers. Workers write the padded (or ragged) batch
directly into shared memory.
"""

import sys
import time

import numpy as np
import tensorflow as tf

import mploader

SAMPLES = int(sys.argv[1]) if len(sys.argv) > 1 else 6000
WORDS = ["data", "loader", "worker", "slot", "batch", "epoch", "shard", "lease", "stream", "sample"]


def tokens(sample):
    """Turns one sample into a sequence of numbers, slowly, as a tokenizer in Python would."""
    rng = np.random.default_rng(sample)
    text = " ".join(WORDS[number] for number in rng.integers(0, 10, rng.integers(20, 400)))
    pieces = [piece for word in text.split() for piece in (word[:2], word[2:])]
    return np.array([sum(map(ord, piece)) % 1000 + 1 for piece in pieces], np.int64)


def measure(dataset):
    """Reads a dataset; returns samples per second and the sum of all numbers."""
    started, count, total = time.perf_counter(), 0, 0
    for batch in dataset:
        count += int(batch.shape[0])
        total += int(tf.reduce_sum(batch))
    return count / (time.perf_counter() - started), total


plain = tf.data.Dataset.from_generator(
    lambda: map(tokens, range(SAMPLES)), output_signature=tf.TensorSpec((None,), tf.int64)
)
plain_padded = measure(plain.padded_batch(32).prefetch(2))
plain_ragged = measure(plain.ragged_batch(32).prefetch(2))

padded = measure(mploader.Loader(range(SAMPLES), tokens, batch_size=32, pad=0).as_dataset())
ragged = measure(mploader.Loader(range(SAMPLES), tokens, batch_size=32, ragged=True).as_dataset())

print(f"{SAMPLES} samples; the same numbers: {len({plain_padded[1], plain_ragged[1], padded[1], ragged[1]}) == 1}")
for name, ours, theirs in (("padded", padded, plain_padded), ("ragged", ragged, plain_ragged)):
    ratio = ours[0] / theirs[0]
    print(f"{name}: plain {theirs[0]:.0f} samples/s; in worker processes {ours[0]:.0f}/s, {ratio:.1f} times")
