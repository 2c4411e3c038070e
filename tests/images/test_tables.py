"""Lists of images as files: accepted forms, and the errors for wrong ones."""

import os
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from transfer.common.errors import InputError
from transfer.images.split_words import SPLIT_WORDS, SPLITS
from transfer.images.tables import Table

ROWS = [("a.png", "cat", "train", "p1"), ("b.png", "dog", "test", "p2")]


@pytest.fixture
def write(tmp_path):
    def written(content: str | bytes, name="list.csv"):
        path = tmp_path / name
        path.write_bytes(
            content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
        )
        return path

    return written


def save(file, /, **columns):
    parquet.write_table(pa.table(columns), file)
    return file


def read(path, **options):
    return [(*row[:4], "+".join(row.groups)) for row in Table(path, **options).rows()]


def refusal(path, **options) -> str:
    with pytest.raises(InputError) as raised:
        read(path, **options)
    return str(raised.value)


@pytest.mark.parametrize("mark", ["", "\ufeff"], ids=["plain", "BOM"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"], ids=["unix", "windows", "old mac"])
@pytest.mark.parametrize("separator", [",", ";", "\t", ", ", "|"])
def test_separators_line_ends_and_byte_order_marks(write, separator, end, mark):
    lines = [separator.join(row) for row in [("path", "label", "split", "group"), *ROWS]]
    assert read(write(mark + end.join(lines) + end)) == [(2, *ROWS[0]), (3, *ROWS[1])]


def test_a_last_line_without_its_end_and_empty_lines(write):
    assert read(write("\npath,label\n\na.png,cat\n\n\nb.png,dog")) == [
        (4, "a.png", "cat", "", ""),
        (7, "b.png", "dog", "", ""),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "path,label\na.png,cat\n".encode("utf-16"),
        "path\tlabel\r\na.png\tcat\r\n".encode("utf-16"),
        "sep=;\r\npath;label\r\na.png;cat\r\n",
        "path,label,\na.png,cat,\n",
        "path,label\na.png,cat,,\n",
        "# made by hand, 2024\n# x\npath,label\na.png,cat\n# the end\n",
        "# path,label\na.png,cat\n",
        ",path,label\n0,a.png,cat\n",
        "Unnamed: 0|path|label\n0|a.png|cat\n",
    ],
)
def test_forms_of_other_programs(write, content):
    assert [row[1:3] for row in read(write(content))] == [("a.png", "cat")]


def test_utf_16_that_ends_within_a_character_is_refused(write):
    message = refusal(write("path,label\na.png,cat\n".encode("utf-16")[:-1]))
    assert message.startswith("Cannot read ") and message.endswith("Check the file, or create it again.")


def test_separators_inside_other_fields_are_text(write):
    path = write('path;label;"x, y";a,b,c,d,e\n"1;a.png";cat;"p;q";z\n')
    assert read(path) == [(2, "1;a.png", "cat", "", "")]


def test_line_numbers_are_right_after_quoted_fields_of_several_lines(write):
    text = 'path,label,note\n"a\n1.png","cat ""big""","x\r\ny\r\nz"\nb.png,dog,\n"c,d.png",dog,z\nwrong,,\n'
    path = write(text)
    rows = []
    with pytest.raises(InputError, match=r"list\.csv, line 8: the label is empty\. Correct"):
        for row in Table(path).rows():
            rows.append((*row[:4], "+".join(row.groups)))
    assert rows == [
        (2, "a\n1.png", 'cat "big"', "", ""),
        (6, "b.png", "dog", "", ""),
        (7, "c,d.png", "dog", "", ""),
    ]


@pytest.mark.parametrize("word", ["path", "file", "filename", "file_name", "filepath", "image"])
@pytest.mark.parametrize("label", ["label", "class", "category"])
def test_names_of_the_path_and_label_columns(write, word, label):
    path = write(f"x,{label.upper()} , {word.title()},y\n1,cat,a.png,2\n")
    assert read(path) == [(2, "a.png", "cat", "", "")]


@pytest.mark.parametrize("split", ["split", "set", "subset"])
@pytest.mark.parametrize("group", ["group", "patient", "subject"])
def test_names_of_the_split_and_group_columns(write, split, group):
    assert read(write(f"{group},{split},path,label\n p1 ,dev,a.png,cat\n")) == [
        (2, "a.png", "cat", "val", "p1")
    ]


@pytest.mark.parametrize(("word", "split"), SPLIT_WORDS.items())
def test_names_of_splits(write, word, split):
    assert read(write(f"path,label,split\na,b, {word.upper()} \n")) == [(2, "a", "b", split, "")]
    assert split in SPLITS


def test_a_missing_column_is_reported_with_similar_names(write):
    message = refusal(write("Lable;Pfad;path\ncat;x;a.png\n"))
    assert message == (
        "list.csv: expected a column 'label' (or class, category, target). Received the columns: 'Lable', 'Pfad', "
        "'path'. Did you mean 'Lable'? Name the column with --label-column."
    )


def test_a_list_without_column_names_is_refused(write):
    for separator in "|,; ":
        assert refusal(write(f"a/1.jpg{separator}7\na/2.jpg{separator}8\n")) == (
            "list.csv: expected column names in the first line. Received an image: 'a/1.jpg'. Add a first line such "
            "as path,label."
        )


def test_an_error_lists_only_the_first_columns(write):
    message = refusal(write("path," + ",".join(f"x{i}" for i in range(5000)) + "\n"))
    assert "'x10' and 4989 more" in message and len(message) < 500


def test_two_label_columns_are_refused_unless_they_name_the_same_classes(write):
    assert refusal(write("path,Label,class\na,1,cat\nb,2,dog\nc,1,dog\n")) == (
        "list.csv: expected one column for the label. Received 'Label' and 'class', which are not the same classes. "
        "Use --label-column Label, or the other one."
    )
    rows = read(write("path,label,class_name\na,1,cat\nb,2,dog\nc,1,cat\n"))
    assert [row[2] for row in rows] == ["cat", "dog", "cat"]  # words are better than numbers


def test_the_first_five_bad_rows_are_reported_and_the_others_counted(write):
    text = "path,label,split\n,cat,train\na.png,,train\nb.png,cat,trian\nc.png,cat\nd.png,cat,train,x\n"
    message = refusal(write(text + "e\0.png,cat,train\nf.png,cat,train\n,cat,\n"))
    assert message == (
        "list.csv, line 2: the path is empty; list.csv, line 3: the label is empty; "
        "list.csv, line 4: unknown split 'trian', perhaps 'train', 'trn', 'training'; "
        "list.csv, line 5: 2 fields for 3 columns; list.csv, line 6: 4 fields for 3 columns; and 2 more. "
        "Correct or remove these rows."
    )


def test_good_rows_are_yielded_before_the_error(write):
    rows = iter(Table(write("path,label\na,b\n,\nc,d\n")).rows())
    assert [next(rows)[:5], next(rows)[:5]] == [(2, "a", "b", "", ()), (4, "c", "d", "", ())]
    with pytest.raises(InputError, match="line 3: the path is empty"):
        next(rows)


def test_problems_that_the_caller_adds_are_raised_with_the_others(write):
    table = Table(write("path,label\na,b\n,x\n"))
    with pytest.raises(InputError, match=r"line 2: not nice; list\.csv, line 3: the path is empty\. Correct"):
        for number, *_ in table.rows():
            table.add_problem(number, "not nice")


def test_an_unknown_split_lists_the_valid_ones(write):
    assert "line 2: unknown split '7', expected one of 'train', 'val', 'test'. Correct" in refusal(
        write("path,label,split\na,b,7\n")
    )


def test_required_columns_must_be_filled(write):
    path = write("path,label,split\na,b,train\nc,d,\n")
    assert len(read(path)) == 2
    assert "list.csv, line 3: the split is empty. Correct" in refusal(
        path, required=("path", "label", "split")
    )
    assert "expected a column 'split' (or set, subset)" in refusal(
        write("path,label\na,b\n"), required=("path", "label", "split")
    )


@pytest.mark.parametrize("column", ["path", "label", "split", "group"])
def test_nul_bytes_are_reported_by_line(write, column):
    row = {"path": "a", "label": "b", "split": "train", "group": "g", column: "x\0"}
    message = refusal(write("path,label,split,group\n" + ",".join(row.values()) + "\n"))
    assert f"list.csv, line 2: the {column} contains a NUL byte. Correct" in message


def test_an_unclosed_quote_is_reported_by_the_line_where_it_opens(write):
    path = write('path,label\na,b\n"c,d\n' + "e,f\n" * 10)
    assert "list.csv, line 3: unexpected end of data (is a quote not closed?). Correct" in refusal(
        path
    ).replace("?.", "?")
    assert "line 3: field larger than field limit" in refusal(
        write('path,label\na,b\n"c,d\n' + "e,f\n" * 50_000)
    )
    assert "line 2: ',' expected after" in refusal(write('path,label\n"a"x,b\n'))


def test_a_quote_within_a_field_is_text(write):
    assert read(write('path,label\n5" disk.png,cat\n')) == [(2, '5" disk.png', "cat", "", "")]


def test_overlong_lines_are_refused(write):
    assert "which has no line breaks. Write the column names" in refusal(write("x" * 100_000))
    assert "list.csv, line 2: field larger than field limit" in refusal(
        write("path,label\n" + "x" * 1_000_000)
    )


@pytest.mark.parametrize("text", ["path,label\n", "path,label", "\ufeffpath,label\r\n\r\n"])
def test_a_list_of_column_names_only_is_refused(write, text):
    assert refusal(write(text)) == (
        "list.csv: expected rows of images. Received only column names. Add rows."
    )


def test_a_list_of_empty_lines_is_refused(write):
    assert "Received only empty lines" in refusal(write("\n\n"))


def test_bytes_that_are_not_utf_8_become_surrogates(write):
    assert read(write(b"path,label\ncaf\xe9.png,cat\n")) == [(2, "caf\udce9.png", "cat", "", "")]


@pytest.mark.parametrize(
    "content",
    [b"path,label,caf\xe9\na,b,c\n", "path,label\na,b\n".encode("utf-16-le"), b"\x89PNG\r\n\x1a\n\0\0"],
    ids=["latin-1", "utf-16 without mark", "png"],
)
def test_column_names_must_be_utf_8(write, content):
    message = refusal(write(content))
    assert message.startswith("list.csv: expected column names in UTF-8. Received other bytes.")
    assert message.endswith("Save the list as UTF-8; in Excel, choose 'CSV UTF-8'.")


@pytest.mark.parametrize(
    ("content", "what", "remedy"),
    [
        (b"", "which is empty", "Create it again."),
        (b"PK\3\4rest", "an archive or an Excel file", "save it as CSV in UTF-8."),
        (b"\xd0\xcf\x11\xe0rest", "an archive or an Excel file", "save it as CSV in UTF-8."),
        (b"\x1f\x8brest", "an archive or an Excel file", "Unpack it,"),
    ],
)
def test_files_of_other_formats_are_refused(write, content, what, remedy):
    path = write(content)
    message = refusal(path)
    assert message.startswith(f"Expected a list of images as CSV or Parquet. Received {str(path)!r}, {what}.")
    assert remedy in message


def test_folders_urls_and_pipes_are_refused(tmp_path):
    assert f"Received {str(tmp_path)!r}, a folder. Name a file in it." in refusal(tmp_path)
    assert "which does not exist. Check the path." in refusal(tmp_path / "none.csv")
    assert "a URL. Download it first." in refusal(Path("https://example.org/list.csv"))
    os.mkfifo(tmp_path / "pipe")
    assert "which is not a regular file" in refusal(tmp_path / "pipe")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_read_permission_is_reported(write):
    path = write("path,label\na,b\n")
    path.chmod(0)
    assert (
        refusal(path) == f"Cannot read {str(path)!r}: Permission denied. Check the file, or create it again."
    )


def test_a_tilde_means_the_home_folder(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write("path,label\na,b\n")
    assert Table(Path("~/list.csv")).path == tmp_path / "list.csv"


def test_parquet_gives_the_same_rows_as_csv(write, tmp_path):
    csv = write("Image,y,CLASS,patient,set\na.png,1,cat,1,Training\nb.png,2,dog,,valid\n")
    columns = {
        "Image": ["a.png", "b.png"],
        "y": [[1], [2]],
        "CLASS": ["cat", "dog"],
        "patient": [1.0, float("nan")],
        "set": ["Training", "valid"],
    }
    for name in ("list.parquet", "list.PQ", "list.csv.anything"):  # recognized by content, too
        got = read(save(tmp_path / name, **columns))
        assert [row[1:] for row in got] == [row[1:] for row in read(csv)]
        assert [row[0] for row in got] == [1, 2]


@pytest.mark.parametrize(
    "kind",
    [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())],
    ids=str,
)
def test_all_text_types_of_parquet_are_read(tmp_path, kind):
    names = pa.array(["a.png", "b.png"]).cast(kind)
    path = save(tmp_path / "x.parquet", path=names, label=["x", "y"])
    assert [row[1] for row in read(path)] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("labels", "texts"),
    [
        (pa.array([3, 10], pa.int8()), ["3", "10"]),
        ([3.0, 10.0], ["3", "10"]),
        ([0.5, 1.0], ["0.5", "1"]),
        ([True, False], ["True", "False"]),
    ],
    ids=["int8", "whole floats", "floats", "bool"],
)
def test_numbers_in_parquet_become_text(tmp_path, labels, texts):
    path = save(tmp_path / "x.parquet", path=["a", "b"], label=labels)
    assert [row[2] for row in read(path)] == texts


