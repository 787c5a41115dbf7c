"""What does it cost to index, to open and to read many shards?

    python examples/benchmarks/shard_scale.py [--shards 100 1000 10000 100000]

TFRecord shards of two small records each are written to a temporary folder. "index" is the first
``TFRecordShards(pattern)``, which reads every shard; "open" is the next one, which finds the index; "read" is the time
of a random record. Memory is that of the source.

Latest, on two cores of an AMD EPYC::

       100 shards   164 us a shard to index   0.00 s to open   21 us to read   217 bytes a shard kept
     1,000 shards   112 us                    0.01 s           30 us           154 bytes
    10,000 shards   124 us                    0.12 s           31 us           148 bytes
   100,000 shards   114 us                    1.39 s           32 us           147 bytes
"""

from __future__ import annotations

import gc
import random
import tempfile
import tracemalloc
from pathlib import Path

import common
from common import Row

from mploader.sources import TFRecordShards
from mploader.sources.tfrecord_write import TFRecordWriter

READS = 2_000


def main() -> None:
    """Runs the benchmark."""
    parser = common.parser(__doc__, rounds=1)
    parser.add_argument("--shards", type=int, nargs="+", default=[100, 1_000, 10_000, 100_000])
    parser.add_argument("--folder", type=Path, help="folder for the shards (default: a temporary folder)")
    args = parser.parse_args()
    rows = {count: Row(f"{count:,} shards") for count in args.shards}
    for _ in range(args.rounds):
        for count, row in rows.items():
            with tempfile.TemporaryDirectory(dir=args.folder) as folder:
                measure(Path(folder), count, row)
    common.report(args, "Shards: indexed once, then opened", "us a shard to index", list(rows.values()))


def measure(folder: Path, count: int, row: Row) -> None:
    """Writes shards and fills a row."""
    write(folder, count)
    pattern = str(folder / "*.tfrecord")
    index_s, source = common.timed(lambda: TFRecordShards(pattern, raw=True))
    del source
    gc.collect()
    tracemalloc.start()
    source = TFRecordShards(pattern, raw=True)
    kept = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    open_s, source = common.timed(lambda: TFRecordShards(pattern, raw=True))
    indices = [random.randrange(len(source)) for _ in range(READS)]
    read_s, _ = common.timed(lambda: [source[index] for index in indices])
    row.values.append(index_s / count * 1e6)
    row.extra |= {
        "index, s": f"{index_s:.2f}", "open, s": f"{open_s:.2f}", "read, us": f"{read_s / READS * 1e6:.0f}",
        "kept, MiB": f"{kept / 2**20:.2f}", "kept, bytes a shard": f"{kept / count:.0f}",
    }  # fmt: skip


def write(folder: Path, count: int) -> None:
    """Writes the first shard and copies its bytes."""
    first = folder / "00000000.tfrecord"
    with TFRecordWriter(first) as writer:
        for number in range(2):
            writer.write(b"record %d" % number)
    data = first.read_bytes()
    for number in range(1, count):
        (folder / f"{number:08d}.tfrecord").write_bytes(data)


if __name__ == "__main__":
    main()
