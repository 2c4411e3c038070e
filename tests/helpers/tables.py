"""Stand-ins for columns and tables of pandas, which the package does not need."""

from __future__ import annotations

import numpy as np


class Series:
    """A column: it can be iterated over and converted to an array, and its index is not the position."""

    def __init__(self, values, dtype=None):
        self._values = np.array(values, dtype)

    def __array__(self, dtype=None, copy=None):
        return self._values

    def __iter__(self):
        return iter(self._values)

    def __len__(self):
        return len(self._values)

    def __getitem__(self, key):
        raise KeyError(key)


class DataFrame:
    """A table: iterating over it gives the names of its columns."""

    def __init__(self, columns):
        self.columns = list(columns)

    def __iter__(self):
        return iter(self.columns)

    def __array__(self, dtype=None, copy=None):
        return np.array([self.columns], object)
