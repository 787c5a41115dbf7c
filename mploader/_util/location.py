"""Where a sample lies, for people and for programs."""

from __future__ import annotations


class Location(str):
    """The text that a source says of a sample's place, with the file and the byte as attributes.

    Attributes:
        file: path or URL of the file; None where the sample is in none.
        byte: offset in the file; None where it is the whole file, or unknown.
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
