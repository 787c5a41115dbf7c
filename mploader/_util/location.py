"""Where a sample is stored, as text and as attributes."""

from __future__ import annotations


class Location(str):
    """What a source says of where a sample is stored, with the file and the byte as attributes.

    Attributes:
        file: path or URL of the file; None if the sample is not in a file.
        byte: offset in the file; None if the sample is a whole file, or the offset is unknown.
    """

    file: str | None
    byte: int | None

    def __new__(cls, text: str, file: str | None = None, byte: int | None = None) -> Location:
        """Makes a location from its text."""
        location = super().__new__(cls, text)
        location.file = file
        location.byte = byte
        return location

    def __getnewargs__(self) -> tuple[str, str | None, int | None]:  # type: ignore[override]
        """What pickle passes to ``__new__``."""
        return str(self), self.file, self.byte
