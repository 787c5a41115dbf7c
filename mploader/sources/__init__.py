"""Sources of samples: image folders, TFRecord shards, tar shards, or any sequence.

==========================  =========================================================================
`protocols`                 what a source is, and what else it may offer
`base`                      names packed in arrays; the state of a file
`files`, `open_files`       opening and reading; the files that a source keeps open
`remote`                    files behind URLs, through fsspec
`file_patterns`             from globs to files
`image_folder`              one class per sub-folder
`labelled_files`            the files and labels of `image_dataset_from_directory`
`scanner`                   the pass over a shard that indexes it
`shard_table`, `index`      where the samples of each shard start, kept in one file per folder and kind
`shards`                    what sources of shards share
`tfrecord`, `tf_example`    TFRecord framing; `tf.train.Example`
`tfrecord_write`            the writer, for tests, `mploader synth` and conversions
`tar`, `tar_format`         the layout of WebDataset; members of an archive
`combinators`, `mix`        sources made of others; several in fixed proportions
`lengths`, `pydataset`      lengths for batches of similar ones; the batches of a `PyDataset`
`fingerprint`               hashes that recognise the data of a source
`detect`                    from a path to the source that reads it
==========================  =========================================================================
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
