"""Messages between the trainer and its workers."""

from __future__ import annotations

from dataclasses import fields

import pytest

from mploader.engine.ipc import messages

CLASSES = [*messages.ToWorker.__args__, *messages.FromWorker.__args__]


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_survives_the_way_and_fits_one_datagram(cls: type[messages.Message]) -> None:
    values = [(-1) ** place * (2**62 + place) for place in range(len(fields(cls)))]
    message = cls(*values)
    data = messages.encode(message)
    assert len(data) <= messages.MAX_BYTES
    assert messages.decode(data) == message


@pytest.mark.parametrize("cls", CLASSES)
def test_a_message_of_another_length_is_refused(cls: type[messages.Message]) -> None:
    data = messages.encode(cls(*[0] * len(fields(cls))))
    for wrong in (data[:-1], data + b"\0", data[:1]):
        if wrong == data:
            continue
        with pytest.raises(messages.ProtocolError, match=f"a {cls.__name__} has {len(data)} bytes"):
            messages.decode(wrong)


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff" * 40, b"GET / HTTP/1.1\r\n"])
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(messages.ProtocolError, match="not a message"):
        messages.decode(data)
