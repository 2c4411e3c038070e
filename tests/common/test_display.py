"""Tables line up, HTML is escaped, and a `repr` is one short line."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import numpy as np
import pytest

from transfer.common import display
from transfer.common.errors import InputError


def test_a_table_lines_up_whatever_the_length_of_its_cells():
    table = display.Table(("name", "images"), [("a", "1,000"), ("a longer name", "7")])
    assert table.to_text().splitlines() == [
        "name           images",
        "a               1,000",
        "a longer name       7",
    ]


def test_a_long_table_keeps_its_first_and_last_rows():
    table = display.Table(("n",), [(str(i),) for i in range(100)]).shortened()
    assert len(table.rows) == display.MAX_ROWS
    assert [row[0] for row in table.rows[9:12]] == ["9", "...", "91"] and table.rows[-1] == ("99",)
    exact = display.Table(("n",), [(str(i),) for i in range(display.MAX_ROWS)])
    assert exact.shortened() == exact


def test_html_is_escaped_everywhere():
    text = "<script>alert('&')</script>"
    shown = display.to_html(text, display.Table((text, text), [(text, text)], left=2))
    assert "<script" not in shown and shown.count("&lt;script&gt;") == 5


def test_a_repr_is_one_line_of_at_most_200_letters():
    shown = display.one_line(object(), "a\nb " * 500)
    assert len(shown) == display.MAX_LETTERS and "\n" not in shown and shown.endswith(" ...)")
    assert display.one_line(object(), "short") == "object(short)"


def test_only_options_that_differ_from_their_defaults_are_shown():
    @dataclass
    class Options:
        needed: int
        rate: float = 0.5
        name: str = "x"

    assert display.changed_options(Options(3, name="y")) == "needed=3, name='y'"


def test_a_class_named_like_another_column_keeps_its_probabilities():
    columns = display.class_columns(("label", "cat"), np.array([[0.25, 0.75]]), {"label": ["cat"]})
    assert {name: values.tolist() for name, values in columns.items()} == {
        "label (class)": [0.25],
        "cat": [0.75],
    }


def test_without_pandas_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(
        InputError, match=r'pip install "transfer-cases\[notebooks\]" \(or pip install pandas\)'
    ):
        display.data_frame({"a": [1]})
