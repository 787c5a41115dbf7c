"""Imports the functions that a command line names."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from mploader.errors import ArgumentError


def load(text: str) -> Any:
    """Imports the object that ``module:name`` names. The current folder is searched, too.

    Raises:
        ArgumentError: the text is not of that form, or the object cannot be imported.
    """
    module_name, colon, name = text.partition(":")
    if not colon or not module_name or not name:
        raise ArgumentError(f"{text!r}: expected module:name, such as augmentation:crop for crop in augmentation.py")
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise ArgumentError(f"{text!r} cannot be imported: {error}") from error
    return found
