"""Pickles functions by value, by cloudpickle, and keeps the names of the files that they come from.

cloudpickle leaves these out from 3.1.3 on, and a traceback without them shows no line of the user's code. Apart from
``payload``, because importing cloudpickle takes 20 ms and 3 MiB, which a worker without such functions can do without.
"""

from __future__ import annotations

import io
import pickle
import types
from collections import ChainMap
from collections.abc import Callable
from typing import Any

import cloudpickle


def dumps(value: Any, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None) -> bytes:
    """Pickles ``value`` with protocol 5; ``buffer_callback`` gets the buffers that are not to be copied."""
    with io.BytesIO() as file:
        _Pickler(file, 5, buffer_callback).dump(value)
        return file.getvalue()


def _reduce_code(code: types.CodeType) -> tuple[Any, ...]:
    constructor, arguments = cloudpickle.Pickler.dispatch_table[types.CodeType](code)
    return _make_code, (constructor, arguments, code.co_filename)


def _make_code(constructor: Callable[..., types.CodeType], arguments: tuple[Any, ...], file: str) -> types.CodeType:
    return constructor(*arguments).replace(co_filename=file)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    dispatch_table = ChainMap({types.CodeType: _reduce_code}, cloudpickle.Pickler.dispatch_table)
