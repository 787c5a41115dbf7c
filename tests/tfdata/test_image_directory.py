"""The drop-in for ``keras.utils.image_dataset_from_directory``, against the original on the same folders."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

import mploader
from mploader.images import keras_compat
from tests.conftest import PHOTOS

pytestmark = pytest.mark.usefixtures("workers_in_threads")

Folder = Callable[..., Path]
INTERPOLATIONS = ("bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian", "mitchellcubic")


def picture(number: int, size: tuple[int, int] = (90, 120)) -> Image.Image:
    """A picture with edges, gradients and a little noise, as photographs have."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (6, 8, 3), np.uint8)
    pixels = np.asarray(Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)).astype(np.int64)
    pixels[size[0] // 3 : size[0] // 2, size[1] // 4 : size[1] // 2] //= 2
    return Image.fromarray(np.clip(pixels + rng.integers(-4, 5, pixels.shape), 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes, one of them empty, formats mixed, folders in folders, and things that are no images."""
    root = tmp_path_factory.mktemp("images")
    for name in ("cats", "dogs", "empty", ".hidden"):
        (root / name).mkdir()
    endings = [".jpg", ".png", ".bmp", ".gif", ".JPEG"]
    for number in range(17):
        place = root / ("cats" if number % 3 else "dogs")
        if number % 5 == 4:
            place = place / "more"
            place.mkdir(exist_ok=True)
        picture(number, (60 + 7 * number, 110)).save(place / f"{23 * number % 17:02d}{endings[number % 5]}")
    picture(99).save(root / ".hidden" / "x.png")
    (root / "cats" / "notes.txt").write_text("no image")
    picture(98).save(root / "cats" / "ours.webp")
    return root


@pytest.fixture(scope="module")
def jpegs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("jpegs")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(3):
            image = picture(number + 10 * (name == "b"), (150 - 20 * number, 130))
            image.save(root / name / f"{number}.jpg", quality=90)
    return root


def both(directory: Path, **options: Any) -> tuple[Any, Any]:
    options = {"image_size": (48, 64), "batch_size": 4, "verbose": False, **options}
    theirs = keras.utils.image_dataset_from_directory(str(directory), **options)
    ours = mploader.image_dataset_from_directory(directory, num_workers=2, **options)
    return theirs, ours


def assert_equal(theirs: Any, ours: Any, tolerance: float = 0.5) -> None:
    """Equal but for the pixels, whose mean difference from Keras's, clipped to 0..255, is small for each image."""
    assert ours.class_names == theirs.class_names
    assert ours.file_paths == list(theirs.file_paths)
    assert len(ours) == len(theirs)
    for wanted, got in zip(_components(theirs.element_spec), _components(ours.element_spec), strict=True):
        assert got.dtype == wanted.dtype
        assert got.shape[1:] == wanted.shape[1:]
    batches = 0
    for wanted, got in zip(theirs, ours, strict=True):
        (their_images, *their_labels), (our_images, *our_labels) = _components(wanted), _components(got)
        assert our_images.dtype == their_images.dtype
        assert our_images.shape == their_images.shape
        for label, other in zip(our_labels, their_labels, strict=True):
            assert label.dtype == other.dtype
            np.testing.assert_array_equal(label, other)
        assert distance(their_images.numpy(), our_images.numpy()).max() <= tolerance
        batches += 1
    assert batches == len(theirs)
    ours.loader.close()


def _components(batch: Any) -> tuple[Any, ...]:
    return batch if isinstance(batch, tuple) else (batch,)


def distance(one: npt.NDArray[Any], other: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The mean absolute difference of each image, of 255."""
    difference = np.abs(np.clip(one.astype(np.float64), 0, 255) - other)
    return np.asarray(difference.reshape(len(one), -1).mean(axis=1))


@pytest.mark.processes
@pytest.mark.parametrize("label_mode", ["int", "categorical", None])
def test_inferred_labels_classes_order_and_formats(folder: Path, label_mode: str | None) -> None:
    assert_equal(*both(folder, label_mode=label_mode, shuffle=False))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", [(48, 64), (200, 170)])
def test_the_pixels_of_every_interpolation(folder: Path, interpolation: str, size: tuple[int, int]) -> None:
    for path in sorted((folder / "cats").glob("*.??g")):
        decoded = tf.image.decode_image(path.read_bytes(), channels=3, expand_animations=False)
        wanted = tf.image.resize(decoded, size, method=interpolation).numpy()
        got = keras_compat.KerasImage(*size, interpolation=interpolation).pixels(path.read_bytes())
        assert distance(wanted[None], got[None]) <= (0 if interpolation == "nearest" else 0.5)


@pytest.mark.parametrize("fit", ["crop_to_aspect_ratio", "pad_to_aspect_ratio"])
@pytest.mark.parametrize("size", [(50, 50), (90, 31), (40, 133)])
def test_aspect_ratios_are_kept_by_the_same_boxes(folder: Path, fit: str, size: tuple[int, int]) -> None:
    assert_equal(*both(folder, shuffle=False, image_size=size, interpolation="nearest", **{fit: True}))


def test_nearest_gives_uint8_and_the_rest_float32(jpegs: Path) -> None:
    theirs, ours = both(jpegs, shuffle=False, interpolation="nearest", image_size=33)
    assert ours.element_spec[0].dtype.name == "uint8"
    assert_equal(theirs, ours, tolerance=0)


@pytest.mark.parametrize("color_mode", ["rgb", "grayscale"])
def test_colour_modes_of_jpegs(jpegs: Path, color_mode: str) -> None:
    assert_equal(*both(jpegs, shuffle=False, color_mode=color_mode, label_mode="binary"))


def test_rgba_and_grayscale_of_png(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    image = picture(1).convert("RGBA")
    image.putalpha(picture(2).convert("L"))
    image.save(tmp_path / "a" / "0.png")
    picture(3).convert("L").save(tmp_path / "a" / "1.png")
    picture(4).convert("P").save(tmp_path / "a" / "2.png")
    deep = np.asarray(picture(5).convert("L")).astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / "a" / "3.png")
    for color_mode in ("rgb", "rgba", "grayscale"):
        assert_equal(*both(tmp_path, shuffle=False, color_mode=color_mode), tolerance=0.8)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (b"", b""), (b"sRGB", b"\0"), (b"gAMA", struct.pack(">I", 45455)), (b"gAMA", struct.pack(">I", 60000)),
        (b"gAMA", struct.pack(">I", 96000)), (b"gAMA", struct.pack(">I", 200000)), (b"gAMA", b"\0\0\0\0"),
    ],
)  # fmt: skip
def test_the_gray_of_a_colour_png_is_that_of_libpng(mode: str, chunk: bytes, content: bytes) -> None:
    facts = PngImagePlugin.PngInfo()
    if chunk:
        facts.add(chunk, content)
    colours = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    colours[:4] = colours[:4, :, :1]  # grays
    file = io.BytesIO()
    Image.fromarray(colours).convert(mode).save(file, "PNG", pnginfo=facts)
    found = keras_compat.decode(file.getvalue(), 1, 10**6)
    assert (found == tf.io.decode_image(file.getvalue(), channels=1).numpy()).all()


@pytest.mark.photos
def test_the_gray_of_photographs_is_that_of_libpng() -> None:
    for path in sorted(PHOTOS.rglob("*.png")):  # some with a profile of sRGB, or of another space
        wanted = tf.io.decode_image(path.read_bytes(), channels=1).numpy()
        assert (keras_compat.decode(path.read_bytes(), 1, 10**9) == wanted).all(), path


def test_a_class_is_named_once(folder: Path) -> None:
    with pytest.raises(mploader.ArgumentError, match=r"class_names=.*twice"):
        mploader.image_dataset_from_directory(folder, class_names=["dogs", "dogs"])


@pytest.mark.parametrize("seed", ["a", 1.5, -1, 2**32])
def test_a_seed_that_cannot_be_meant(folder: Path, seed: Any) -> None:
    with pytest.raises(mploader.ArgumentError, match="seed="):
        mploader.image_dataset_from_directory(folder, seed=seed)


def test_what_keras_cannot_read_is_read(folder: Path) -> None:
    for color_mode, channels in (("rgba", 4), ("grayscale", 1)):
        dataset = mploader.image_dataset_from_directory(
            folder, color_mode=color_mode, image_size=(20, 30), verbose=False, num_workers=1, formats=(".webp", ".gif")
        )
        images, _ = next(iter(dataset))
        assert images.shape[1:] == (20, 30, channels)
        assert any(path.endswith(".webp") for path in dataset.file_paths)
        dataset.loader.close()


def test_channels_first(jpegs: Path) -> None:
    assert_equal(*both(jpegs, shuffle=False, data_format="channels_first"))
    assert_equal(*both(jpegs, shuffle=False, data_format="channels_first", crop_to_aspect_ratio=True))


def test_labels_none_and_lists_take_every_file_below(folder: Path) -> None:
    assert_equal(*both(folder, labels=None, shuffle=False))
    labels = [number % 3 for number in range(18)]  # with the hidden folder's
    assert_equal(*both(folder, labels=labels, shuffle=False))
    assert_equal(*both(folder, labels=labels, label_mode="categorical", shuffle=False))


def test_class_names_choose_and_order(folder: Path) -> None:
    assert_equal(*both(folder, class_names=["dogs", "cats"], label_mode="binary", shuffle=False))
    assert_equal(*both(folder, class_names=["dogs"], shuffle=False))


@pytest.mark.parametrize("subset", ["training", "validation"])
def test_the_split_is_the_same(folder: Path, subset: str) -> None:
    theirs, ours = both(folder, validation_split=0.3, subset=subset, seed=5)
    assert ours.file_paths == list(theirs.file_paths)
    label_of = {path: ["cats", "dogs"].index(Path(path).relative_to(folder).parts[0]) for path in ours.file_paths}
    # Shuffled within: the same files with their own labels, each once an epoch.
    assert sorted(label for _, labels in ours for label in labels.numpy()) == sorted(label_of.values())
    ours.loader.close()
    assert_equal(*both(folder, validation_split=0.3, subset=subset, shuffle=False))


def test_both_subsets(folder: Path) -> None:
    theirs, ours = both(folder, validation_split=0.4, subset="both", seed=11, label_mode="categorical")
    assert ours[0].file_paths == list(theirs[0].file_paths)
    assert_equal(theirs[1], ours[1])  # the validation part is not shuffled in the epochs
    ours[0].loader.close()


def test_shuffling_gives_each_file_once_and_another_order_each_epoch(jpegs: Path) -> None:
    labels = list(range(6))
    dataset = mploader.image_dataset_from_directory(
        jpegs, labels=labels, image_size=8, batch_size=2, seed=1, verbose=False, num_workers=2
    )
    epochs = [[int(label) for _, batch in dataset for label in batch] for _ in range(4)]
    dataset.loader.close()
    assert all(sorted(epoch) == labels for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_without_batches(jpegs: Path) -> None:
    theirs, ours = both(jpegs, batch_size=None, shuffle=False)
    assert ours.element_spec == theirs.element_spec
    pairs = list(zip(theirs, ours, strict=True))
    assert len(pairs) == 6
    for (wanted, their_label), (got, our_label) in pairs:
        assert our_label == their_label
        assert distance(wanted.numpy()[None], got.numpy()[None]) <= 0.5
    ours.loader.close()


def test_links_are_followed_only_if_asked(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    picture(1).save(tmp_path / "a" / "own.png")
    os.symlink(folder / "dogs", tmp_path / "a" / "linked")
    for follow in (False, True):
        theirs, ours = both(tmp_path, follow_links=follow, shuffle=False)
        assert (len(ours.file_paths) > 1) is follow
        assert_equal(theirs, ours)


def test_it_prints_what_keras_prints(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options in ({}, {"labels": None}, {"validation_split": 0.25, "subset": "both", "seed": 1}):
        keras.utils.image_dataset_from_directory(str(folder), **options)
        printed = capsys.readouterr().out
        made = mploader.image_dataset_from_directory(folder, num_workers=1, **options)
        assert capsys.readouterr().out == printed
        assert "Found" in printed
        for dataset in made if isinstance(made, list) else [made]:
            dataset.loader.close()


@pytest.mark.parametrize(
    "options",
    [
        {"labels": "cats"},
        {"labels": [1, 2]},
        {"labels": [0] * 18, "class_names": ["cats"]},
        {"label_mode": "one-hot"},
        {"label_mode": "binary"},
        {"label_mode": None, "class_names": ["cats"]},
        {"class_names": ["lions"]},
        {"color_mode": "cmyk"},
        {"image_size": (1, 2, 3)},
        {"interpolation": "sharp"},
        {"validation_split": 1.5, "subset": "training"},
        {"validation_split": 0.2},
        {"subset": "training"},
        {"validation_split": 0.2, "subset": "test", "seed": 1},
        {"validation_split": 0.2, "subset": "training"},
        {"crop_to_aspect_ratio": True, "pad_to_aspect_ratio": True},
        {"data_format": "channels_middle"},
        {"format": "pickle"},
    ],
)
def test_what_keras_refuses_is_refused_as_a_value_error(folder: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        keras.utils.image_dataset_from_directory(str(folder), verbose=False, **options)
    with pytest.raises(mploader.ArgumentError):
        mploader.image_dataset_from_directory(folder, verbose=False, **options)


def test_a_damaged_file_is_named_or_left_out(jpegs: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for path in (jpegs / name).iterdir():
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    bad = tmp_path / "b" / "1.jpg"
    bad.write_bytes(bad.read_bytes()[:700])
    options: dict[str, Any] = {"image_size": 16, "batch_size": 2, "verbose": False, "num_workers": 1}
    dataset = mploader.image_dataset_from_directory(tmp_path, **options)
    with pytest.raises(Exception, match=str(bad)):
        list(dataset)
    dataset.loader.close()
    dataset = mploader.image_dataset_from_directory(tmp_path, on_bad_sample="drop", **options)
    assert sum(len(labels) for _, labels in dataset) == 5
    assert [str(bad) in sample.where for sample in dataset.loader.bad_samples()] == [True]
    dataset.loader.close()


@pytest.mark.photos
@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_photographs_differ_by_less_than_half_of_255(tmp_path: Path, interpolation: str) -> None:
    (tmp_path / "a").mkdir()
    for name in ("astronaut", "coffee", "chelsea"):
        with Image.open(PHOTOS / f"{name}.png") as photo:
            photo.convert("RGB").save(tmp_path / "a" / f"{name}.jpg", quality=92)
    assert_equal(*both(tmp_path, shuffle=False, image_size=(224, 224), interpolation=interpolation))
