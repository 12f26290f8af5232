"""The package below the entry points: grants, their rules, and the order of calls that keeps the invariants.

While Lambda starts a function, garbage collection is off until `wiring.prepare` is done: loading modules
leaves hardly any garbage, and looking for it takes a tenth of a cold start. Of Knock's modules this one is
loaded first.
"""

import gc
import os

if "AWS_LAMBDA_INITIALIZATION_TYPE" in os.environ:
    gc.disable()
