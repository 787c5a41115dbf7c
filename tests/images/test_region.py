"""The optional decoder of a part of a JPEG: the pixels of a full decode to the bit, and an error where that has one."""

from __future__ import annotations

import numpy as np
import pytest
import simplejpeg

from mploader import images
from mploader.errors import SampleError
from mploader.images import formats, jpeg
from mploader.images.geometry import Box
from tests.images.test_decode import encoded, picture

needs_extension = pytest.mark.skipif(jpeg._region is None, reason="the extension was not built")

SUBSAMPLINGS = ["444", "422", "420", "440", "411"]
KINDS = [*SUBSAMPLINGS, "gray", "progressive", "restart markers"]


def jpeg_of(kind: str) -> bytes:
    image = picture(203, 317)
    if kind in SUBSAMPLINGS:
        return simplejpeg.encode_jpeg(np.asarray(image), 90, colorsubsampling=kind)
    if kind == "restart markers":
        return encoded(image, "JPEG", quality=90, restart_marker_blocks=3)
    return encoded(image.convert("L") if kind == "gray" else image, "JPEG", progressive=kind == "progressive")


@needs_extension
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eighths", [1, 2, 4, 8])
def test_a_part_has_the_pixels_of_the_whole(kind, eighths):
    data = jpeg_of(kind)
    whole = jpeg._decode(data, formats.read_jpeg_header(data), eighths)
    rng = np.random.default_rng(eighths)
    for _ in range(40):
        height, width = (int(rng.integers(1, size + 1)) for size in whole.shape[:2])
        top, left = int(rng.integers(whole.shape[0] - height + 1)), int(rng.integers(whole.shape[1] - width + 1))
        part = np.empty((height, width, 3), np.uint8)
        jpeg._region.decode(data, eighths, top, left, height, width, part)
        np.testing.assert_array_equal(part, Box(top, left, height, width).of(whole))


@needs_extension
def test_a_crop_is_the_same_without_the_extension(monkeypatch):
    data = jpeg_of("420")
    transforms = [images.RandomResizedCrop(64, 64), images.CenterCrop(100, 90)]
    partly = [transform(data, np.random.default_rng(seed)) for transform in transforms for seed in range(20)]
    monkeypatch.setattr(jpeg, "_region", None)
    wholly = [transform(data, np.random.default_rng(seed)) for transform in transforms for seed in range(20)]
    for one, other in zip(partly, wholly, strict=True):
        np.testing.assert_array_equal(one, other)


def test_damage_that_a_crop_depends_on_is_an_error_with_the_words_of_the_full_decode():
    data = jpeg_of("420")
    cut = data[: len(data) // 2] + b"\xff\xd9"
    header = formats.read_jpeg_header(data)
    lower, upper = Box(150, 10, 50, 300), Box(0, 10, 20, 300)
    with pytest.raises(SampleError, match=r"colour JPEG, 317 x 203, .* bytes: .*premature end"):
        jpeg.decode_box(cut, header, lower, 50, 300)
    if jpeg._region is not None:
        np.testing.assert_array_equal(
            jpeg.decode_box(cut, header, upper, 20, 300), jpeg.decode_box(data, header, upper, 20, 300)
        )


@needs_extension
@pytest.mark.parametrize(
    ("eighths", "region", "complaint"),
    [
        (8, (0, 0, 204, 10), "outside"),
        (8, (203, 0, 1, 10), "outside"),
        (8, (0, 317, 5, 5), "outside"),
        (4, (100, 0, 10, 10), "outside"),
        (8, (0, 0, 0, 10), "outside"),
        (8, (2**32 - 1, 0, 2, 10), "outside"),
        (9, (0, 0, 10, 10), "eighths"),
        (0, (0, 0, 10, 10), "eighths"),
    ],
)
def test_a_region_that_cannot_be_meant_is_refused(eighths, region, complaint):
    pixels = np.empty((region[2], region[3], 3), np.uint8)
    with pytest.raises(ValueError, match=complaint):
        jpeg._region.decode(jpeg_of("420"), eighths, *region, pixels)


@needs_extension
def test_an_array_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="height x width x 3"):
        jpeg._region.decode(jpeg_of("420"), 8, 0, 0, 10, 10, np.empty((10, 9, 3), np.uint8))


@needs_extension
def test_only_value_errors_come_out_of_damaged_data():
    rng = np.random.default_rng(0)
    part = np.empty((30, 40, 3), np.uint8)
    refused = 0
    for kind in KINDS:
        whole = np.frombuffer(jpeg_of(kind), np.uint8)
        for _ in range(100):
            bad = whole.copy()
            places = rng.integers(0, rng.choice([200, len(bad)]), rng.choice([1, 3, 10]))
            bad[places] = rng.integers(0, 256, len(places))
            try:
                jpeg._region.decode(bad.tobytes()[: rng.choice([len(bad), len(bad) // 2])], 8, 100, 50, 30, 40, part)
            except ValueError:
                refused += 1
    assert 100 < refused < 100 * len(KINDS)
