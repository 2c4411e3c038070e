"""Files are written whole or not at all."""

import pytest

from transfer.common.errors import InputError
from transfer.common.files import (
    check_folder,
    check_writable,
    from_cell,
    replacing,
    to_cell,
    write_text,
    written_whole,
)


def test_writing_leaves_no_temporary_file(tmp_path):
    write_text(tmp_path / "é.txt", "ä\n図")
    assert [path.name for path in tmp_path.iterdir()] == ["é.txt"]
    assert (tmp_path / "é.txt").read_bytes() == "ä\n図".encode()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_an_error_keeps_the_old_file(error, tmp_path):
    write_text(tmp_path / "a", "old")
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), replacing(tmp_path / "a") as partial:
        partial.write_text("ne")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_an_unwritable_path_is_reported(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"Cannot write '.*gone.x': no such file"):
        write_text(tmp_path / "gone" / "x", "text")
    with pytest.raises(InputError, match=r"Cannot write '.*folder': is a directory"):
        write_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_path_is_checked_before_the_work(tmp_path):
    (tmp_path / "file").write_text("old")
    check_writable(str(tmp_path / "new"), str(tmp_path / "file"), None)
    check_folder(tmp_path / "new" / "folder")
    for path, reason in ((tmp_path, "a folder"), (tmp_path / "gone" / "x", "no such file")):
        with pytest.raises(InputError, match=f"Cannot write '{path}': .*{reason}"):
            check_writable(str(path))
    with pytest.raises(InputError, match="not a directory"):
        check_folder(tmp_path / "file" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_written_whole_keeps_the_error_of_the_system(tmp_path):
    with pytest.raises(FileNotFoundError), written_whole(tmp_path / "gone" / "x") as partial:
        partial.write_text("text")


@pytest.mark.parametrize("text", ["=1+1", "'=1", "+a", "@a", "-1", "a", "'a", "", "''"])
def test_a_cell_is_no_formula_and_is_read_back_unchanged(text):
    assert from_cell(to_cell(text)) == text
    assert to_cell(text)[:1] not in ("=", "+", "-", "@")
