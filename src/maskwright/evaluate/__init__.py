"""What judges: confusion, matching, metrics, protocols.

The Python surface has a function of this package's name, `maskwright.evaluate(predictions, truth, ...)`. Importing any
module of the package puts the package in the function's place, so the package can be called and does what it does.
"""

import importlib
import sys
import types
from typing import Any


class _Evaluate(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        return importlib.import_module("maskwright.api").evaluate(*args, **options)


sys.modules[__name__].__class__ = _Evaluate
