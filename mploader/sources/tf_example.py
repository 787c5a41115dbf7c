"""`tf.train.Example` to and from bytes, without TensorFlow.

The message is described here and built by protobuf at run time, in a separate descriptor pool: TensorFlow
registers the same message in the default pool, and protobuf refuses a second one there.

Reference: tensorflow/core/example/example.proto and feature.proto. (A parser in plain Python took 29 µs instead
of 22, for a photograph and three small features.)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

Value = bytes | list[bytes] | npt.NDArray[np.int64] | npt.NDArray[np.float32]

_Field = descriptor_pb2.FieldDescriptorProto


def _add_message(
    file: descriptor_pb2.FileDescriptorProto | descriptor_pb2.DescriptorProto,
    name: str,
    fields: Iterable[_Field],
) -> descriptor_pb2.DescriptorProto:
    messages = file.message_type if isinstance(file, descriptor_pb2.FileDescriptorProto) else file.nested_type
    message = messages.add(name=name)
    message.field.extend(fields)
    return message


def _message_field(name: str, number: int, type_name: str, **more: Any) -> _Field:
    more.setdefault("label", _Field.LABEL_OPTIONAL)
    return _Field(name=name, number=number, type=_Field.TYPE_MESSAGE, type_name=f".tensorflow.{type_name}", **more)


def _build_example_class() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    kinds = [("Bytes", _Field.TYPE_BYTES), ("Float", _Field.TYPE_FLOAT), ("Int64", _Field.TYPE_INT64)]
    for kind, number_type in kinds:
        _add_message(
            file,
            f"{kind}List",
            [_Field(name="value", number=1, label=_Field.LABEL_REPEATED, type=number_type)],
        )
    feature = _add_message(
        file,
        "Feature",
        [
            _message_field(f"{kind.lower()}_list", number, f"{kind}List", oneof_index=0)
            for number, (kind, _) in enumerate(kinds, 1)
        ],
    )
    feature.oneof_decl.add(name="kind")
    features = _add_message(
        file,
        "Features",
        [_message_field("feature", 1, "Features.FeatureEntry", label=_Field.LABEL_REPEATED)],
    )
    entry = _add_message(
        features,
        "FeatureEntry",
        [
            _Field(name="key", number=1, label=_Field.LABEL_OPTIONAL, type=_Field.TYPE_STRING),
            _message_field("value", 2, "Feature"),
        ],
    )
    entry.options.map_entry = True
    _add_message(file, "Example", [_message_field("features", 1, "Features")])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)  # type: ignore[no-untyped-call,unused-ignore]
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))  # type: ignore[no-untyped-call,unused-ignore]


_Example = _build_example_class()


class MalformedExampleError(ValueError):
    """The bytes are not a `tf.train.Example`."""


def parse_example(data: bytes) -> dict[str, Value]:
    """Parses one serialized `tf.train.Example`.

    Returns:
        Name to value: a bytes feature with one value gives bytes, one with none or several a list of bytes;
        an int64 feature a 1-d int64 array and a float feature a 1-d float32 array, of length 1 for a single
        number. A feature whose kind is not set gives an empty list.

    Raises:
        MalformedExampleError: `data` is not the serialized message.
    """
    try:
        message = _Example.FromString(data)
    except DecodeError as error:
        raise MalformedExampleError(str(error)) from None
    values: dict[str, Value] = {}
    for name, feature in message.features.feature.items():
        kind = feature.WhichOneof("kind")
        if kind == "bytes_list":
            strings = feature.bytes_list.value
            values[name] = strings[0] if len(strings) == 1 else list(strings)
        elif kind == "int64_list":
            values[name] = np.array(feature.int64_list.value, np.int64)
        elif kind == "float_list":
            values[name] = np.array(feature.float_list.value, np.float32)
        else:
            values[name] = []
    return values


def encode_example(features: Mapping[str, Any]) -> bytes:
    """Serializes a `tf.train.Example`; the same features give the same bytes.

    Args:
        features: name to a value or a list or array of values: bytes and str (stored as UTF-8) become a
            bytes feature, integers and booleans an int64 feature, floats a float feature (rounded to
            float32). Arrays are flattened.

    Raises:
        TypeError: a value of another type.
        OverflowError: an integer outside of int64.
    """
    message = _Example()
    for name, value in features.items():
        feature = message.features.feature[name]
        values = [value] if isinstance(value, (bytes, str)) else value
        if isinstance(values, (list, tuple)) and any(isinstance(item, (bytes, str)) for item in values):
            feature.bytes_list.value.extend(item.encode() if isinstance(item, str) else item for item in values)
            continue
        if isinstance(values, (list, tuple)) and not values:
            feature.bytes_list.SetInParent()
            continue
        array = np.ravel(values)
        if array.dtype.kind == "S":
            feature.bytes_list.value.extend(array.tolist())
        elif array.dtype.kind in "iub":
            feature.int64_list.SetInParent()
            feature.int64_list.value.extend(_as_int64(name, array))
        elif array.dtype.kind == "f":
            feature.float_list.SetInParent()
            feature.float_list.value.extend(array.astype(np.float32).tolist())
        else:
            raise TypeError(
                f"feature {name!r} is {type(value).__name__} of {array.dtype}: expected bytes, str, int or float"
            )
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _as_int64(name: str, array: npt.NDArray[Any]) -> list[int]:
    if array.dtype.kind == "u" and array.size and int(array.max()) >= 1 << 63:
        raise OverflowError(f"feature {name!r} holds {array.max()}, which is outside int64")
    return array.astype(np.int64).tolist()  # type: ignore[no-any-return]
