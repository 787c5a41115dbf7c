"""Transforms: geometry that the decoder hears of, the same pixels for the same generator."""

from __future__ import annotations

import pickle
from collections import namedtuple

import numpy as np
import pytest

import mploader.images as images
from mploader.errors import ArgumentError, SampleError
from tests.images.test_decode import by_pillow, distance, encoded, picture

JPEG = encoded(picture(), "JPEG", quality=95, subsampling=0)
ARRAY = by_pillow(JPEG)
TRANSFORMS = [
    images.Resize(40, 60),
    images.CenterCrop(40, 60),
    images.CenterCrop(400, 60),
    images.RandomResizedCrop(40, 60),
    images.RandomFlip(),
    images.Compose([images.RandomResizedCrop(64, 64), images.RandomFlip()]),
    images.Compose([images.Resize(80, 80), images.CenterCrop(64, 64), images.RandomFlip()]),
]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_bytes_and_array_give_nearly_the_same(transform):
    for seed in range(4):
        from_bytes, from_array = transform(JPEG, rng(seed)), transform(ARRAY, rng(seed))
        assert from_bytes.dtype == from_array.dtype == np.uint8
        assert from_bytes.flags.c_contiguous
        assert distance(from_bytes, from_array) <= 2


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
def test_a_pickled_transform_is_the_same_transform(transform):
    copy = pickle.loads(pickle.dumps(transform))
    assert copy == transform
    assert repr(copy) == repr(transform)
    np.testing.assert_array_equal(copy(JPEG, rng(3)), transform(JPEG, rng(3)))


@pytest.mark.parametrize("transform", TRANSFORMS, ids=repr)
@pytest.mark.parametrize("image", [JPEG, ARRAY], ids=["bytes", "array"])
def test_out_receives_the_result(transform, image):
    before = ARRAY.copy()
    for seed in range(3):
        want = transform(image, rng(seed))
        out = np.zeros_like(want)
        assert transform(image, rng(seed), out=out) is out
        np.testing.assert_array_equal(out, want)
    np.testing.assert_array_equal(ARRAY, before)


def test_center_crop_cuts_the_middle_without_scaling():
    np.testing.assert_array_equal(images.CenterCrop(101, 200)(ARRAY, rng()), ARRAY[99:200, 100:300])
    np.testing.assert_array_equal(
        images.CenterCrop(101, 200)(JPEG, rng()), images.decode(JPEG)[99:200, 100:300]
    )


def test_center_crop_enlarges_what_is_too_small():
    pixels = images.CenterCrop(600, 300)(ARRAY, rng())
    want = images.Resize(600, 300)(np.ascontiguousarray(ARRAY[:, 125:275]), rng())
    np.testing.assert_array_equal(pixels, want)


def test_random_resized_crop_keeps_its_bounds():
    crop = images.RandomResizedCrop(300, 300, scale=(0.2, 0.5), ratio=(0.5, 2.0))
    generator = rng()
    boxes = [crop.view(300, 400, generator).box for _ in range(2000)]
    area = np.array([box.height * box.width / 120_000 for box in boxes])
    aspect = np.array([box.width / box.height for box in boxes])
    assert area.min() > 0.195
    assert area.max() < 0.505
    assert aspect.min() > 0.49
    assert aspect.max() < 2.04
    assert abs(area.mean() - 0.35) < 0.01
    assert abs(np.log(aspect).mean()) < 0.05
    assert min(box.top for box in boxes) == min(box.left for box in boxes) == 0
    assert max(box.top + box.height for box in boxes) == 300
    assert max(box.left + box.width for box in boxes) == 400


def test_boxes_much_larger_than_the_result_lie_on_the_grid_of_the_scale():
    crop, free = images.RandomResizedCrop(20, 20), images.RandomResizedCrop(300, 300)
    cut = set()
    for seed in range(300):
        box, drawn = crop.view(301, 403, rng(seed)).box, free.view(301, 403, rng(seed)).box
        step = 8 // box.scale_for(20, 20)
        for start, size, was_start, was_size, limit in (
            (box.top, box.height, drawn.top, drawn.height, 301),
            (box.left, box.width, drawn.left, drawn.width, 403),
        ):
            assert start % step == 0
            assert (start + size) % step == 0 or start + size == limit
            assert abs(start - was_start) < 8
            assert 0 <= was_size - size < 8
        cut.add(step)
    assert cut == {2, 4, 8}


@pytest.mark.parametrize(("height", "width"), [(10, 4000), (4000, 10), (1, 1), (2, 3)])
def test_random_resized_crop_of_odd_images_falls_back_to_the_middle(height, width):
    generator = rng()
    for _ in range(50):
        box = images.RandomResizedCrop(8, 8).view(height, width, generator).box
        assert box.top >= 0
        assert box.left >= 0
        assert 1 <= box.height <= height - box.top
        assert 1 <= box.width <= width - box.left
    box = images.RandomResizedCrop(8, 8).view(10, 4000, rng()).box
    assert (box.height, box.width, box.left) == (10, 13, 1993)


@pytest.mark.parametrize("target", [(32, 32), (48, 80)])
def test_random_resized_crop_is_close_to_pillows(target):
    from PIL import Image

    crop = images.RandomResizedCrop(*target)
    distances = []
    for seed in range(20):
        box = crop.view(300, 400, rng(seed)).box
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        want = Image.fromarray(ARRAY).resize(target[::-1], Image.Resampling.BILINEAR, box=edges)
        distances.append(distance(crop(JPEG, rng(seed)), np.asarray(want)))
    assert max(distances) <= 2


