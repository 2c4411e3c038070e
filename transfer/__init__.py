"""Transfer learning for image classifiers: the four classic cases.

The public API is listed in `__init__.pyi`. Names are loaded when they are first used, so importing this package is fast
and `python -m transfer.train --help` answers at once.
"""

import sys
import types

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


class _Package(types.ModuleType):
    """Keeps a function visible when the command of the same name is imported, such as `evaluate`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
