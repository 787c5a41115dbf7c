"""The command line of a new interpreter that finds exactly the modules that this one finds.

It does not use PYTHONPATH, which programs that it starts would inherit, nor ``-m``, which puts the current folder
first: a ``colorsys.py`` of the user there would replace Python's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing import spawn

from mploader.errors import ResourceError


def command(program: str, *arguments: int) -> list[str]:
    """Returns the command that starts an interpreter with the flags and the ``sys.path`` of this one.

    Args:
        program: Python statements; ``sys`` is imported.
        arguments: ``sys.argv[1:]`` of the program.

    Raises:
        ResourceError: the executable is unknown, since this is an embedded interpreter.
    """
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    paths = [path or os.getcwd() for path in sys.path if isinstance(path, str)]  # "" stands for the current folder
    return [_executable(), *flags, "-c", f"import sys; sys.path[:] = {paths!r}; {program}", *map(str, arguments)]


def _executable() -> str:
    found = spawn.get_executable()  # honours multiprocessing.set_executable, for embedded interpreters
    if not found:
        raise ResourceError("cannot find the Python interpreter to start processes with: sys.executable is empty")
    return os.fsdecode(found)
