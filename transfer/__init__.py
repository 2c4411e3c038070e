"""Transfer learning for image classifiers: the four classic cases.

    import transfer

    data = transfer.load_data("path/to/photos")  # one sub-folder per class
    base = transfer.load_backbone("EfficientNetLite0")
    model = transfer.small_similar(base, data.num_classes)
    log = transfer.fit(model, data)
    print(transfer.evaluate(model, data).to_text())

`help(transfer.fit)` shows the arguments of a function, and `transfer --help` lists the commands.
"""

# `__init__.pyi` lists the public API. Names are loaded when they are first used, so that importing the package is fast
# and `python -m transfer.train --help` answers at once.

import sys
import types

import lazy_loader

__version__ = "0.3.0"  # setup.cfg reads this line

_load, _, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]


def __getattr__(name: str) -> object:
    """Load an exported name; raise a short error if the settings of Keras are wrong."""
    if name not in __all__:
        raise _missing(name)
    if name != "InputError":
        from transfer.common.keras_setup import check_keras

        check_keras()
    return _load(name)


def _missing(name: str) -> AttributeError:
    """Return the error for a name that does not exist, with the most similar name."""
    from transfer.common.errors import nearest

    similar = [] if name.startswith("_") else nearest(name, __all__, most=1)
    advice = f". Did you mean {similar[0]!r}?" if similar else ""
    # Without obj=None, Python would add a second suggestion.
    return AttributeError(f"module 'transfer' has no attribute {name!r}{advice}", name=name, obj=None)


class _Package(types.ModuleType):
    """Keeps a function visible when the command of the same name is imported, and lists the public API for `help`."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (isinstance(value, types.ModuleType) and name in __all__):
            super().__setattr__(name, value)

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        """Return the text of `help(transfer)`."""
        from transfer.common.public_names import listing

        return f"{vars(self)['__doc__'] or ''}\n{listing()}"


sys.modules[__name__].__class__ = _Package
