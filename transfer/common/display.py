"""How results are shown: in one line, as tables in text and HTML, and as pandas data frames."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any, NamedTuple

from transfer.common.errors import InputError, install_hint
from transfer.common.text import shorten

if TYPE_CHECKING:
    import numpy as np
    import pandas

MAX_LETTERS = 200
"""Maximum length of a `repr`."""

MAX_ROWS = 20
"""Maximum number of rows of a table in a notebook."""


class Table(NamedTuple):
    """A table of text. The first columns are aligned to the left, the columns of numbers to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    # Number of columns that are aligned to the left.
    left: int = 1

    def shortened(self, first: int = MAX_ROWS // 2, last: int = MAX_ROWS - MAX_ROWS // 2 - 1) -> Table:
        """Return the table with its first and last rows, and "..." between them if there are more."""
        if len(self.rows) <= first + last + 1:
            return self
        gap = ("...", *("" for _ in self.header[1:]))
        return self._replace(rows=[*self.rows[:first], gap, *self.rows[-last:]])

    def to_text(self) -> str:
        """Return the table as lines of text."""
        lines = [self.header, *self.rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        sides = "<" * self.left + ">" * (len(widths) - self.left)
        columns = [*zip(sides, widths, strict=True)]
        return "\n".join(
            "  ".join(
                f"{cell:{side}{width}}" for cell, (side, width) in zip(line, columns, strict=True)
            ).rstrip()
            for line in lines
        )

    def to_html(self) -> str:
        """Return the table as HTML."""
        sides = ["left"] * self.left + ["right"] * (len(self.header) - self.left)
        body = "".join(_row("td", row, sides) for row in self.rows)
        return f"<table><thead>{_row('th', self.header, sides)}</thead><tbody>{body}</tbody></table>"


def _row(tag: str, cells: Sequence[str], sides: Sequence[str]) -> str:
    filled = zip(cells, sides, strict=True)
    cells = [f'<{tag} style="text-align: {side}">{html.escape(cell)}</{tag}>' for cell, side in filled]
    return f"<tr>{''.join(cells)}</tr>"


def to_html(*parts: str | Table) -> str:
    """Return sentences and tables as HTML for a notebook."""
    return "\n".join(
        one.to_html() if isinstance(one, Table) else f"<p>{html.escape(one)}</p>" for one in parts if one
    )


def one_line(value: object, text: str) -> str:
    """Return the `repr` of an object: its class, and a text, cut to one line of 200 letters in total."""
    kind, text = type(value).__name__, " ".join(text.split())
    space = MAX_LETTERS - len(kind) - 2
    return f"{kind}({text if len(text) <= space else text[: space - 4] + ' ...'})"


def quoted(name: str) -> str:
    """Return a name in quotes, in one line, without the middle of a long one."""
    return repr(shorten(name, 48))


def changed_options(options: Any) -> str:
    """Return the fields of a dataclass that differ from their defaults, as arguments."""
    return ", ".join(
        f"{one.name}={value!r}"
        for one in fields(options)
        if (value := getattr(options, one.name)) != one.default or one.default is MISSING
    )


def data_frame(columns: Mapping[str, Any]) -> pandas.DataFrame:
    """Return columns as a data frame; raise an error if pandas is not installed."""
    try:
        import pandas
    except ImportError:
        raise InputError(
            "Expected pandas, which to_dataframe() needs. It is not installed. Run: "
            f"{install_hint('notebooks')} (or pip install pandas)."
        ) from None
    return pandas.DataFrame(columns)


def class_columns(
    class_names: Sequence[str], probabilities: np.ndarray, taken: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """Return a column of probabilities for each class; "(class)" is appended to a name that is taken."""
    names = [f"{name} (class)" if name in taken else name for name in class_names]
    return dict(zip(names, probabilities.T, strict=True))
