"""Expansion of patterns to files."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from mploader.errors import ArgumentError, SourceError
from mploader.sources import remote
from mploader.sources.base import Pattern
from mploader.sources.remote import is_remote

INDEX_SUFFIX = ".mpl-index"

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_MAX_EXPANDED = 10_000_000
_NAMES_SHOWN = 5


def expand(pattern: Pattern, endings: Sequence[str]) -> list[str]:
    """Returns the files that match: each once, in the order of the patterns and sorted within one.

    Args:
        pattern: a path, a glob (``*``, ``?``, ``[...]``, ``**``), a URL of either, or a list of them. Braces stand for
            several patterns, as in WebDataset: ``{000..099}`` counts, ``{a,b}`` lists. A path that exists
            is taken as it is, whatever characters it holds. A folder stands for the files directly in it that
            match `endings`.
        endings: globs of file names, for folders.

    Raises:
        ArgumentError: `pattern` is not a path or a list of paths.
        SourceError: a pattern matches no file; the message lists the nearest folder that exists.
    """
    patterns = [pattern] if isinstance(pattern, (str, os.PathLike)) else pattern
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(item, (str, os.PathLike)) for item in patterns):
        raise ArgumentError(f"pattern={pattern!r}: expected a path, a glob, or a list of them")
    if not patterns:
        raise SourceError("pattern: expected at least one path or glob, got an empty list")
    files: dict[str, None] = {}
    for given in [os.fspath(item) for item in patterns]:
        for single in [given] if os.path.lexists(given) else _braces(given):
            files.update(dict.fromkeys(_matches(single, endings)))
    return list(files)


def _matches(pattern: str, endings: Sequence[str]) -> list[str]:
    if is_remote(pattern):
        return remote.matches(pattern, endings)
    if os.path.isdir(pattern):
        matches = [path for ending in endings for path in glob.glob(os.path.join(glob.escape(pattern), ending))]
        if not (matches := sorted(set(matches))):
            raise SourceError(
                f"{pattern} is a folder without files named {' or '.join(endings)}. {_nearby(pattern)}", file=pattern
            )
        return matches
    if os.path.lexists(pattern):
        return [pattern]
    found = glob.glob(pattern, recursive=True)
    matches = sorted(path for path in found if not path.endswith(INDEX_SUFFIX) and not os.path.isdir(path))
    if not matches:
        folders = f" It matches {len(found)} folders, which are not shards." if found else ""
        raise SourceError(f"no file matches {pattern!r}.{folders} {_nearby(pattern)}", file=pattern)
    return matches


def _braces(pattern: str) -> Iterator[str]:
    parts: list[list[str]] = []
    position = 0
    for found in _BRACES.finditer(pattern):
        parts += [[pattern[position : found.start()]], _alternatives(found[0], found[1])]
        position = found.end()
    parts.append([pattern[position:]])
    return map("".join, itertools.product(*parts))


def _alternatives(whole: str, inside: str) -> list[str]:
    counting = _RANGE.fullmatch(inside)
    if counting is None:
        return inside.split(",") if "," in inside else [whole]
    first, last = int(counting[1]), int(counting[2])
    if last < first or last - first >= _MAX_EXPANDED:
        raise SourceError(f"{whole}: expected the smaller number first, and fewer than {_MAX_EXPANDED:,} files")
    width = len(counting[1]) if counting[1].startswith("0") else 0
    return [str(number).zfill(width) for number in range(first, last + 1)]


def _nearby(pattern: str) -> str:
    """Lists the innermost folder of `pattern` that exists, which usually shows the typing error."""
    folder = pattern
    while folder and not os.path.isdir(folder):
        parent = os.path.dirname(folder)
        folder = parent if parent != folder else ""
    folder = folder or os.curdir
    shown = os.path.abspath(folder)
    try:
        names = sorted(os.listdir(folder))
    except OSError as error:
        return f"The folder {shown} cannot be listed: {error.strerror}."
    if not names:
        return f"The folder {shown} is empty."
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"The folder {shown} holds {', '.join(names[:_NAMES_SHOWN])}{more}."
