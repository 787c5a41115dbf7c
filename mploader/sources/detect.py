"""From a path to the source that reads it, for the command line."""

from __future__ import annotations

import os

from mploader.errors import SourceError
from mploader.sources.base import PathLike
from mploader.sources.file_patterns import INDEX_SUFFIX, expand
from mploader.sources.image_folder import ImageFolder
from mploader.sources.protocols import Source
from mploader.sources.scanner import Scanner
from mploader.sources.tar import TarShards
from mploader.sources.tar_format import BLOCK
from mploader.sources.tfrecord import HEADER_BYTES, TFRecordShards, header_problem


def open_source(path: PathLike, *, rebuild: bool = False, save_index: bool = True) -> Source:
    """Opens TFRecord shards, tar shards or an image folder.

    A folder with ``*.tfrecord`` or ``*.tar`` files directly in it holds shards, any other folder is an image
    folder. The kind of other files is known from their names, or else from their first bytes.

    Args:
        path: a folder, a file or a glob.
        rebuild, save_index: as in `TFRecordShards` and `TarShards`.

    Raises:
        SourceError: the path does not exist, is none of these, or holds shards of both kinds.
    """
    text = os.fspath(path)
    kinds = {_kind(name, text) for name in _shard_names(text)} - {None}
    if kinds == {"tfrecord"}:
        return TFRecordShards(text, rebuild=rebuild, save_index=save_index)
    if kinds == {"tar"}:
        return TarShards(text, rebuild=rebuild, save_index=save_index)
    if kinds:
        raise SourceError(f"{text} holds both TFRecord and tar shards. Name one kind: {_example(text)}", file=text)
    if os.path.isdir(text):
        return ImageFolder(text)
    raise SourceError(
        f"{text} is neither TFRecord nor tar, by its name and by its first bytes. mploader reads folders of images "
        "(one sub-folder per class), uncompressed TFRecord shards and uncompressed tar shards.",
        file=text,
    )


def open_each(path: PathLike) -> tuple[Source | None, dict[str, SourceError]]:
    """Opens shards of which some may be unreadable.

    Returns:
        A source of the shards that can be opened, or None; and the error of each other file.

    Raises:
        SourceError: the path does not exist, or does not hold shards.
    """
    text = os.fspath(path)
    good: dict[type[TFRecordShards] | type[TarShards], list[str]] = {}
    refused: dict[str, SourceError] = {}
    for name in _shard_names(text):
        try:
            source = open_source(name)
        except SourceError as error:
            refused[name] = error
            continue
        assert isinstance(source, (TFRecordShards, TarShards))
        good.setdefault(type(source), []).append(name)
    if not refused or len(good) > 1:
        open_source(text)  # raises what is wrong with all of them together
    return next((kind(files) for kind, files in good.items()), None), refused


def _shard_names(path: str) -> list[str]:
    """Returns the files that may be shards."""
    if not os.path.isdir(path):
        return expand(path, ())
    with os.scandir(path) as entries:
        return sorted(entry.path for entry in entries if entry.is_file() and _kind_by_name(entry.name))


def _kind(file: str, path: str) -> str | None:
    named = _kind_by_name(os.path.basename(file))
    return named if named or os.path.isdir(path) else _kind_by_content(file)


def _kind_by_name(name: str) -> str | None:
    if name.endswith(INDEX_SUFFIX) or name.startswith("."):
        return None
    if name.endswith((".tfrecord", ".tfrecords")) or ".tfrecord-" in name:
        return "tfrecord"
    return "tar" if name.endswith(".tar") else None


def _kind_by_content(file: str) -> str | None:
    with Scanner(file) as scanner:
        start = scanner.read(0, BLOCK)
        size = scanner.state.size
    if start[257:262] == b"ustar":
        return "tar"
    return "tfrecord" if header_problem(start[:HEADER_BYTES], size) is None else None


def _example(path: str) -> str:
    return os.path.join(path if os.path.isdir(path) else os.path.dirname(path), "*.tfrecord")
