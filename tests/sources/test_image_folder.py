"""Image folders: the files, order and labels of Keras."""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mploader.errors import ArgumentError, SampleError, SourceError
from mploader.sources import ImageFolder, Source


def make(root: Path, *files: str) -> Path:
    for file in files:
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(file.encode())
    return root


def relative(source: ImageFolder, root: Path) -> list[str]:
    return [os.path.relpath(path, root) for path in source.paths]


FILES = (
    "b/2.jpg",
    "b/10.JPEG",
    "b/sub/1.png",
    "b/sub-x/1.gif",
    "b/note.txt",
    "a/x.bmp",
    ".git/x.jpg",
    "top.jpg",
    "C/é.png",
)


class TestAsKeras:
    def test_same_files_labels_and_classes(self, tmp_path: Path) -> None:
        dataset_utils = pytest.importorskip("keras.src.utils.dataset_utils")
        make(tmp_path, *FILES)
        (tmp_path / "empty").mkdir()
        paths, labels, names = dataset_utils.index_directory(
            str(tmp_path), "inferred", (".bmp", ".gif", ".jpeg", ".jpg", ".png"), shuffle=False, verbose=False
        )
        source = ImageFolder(tmp_path)
        assert list(source.paths) == paths
        assert source.labels.tolist() == labels.tolist()
        assert source.class_names == names

    def test_samples(self, tmp_path: Path) -> None:
        source = ImageFolder(make(tmp_path, *FILES))
        assert isinstance(source, Source)
        assert source.class_names == ["C", "a", "b"]
        assert relative(source, tmp_path) == [
            "C/é.png",
            "a/x.bmp",
            "b/10.JPEG",
            "b/2.jpg",
            "b/sub/1.png",
            "b/sub-x/1.gif",
        ]
        assert source[0] == ("C/é.png".encode(), 0)
        assert source[-1] == (b"b/sub-x/1.gif", 2)
        assert [label for _, label in source] == source.labels.tolist() == [0, 1, 2, 2, 2, 2]
        assert source.where(1) == str(tmp_path / "a" / "x.bmp") == source.paths[1]
        assert source.paths[-2:] == [str(tmp_path / "b/sub/1.png"), str(tmp_path / "b/sub-x/1.gif")]
        with pytest.raises(IndexError):
            source[6]

    def test_class_without_images_keeps_its_label(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/note.txt", "c/1.jpg")
        (tmp_path / "a0").mkdir()
        source = ImageFolder(tmp_path)
        assert source.class_names == ["a", "a0", "b", "c"]
        assert source.labels.tolist() == [0, 3]
        assert source[1] == (b"c/1.jpg", 3)

    def test_chosen_classes_and_extensions(self, tmp_path: Path) -> None:
        make(tmp_path, "a/1.jpg", "b/1.jpg", "c/1.raw", "c/1.jpg")
        source = ImageFolder(tmp_path, class_names=["c", "a"], extensions=[".RAW", ".jpg"])
        assert relative(source, tmp_path) == ["c/1.jpg", "c/1.raw", "a/1.jpg"]
        assert source.labels.tolist() == [0, 0, 1]
        with pytest.raises(ArgumentError, match=r"\['z'\].*\['a', 'b', 'c'\]"):
            ImageFolder(tmp_path, class_names=["z"])

    def test_names_that_are_not_utf8(self, tmp_path: Path) -> None:
        path = os.path.join(make(tmp_path, "a/1.jpg"), os.fsdecode(b"a/\xff.jpg"))
        with open(path, "wb") as file:
            file.write(b"data")
        source = pickle.loads(pickle.dumps(ImageFolder(tmp_path)))
        assert source[1] == (b"data", 0)
        assert source.where(1) == path
        assert re.fullmatch("classes [0-9a-f]{16}, files [0-9a-f]{16}", source.fingerprint())


class TestLinks:
    def test_followed_on_request_and_never_in_circles(self, tmp_path: Path) -> None:
        root = make(tmp_path / "root", "a/1.jpg")
        make(tmp_path / "else", "2.jpg")
        (root / "a" / "link").symlink_to(tmp_path / "else")
        (root / "a" / "circle").symlink_to(root / "a")
        (root / "b").symlink_to(tmp_path / "else")
        (root / "b" / "3.jpg").symlink_to(tmp_path / "else" / "2.jpg")
        assert relative(ImageFolder(root), root) == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
        followed = ImageFolder(root, follow_links=True)
        assert relative(followed, root) == ["a/1.jpg", "a/link/2.jpg", "a/link/3.jpg", "b/2.jpg", "b/3.jpg"]


class TestErrors:
    @pytest.mark.parametrize("directory", [None, 5, "", b"photos"])
    def test_what_is_no_name_of_a_folder(self, directory: Any) -> None:
        message = f"directory={directory!r}: expected the name of a folder, as text or a path"
        with pytest.raises(ArgumentError, match=re.escape(message)):
            ImageFolder(directory)

    def test_missing_empty_and_flat(self, tmp_path: Path) -> None:
        with pytest.raises(SourceError, match="cannot be listed: No such file"):
            ImageFolder(tmp_path / "none")
        with pytest.raises(SourceError, match="has no sub-folders"):
            ImageFolder(make(tmp_path, "1.jpg"))
        (tmp_path / "a").mkdir()
        with pytest.raises(
            SourceError, match=r"1 class folders and no image in any of them. Images are files that end in \.bmp"
        ):
            ImageFolder(tmp_path)

    def test_files_that_go_bad(self, tmp_path: Path) -> None:
        source = ImageFolder(make(tmp_path, "a/1.jpg", "a/2.jpg", "a/3.jpg"))
        (tmp_path / "a/1.jpg").unlink()
        with pytest.raises(FileNotFoundError) as caught:
            source[0]
        assert caught.value.filename == str(tmp_path / "a/1.jpg")
        (tmp_path / "a/2.jpg").write_bytes(b"")
        with pytest.raises(SampleError, match=r"a/2\.jpg is empty"):
            source[1]
        (tmp_path / "a/3.jpg").unlink()
        os.mkfifo(tmp_path / "a/3.jpg")
        with pytest.raises(SampleError, match="not a regular file"):  # and does not wait for a writer
            source[2]


def test_pickles_as_arrays(tmp_path: Path) -> None:
    source = ImageFolder(make(tmp_path, *(f"c{number % 7}/{number}.jpg" for number in range(700))))
    buffers: list[pickle.PickleBuffer] = []
    state = pickle.dumps(source, protocol=5, buffer_callback=buffers.append)
    assert len(state) < 1000
    again = pickle.loads(state, buffers=buffers)
    assert list(again.paths) == list(source.paths)
    assert again[699] == source[699]
    np.testing.assert_array_equal(again.labels, source.labels)


def test_fingerprint_follows_names_and_not_the_place(tmp_path: Path) -> None:
    prints = [
        ImageFolder(make(tmp_path / name, *files)).fingerprint()
        for name, files in {
            "x": ["a/1.jpg", "b/2.jpg"],
            "y": ["a/1.jpg", "b/2.jpg"],
            "z": ["a/1.jpg", "a/2.jpg"],
        }.items()
    ]
    assert prints[0] == prints[1] != prints[2]
