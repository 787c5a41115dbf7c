"""The members of a tar archive, read from their headers and never extracted.

Reads ustar, pax and GNU archives, as far as data sets need them (POSIX.1-2017 pax, "ustar Interchange
Format"; https://www.gnu.org/software/tar/manual/html_node/Standard.html). Names, links and devices in an
archive are only text: neither this module nor its users open a path that an archive names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

BLOCK = 512
MAX_EXTENDED_BYTES = 1 << 20  # of pax and GNU headers of one member: more would be an attack on memory
_MAX_PADDING = 1 << 20  # of zeros after the end mark; tar pads to its record size, 10 KiB unless told otherwise
_MAX_SIZE = 1 << 62

_REGULAR = (b"0", b"\0", b"7")
_DIRECTORY, _SPARSE = b"5", b"S"
_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK = b"x", b"g", b"L", b"K"
_WITHOUT_DATA = {
    b"1": "a hard link",
    b"2": "a link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a named pipe",
}

Read = Callable[[int, int], bytes]  # (offset, size) -> up to size bytes, fewer at the end


class TarDamageError(ValueError):
    """The archive cannot be read from `offset` on, where the headers of a member start; `name` if it is known."""

    def __init__(self, offset: int, what: str, name: str | None = None):
        super().__init__(f"at byte {offset}, {what}")
        self.offset = offset
        self.name = name


@dataclass(frozen=True)
class WorkerEntry:
    """One file in an archive."""

    name: str
    start: int  # byte of its first header, those that extend the name included
    data: int  # byte of its content
    size: int  # bytes of content
    end: int  # byte after its last block
    is_directory: bool
    problem: str | None  # why it is not a usable file


def members(read: Read, start: int, end: int, *, is_part: bool = False) -> Iterator[WorkerEntry]:
    """Yields the members between two bytes of an archive, in order.

    Args:
        read: returns bytes of the archive.
        start: byte of a header.
        end: byte after the last one that may be read.
        is_part: whether `end` is the end of some members and not of the archive, so that no end mark is expected.

    Raises:
        TarDamageError: a header is damaged, a member reaches beyond `end`, the archive has no end mark, or data
            follow it.
    """
    position = start
    while position < end or not is_part:
        header = read(position, BLOCK)
        if len(header) < BLOCK or position + BLOCK > end:
            raise TarDamageError(
                position, f"expected a header or an end mark, got {end - position} bytes: the archive has been cut"
            )
        if not any(header):
            _check_end(read, position, end)
            return
        member = _member(read, position, end)
        yield member
        position = member.end


@dataclass
class _Extended:
    """What the headers before a member's own state about it."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


def _member(read: Read, start: int, end: int) -> WorkerEntry:
    extended, position, header = _extended(read, start, end)
    size = _checked_size(header, start, end - position)
    name = extended.name or _header_name(header)
    kind = header[156:157]
    is_directory = kind == _DIRECTORY or (kind == b"\0" and name.endswith("/"))
    data = position + BLOCK
    if is_directory or kind in _WITHOUT_DATA:
        size = 0  # nothing follows, whatever the field says
    elif extended.size is not None:
        size = extended.size
    if kind == _SPARSE:
        data = _after_sparse_headers(read, header, data, end)
    if data + size > end:
        left = max(end - data, 0)
        raise TarDamageError(start, f"{name}: expected {size} bytes, got {left}: the archive has been cut", name)
    problem = _kind_problem(kind, extended.sparse, is_directory) or _name_problem(name)
    # The padding of the last member may be missing at the very end, where nothing needs it.
    return WorkerEntry(name, start, data, size, min(data + _blocks(size), end), is_directory, problem)


def _extended(read: Read, start: int, end: int) -> tuple[_Extended, int, bytes]:
    """Reads the headers before a member's own. Returns them, and the offset and content of that one."""
    extended = _Extended()
    position, total = start, 0
    while True:
        header = read(position, BLOCK)
        size = _checked_size(header, start, end - position)
        kind = header[156:157]
        if kind not in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
            return extended, position, header
        total += size + BLOCK
        if total > MAX_EXTENDED_BYTES:
            raise TarDamageError(start, f"extended headers take over {MAX_EXTENDED_BYTES} bytes, the maximum")
        if size > end - position - BLOCK:
            raise TarDamageError(start, "the archive ends within an extended header: it has been cut")
        content = read(position + BLOCK, size)
        if kind == _LONG_NAME:
            extended.name = _text(content)
        elif kind != _LONG_LINK:
            _apply_pax(extended, _pax_values(content, start), kind == _PAX_GLOBAL, start)
        position += BLOCK + _blocks(size)


