"""Transfer learning for image classifiers: the four classic cases, done right.

What there is stands in `__init__.pyi`, one line each. Names are loaded when they are first used, so that
importing this package is cheap and `python -m transfer.train --help` answers at once.
"""

import sys
import types

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(types.ModuleType):
    """Commands have the names of functions, such as `evaluate`: importing a command must not hide the
    function."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