def test_null_and_nan_in_parquet_are_reported_by_row(tmp_path):
    path = save(tmp_path / "x.parquet", path=["a", None, "c"], label=[1.0, 2.0, float("nan")])
    message = refusal(path)
    assert "x.parquet, row 2: the path is empty; x.parquet, row 3: the label is empty. Correct" in message


def test_rows_are_numbered_over_batches_and_row_groups(tmp_path):
    count = 70_000
    table = pa.table({"path": [f"{i}" for i in range(count)], "label": ["x"] * (count - 1) + [""]})
    parquet.write_table(table, tmp_path / "x.parquet", row_group_size=3_000)
    assert f"x.parquet, row {count}: the label is empty" in refusal(tmp_path / "x.parquet")


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ([b"\x89PNG", b"x"], "binary"),
        (pa.array([b"ab", b"cd"], pa.binary(2)), "fixed_size_binary"),
        (pa.array([b"a", b"b"]).dictionary_encode(), "dictionary<values=binary"),
        ([["a"], ["b"]], "list"),
        ([{"bytes": b"x", "path": "a"}, {"bytes": b"y", "path": "b"}], "struct"),
    ],
    ids=["binary", "fixed binary", "dictionary", "list", "struct"],
)
def test_nested_and_binary_columns_in_parquet_are_refused(tmp_path, column, kind):
    message = refusal(save(tmp_path / "x.parquet", image=column, label=["x", "y"]))
    assert f"x.parquet: expected text or numbers in the column 'image'. Received: {kind}" in message
    assert message.endswith("Write the images to files and their paths to the column.")


