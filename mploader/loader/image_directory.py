"""``image_dataset_from_directory``: a drop-in for the function of Keras, with the work in worker processes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from mploader import images
from mploader._util.checks import whole_number
from mploader.errors import ArgumentError, SourceError
from mploader.images.keras_compat import CHANNELS, KERNELS, KerasImage, LabelledFiles, list_files
from mploader.loader.loader import Loader
from mploader.sources.base import PackedStrings

FORMATS = (".bmp", ".gif", ".jpeg", ".jpg", ".png")
"""The endings of file names that Keras takes for images."""


def image_dataset_from_directory(
    directory: str | os.PathLike[str],
    labels: Any = "inferred",
    label_mode: str | None = "int",
    class_names: Sequence[str] | None = None,
    color_mode: str = "rgb",
    batch_size: int | None = 32,
    image_size: int | tuple[int, int] = (256, 256),
    shuffle: bool = True,
    seed: int | None = None,
    validation_split: float | None = None,
    subset: str | None = None,
    interpolation: str = "bilinear",
    follow_links: bool = False,
    crop_to_aspect_ratio: bool = False,
    pad_to_aspect_ratio: bool = False,
    data_format: str | None = None,
    format: str = "tf",  # the name in Keras
    verbose: bool = True,
    *,
    formats: Sequence[str] = FORMATS,
    num_workers: int | None = None,
    on_bad_sample: str = "raise",
    memory: int | str | None = None,
    stall_timeout: float = 300.0,
) -> Any:
    """Makes a dataset from image files in a folder, as ``keras.utils.image_dataset_from_directory`` (Keras 3.15).

    The files, their order and split, the class names, labels, shapes and dtypes are those of Keras. Pixels are
    decoded to the same bits, resized by the same kernels, and travel rounded to whole numbers: they differ from
    Keras's by 0.3 of 255 on average, and overshoots of the cubic and Lanczos kernels are clipped to 0..255.
    What else differs: with ``shuffle`` every epoch is a fresh permutation of all files, while Keras shuffles within
    8 batches; files that Keras cannot read in the wanted ``color_mode`` (JPEG as rgba, GIF or BMP as grayscale) are
    read; a damaged file is named.

    Args:
        directory: holds a folder for each class if ``labels`` is "inferred", otherwise images at any depth. A local
            folder; remote ones (``gs://``) are not read.
        labels: "inferred", None (no labels), or one label for each file, in the order of the files' paths.
        label_mode: "int" (int32), "categorical" (float32 one-hot), "binary" (float32, (batch, 1)) or None.
        class_names: the folders to take and their order; None: all, sorted.
        color_mode: "rgb", "rgba" or "grayscale".
        batch_size: None: elements are not batched.
        image_size: (height, width) of the images, in pixels.
        shuffle: whether to shuffle, before the split and in every epoch. Of ``subset="both"`` only the training
            part is shuffled in every epoch.
        seed: of the shuffle; None: a random one.
        validation_split: the share of the files, between 0 and 1, that is held back for validation.
        subset: "training", "validation" or "both" (a list of two datasets).
        interpolation: "bilinear", "nearest", "bicubic", "area", "lanczos3", "lanczos5", "gaussian" or
            "mitchellcubic", none of them antialiased.
        follow_links: whether links to folders are followed.
        crop_to_aspect_ratio: cut the largest box of the aspect ratio of ``image_size`` from the middle first.
        pad_to_aspect_ratio: keep the whole image and its aspect ratio, with black beside it.
        data_format: "channels_last", "channels_first", or None: ``keras.config.image_data_format()``.
        format: "tf" is all there is; Keras's "grain" is not.
        verbose: whether to print how many files were found.
        formats: endings of the files that are images, compared without case. The default is what Keras takes;
            what Pillow reads works too: ".webp", ".tif"...
        num_workers, on_bad_sample, memory, stall_timeout: see :class:`mploader.Loader`.

    Returns:
        A ``tf.data.Dataset`` of images, float32 (batch, height, width, channels) with values 0 to 255 (uint8 for
        "nearest", as in Keras), or of (images, labels). It has the attributes ``class_names`` and ``file_paths``,
        and ``loader``, the :class:`mploader.Loader` behind it. For ``subset="both"`` a list of two.

    Raises:
        ArgumentError: an argument is invalid; it is a ValueError, as Keras raises.
        SourceError: the folder cannot be listed.
        LoaderError: see :class:`mploader.Loader`.
    """
    if format != "tf":
        raise ArgumentError(f'format={format!r}: expected "tf"')
    label_mode = _check_labels(labels, label_mode, class_names)
    labels = None if label_mode is None else labels
    transform = _transform(color_mode, image_size, interpolation, crop_to_aspect_ratio, pad_to_aspect_ratio,
                           data_format)  # fmt: skip
    _check_split(validation_split, subset, shuffle, seed)
    seed = int(np.random.randint(10**6)) if seed is None else whole_number("seed", seed, 0)
    if shuffle and seed >= 2**32:
        raise ArgumentError(f"seed={seed}: expected an integer below 2**32, for the shuffle of Keras")
    files = _find(os.fspath(directory), labels, class_names, tuple(e.lower() for e in formats), follow_links)
    paths, found_labels, names = files
    if verbose:
        print(f"Found {len(paths)} files" + (f" belonging to {len(names)} classes." if names is not None else "."))
    if label_mode == "binary" and names is not None and len(names) != 2:
        raise ArgumentError(f'label_mode="binary": expected 2 classes, got {len(names)}: {names}')
    rows = _label_rows(found_labels, label_mode, 0 if names is None else len(names))
    order = np.arange(len(paths))
    if shuffle:
        np.random.RandomState(seed).shuffle(order)  # as Keras does, so that the split is the same
    datasets = []
    for part, indices in _split(order, validation_split, subset):
        if not len(indices):
            raise ArgumentError(
                f"there are no {part}images in {os.fspath(directory)}: expected files that end in {tuple(formats)}"
            )
        chosen = [paths[index] for index in indices]
        loader = Loader(
            LabelledFiles(PackedStrings.of(chosen), None if rows is None else rows[indices]), transform,
            batch_size=batch_size, shuffle=shuffle and not (subset == "both" and part == "validation "), seed=seed,
            num_workers=num_workers, on_bad_sample=on_bad_sample, memory=memory, stall_timeout=stall_timeout,
        )  # fmt: skip
        datasets.append(_dataset(loader, interpolation, names, chosen))
    return datasets if subset == "both" else datasets[0]


def _check_labels(labels: Any, label_mode: str | None, class_names: Sequence[str] | None) -> str | None:
    """Returns the label mode that applies."""
    is_list = isinstance(labels, (list, tuple))
    if not is_list and labels not in ("inferred", None):
        raise ArgumentError(f'labels={labels!r}: expected "inferred", None, or a list of one integer for each file')
    if label_mode not in ("int", "categorical", "binary", None):
        raise ArgumentError(f'label_mode={label_mode!r}: expected "int", "categorical", "binary" or None')
    if class_names and (is_list or labels is None or label_mode is None):
        raise ArgumentError(f'class_names={class_names!r}: expected labels="inferred" and a label_mode with it')
    return None if labels is None else label_mode


def _check_split(validation_split: float | None, subset: str | None, shuffle: bool, seed: int | None) -> None:
    if validation_split and not 0 < validation_split < 1:
        raise ArgumentError(f"validation_split={validation_split!r}: expected a number between 0 and 1")
    if bool(validation_split) != bool(subset):
        raise ArgumentError(f"validation_split={validation_split!r}, subset={subset!r}: expected both or neither")
    if subset not in ("training", "validation", "both", None):
        raise ArgumentError(f'subset={subset!r}: expected "training", "validation" or "both"')
    if validation_split and shuffle and seed is None:
        raise ArgumentError(
            "validation_split with shuffle=True: expected a seed, or the training and the validation part would overlap"
        )


def _transform(
    color_mode: str, image_size: Any, interpolation: str, crop: bool, pad: bool, data_format: str | None
) -> KerasImage:
    if color_mode not in CHANNELS:
        raise ArgumentError(f'color_mode={color_mode!r}: expected "rgb", "rgba" or "grayscale"')
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if not isinstance(size, (list, tuple)) or len(size) != 2 or min(int(side) for side in size) < 1:
        raise ArgumentError(f"image_size={image_size!r}: expected (height, width) in pixels")
    if interpolation.lower() not in ("nearest", *KERNELS):
        raise ArgumentError(f"interpolation={interpolation!r}: expected one of nearest, {', '.join(KERNELS)}")
    if crop and pad:
        raise ArgumentError("crop_to_aspect_ratio and pad_to_aspect_ratio: expected at most one of them to be True")
    if data_format is None:
        from mploader.tfdata.image_directory import default_data_format  # imports TensorFlow

        data_format = default_data_format()
    data_format = str(data_format).lower()
    if data_format not in ("channels_first", "channels_last"):
        raise ArgumentError(f'data_format={data_format!r}: expected "channels_first" or "channels_last"')
    return KerasImage(
        int(size[0]), int(size[1]), CHANNELS[color_mode], interpolation.lower(),
        "crop" if crop else "pad" if pad else "stretch", data_format == "channels_first", images.max_pixels,
    )  # fmt: skip


def _find(
    directory: str, labels: Any, class_names: Sequence[str] | None, extensions: tuple[str, ...], follow_links: bool
) -> tuple[list[str], Any, list[str] | None]:
    """Lists the files, their labels, and the names of the classes."""
    if "://" in directory:
        raise ArgumentError(f"{directory}: remote folders are not read; copy the files, or use a source of shards")
    if labels != "inferred":
        paths, _ = list_files(directory, [""], extensions, follow_links)
        if labels is None:
            return paths, None, None
        if len(labels) != len(paths):
            raise ArgumentError(
                f"labels: expected one for each of the {len(paths)} files in {directory}, got {len(labels)}"
            )
        return paths, list(labels), [str(label) for label in sorted(set(labels))]
    try:
        folders = sorted(
            name for name in os.listdir(directory)
            if os.path.isdir(os.path.join(directory, name)) and not name.startswith(".")
        )  # fmt: skip
    except OSError as error:
        raise SourceError(f"the folder {directory} cannot be listed: {error.strerror}") from error
    if class_names is not None and len(set(class_names)) < len(class_names):
        raise ArgumentError(f"class_names={list(class_names)}: a name is there twice")
    if class_names is not None and not set(class_names) <= set(folders):
        raise ArgumentError(f"class_names={list(class_names)}: expected folders of {directory}, which are {folders}")
    names = folders if class_names is None else list(class_names)
    paths, found = list_files(directory, names, extensions, follow_links)
    return paths, found, names


def _label_rows(labels: Any, label_mode: str | None, num_classes: int) -> Any:
    """Returns the labels in the form that batches have."""
    if label_mode is None:
        return None
    values = np.asarray(labels)
    if values.dtype.kind in "iub":
        values = values.astype(np.int32)
    if label_mode == "binary":
        return values.astype(np.float32)[:, np.newaxis]
    if label_mode == "categorical":
        return (values[:, np.newaxis] == np.arange(num_classes)).astype(np.float32)
    return values.astype(np.float32) if values.dtype == np.float64 else values


def _split(order: Any, validation_split: float | None, subset: str | None) -> list[tuple[str, Any]]:
    """Returns the parts that are asked for: the name of each for messages, and the indices of its files."""
    if not validation_split:
        return [("", order)]
    held_back = int(validation_split * len(order))
    # Keras slices with [:-held_back], which is empty, and [-0:], which is all, where nothing is held back.
    parts = {"training": order[:-held_back], "validation": order[-held_back:]}
    chosen = ("training", "validation") if subset == "both" else (str(subset),)
    for part in chosen:
        count = held_back if part == "validation" else len(order) - held_back
        print(f"Using {count} files for {part}.")
    return [(f"{part} ", parts[part]) for part in chosen]


def _dataset(loader: Loader, interpolation: str, class_names: list[str] | None, paths: list[str]) -> Any:
    dataset = loader.as_dataset()
    if interpolation.lower() != "nearest":
        from mploader.tfdata.image_directory import with_float_images  # imports TensorFlow

        dataset = with_float_images(dataset)
    dataset.class_names = class_names
    dataset.file_paths = paths
    dataset.loader = loader
    return dataset
