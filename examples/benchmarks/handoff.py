"""What does it cost to hand a batch from the workers to TensorFlow, if making it costs nothing?

    python examples/benchmarks/handoff.py [--plot handoff.png]

The transform returns one constant sample of 224 x 224 x 3 uint8, so only the work of the loader itself is measured:
giving out tasks, writing 64 samples into a batch of 9.6 MB, passing it on, and turning it into a tensor. The trainer's
CPU is that of its process with all threads, without the workers.

Latest, on two cores of an AMD EPYC, medians of five rounds, batches a second and the trainer's CPU in ms a batch::

    mploader                716  1.09      SPDL, threads               31  35
    mploader, NumPy       1,076  0.33      Keras PyDataset             21  52
    PyTorch DataLoader      148  2.32      Pool.imap + from_generator  27  46
    PyTorch into tf.data    140  3.25      Hugging Face to_tf_dataset  10  86
    Grain                    57  2.17      from_generator              35  35
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import common
import contenders
import equal_work
import numpy as np
import peers
from contenders import Measure, SetUp

SHAPE = (224, 224, 3)
IMAGE = (np.arange(np.prod(SHAPE)) % 251).astype(np.uint8).reshape(SHAPE)


class Numbers(Sequence[int]):
    """A source whose samples are their indices."""

    def __init__(self, length: int) -> None:
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return index


def constant(_: Any) -> Any:
    """The transform."""
    return IMAGE, 0


def through(peer: Any) -> SetUp:
    """Sets a peer up for the work of this benchmark."""

    def set_up(args: argparse.Namespace) -> Measure:
        work = peers.Work(Numbers(args.samples), constant, SHAPE, args.batch_size, args.workers)
        return contenders.Stream(peer(work))

    return set_up


CONTENDERS: dict[str, SetUp] = {
    "mploader": through(peers.mploader_dataset),
    "mploader, NumPy": through(peers.mploader_numpy),
    "PyTorch DataLoader": through(peers.torch_loader),
    "PyTorch into tf.data": through(peers.torch_dataset),
    "Grain": through(peers.grain_loader),
    "SPDL, threads": through(peers.spdl_pipeline),
    "Keras PyDataset": through(peers.keras_pydataset),
    "Hugging Face to_tf_dataset": through(peers.huggingface),
    "Pool.imap + from_generator": through(peers.pool_imap),
    "from_generator": through(peers.from_generator),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5, seconds=2.0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--samples", type=int, default=1_000_000, help="length of an epoch")
    contenders.add_arguments(parser)
    args = parser.parse_args()
    check = equal_work.same_pixels(0.0)
    rows = contenders.run(args, CONTENDERS, "batches/s", check=check, reference="mploader")
    title = f"Hand-off of batches that cost nothing, {args.workers} workers"
    common.report(args, title, "batches/s", rows, to="mploader")


if __name__ == "__main__":
    main()
