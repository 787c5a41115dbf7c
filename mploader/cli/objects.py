"""Reads functions of the user's from the command line."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mploader.errors import ArgumentError


def load(text: str) -> Any:
    """Imports what ``module:name`` names; the current folder is searched too.

    Raises:
        ArgumentError: the text is not of that form, or nothing is found there.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise ArgumentError(f"{text!r}: wants module:name, as in augmentation:crop for crop in augmentation.py")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{text!r} cannot be imported: {error}") from error
    return found
