"""A generator over chunks of an array, merged by interleave: in plain TensorFlow and in worker processes.

    python examples/chunks_of_an_array.py [ROWS]

Windows are cut from a long recording and turned into spectra by NumPy. In one process the generators of an interleave
take turns under the interpreter's lock; in workers they run side by side. The order is the same.
"""

import sys
import time

import numpy as np
import tensorflow as tf

import mploader

ROWS = int(sys.argv[1]) if len(sys.argv) > 1 else 4000
WINDOW, CHUNK = 4096, 500
recording = np.random.default_rng(0).standard_normal(ROWS * 64 + WINDOW).astype(np.float32)


def spectra(start):
    """The generator: the spectra of one chunk of the recording."""
    for row in range(int(start), min(int(start) + CHUNK, ROWS)):
        window = recording[row * 64 : row * 64 + WINDOW] * np.hanning(WINDOW)
        power = np.abs(np.fft.rfft(window))
        for _ in range(3):  # smoothing: work that holds the interpreter's lock
            power = np.convolve(power, np.ones(9) / 9, mode="same")
        yield power[:1024].astype(np.float32)


def measure(dataset):
    """Reads a dataset; returns rows per second and a checksum that depends on the order."""
    started, count, checksum = time.perf_counter(), 0, 0.0
    for batch in dataset:
        count += len(batch)
        checksum = 0.5 * checksum + float(tf.reduce_sum(batch))
    return count / (time.perf_counter() - started), checksum


starts = list(range(0, ROWS, CHUNK))
signature = tf.TensorSpec((1024,), tf.float32)


def chunk(start):
    """A dataset of one chunk, for interleave."""
    return tf.data.Dataset.from_generator(spectra, output_signature=signature, args=(start,))


plain = tf.data.Dataset.from_tensor_slices(starts).interleave(
    chunk, cycle_length=4, num_parallel_calls=4, deterministic=True
).batch(64).prefetch(2)  # fmt: skip
plain_speed, plain_checksum = measure(plain)

spread = mploader.from_generator(spectra, shards=starts, output_signature=signature, cycle_length=4).batch(64)
speed, checksum = measure(spread)

print(f"{ROWS} rows; the same rows in the same order: {checksum == plain_checksum}")
ratio = speed / plain_speed
print(f"plain interleave: {plain_speed:.0f} rows/s; in worker processes: {speed:.0f}/s, {ratio:.1f} times")
