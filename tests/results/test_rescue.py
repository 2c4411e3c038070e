"""A run that cannot be written to its disk is kept elsewhere, and one sentence says where."""

import errno
import subprocess
import sys

import pytest

from transfer.common.errors import InputError
from transfer.common.files import replacing
from transfer.results.rescue import write_somewhere


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The partial folder of a run, and temporary and cache folders of its own."""
    for name in ("temporary", "cache", ".run.partial"):
        (tmp_path / name).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    return tmp_path / ".run.partial"


def writer(*refused, number=errno.ENOSPC):
    """Return a function that writes a file, except into refused folders."""

    def write(place):
        with replacing(place / "model.keras") as partial:
            partial.write_bytes(b"half")
            if any(one in place.parents or one == place for one in refused):
                raise OSError(
                    number, {errno.ENOSPC: "No space left on device"}.get(number, "Disk quota exceeded")
                )

    return write


def checkpoint(folder):
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "state-00000000.npz").write_bytes(b"weights")


def files(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_run_that_can_be_written_is_in_its_folder(folder):
    write_somewhere(folder, writer())
    assert files(folder.parent) == ["model.keras"] and (folder / "model.keras").is_file()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_on_a_full_disk_the_run_is_in_the_temporary_folder(folder, number):
    with pytest.raises(InputError) as raised:
        write_somewhere(folder, writer(folder, number=number))
    (kept,) = (folder.parent / "temporary").iterdir()
    text = str(raised.value)
    assert str(kept) in text and str(folder.parent / "run") in text and "checkpoint" not in text
    assert ("quota" in text) == (number == errno.EDQUOT)
    assert files(kept) == ["model.keras"] and not files(folder)


def test_with_a_checkpoint_the_same_command_resumes(folder):
    checkpoint(folder)
    with pytest.raises(InputError, match="resumes from the last checkpoint"):
        write_somewhere(folder, writer(folder))


def test_if_the_temporary_folder_is_full_too_the_cache_keeps_the_run(folder):
    with pytest.raises(InputError, match=str(folder.parent / "cache")):
        write_somewhere(folder, writer(folder, folder.parent / "temporary"))
    assert not files(folder.parent / "temporary")


def test_if_all_disks_are_full_the_message_says_what_to_do(folder):
    with pytest.raises(InputError, match=r"the trained model is lost\. Free"):
        write_somewhere(folder, writer(folder.parent))
    checkpoint(folder)
    with pytest.raises(
        InputError, match=r"Free space on this disk.* resumes from the last checkpoint"
    ) as raised:
        write_somewhere(folder, writer(folder.parent))
    assert "lost" not in str(raised.value)
    assert files(folder.parent) == ["state-00000000.npz"]


def test_a_training_beyond_the_limit_of_file_sizes_ends_with_one_message(tmp_path):
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2**19, 2**19))\n"
        "from transfer.train import main; sys.exit(main(sys.argv[1:]))"
    )
    arguments = ["--data", "emoji", "--model", "DemoCNN", "--image-size", "48", "--case", "small-similar"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments, "--output", "run"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if "Cannot write" in line]
    assert "file too large" in line and "ulimit" in line and "No other folder has enough space" in line
    assert not files(tmp_path)
