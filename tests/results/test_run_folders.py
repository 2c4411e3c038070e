"""The run's folder appears whole or not at all."""

import pytest

from transfer.common.errors import InputError
from transfer.results.run_folders import refuse_used, run_folder, unfinished


def test_a_run_appears_under_its_name_only_when_it_is_complete(tmp_path):
    final = tmp_path / "deep" / "run"
    with run_folder(str(final), "x") as folder:
        (folder / "a.txt").write_text("a")
        assert not final.exists()
    assert [p.name for p in final.iterdir()] == ["a.txt"]
    assert [p.name for p in final.parent.iterdir()] == ["run"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_run_that_fails_leaves_nothing(tmp_path, error):
    with pytest.raises(error), run_folder(str(tmp_path / "new" / "run"), "x") as folder:
        (folder / "a.txt").write_text("a")
        raise error
    assert not list(tmp_path.iterdir())


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="in use"):
        refuse_used(tmp_path)
    with pytest.raises(InputError, match="in use"), run_folder(str(tmp_path), "x"):
        pass
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_an_empty_folder_may_be_used(tmp_path):
    (tmp_path / "run").mkdir()
    with run_folder(str(tmp_path / "run"), "x") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "run" / "a.txt").exists()


def test_two_runs_cannot_write_to_one_folder_at_once(tmp_path):
    with (
        run_folder(str(tmp_path / "run"), "x"),
        pytest.raises(InputError, match="Another run"),
        run_folder(str(tmp_path / "run"), "x"),
    ):
        pass


def test_runs_without_a_name_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with run_folder(None, "emoji-case"):
            pass
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["emoji-case-1", "emoji-case-2"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot make"), run_folder(str(tmp_path / "file" / "run"), "x"):
        pass


def interrupted(final, asked):
    """Leave what a killed run leaves."""
    with pytest.raises(KeyboardInterrupt), run_folder(str(final), "x", asked=asked) as folder:
        (folder / "state").mkdir()
        (folder / "state" / "state-00000000.npz").write_bytes(b"weights")
        raise KeyboardInterrupt
    return folder


def test_an_interrupted_run_is_found_again_by_its_options_and_then_completed(tmp_path):
    final = tmp_path / "run"
    folder = interrupted(final, {"epochs": 3})
    assert unfinished(str(final), {"epochs": 3}) == folder and not final.exists()
    with pytest.raises(InputError, match="epochs was 3, now 4"):
        unfinished(str(final), {"epochs": 4})
    with run_folder(str(final), "x", asked={"epochs": 3}, going_on=folder) as again:
        assert again == folder and (again / "state" / "state-00000000.npz").exists()
        (again / "a.txt").write_text("a")
    assert [p.name for p in final.iterdir()] == ["a.txt"] and not folder.exists()


def test_without_a_name_the_newest_with_the_same_options_is_found_unless_it_is_running(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert unfinished(None, {"epochs": 3}) is None
    folder = interrupted("runs/x-1", {"epochs": 3})
    interrupted("runs/x-2", {"epochs": 4})
    assert unfinished(None, {"epochs": 3}) == folder
    with run_folder(None, "x", asked={"epochs": 3}, going_on=folder):
        assert unfinished(None, {"epochs": 3}) is None
    assert unfinished(None, {"epochs": 3}) is None
    with pytest.raises(InputError, match="no interrupted run"):
        unfinished(None, {"epochs": 3}, needed=True)


def test_damaged_options_of_an_interrupted_run_are_named(tmp_path):
    folder = interrupted(tmp_path / "run", {"epochs": 3})
    (folder / "asked.json").write_text('{"epo')
    with pytest.raises(InputError, match=r"Cannot read .*asked.json"):
        unfinished(str(tmp_path / "run"), {"epochs": 3})
