"""`python -m knock` is `knock`."""

import sys

from .cli import main

sys.exit(main())
