"""Decoding: the same pixels as Pillow, and a SampleError for whatever is not a whole image."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from mploader import images
from mploader.errors import ArgumentError, SampleError
from mploader.images.execution import decode_whole


def picture(height: int = 300, width: int = 400, seed: int = 0) -> Image.Image:
    """A smooth picture with edges: what JPEG is made for."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (height // 20 + 1, width // 20 + 1, 3), np.uint8))
    pixels = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    pixels[height // 3 : height // 2, width // 4 : width // 2] = (200, 30, 60)
    return Image.fromarray(pixels)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def by_pillow(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    if size is not None:
        image = image.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(image)


def distance(first: np.ndarray, second: np.ndarray) -> float:
    assert first.shape == second.shape
    return float(np.abs(first.astype(int) - second).mean())


JPEGS = {
    "colour": {},
    "4:4:4": {"subsampling": 0, "quality": 95},
    "progressive": {"progressive": True},
    "restart markers": {"restart_marker_rows": 1},
}


@pytest.mark.parametrize("options", JPEGS.values(), ids=JPEGS)
def test_jpeg_is_decoded_as_pillow_does(options):
    data = encoded(picture(), "JPEG", **options)
    pixels = images.decode(data)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert distance(pixels, by_pillow(data)) < 0.5


def as_ycck(data: bytes) -> bytes:
    """A CMYK JPEG whose Adobe marker says that it is YCCK: the same numbers with another meaning."""
    transform = data.index(b"Adobe") + 11
    return data[:transform] + b"\2" + data[transform + 1 :]


@pytest.mark.parametrize("mode", ["L", "CMYK", "YCCK"])
def test_jpeg_of_other_colours_becomes_rgb_as_pillow_makes_it(mode):
    data = encoded(picture().convert(mode.replace("YCCK", "CMYK")), "JPEG", quality=95)
    data = as_ycck(data) if mode == "YCCK" else data
    assert distance(images.decode(data), by_pillow(data)) < 0.5


@pytest.mark.parametrize(
    "size", [(224, 224), (150, 200), (100, 60), (33, 47), (300, 400), (450, 500), (1, 1), (400, 100)]
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_resize_is_close_to_pillows(kind, size):
    data = encoded(picture(), kind)
    assert distance(images.decode(data, size), by_pillow(data, size)) <= 2


@pytest.mark.parametrize("size", [(224, 224), (100, 60), (450, 500)])
def test_resize_without_opencv_is_close_to_pillows(size, monkeypatch):
    monkeypatch.setattr("mploader.images.resize.opencv", lambda: None)
    data = encoded(picture(), "JPEG")
    out = np.zeros((*size, 3), np.uint8)
    assert images.decode(data, size, out=out) is out
    assert distance(out, by_pillow(data, size)) <= 2
    np.testing.assert_array_equal(images.decode(data, size), out)


LOSSLESS = ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"]


@pytest.mark.parametrize("kind", LOSSLESS)
def test_other_formats_are_decoded_as_pillow_does(kind):
    data = encoded(picture(40, 50), kind)
    np.testing.assert_array_equal(images.decode(data), by_pillow(data))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGBA"])
def test_png_modes_become_rgb_as_pillow_makes_them(mode, recwarn):
    if mode == "PA":
        data = encoded(picture(40, 50).convert("P"), "PNG", transparency=bytes(range(256)))
    else:
        data = encoded(picture(40, 50).convert(mode), "PNG")
    pixels = images.decode(data)
    assert not recwarn.list
    np.testing.assert_array_equal(pixels, by_pillow(data))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_gray_is_scaled_to_8_bits(kind):
    values = np.array([[0, 128, 129, 257, 1000, 32768, 65278, 65535]], np.uint16)
    pixels = images.decode(encoded(Image.fromarray(values), kind))
    np.testing.assert_array_equal(pixels[0, :, 0], np.round(values[0] / 257))
    assert pixels.shape == (1, 8, 3)


@pytest.mark.parametrize("kind", ["GIF", "WEBP"])
def test_of_an_animation_the_first_frame_counts(kind):
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    frames = [Image.new("RGB", (20, 10), colour) for colour in colours]
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert distance(images.decode(data), np.broadcast_to(colours[0], (10, 20, 3))) < 5


REFUSED = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "PDF": b"%PDF-1.7\n",
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "XML": b"<?xml version='1.0'?><svg/>",
    "WMF": b"\xd7\xcd\xc6\x9a" + bytes(60),
    "empty": b"",
    "text": b"404: Not Found\n",
    "HTML": b"<!DOCTYPE html><p>no such file",
    "zero": bytes(1000),
    "an unknown format": random.Random(0).randbytes(1000),
}


@pytest.mark.parametrize(("word", "data"), REFUSED.items(), ids=REFUSED)
def test_data_that_are_not_an_image_are_named(word, data):
    with pytest.raises(SampleError, match=f"(?s){len(data):,} bytes.*{word}"):
        images.decode(data, (10, 10))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP"])
def test_cut_data_never_pass(kind):
    data = encoded(picture(60, 80), kind)
    for length in {1, 2, 5, 20, len(data) // 4, len(data) // 2, len(data) * 3 // 4, len(data) - 2}:
        if kind in ("GIF", "PNG") and length == len(data) - 2:
            continue  # the pixels are whole, only a part of the trailer is missing
        with pytest.raises(SampleError):
            images.decode(data[:length])


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("colours", ["colour", "CMYK", "YCCK"])
def test_a_jpeg_cut_and_closed_does_not_pass_as_gray(colours, progressive):
    image = picture() if colours == "colour" else picture().convert("CMYK")
    data = encoded(image, "JPEG", progressive=progressive)
    data = as_ycck(data) if colours == "YCCK" else data
    cut = data[: len(data) // 2] + b"\xff\xd9"
    kind = "colour" if colours == "colour" else "CMYK"
    told = rf"{kind}( progressive)? JPEG, 400 x 300, .* bytes: libjpeg-turbo reports '.*premature end"
    for decode in (
        lambda data: images.decode(data, (64, 64)),
        lambda data: decode_whole(data, "RGB", max_pixels=10**6),
    ):
        decode(data)
        with pytest.raises(SampleError, match=told):
            decode(cut)


def test_bytes_after_the_end_of_a_jpeg_do_no_harm():
    data = encoded(picture(), "JPEG")
    np.testing.assert_array_equal(images.decode(data + b"trailing bytes"), images.decode(data))


def test_extraneous_bytes_before_a_marker_do_no_harm():
    data = encoded(picture(), "JPEG")
    end = data.rindex(b"\xff\xd9")
    np.testing.assert_array_equal(images.decode(data[:end] + b"\0\0\0\0" + data[end:]), images.decode(data))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::PIL.Image.DecompressionBombWarning")
def test_only_sample_errors_come_out_of_damaged_data():
    rng = random.Random(0)
    small = picture(40, 50)
    whole = [encoded(small, kind) for kind in [*LOSSLESS, "JPEG"]]
    whole += [encoded(small, "JPEG", progressive=True), encoded(small.convert("CMYK"), "JPEG")]
    refused = 0
    for data in whole:
        for _ in range(60):
            bad = bytearray(data)
            for _ in range(rng.choice((1, 3, 10))):
                bad[rng.randrange(min(len(bad), rng.choice((60, 10**6))))] = rng.randrange(256)
            try:
                assert images.decode(bytes(bad), (20, 20)).shape == (20, 20, 3)
            except SampleError:
                refused += 1
    assert 100 < refused < 60 * len(whole)


def jpeg_header(height: int, width: int, precision: int = 8) -> bytes:
    frame = struct.pack(">BBHBHHB", 0xFF, 0xC0, 17, precision, height, width, 3) + b"\1\x22\0\2\x11\1\3\x11\1"
    return b"\xff\xd8" + frame + b"\xff\xda" + bytes(50) + b"\xff\xd9"


def png_header(height: int, width: int) -> bytes:
    data = encoded(Image.new("RGB", (8, 8)), "PNG")
    chunk = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + chunk + struct.pack(">I", zlib.crc32(chunk)) + data[33:]


@pytest.mark.parametrize("make", [jpeg_header, png_header])
def test_a_decompression_bomb_is_refused_by_its_header(make):
    data = make(65_500, 65_500)
    images.decode(encoded(picture(20, 20), "PNG"))  # Pillow is imported outside of the measurement
    tracemalloc.start()
    try:
        with pytest.raises(SampleError, match=r"65500 x 65500|4290250000 pixels"):
            images.decode(data, (10, 10))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_max_pixels_can_be_set_for_the_module_and_for_a_call(monkeypatch):
    for data in (encoded(picture(30, 40), "JPEG"), encoded(picture(30, 40), "PNG")):
        assert images.decode(data, max_pixels=1200).shape == (30, 40, 3)
        with pytest.raises(
            SampleError, match=r"40 x 30 = 1,200 pixels, more than the limit of 1,199.*max_pixels"
        ):
            images.decode(data, max_pixels=1199)
        with monkeypatch.context() as patch:
            patch.setattr(images, "max_pixels", 1000)
            with pytest.raises(SampleError, match="limit of 1,000"):
                images.decode(data)
    assert images.max_pixels == 178_956_970


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0)])
def test_an_image_without_pixels_is_refused(height, width):
    with pytest.raises(SampleError, match="at least one"):
        images.decode(jpeg_header(height, width))


def test_12_bit_is_named():
    with pytest.raises(SampleError, match="12-bit"):
        images.decode(jpeg_header(10, 10, precision=12))


def test_a_scan_bomb_is_refused():
    data = encoded(picture(64, 64), "JPEG", progressive=True)
    scan = data[data.index(b"\xff\xda") : data.rindex(b"\xff\xda")]
    with pytest.raises(SampleError, match="scans"):
        images.decode(data[:-2] + scan * 500 + b"\xff\xd9")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied_on_demand(kind, orientation):
    original = picture(61, 90)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(original, kind, exif=exif, **({"quality": 98, "subsampling": 0} if kind == "JPEG" else {}))
    turned = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    assert distance(images.decode(data, apply_exif_orientation=True), turned) < 1
    assert images.decode(data).shape == (61, 90, 3)
    size = (30, 40)
    want = np.asarray(Image.fromarray(turned).resize(size[::-1], Image.Resampling.BILINEAR))
    assert distance(images.decode(data, size, apply_exif_orientation=True), want) <= 2
    crop = images.CenterCrop(21, 33, apply_exif_orientation=True)(data, np.random.default_rng(0))
    top, left = (turned.shape[0] - 21) // 2, (turned.shape[1] - 33) // 2
    assert distance(crop, turned[top : top + 21, left : left + 33]) < 1


def test_out_receives_the_result():
    data = encoded(picture(), "JPEG")
    for size in ((50, 60), (300, 400), (500, 600)):
        out = np.zeros((*size, 3), np.uint8)
        assert images.decode(data, size, out=out) is out
        np.testing.assert_array_equal(out, images.decode(data, size))


@pytest.mark.parametrize(
    "out",
    [
        np.zeros((50, 61, 3), np.uint8),
        np.zeros((50, 60, 3), np.float32),
        np.zeros((50, 120, 3), np.uint8)[:, ::2],
        np.broadcast_to(np.uint8(0), (50, 60, 3)),
        bytearray(9000),
    ],
    ids=["shape", "dtype", "strides", "read-only", "type"],
)
def test_an_out_that_does_not_fit_is_refused(out):
    with pytest.raises(ArgumentError, match=r"out: .*\(50, 60, 3\)"):
        images.decode(encoded(picture(), "JPEG"), (50, 60), out=out)


@pytest.mark.parametrize("size", [5, (5,), (5, 6, 3), (0, 5), (5, -1), (5.5, 5), "ab", (True, 5)])
def test_a_size_that_cannot_be_meant_is_refused(size):
    with pytest.raises(ArgumentError, match=r"size|height|width"):
        images.decode(encoded(picture(20, 20), "PNG"), size)


def test_bytearray_and_memoryview_are_bytes_too():
    data = encoded(picture(60, 80), "JPEG")
    want = images.decode(data, (20, 20))
    np.testing.assert_array_equal(images.decode(bytearray(data), (20, 20)), want)
    np.testing.assert_array_equal(images.decode(memoryview(data), (20, 20)), want)


def test_what_is_neither_bytes_nor_array_says_what_to_do():
    with pytest.raises(SampleError, match="apply_to"):
        images.Resize(5, 5)(("a tuple", 1), np.random.default_rng(0))


def test_the_jpeg_path_imports_neither_pillow_nor_more_than_it_needs(tmp_path):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(), "JPEG"))
    script = (
        "import sys, mploader.images as images\n"
        "assert not {'PIL', 'cv2', 'tensorflow'} & sys.modules.keys()\n"
        "images.decode(open(sys.argv[1], 'rb').read())\n"
        "assert not {'PIL', 'cv2', 'tensorflow'} & sys.modules.keys()\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", script, tmp_path / "a.jpg"], check=True, env=environment)
