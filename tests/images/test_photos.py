"""Decoding of real photographs and exotic files."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from mploader import images
from mploader.errors import SampleError
from tests.conftest import PHOTOS
from tests.images.test_decode import by_pillow, distance, encoded

pytestmark = pytest.mark.photos
PICTURES = ["astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg"]


def crops(count: int) -> list[bytes]:
    """Cuts JPEG files of about the size of ImageNet's out of the photographs."""
    rng = np.random.default_rng(0)
    files = []
    for number in range(count):
        photo = Image.open(PHOTOS / PICTURES[number % len(PICTURES)]).convert("RGB")
        width, height = int(rng.integers(360, 600)), int(rng.integers(300, 500))
        cut = int(min(photo.width, photo.height) * rng.uniform(0.6, 1.0))
        left, top = int(rng.integers(0, photo.width - cut + 1)), int(rng.integers(0, photo.height - cut + 1))
        crop = photo.crop((left, top, left + cut, top + cut)).resize(
            (width, height), Image.Resampling.BICUBIC
        )
        files.append(
            encoded(crop, "JPEG", quality=int(rng.integers(85, 97)), subsampling=int(rng.choice([0, 2])))
        )
    return files


def test_photographs_at_224_are_within_2_of_pillow():
    for data in crops(24):
        assert distance(images.decode(data, (224, 224)), by_pillow(data, (224, 224))) <= 2


@pytest.mark.parametrize("size", [(96, 96), (128, 192), (300, 300)])
def test_photographs_at_other_sizes_are_within_2_of_pillow_on_average(size):
    assert np.mean([distance(images.decode(data, size), by_pillow(data, size)) for data in crops(12)]) <= 2


def test_random_crops_of_photographs_are_within_2_of_pillow():
    crop = images.RandomResizedCrop(160, 160)
    distances = []
    for seed, data in enumerate(crops(18)):
        whole = Image.open(io.BytesIO(data)).convert("RGB")
        box = crop.view(whole.height, whole.width, np.random.default_rng(seed)).box
        edges = (box.left, box.top, box.left + box.width, box.top + box.height)
        want = whole.resize((160, 160), Image.Resampling.BILINEAR, box=edges)
        distances.append(distance(crop(data, np.random.default_rng(seed)), np.asarray(want)))
    assert max(distances) <= 2


def test_every_png_is_decoded_as_pillow_does():
    paths = sorted(PHOTOS.glob("*.png"))
    assert len(paths) >= 10
    for path in paths:
        data = path.read_bytes()
        np.testing.assert_array_equal(images.decode(data), by_pillow(data), err_msg=path.name)


@pytest.mark.parametrize("name", ["testorig", "testimgint", "testimgari"])
def test_arithmetic_coded_and_plain_jpeg(name):
    data = (PHOTOS / "jpeg" / f"{name}.jpg").read_bytes()
    assert distance(images.decode(data), by_pillow(data)) < 1


def test_the_12_bit_jpeg_is_named():
    with pytest.raises(SampleError, match="12-bit colour JPEG, 149 x 227, 32,831 bytes"):
        images.decode((PHOTOS / "jpeg" / "monkey12.jpg").read_bytes())


@pytest.mark.parametrize("scene", ["Landscape", "Portrait"])
def test_every_exif_orientation_looks_the_same(scene):
    size = (120, 180) if scene == "Landscape" else (180, 120)
    upright = by_pillow((PHOTOS / "exif" / f"{scene}_1.jpg").read_bytes(), size)
    paths = sorted((PHOTOS / "exif").glob(f"{scene}_[1-8].jpg"))
    assert len(paths) >= 4
    for path in paths:
        data = path.read_bytes()
        # The files differ by what their makers did to the picture, so they are held against Pillow's way, too.
        shown = images.decode(data, size, apply_exif_orientation=True)
        turned = ImageOps.exif_transpose(Image.open(path)).convert("RGB")
        assert distance(shown, np.asarray(turned.resize(size[::-1], Image.Resampling.BILINEAR))) <= 2, (
            path.name
        )
        assert distance(shown, upright) <= 12, path.name
