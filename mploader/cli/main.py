"""The ``mploader`` command: reads the command line, runs a module of ``commands``, and turns errors into text.

Exit status: 0 done; 1 an error of mploader, told in one message; 2 a command line that cannot be meant; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from typing import TextIO

import mploader
from mploader.errors import LoaderError


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status.

    Args:
        arguments: those behind the program's name; None: those of this process.
    """
    try:
        return _run(_parser().parse_args(arguments))
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def _run(args: argparse.Namespace) -> int:
    try:
        importlib.import_module("mploader._util.platform_check")
    except ImportError as error:
        print(f"mploader {args.command}: {error}", file=sys.stderr)
        return 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # a log shows each line when it is printed
    with warnings.catch_warnings(), _signals_unwind():
        warnings.showwarning = _show_warning
        try:
            return int(args.run(args))
        except LoaderError as error:
            # The worker's traceback leads through a transform of ours: whoever runs a command gains nothing by it.
            message = str(error).partition("\n\nTraceback (in the worker")[0]
            print(f"mploader {args.command}: {message}", file=sys.stderr)
            return 1


def _parser() -> argparse.ArgumentParser:
    from mploader.cli.commands import bench, demo, index, show, synth, verify

    parser = argparse.ArgumentParser("mploader", description="A multiprocessing data loader for TensorFlow.")
    parser.add_argument("--version", action="version", version=f"mploader {mploader.__version__}")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    for command in (demo, synth, show, bench, verify, index):
        command.add_parser(subparsers)
    return parser


@contextlib.contextmanager
def _signals_unwind() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP clean up before they end the program, so that no temporary folder is left."""

    def unwind(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unhandled = [one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL]
    for one in unhandled:
        signal.signal(one, unwind)
    try:
        yield
    finally:
        for one in unhandled:
            signal.signal(one, signal.SIG_DFL)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Tells a warning as one line, without the place in our code that gave it."""
    print(f"mploader: warning: {message}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
