"""Images in folders, one folder per class."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import overload

import numpy as np

from mploader._util.checks import path_text
from mploader._util.location import Location
from mploader.errors import ArgumentError, SampleError, SourceError
from mploader.sources.base import Int64Array, PackedStrings, PathLike, checked_index
from mploader.sources.files import read_whole

#: What Keras reads (bmp, gif, jpeg, jpg, png) and what torchvision reads besides; compared without case.
EXTENSIONS = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")

_SCAN_THREADS = 16  # listing waits on the storage, not on the CPU


class ImageFolder:
    """Image files with a class per sub-folder. A sample is ``(data, label)``: the encoded bytes and an int.

    Classes are the sub-folders in sorted order, except those whose name starts with a dot. A class holds
    the files of its folder and all folders below, sorted by folder and then by name. That is the order of
    `keras.utils.image_dataset_from_directory` without shuffling (keras/src/utils/dataset_utils.py,
    ``index_directory``). As there, a class without any image keeps its label.

    Args:
        directory: the folder that contains the class folders.
        extensions: endings of the files that are images, compared without case.
        follow_links: whether links to folders below a class are followed; a link back to a folder that is
            being listed is not. Links to files and a class that is itself a link are always read.
        class_names: the classes to take and their order; labels are indices in it. None: all, sorted.

    Raises:
        SourceError: the folder is missing or unreadable, has no sub-folders, or there is no image below it.
        ArgumentError: a class of `class_names` has no folder or is named twice, or `directory` is not a path.
    """

    def __init__(
        self,
        directory: PathLike,
        *,
        extensions: Sequence[str] = EXTENSIONS,
        follow_links: bool = False,
        class_names: Sequence[str] | None = None,
    ):
        self._directory = path_text("directory", directory, "the name of a folder")
        found = _classes(self._directory)
        self._class_names = tuple(found if class_names is None else class_names)
        if len(set(self._class_names)) < len(self._class_names):
            raise ArgumentError(f"class_names={list(self._class_names)}: expected each name once")
        if missing := sorted(set(self._class_names) - set(found)):
            raise ArgumentError(f"class_names: {missing} are not folders of {self._directory}, which has {found}")
        endings = tuple(extension.lower() for extension in extensions)
        # The pool ends here, so that no thread is left beside those of tf.data and the user.
        with ThreadPoolExecutor(_SCAN_THREADS) as threads:
            files = list(
                threads.map(lambda name: _images(self._directory, name, endings, follow_links), self._class_names)
            )
        self._files = PackedStrings.of(file for names in files for file in names)
        # One count per class instead of one label per file: the labels follow from them.
        self._class_ends: Int64Array = np.cumsum([len(names) for names in files], dtype=np.int64)
        if not len(self._files):
            raise SourceError(
                f"{self._directory} has {len(self._class_names)} class folders and no image in any of them. "
                f"Images are files that end in {', '.join(endings)}.",
                file=self._directory,
            )

    @property
    def class_names(self) -> list[str]:
        """The class of each label."""
        return list(self._class_names)

    @property
    def paths(self) -> Sequence[str]:
        """The path of each sample."""
        return _JoinedPaths(self._directory, self._files)

    @property
    def labels(self) -> Int64Array:
        """The label of each sample, int64, shape (len(self),)."""
        counts = np.diff(self._class_ends, prepend=0)
        return np.repeat(np.arange(len(counts), dtype=np.int64), counts)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int, /) -> tuple[bytes, int]:
        """Returns a sample ``(data, label)``.

        Raises:
            IndexError: the index is outside the source.
            SampleError: the file is empty or not a regular file.
            OSError: the file cannot be opened or read; carries the file's name.
        """
        index = checked_index(index, len(self))
        path = os.path.join(self._directory, self._files[index])
        data = read_whole(path, index)
        if not data:
            raise SampleError(
                f"{path} is empty (0 bytes), perhaps from a copy that was interrupted. Replace or remove it.",
                index=index, file=path, byte=0,
            )  # fmt: skip
        return data, int(np.searchsorted(self._class_ends, index, side="right"))

    def where(self, index: int) -> Location:
        """Returns the file of a sample."""
        path = os.path.join(self._directory, self._files[checked_index(index, len(self))])
        return Location(path, path)

    def fingerprint(self) -> str:
        """Hashes the classes and the names of the files, not their contents or sizes."""
        classes = hashlib.sha256(repr(self._class_names).encode("utf-8", "surrogateescape"))
        files = hashlib.sha256(self._class_ends.tobytes())
        for array in (self._files.blob, self._files.offsets):
            files.update(array.tobytes())
        return f"classes {classes.hexdigest()[:16]}, files {files.hexdigest()[:16]}"

    def __repr__(self) -> str:
        return f"ImageFolder({self._directory!r}): {len(self)} images of {len(self._class_names)} classes"


class _JoinedPaths(Sequence[str]):
    def __init__(self, directory: str, files: PackedStrings):
        self._directory = directory
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int, /) -> str: ...

    @overload
    def __getitem__(self, index: slice, /) -> list[str]: ...

    def __getitem__(self, index: int | slice, /) -> str | list[str]:
        if isinstance(index, slice):
            return [os.path.join(self._directory, file) for file in self._files[index]]
        return os.path.join(self._directory, self._files[index])

    def __iter__(self) -> Iterator[str]:
        return (os.path.join(self._directory, file) for file in self._files)

    def __repr__(self) -> str:
        return f"<{len(self)} paths below {self._directory}>"


def _classes(directory: str) -> list[str]:
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    except OSError as error:
        raise SourceError(f"the image folder {directory} cannot be listed: {error.strerror}", file=directory) from error
    if not names:
        raise SourceError(
            f"{directory} has no sub-folders. An image folder has one for each class: {directory}/cat/1.jpg, "
            f"{directory}/dog/2.jpg.",
            file=directory,
        )
    return names


def _images(directory: str, class_name: str, endings: tuple[str, ...], follow_links: bool) -> list[str]:
    """Lists the images of one class in order, as paths relative to `directory`."""
    folders: list[tuple[str, list[str]]] = []
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(class_name, frozenset())]
    while waiting:
        folder, ancestors = waiting.pop()
        path = os.path.join(directory, folder)
        try:
            if follow_links:  # a link may lead back; the identity of each folder costs a stat
                status = os.stat(path)
                if (status.st_dev, status.st_ino) in ancestors:
                    continue
                ancestors |= {(status.st_dev, status.st_ino)}
            with os.scandir(path) as entries:
                listed = list(entries)
        except OSError as error:
            raise SourceError(f"the folder {path} cannot be listed: {error.strerror}", file=path) from error
        files = []
        for entry in listed:
            if not entry.is_dir():
                if entry.name.lower().endswith(endings):
                    files.append(entry.name)
            elif follow_links or not entry.is_symlink():
                waiting.append((os.path.join(folder, entry.name), ancestors))
        folders.append((path, sorted(os.path.join(folder, file) for file in files)))
    return [file for _, files in sorted(folders) for file in files]
