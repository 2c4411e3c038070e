"""Lists of paths are read in the forms that the tools of all systems write."""

import io
import os

import pytest

from transfer.images.path_list import read_paths


@pytest.fixture
def names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "d").mkdir()
    for name in ("d/1.png", "d/ü 2.png", "d/back\\slash.png", '"d".png'):
        (tmp_path / name).touch()
    return ["d/1.png", "d/ü 2.png"]


def read(content):
    return list(read_paths(io.BytesIO(content)))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\0", "\n\n", " \t\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends(end, last, names):
    assert read((end.join(names) + end * last).encode()) == names


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_encodings_of_windows(encoding, names):
    assert read("\r\n".join(names).encode(encoding)) == names


@pytest.mark.parametrize("quote", ["'", '"'])
def test_quotes_and_backslashes(quote, names):
    assert read("\n".join(f"{quote}{name}{quote}" for name in names).encode()) == names
    assert read("\n".join(names).replace("/", "\\").encode()) == names
    assert read(b'd/back\\slash.png\n"d".png\n') == ["d/back\\slash.png", '"d".png'], (
        "names of existing files are kept"
    )


def test_names_may_have_any_bytes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with open(b"\xff\xfd.png", "wb"):
        assert list(map(os.fsencode, read(b"\xff\xfd.png\n"))) == [b"\xff\xfd.png"]


def test_missing_files_are_kept_and_blank_lines_are_not():
    assert read(b"\n  \r\n\0no/such.png\r\n") == ["no/such.png"] and read(b"") == []
