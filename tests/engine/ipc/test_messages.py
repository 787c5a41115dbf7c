"""Messages between the trainer and its workers."""

from __future__ import annotations

import itertools
import struct
from dataclasses import fields
from typing import Any

import pytest

from mploader.engine.ipc import messages

CLASSES = [*messages.ToWorker.__args__, *messages.FromWorker.__args__]
NONE = -(2**63)
"""None on the wire."""


def names(cls: type[Any]) -> list[str]:
    return [field.name for field in fields(cls)]


def optional(cls: type[Any]) -> list[str]:
    return [field.name for field in fields(cls) if field.type == "int | None"]


def zeros(cls: type[Any]) -> messages.Message:
    message: messages.Message = cls(**dict.fromkeys(names(cls), 0))
    return message


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_survives_the_way_and_fits_one_datagram(cls: type[messages.Message]) -> None:
    values = {name: (-1) ** place * (2**62 + place) for place, name in enumerate(names(cls))}
    message = cls(**values)
    data = messages.encode(message)
    assert len(data) <= messages.MAX_BYTES
    assert messages.decode(data) == message


def test_every_field_is_an_integer_or_none() -> None:
    assert {field.type for cls in CLASSES for field in fields(cls)} == {"int", "int | None"}
    assert {cls.__name__: optional(cls) for cls in CLASSES if optional(cls)} == {
        "Condemn": ["epoch"], "Make": ["input", "skip"]
    }  # fmt: skip


@pytest.mark.parametrize("cls", [cls for cls in CLASSES if optional(cls)])
def test_none_survives_the_way_and_stays_apart_from_numbers(cls: Any) -> None:
    required = {name: 5 for name in names(cls) if name not in optional(cls)}
    for values in itertools.product([None, 0, -1, 2**62], repeat=len(optional(cls))):
        message = cls(**required, **dict(zip(optional(cls), values, strict=True)))
        found = messages.decode(messages.encode(message))
        assert found == message
        assert [getattr(found, name) for name in optional(cls)] == list(values)


@pytest.mark.parametrize(
    ("cls", "name"), [(cls, name) for cls in CLASSES for name in names(cls) if name not in optional(cls)]
)
def test_a_required_value_that_is_missing_is_refused(cls: type[messages.Message], name: str) -> None:
    data = bytearray(messages.encode(zeros(cls)))
    struct.pack_into("<q", data, 1 + 8 * names(cls).index(name), NONE)
    with pytest.raises(messages.ProtocolError, match=f"{cls.__name__}: {name} is missing"):
        messages.decode(bytes(data))


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_of_another_length_is_refused(cls: type[messages.Message]) -> None:
    data = messages.encode(zeros(cls))
    for wrong in (data[:-1], data + b"\0", data[:1]):
        with pytest.raises(messages.ProtocolError, match=f"{cls.__name__}: expected {len(data)} bytes, got"):
            messages.decode(wrong)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 40, b"GET / HTTP/1.1\r\n"])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(messages.ProtocolError, match="not a message"):
        messages.decode(data)
