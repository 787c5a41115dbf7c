"""Image files with a label each, in the order of Keras: the source of ``image_dataset_from_directory``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mploader._util.location import Location
from mploader.sources.base import PackedStrings, checked_index
from mploader.sources.files import read_whole
from mploader.sources.fingerprint import hash_of


@dataclass(frozen=True)
class LabelledFiles:
    """A source of ``(bytes, label)``, or of ``bytes`` where there are no labels.

    Attributes:
        paths: the files.
        labels: one row for each file, in the form that batches have; None: no labels.
    """

    paths: PackedStrings
    labels: np.ndarray[Any, Any] | None

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int, /) -> Any:
        """Returns the content of a file, and its label.

        Raises:
            IndexError: the index is outside the source.
            SampleError: the path is not a regular file.
            OSError: the file cannot be opened or read; carries the file's name.
        """
        index = checked_index(index, len(self))
        data = read_whole(self.paths[index], index)
        return data if self.labels is None else (data, self.labels[index])

    def where(self, index: int) -> Location:
        """Returns the file of a sample."""
        path = self.paths[checked_index(index, len(self))]
        return Location(path, path)

    def fingerprint(self) -> str:
        """Hashes the files' names below their common folder, and the labels. The files are not read."""
        names = list(self.paths)
        # The prefix that the first and the last name in sorted order share is shared by all.
        start = len(os.path.commonprefix([min(names), max(names)]).rpartition("/")[0])  # noqa: RUF071
        files = hashlib.sha256("\0".join(name[start:] for name in names).encode("utf-8", "surrogateescape"))
        labels = "none" if self.labels is None else hash_of(self.labels)
        return f"files {files.hexdigest()[:16]}, labels {labels}"


def list_files(
    directory: str, classes: Sequence[str], extensions: tuple[str, ...], follow_links: bool
) -> tuple[list[str], list[int]]:
    """Lists images as Keras does: class by class, sorted by folder, then by name.

    Args:
        directory: the folder that holds the classes.
        classes: names of folders; "" stands for the directory itself.
        extensions: endings of file names, in lower case.
        follow_links: whether links to folders are followed.

    Returns:
        The paths, and for each the index of its class. Folders that cannot be listed are left out, as in Keras.
    """
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        folders = os.walk(os.path.join(directory, name), followlinks=follow_links)
        for root, _, files in sorted(folders, key=lambda folder: folder[0]):
            found = [os.path.join(root, file) for file in sorted(files) if file.lower().endswith(extensions)]
            paths += found
            labels += [label] * len(found)
    return paths, labels
