"""Where samples come from: image folders, TFRecord shards, tar shards, or any sequence.

======================  =============================================================================
`protocols`             what a source is, and what else it may offer
`base`                  names packed in arrays; the state of a file
`files`                 the only code that opens data files
`remote`                files behind URLs, through fsspec
`patterns`              from globs to files
`image_folder`          a class per sub-folder
`shard_table`, `index`  where the samples of a shard start, kept beside the shards
`shards`                what sources of shards share
`tfrecord`, `example`   TFRecord framing; `tf.train.Example`
`tfrecord_write`        the writer, for tests, `mploader synth` and conversions
`tar`, `tar_format`     the layout of WebDataset; members of an archive
`algebra`               sources made of others: one behind the other, a part, with changed samples
`mix`                   several in fixed proportions
`recognise`             from a path to the source that reads it
======================  =============================================================================
"""

from __future__ import annotations

from mploader.sources.combinators import Concat, Map, Subset
from mploader.sources.detect import open_source
from mploader.sources.image_folder import ImageFolder
from mploader.sources.mix import Mix
from mploader.sources.protocols import Source
from mploader.sources.tar import TarShards
from mploader.sources.tfrecord import TFRecordShards

__all__ = [
    "Concat", "ImageFolder", "Map", "Mix", "Source", "Subset", "TFRecordShards", "TarShards", "open_source",
]  # fmt: skip


def __dir__() -> list[str]:
    """The public names, for completion."""
    return sorted(__all__)
