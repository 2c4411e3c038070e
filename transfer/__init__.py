"""Transfer learning for picture classifiers: the four classic cases, done right.

What there is stands in `__init__.pyi`, one line each. Names are loaded when they are first used, so that
importing this package is cheap and `python -m transfer.train --help` answers at once.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
