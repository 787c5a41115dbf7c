"""The commands of ``mploader``, one thin module each: the library behind each command does the work.

A command is a module with

* ``add_parser(subparsers)``, which describes its command line and calls ``parser.set_defaults(run=run)``;
* ``run(args) -> int``, which runs the command and returns the exit status. It raises :class:`mploader.LoaderError`,
  prints through :mod:`mploader.cli.console`, and imports heavy modules itself, because every command module is
  imported to show the help.
"""
