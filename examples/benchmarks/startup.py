"""How long is it from making a loader to its first batch?

    python examples/benchmarks/startup.py --data PHOTOS [--cold]

Measured in a fresh interpreter that has imported TensorFlow and the loader's library, from the call that makes the
loader to the first batch of 64 decoded photographs. The first row decodes that batch in the process itself, which
no loader can avoid. With ``--cold`` the imports of TensorFlow and of the library count as well, and listing the files.
The start of the interpreter and the imports of the benchmark itself, such as NumPy, do not count.

Latest, on two cores of an AMD EPYC, medians of three rounds, in ms, and how much more than decoding alone::

    decode alone          124
    mploader, NumPy       598     476
    mploader              867     743   (0.3 s of it TensorFlow takes to build the dataset)
    Grain               2,004   1,879
    PyTorch DataLoader  3,521   3,397
"""

from __future__ import annotations

import argparse
import importlib
import time
from typing import Any

import common
import contenders
import peers
from common import Photographs
from contenders import Figures, Once
from decoding import SIZE, whole_image


def decode_alone(work: peers.Work) -> Any:
    """One batch without any loader."""
    return iter([work.batch(range(work.batch_size))])


def through(peer: Any, module: str) -> Once:
    """Measures how long a peer takes for its first batch."""

    def measure(args: argparse.Namespace) -> Figures:
        begun = time.perf_counter()
        importlib.import_module("tensorflow")
        importlib.import_module(module)
        source = Photographs(common.photographs(args.data), args.samples)
        work = peers.Work(source, whole_image, (*SIZE, 3), args.batch_size, args.workers)
        started = time.perf_counter()
        next(peer(work))
        ended = time.perf_counter()
        return {"ms": (ended - (begun if args.cold else started)) * 1e3}

    return measure


CONTENDERS: dict[str, Once] = {
    "decode alone": through(decode_alone, "mploader"),
    "mploader": through(peers.mploader_dataset, "mploader"),
    "mploader, NumPy": through(peers.mploader_numpy, "mploader"),
    "PyTorch DataLoader": through(peers.torch_loader, "torch.utils.data"),
    "Grain": through(peers.grain_loader, "grain"),
    "SPDL, threads": through(peers.spdl_pipeline, "spdl.pipeline"),
    "Keras PyDataset": through(peers.keras_pydataset, "keras.utils"),
    "Hugging Face to_tf_dataset": through(peers.huggingface, "datasets"),
    "Pool.imap + from_generator": through(peers.pool_imap, "multiprocessing.pool"),
}


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=5)
    common.add_loader_arguments(parser)
    contenders.add_arguments(parser)
    parser.add_argument("--cold", action="store_true", help="count the imports of TensorFlow and of the loader")
    parser.add_argument("--samples", type=int, default=24_000, help="length of an epoch; the files are repeated")
    args = parser.parse_args()
    rows = contenders.run_fresh(args, CONTENDERS, "ms")
    alone = next((row.median for row in rows if row.name == "decode alone" and row.values), 0.0)
    for row in rows:
        if row.values:
            row.extra["more than decoding"] = f"{row.median - alone:,.0f}"
    title = f"From {'the import of TensorFlow' if args.cold else 'making the loader'} to the first batch"
    common.report(args, f"{title}, {args.workers} workers", "ms", rows, decimals=0)


if __name__ == "__main__":
    main()
