"""Transfer learning for image classifiers: the four classic cases.

The public API is listed in `__init__.pyi`. Names are loaded when they are first used, so importing this package is fast
and `python -m transfer.train --help` answers at once.
"""

import sys
import types

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    """Load an exported name; raise a short error if the settings of Keras are wrong."""
    if name in __all__ and name != "InputError":
        from transfer.common.keras_setup import check_keras

        check_keras()
    return _load(name)


class _Package(types.ModuleType):
    """Keeps a function visible when the command of the same name is imported, such as `evaluate`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and name in __all__):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
