"""How many images a second does each loader deliver, and what share of the decoder's limit is that?

    python examples/benchmarks/compare.py --data PHOTOS [--crop] [--plot compare.png]

Every contender reads the same JPEG files and makes uint8 batches of 64 x 224 x 224 x 3. The decoder's limit is the
rate of as many bare processes as workers that read, decode (simplejpeg), resize with antialiasing (OpenCV) and drop
the pixels; they share no code with mploader and hand nothing over. They decode whole pictures at full size. Without a
crop, pictures of ImageNet's size allow nothing faster; a crop does, because parts of the picture need not be decoded.
All peers call the same decode function; tf.data's own pipeline resizes once with antialiasing, which is the same work,
and once without, which is less. With ``--crop`` the work is a random-resized crop, and tf.data decodes only the crop
(``tf.image.decode_and_crop_jpeg``).

Equal work is checked on the first batches: shape, dtype, the same images with the same labels, and pixels within a
mean of 4 of 255 of mploader's (for crops, which are random: the labels, and the mean brightness within 12).

Latest, on two cores of an AMD EPYC, 110 kB pictures, medians of five rounds: images/s, share of the decoder's limit::

    the decoder's limit           1,114  1.00      mploader, NumPy            1,073  0.96
    mploader                      1,078  0.97      PyTorch DataLoader           987  0.88
    tf.data, C++                    617  0.56      Grain                        765  0.69
    tf.data, C++, aliased         1,164  1.04      SPDL, threads                643  0.58
    Keras PyDataset                 612  0.55      Pool.imap + from_generator   479  0.43
    Hugging Face to_tf_dataset      355  0.32      from_generator               294  0.26

    --crop: the decoder's limit   1,370  1.00      mploader                   1,457  1.05
            tf.data, C++            794  0.58      PyTorch DataLoader         1,291  0.93
            tf.data, C++, aliased 1,370  1.00
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from typing import Any

import common
import contenders
import equal_work
import numpy as np
import peers
from common import Photographs
from contenders import Figures, Measure, SetUp
from decoding import SIZE, bare_crop, bare_image, random_crop, read, whole_image
from equal_work import First

SAMPLES = 120_000
KEPT_BYTES = 32 * 2**20
TOLERANCE = 4.0
CROP_TOLERANCE = 12.0


class DecoderLimit:
    """Bare processes that decode, resize and do nothing else."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.batch_size = args.batch_size
        paths = photographs(args).paths
        decode = bare_crop if args.crop else bare_image
        images = [decode(read(path)) for path in paths[: contenders.FIRST_BATCHES * args.batch_size]]
        self.first = First(np.stack(images))
        # The C library keeps freed memory, as in mploader's workers. Without this the limit is an eighth lower.
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(KEPT_BYTES), "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES)}
        spawn = multiprocessing.get_context("spawn")
        self._pipes = []
        for worker in range(args.workers):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=_decode_for, args=(theirs, paths[worker :: args.workers], decode), daemon=True).start()
            self._pipes.append(ours)
        self(0.2)

    def __call__(self, seconds: float) -> Figures:
        """Measures for some seconds."""
        for pipe in self._pipes:
            pipe.send(seconds)
        rates = [pipe.recv() for pipe in self._pipes]
        return {"samples/s": sum(rates), "batches/s": sum(rates) / self.batch_size, "trainer CPU ms a batch": 0.0}


def _decode_for(pipe: Connection, paths: list[str], decode: Any) -> None:
    count = 0
    while True:
        seconds = pipe.recv()
        done, started = 0, time.perf_counter()
        while (elapsed := time.perf_counter() - started) < seconds:
            decode(read(paths[count % len(paths)]))
            count += 1
            done += 1
        pipe.send(done / elapsed)


def photographs(args: argparse.Namespace) -> Photographs:
    """The source of every contender."""
    return Photographs(common.photographs(args.data), args.samples)


def tf_data(args: argparse.Namespace, *, antialias: bool = False) -> Measure:
    """tf.data's own C++ pipeline, with AUTOTUNE."""
    import tensorflow as tf

    source = photographs(args)

    def whole(path: Any, label: Any) -> Any:
        image = tf.image.resize(tf.io.decode_jpeg(tf.io.read_file(path), channels=3), SIZE, antialias=antialias)
        return tf.cast(image + 0.5, tf.uint8), label

    def cropped(path: Any, label: Any) -> Any:
        data = tf.io.read_file(path)
        box = tf.image.sample_distorted_bounding_box(
            tf.image.extract_jpeg_shape(data), tf.zeros([1, 0, 4]), area_range=(0.08, 1.0),
            aspect_ratio_range=(3 / 4, 4 / 3), max_attempts=10, use_image_if_no_bounding_boxes=True,
        )  # fmt: skip
        (top, left, _), (height, width, _) = tf.unstack(box[0]), tf.unstack(box[1])
        image = tf.image.decode_and_crop_jpeg(data, tf.stack([top, left, height, width]), channels=3)
        return tf.cast(tf.image.resize(image, SIZE, antialias=antialias) + 0.5, tf.uint8), label

    made = tf.data.Dataset.from_tensor_slices((source.paths, source.labels)).repeat()
    made = made.map(cropped if args.crop else whole, num_parallel_calls=tf.data.AUTOTUNE)
    made = made.batch(args.batch_size, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)
    return contenders.Stream(made)


def through(peer: Any) -> SetUp:
    """Sets a peer of peers.py up for the work of this benchmark."""

    def set_up(args: argparse.Namespace) -> Measure:
        transform = random_crop if args.crop else whole_image
        return contenders.Stream(
            peer(peers.Work(photographs(args), transform, (*SIZE, 3), args.batch_size, args.workers))
        )

    return set_up


CONTENDERS: dict[str, SetUp] = {
    "the decoder's limit": DecoderLimit,
    "mploader": through(peers.mploader_dataset),
    "mploader, NumPy": through(peers.mploader_numpy),
    "SPDL, threads": through(peers.spdl_pipeline),
    "tf.data, C++": functools.partial(tf_data, antialias=True),
    "tf.data, C++, aliased": tf_data,
    "PyTorch DataLoader": through(peers.torch_loader),
    "Grain": through(peers.grain_loader),
    "Keras PyDataset": through(peers.keras_pydataset),
    "Hugging Face to_tf_dataset": through(peers.huggingface),
    "Pool.imap + from_generator": through(peers.pool_imap),
    "from_generator": through(peers.from_generator),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5, seconds=3.0)
    common.add_loader_arguments(parser)
    contenders.add_arguments(parser)
    parser.add_argument("--crop", action="store_true", help="random-resized crop instead of the whole image")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="length of an epoch; the files are repeated")
    args = parser.parse_args()
    check = equal_work.same_brightness(CROP_TOLERANCE) if args.crop else equal_work.same_pixels(TOLERANCE)
    rows = contenders.run(args, CONTENDERS, "samples/s", check=check, reference="mploader")
    title = "Random-resized crop of JPEG files" if args.crop else "Decode and resize JPEG files"
    common.report(args, f"{title}, {args.workers} workers", "images/s", rows, to="the decoder's limit", decimals=0)


if __name__ == "__main__":
    main()
