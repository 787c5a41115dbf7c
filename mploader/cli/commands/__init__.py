"""The commands of ``mploader``, one module each, as thin as they can be: the work is done by the library.

A command is a module with

* ``add_parser(subparsers)``, which describes its command line and calls ``parser.set_defaults(run=run)``;
* ``run(args) -> int``, which does it and returns the exit status. It raises :class:`mploader.LoaderError` for what
  goes wrong, prints through :mod:`mploader.cli.console`, and imports there what is heavy: every command is
  imported to show the help.
"""
