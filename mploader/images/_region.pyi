from mploader.images.geometry import Pixels

def decode(data: bytes, eighths: int, top: int, left: int, height: int, width: int, pixels: Pixels, /) -> None:
    """Decodes a rectangle of a JPEG of 1 or 3 components, and no more than it needs. Releases Python's lock.

    Args:
        data: the whole file.
        eighths: the scale to decode at, 1 to 8 eighths.
        top, left, height, width: the rectangle, in pixels of the scaled image.
        pixels: uint8 RGB (height, width, 3), C-contiguous; receives the rectangle.

    Raises:
        ValueError: libjpeg-turbo complains about what it had to read, or the rectangle is outside.
    """
