"""``python -m mploader``: the ``mploader`` command."""

from __future__ import annotations

import sys

from mploader.cli.main import main

sys.exit(main())
