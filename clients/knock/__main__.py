"""`python -m knock` is `knock`, and so is `python -I …/knock/__main__.py`, which an ssh configuration starts.

The second form runs nothing of the current folder: -I leaves it out, and so are the modules beside this file.
"""

import sys

if not __package__:
    import os

    beside = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100,PTH120 — pathlib is not worth its import here
    sys.path[:] = [path for path in sys.path if path != beside]
    sys.path.insert(0, os.path.dirname(beside))  # noqa: PTH120

from knock.cli import main

sys.exit(main())
