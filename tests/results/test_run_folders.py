"""A run's folder appears complete or not at all, and an interrupted run is found again."""

import os
import signal

import pytest

from transfer.common.errors import InputError
from transfer.results.run_folders import (
    check_unused,
    find_interrupted,
    has_checkpoint,
    improved_folder,
    run_folder,
)


def test_a_run_gets_its_name_when_it_is_complete(tmp_path):
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
    with pytest.raises(InputError, match="not empty"):
        check_unused(tmp_path)
    with pytest.raises(InputError, match="not empty"), run_folder(str(tmp_path), "x"):
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
        pytest.raises(InputError, match="in use"),
        run_folder(str(tmp_path / "run"), "x"),
    ):
        pass


def test_runs_without_an_output_are_numbered(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with run_folder(None, "emoji-case"):
            pass
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["emoji-case-1", "emoji-case-2"]


def test_an_output_that_cannot_be_made_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot make"), run_folder(str(tmp_path / "file" / "run"), "x"):
        pass


def interrupted(final, options):
    """Leave the partial folder of a run that was interrupted after a checkpoint."""
    with pytest.raises(KeyboardInterrupt), run_folder(str(final), "x", options=options) as folder:
        (folder / "checkpoints").mkdir()
        (folder / "checkpoints" / "checkpoint-00000000.npz").write_bytes(b"weights")
        raise KeyboardInterrupt
    return folder


def test_an_interrupted_run_with_the_same_options_is_found_and_completed(tmp_path):
    final = tmp_path / "run"
    folder = interrupted(final, {"epochs": 3})
    assert find_interrupted(str(final), {"epochs": 3}) == folder and not final.exists()
    with pytest.raises(InputError, match="epochs was 3, now 4"):
        find_interrupted(str(final), {"epochs": 4})
    with run_folder(str(final), "x", options={"epochs": 3}, resume_from=folder) as again:
        assert again == folder and (again / "checkpoints" / "checkpoint-00000000.npz").exists()
        (again / "a.txt").write_text("a")
    assert [p.name for p in final.iterdir()] == ["a.txt"] and not folder.exists()


def test_without_an_output_the_newest_run_with_the_same_options_is_found_unless_it_is_running(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert find_interrupted(None, {"epochs": 3}) is None
    folder = interrupted("runs/x-1", {"epochs": 3})
    interrupted("runs/x-2", {"epochs": 4})
    assert find_interrupted(None, {"epochs": 3}) == folder
    with run_folder(None, "x", options={"epochs": 3}, resume_from=folder):
        assert find_interrupted(None, {"epochs": 3}) is None
    assert find_interrupted(None, {"epochs": 3}) is None
    with pytest.raises(InputError, match="no interrupted run"):
        find_interrupted(None, {"epochs": 3}, required=True)


def test_damaged_options_of_an_interrupted_run_are_reported(tmp_path):
    folder = interrupted(tmp_path / "run", {"epochs": 3})
    (folder / "options.json").write_text('{"epo')
    with pytest.raises(InputError, match=r"Cannot read .*options.json"):
        find_interrupted(str(tmp_path / "run"), {"epochs": 3})


def test_an_interrupted_run_of_an_earlier_version_lacks_newer_options_and_is_resumed(tmp_path):
    final = tmp_path / "run"
    folder = interrupted(final, {"epochs": 3})
    assert find_interrupted(str(final), {"epochs": 3, "custom_objects": None, "group_column": None}) == folder
    with pytest.raises(InputError, match="group_column"):
        find_interrupted(str(final), {"epochs": 3, "group_column": "patient"})


def test_files_of_the_user_move_with_an_improved_run_also_after_a_kill(tmp_path):
    with improved_folder(str(tmp_path / "run"), "x") as folder:
        folder.replace(lambda place: (place / "model.keras").write_text("1"), then=lambda: None)
        (folder.final / "notes.txt").write_text("mine")
        # A command that is killed between the two renames, or before the old run is removed, leaves this folder.
        (tmp_path / ".run.old").mkdir()
        (tmp_path / ".run.old" / "other.txt").write_text("also mine")
        (tmp_path / ".run.old" / "model.keras").write_text("0")
        folder.replace(lambda place: (place / "model.keras").write_text("2"), then=lambda: None)
    found = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert found == {"model.keras": "2", "notes.txt": "mine", "other.txt": "also mine"}
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_an_improved_run_that_cannot_be_written_leaves_the_one_before_and_the_users_files(
    tmp_path, monkeypatch
):
    with improved_folder(str(tmp_path / "run"), "x") as folder:
        folder.replace(lambda place: (place / "model.keras").write_text("1"), then=lambda: None)
        (folder.final / "notes.txt").write_text("mine")
        rename = os.replace

        def fail(source, target):
            if target == folder.final and ".old" not in str(source):
                raise PermissionError("no")
            rename(source, target)

        monkeypatch.setattr(os, "replace", fail)
        with pytest.raises(PermissionError):
            folder.replace(lambda place: (place / "model.keras").write_text("2"), then=lambda: None)
    found = {path.name: path.read_text() for path in (tmp_path / "run").iterdir()}
    assert found == {"model.keras": "1", "notes.txt": "mine"}


def test_an_interrupt_waits_until_the_run_is_in_place(tmp_path):
    noted = []

    def note():
        os.kill(os.getpid(), signal.SIGINT)
        noted.append((tmp_path / "run" / "model.keras").read_text())

    with pytest.raises(KeyboardInterrupt), improved_folder(str(tmp_path / "run"), "x") as folder:
        folder.replace(lambda place: (place / "model.keras").write_text("1"), then=note)
    assert noted == ["1"] and (tmp_path / "run" / "model.keras").exists()


def test_checkpoints_of_an_automatic_run_are_kept(tmp_path):
    place = tmp_path / "partial"
    (place / "checkpoints" / "fine-tuning").mkdir(parents=True)
    assert not has_checkpoint(place)
    (place / "checkpoints" / "fine-tuning" / "0001.npz").touch()
    assert has_checkpoint(place)