def test_random_flip_mirrors_half_of_the_images():
    flipped = 0
    for seed in range(200):
        pixels = images.RandomFlip()(ARRAY, rng(seed))
        mirrored = np.array_equal(pixels, ARRAY[:, ::-1])
        assert mirrored or np.array_equal(pixels, ARRAY)
        flipped += mirrored
    assert 70 < flipped < 130


@pytest.mark.parametrize("shape", [(30, 40), (30, 40, 1)])
def test_gray_arrays_become_rgb(shape):
    gray = np.arange(1200, dtype=np.uint8).reshape(shape)
    for transform in (
        images.Resize(30, 40),
        images.Resize(15, 20),
        images.RandomFlip(),
        images.CenterCrop(10, 10),
    ):
        pixels = transform(gray, rng())
        assert pixels.shape[2] == 3
        assert (pixels == pixels[:, :, :1]).all()
    np.testing.assert_array_equal(images.Resize(30, 40)(gray, rng())[:, :, 1], gray.reshape(30, 40))


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((5, 5, 3), np.float32),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros(5, np.uint8),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_an_array_that_is_no_image_is_a_sample_error(array):
    with pytest.raises(SampleError, match="image array: expected"):
        images.Resize(5, 5)(array, rng())


def test_compose_gives_the_encoded_bytes_to_the_first_part_and_any_callable_may_take_part():
    seen = []

    def invert(image, rng):
        seen.append(type(image))
        return 255 - images.decode(image) if isinstance(image, bytes) else 255 - image

    first = images.Compose([invert, images.Resize(20, 20)])(JPEG, rng())
    last = images.Compose([images.Resize(20, 20), invert])
    assert seen == [bytes]
    assert distance(first, 255 - by_pillow(JPEG, (20, 20))) <= 2
    out = np.zeros((20, 20, 3), np.uint8)
    assert last(JPEG, rng(), out=out) is out
    np.testing.assert_array_equal(out, 255 - images.decode(JPEG, (20, 20)))
    with pytest.raises(ArgumentError, match="out"):
        last(JPEG, rng(), out=out[:10])


def test_the_limit_on_pixels_travels_with_the_transform(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(images, "max_pixels", 1000)
        small = images.Resize(10, 10)
    for transform in (pickle.loads(pickle.dumps(small)), images.RandomFlip(max_pixels=1000)):
        with pytest.raises(SampleError, match="limit of 1,000"):
            transform(JPEG, rng())
    assert images.Resize(10, 10)(JPEG, rng()).shape == (10, 10, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: images.Resize(0, 5),
        lambda: images.Resize(5, 2.5),
        lambda: images.CenterCrop("5", 5),
        lambda: images.Resize(5, True),
        lambda: images.RandomResizedCrop(5, -5),
        lambda: images.RandomResizedCrop(5, 5, scale=(0.5, 0.1)),
        lambda: images.RandomResizedCrop(5, 5, scale=(0, 1)),
        lambda: images.RandomResizedCrop(5, 5, scale=(0.5, 1.5)),
        lambda: images.RandomResizedCrop(5, 5, scale=0.5),
        lambda: images.RandomResizedCrop(5, 5, ratio=(1, float("inf"))),
        lambda: images.RandomResizedCrop(5, 5, ratio=(float("nan"), 2)),
        lambda: images.Resize(5, 5, max_pixels=0),
        lambda: images.Compose([]),
        lambda: images.Compose([images.RandomFlip(), 3]),
        lambda: images.Compose(images.RandomFlip()),
        lambda: images.apply_to(None, images.RandomFlip()),
        lambda: images.apply_to(True, images.RandomFlip()),
        lambda: images.apply_to(0, "flip"),
    ],
)
def test_arguments_are_checked_when_a_transform_is_made(make):
    with pytest.raises(ArgumentError):
        make()


def test_apply_to_changes_one_component():
    resize = images.Resize(10, 10)
    want = resize(JPEG, rng())
    image, label = images.apply_to(0, resize)((JPEG, 7), rng())
    np.testing.assert_array_equal(image, want)
    assert label == 7
    label, image = images.apply_to(-1, resize)((7, JPEG), rng())
    np.testing.assert_array_equal(image, want)
    sample = {"__key__": "a", "jpg": JPEG, "cls": b"3"}
    element = images.apply_to("jpg", resize)(sample, rng())
    assert list(element) == ["__key__", "jpg", "cls"]
    np.testing.assert_array_equal(element["jpg"], want)
    assert element["cls"] == b"3"
    assert sample["jpg"] is JPEG
    pair = namedtuple("pair", "image label")(JPEG, 7)
    assert images.apply_to(0, resize)(pair, rng())[1] == 7


def test_apply_to_can_be_nested_pickled_and_read():
    both = images.apply_to(1, images.RandomFlip())
    assert repr(both) == f"apply_to(1, {images.RandomFlip()!r})"
    copy = pickle.loads(pickle.dumps(both))
    np.testing.assert_array_equal(copy((0, ARRAY), rng(5))[1], both((0, ARRAY), rng(5))[1])


@pytest.mark.parametrize(
    "sample", [(JPEG, 1), {"png": JPEG, "cls": 1}, JPEG, [JPEG, 1]], ids=["tuple", "dict", "bytes", "list"]
)
@pytest.mark.parametrize("key", [2, "jpg"])
def test_a_sample_without_the_component_is_named(sample, key):
    with pytest.raises(SampleError, match=r"apply_to\(.*got a"):
        images.apply_to(key, images.RandomFlip())(sample, rng())


def test_apply_to_takes_a_function_of_the_image_alone() -> None:
    transform = images.apply_to(0, lambda image: image * 2)
    assert transform((3, "label"), np.random.default_rng(0)) == (6, "label")
