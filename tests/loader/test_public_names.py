"""What users see of the package when they look: the names that they may call, and no others."""

from __future__ import annotations

import ast
import inspect
import textwrap

import pytest

import mploader
from mploader import ArgumentError, Loader
from mploader.loader.core import core_of

LOADER = [
    "as_dataset", "bad_samples", "batch", "close", "element_spec", "epoch", "explain", "load_state_dict", "num_workers",
    "position", "state_dict", "statistics", "trace", "worker_pids",
]  # fmt: skip
IMAGES = [
    "CenterCrop", "Compose", "ImageTransform", "RandomFlip", "RandomResizedCrop", "Resize", "apply_to", "decode",
    "max_pixels",
]  # fmt: skip
SOURCES = [
    "Concat", "ImageFolder", "Map", "Mix", "Source", "Subset", "TFRecordShards", "TarShards", "open_source",
]  # fmt: skip


@pytest.mark.usefixtures("workers_in_threads")
def test_a_loader_shows_what_users_may_call() -> None:
    with Loader(range(4), batch_size=2, num_workers=1) as loader:
        assert [name for name in dir(loader) if not name.startswith("_")] == LOADER


def test_modules_show_what_users_may_call() -> None:
    assert dir(mploader.images) == IMAGES
    assert dir(mploader.sources) == SOURCES


def test_the_public_class_is_thin() -> None:
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(Loader))).body
    assert isinstance(node, ast.ClassDef)
    docstring = node.body[0]
    assert (node.end_lineno or 0) - ((docstring.end_lineno or 0) - docstring.lineno + 1) <= 200


@pytest.mark.parametrize("thing", [None, 3, [1, 2], Loader])
def test_only_a_loader_has_a_core(thing: object) -> None:
    with pytest.raises(ArgumentError, match=r"Position\("):
        core_of("Position", thing)