def _apply_pax(extended: _Extended, values: dict[str, str], is_global: bool, start: int) -> None:
    if is_global:
        if {"path", "size"} & values.keys():
            raise TarDamageError(start, "a global header sets the name or size of all members, as no tar program does")
        return
    extended.name = values.get("path") or extended.name
    extended.sparse |= any(key.startswith("GNU.sparse.") for key in values)
    if (size := values.get("size")) is not None:
        if not (size.isascii() and size.isdigit() and len(size) < 19):
            raise TarDamageError(start, f"the size in a pax header is {size[:30]!r}, not a number")
        extended.size = int(size)


def _kind_problem(kind: bytes, sparse: bool, is_directory: bool) -> str | None:
    if is_directory:
        return None
    if kind in _WITHOUT_DATA:
        return f"it is {_WITHOUT_DATA[kind]}"
    if kind == _SPARSE or sparse:
        return "it is stored as a sparse file"
    return None if kind in _REGULAR else f"it is of the unknown type {kind!r}"


def _blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _checked_size(header: bytes, start: int, bytes_left: int) -> int:
    """Returns the size field of a header, after a check of its checksum."""
    if len(header) < BLOCK or bytes_left < BLOCK:
        raise TarDamageError(start, "the archive ends within the headers of a member: it has been cut")
    checksum = _number(header[148:156])
    total = sum(header) - sum(header[148:156]) + 8 * ord(" ")
    if checksum != total:
        # Some old programs summed signed bytes.
        signed = total - 256 * sum(byte > 127 for byte in header[:148] + header[156:])
        if checksum != signed:
            raise TarDamageError(start, "the checksum of a header is wrong: it is damaged, or this is not a tar file")
    size = _number(header[124:136])
    if size is None or size > _MAX_SIZE:
        raise TarDamageError(start, "the size field of a header is not a number")
    return size


def _number(field: bytes) -> int | None:
    """Reads octal digits, or a binary number after a first byte of 128 (GNU); None for anything else."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    digits = field.partition(b"\0")[0].strip()
    try:
        return int(digits or b"0", 8) if digits.isdigit() or not digits else None
    except ValueError:
        return None


def _text(field: bytes) -> str:
    return field.partition(b"\0")[0].decode("utf-8", "surrogateescape")


def _header_name(header: bytes) -> str:
    name = _text(header[:100])
    # GNU archives store times where ustar stores the first part of a long name.
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _pax_values(content: bytes, start: int) -> dict[str, str]:
    """Returns the records ``length key=value newline`` of a pax header."""
    values = {}
    position = 0
    while position < len(content) and content[position]:
        digits = content[position : position + 20].partition(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        record = content[position + len(digits) + 1 : position + length]
        key, equals, value = record[:-1].partition(b"=")
        if not equals or record[-1:] != b"\n" or position + length > len(content):
            raise TarDamageError(start, "a pax header is malformed")
        values[key.decode("utf-8", "surrogateescape")] = value.decode("utf-8", "surrogateescape")
        position += length
    return values


def _name_problem(name: str) -> str | None:
    if name.startswith("/"):
        return "its name is absolute"
    if ".." in name.split("/"):
        return "its name has '..' in it"
    if not name or "\0" in name:
        return "its name is empty or has a zero byte in it"
    return None


def _after_sparse_headers(read: Read, header: bytes, position: int, end: int) -> int:
    """Skips the further headers of old GNU sparse files; each states whether another one follows."""
    more = header[482:483]
    while more not in (b"\0", b"") and position < end:
        more = read(position, BLOCK)[504:505]
        position += BLOCK
    return position


def _check_end(read: Read, position: int, end: int) -> None:
    """Checks that only zeros follow the end mark. Tar programs silently ignore other data there."""
    if end - position > _MAX_PADDING or any(read(position, end - position)):
        raise TarDamageError(position, f"an end mark is followed by {end - position} bytes that are not only padding")
