"""The package below the entry points: what a grant is, and the order of calls that keeps it honest.

As Lambda starts a function, garbage is not collected until it has been made ready (`wiring.prepare`): there
is hardly any in what is loaded, and to look for it is a tenth of a cold start. This is the first of ours that
is loaded.
"""

import gc
import os

if "AWS_LAMBDA_INITIALIZATION_TYPE" in os.environ:
    gc.disable()
