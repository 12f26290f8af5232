"""Runs `knock` as `python -m knock`, or as `python -I …/knock/__main__.py`, which ssh's configuration starts.

The second form imports nothing from the current folder, which -I leaves out, nor modules from this folder.
"""

import sys

if not __package__:
    import os

    beside = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100,PTH120 — importing pathlib would take too long here
    sys.path[:] = [path for path in sys.path if path != beside]
    sys.path.insert(0, os.path.dirname(beside))  # noqa: PTH120

from knock.cli import main

sys.exit(main())