def test_a_missing_column_in_parquet_is_reported(tmp_path):
    message = refusal(save(tmp_path / "x.parquet", path=["a"], lable=["x"]))
    assert message.endswith(
        "Received the columns: 'path', 'lable'. Did you mean 'lable'? Name the column with --label-column."
    )


def test_parquet_without_rows_is_refused(tmp_path):
    path = save(tmp_path / "x.parquet", path=pa.array([], pa.string()), label=pa.array([], pa.string()))
    assert "expected rows of images" in refusal(path)


def test_broken_parquet_is_reported(tmp_path):
    good = save(tmp_path / "x.parquet", path=["a.png"] * 500, label=["x"] * 500).read_bytes()
    broken = {
        **{f"cut at {n}": good[:n] for n in (4, 5, 12, len(good) // 2, len(good) - 9, len(good) - 1)},
        "overwritten": good[:20] + b"\xff" * 60 + good[80:],
        "text": b"path,label\na,b\n",
    }
    for name, content in broken.items():
        path = tmp_path / f"{name}.Parquet"
        path.write_bytes(content)
        message = refusal(path)
        assert message.startswith(f"Cannot read {str(path)!r}: "), message
        assert message.endswith(". Check the file, or create it again.") and len(message) < 600


def test_parquet_with_text_that_is_not_utf_8_is_reported(tmp_path):
    bad = pa.StringArray.from_buffers(1, pa.py_buffer(b"\0\0\0\0\4\0\0\0"), pa.py_buffer(b"caf\xe9"))
    path = save(tmp_path / "x.parquet", path=bad, label=["x"])
    assert refusal(path).startswith(f"Cannot read {str(path)!r}: ")
