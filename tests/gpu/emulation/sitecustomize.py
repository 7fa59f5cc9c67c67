"""With this folder on PYTHONPATH every process has the emulated device, or ends: Python itself would go on without."""

import os
import traceback

try:
    import emulated_cuda  # noqa: F401
except BaseException:
    traceback.print_exc()
    os._exit(1)
