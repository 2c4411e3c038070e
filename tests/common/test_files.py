"""Files are whole or not there."""

import pytest

from transfer.common.errors import InputError
from transfer.common.files import replacing, write_text


def test_a_file_is_written_whole_and_leaves_nothing_beside(tmp_path):
    write_text(tmp_path / "é.txt", "ä\n図")
    assert [path.name for path in tmp_path.iterdir()] == ["é.txt"]
    assert (tmp_path / "é.txt").read_bytes() == "ä\n図".encode()


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), KeyboardInterrupt(), ValueError("x")]
)
def test_what_goes_wrong_leaves_the_older_file(error, tmp_path):
    write_text(tmp_path / "a", "old")
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), replacing(tmp_path / "a") as partial:
        partial.write_text("ne")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["a"] and (tmp_path / "a").read_text() == "old"


def test_places_that_cannot_be_written_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(InputError, match=r"Cannot write '.*gone.x': no such file"):
        write_text(tmp_path / "gone" / "x", "text")
    with pytest.raises(InputError, match=r"Cannot write '.*folder': is a directory"):
        write_text(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
