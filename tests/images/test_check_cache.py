"""What the check found out about files is kept from run to run, and nothing that happens to it changes an answer."""

import os
import random
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from helpers.images import write_image
from PIL import Image

from transfer.images import check_cache, checking
from transfer.images.check_cache import CheckCache, delete_check_cache
from transfer.images.checking import check, check_images
from transfer.images.datasets import load_data

NAME = "checked-2.sqlite"


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """The database of an empty folder; files are settled at once, since no test waits two seconds."""
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(check_cache, "SETTLED_NS", 0)
    return tmp_path / "kept" / NAME


@pytest.fixture
def read(monkeypatch):
    """The images that were checked rather than remembered; `read()` gives their names and forgets them."""
    seen = []

    def counted(image):
        seen.append(image)
        return check(image)

    monkeypatch.setattr(checking, "check", counted)

    def give():
        names = sorted(os.path.basename(image) for image in seen)
        seen.clear()
        return names

    return give


@pytest.fixture
def paths(tmp_path):
    """Four images."""
    for i in range(4):
        write_image(tmp_path / "photos" / f"{i}.png", (200, 60, 40), seed=i)
    return [str(tmp_path / "photos" / f"{i}.png") for i in range(4)]


NAMES = ["0.png", "1.png", "2.png", "3.png"]


def fresh(paths):
    """What a check without any memory says."""
    return [check(path) for path in paths]


def change(database, statement, *values):
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def test_a_second_load_reads_nothing_and_gives_the_same(color_folder, read):
    first = load_data(color_folder, few_shot=5)
    assert len(read()) == 90
    second = load_data(color_folder, few_shot=5)
    assert read() == []
    assert second.report == first.report and second.report.to_json() == first.report.to_json()
    for name, part in first.splits.items():
        assert list(second.splits[name].images) == list(part.images)
        assert second.splits[name].names == part.names and second.splits[name].digests == part.digests


def test_what_is_remembered_is_the_same_to_the_last_bit(tmp_path, read):
    folder = tmp_path / "photos"
    for i, mode in enumerate(("RGB", "L", "P", "RGBA")):
        write_image(folder / "a.png", (9, 99, 200), seed=i)
        Image.open(folder / "a.png").convert(mode).save(folder / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(folder / "4.jpg", exif=exif)  # one color: it has no hash
    paths = sorted(map(str, folder.iterdir()))
    assert check_images(paths) == fresh(paths)
    assert len(read()) == 6
    again = check_images(paths)
    assert again == fresh(paths) and read() == []
    assert [[type(field) for field in one] for one in again] == [
        [type(field) for field in one] for one in fresh(paths)
    ]


def longer(path):
    path.write_bytes(path.read_bytes() + b"more")


def same_size(path):
    content, times = path.read_bytes(), os.stat(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def another_file(path):
    times = os.stat(path)
    shutil.copy(path.with_name("1.png"), path.with_name("new"))
    os.truncate(path.with_name("new"), times.st_size)
    os.utime(path.with_name("new"), ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(path.with_name("new"), path)


def touched(path):
    os.utime(path)


@pytest.mark.parametrize("how", [longer, same_size, another_file, touched])
def test_what_has_changed_is_checked_anew(paths, read, how):
    check_images(paths)
    read()
    how(Path(paths[0]))
    assert check_images(paths) == fresh(paths)
    assert read() == ["0.png"]
    assert check_images(paths) == fresh(paths)


def test_bad_images_are_checked_every_time(paths, read):
    good = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(good[:200])
    paths.append(str(Path(paths[0]).with_name("missing.png")))
    for expected in ([*NAMES, "missing.png"], ["2.png", "missing.png"], ["2.png", "missing.png"]):
        problems = [bool(one.problem) for one in check_images(paths)]
        assert problems == [False, False, True, False, True] and read() == expected
    Path(paths[2]).write_bytes(good)
    assert check_images(paths)[2] == check(paths[2]) and not check(paths[2]).problem


def test_files_that_may_change_within_a_tick_are_not_remembered(paths, read, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("TRANSFER_CACHE", str(Path(paths[0]).parent.parent / "kept"))
    assert check_cache.SETTLED_NS == 2 * 10**9
    with CheckCache(Path(os.environ["TRANSFER_CACHE"]), rules="any") as memory:
        os.utime(paths[0], (0, 0))  # dated back, but only just now
        os.utime(paths[1], (2**33, 2**33))  # of the future
        stamps = memory.file_states([*paths, os.__file__])
        memory.save(stamps, [[i] for i in range(5)])
        assert memory.load(stamps) == [None] * 4 + [[4]]
        monkeypatch.setattr(check_cache, "SETTLED_NS", 0)
        assert memory.load(memory.file_states(paths)) == [None] * 4


def test_other_rules_check_all_anew(paths, read, monkeypatch):
    check_images(paths)
    read()
    for name, value in (("_RULES", -1), ("MAX_PIXELS", 10**6), ("_SIZE", (32, 32))):
        with monkeypatch.context() as changed:
            changed.setattr(checking, name, value)
            assert check_images(paths) == fresh(paths) and read() == NAMES
    check_images(paths)
    assert read() == []


def test_a_file_is_known_by_where_it_is(paths, read, tmp_path, monkeypatch):
    check_images(paths)
    read()
    monkeypatch.chdir(tmp_path / "photos")
    assert check_images(NAMES) == fresh(paths) and read() == []
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    write_image(Path("0.png"), (1, 2, 200))
    assert check_images(["0.png"]) == fresh(["0.png"]) and read() == ["0.png"]


def test_names_of_any_bytes_are_remembered(tmp_path, paths, read):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n'.png")
    shutil.copy(paths[0], strange)
    assert check_images([strange]) == check_images([strange]) == fresh([strange])
    assert len(read()) == 1


def test_images_that_are_no_files_leave_no_trace(paths, memory):
    content = Path(paths[0]).read_bytes()
    pixels = np.zeros((4, 4), "uint8")
    assert check_images([content, pixels]) == [check(content), check(pixels)]
    assert not memory.exists()
    mixed = [paths[0], content, pixels, paths[0].encode()]
    for _ in range(2):
        assert check_images(mixed) == [check(image) for image in mixed]


# What may happen to the database


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"", b"SQLite format 3\0" + bytes(5000)])
def test_a_broken_database_is_started_anew(paths, read, memory, content):
    memory.parent.mkdir()
    memory.write_bytes(content)
    assert check_images(paths) == fresh(paths) and read() == NAMES
    assert check_images(paths) == fresh(paths) and read() == []


def test_half_a_database_is_started_anew(paths, read, memory):
    check_images(paths)
    os.truncate(memory, 5000)
    read()
    assert check_images(paths) == fresh(paths) and read() == NAMES
    assert check_images(paths) == fresh(paths) and read() == []


def test_a_table_of_another_kind_is_started_anew(paths, read, memory):
    memory.parent.mkdir()
    change(memory, "CREATE TABLE checks (something TEXT)")
    assert check_images(paths) == fresh(paths) and read() == NAMES
    assert check_images(paths) == fresh(paths) and read() == []


def test_a_flipped_bit_loses_its_row_alone(paths, read, memory):
    check_images(paths)
    read()
    ((id, content),) = change(memory, "SELECT id, result FROM checks LIMIT 1")
    flipped = content[:10] + bytes([content[10] ^ 1]) + content[11:]
    change(memory, "UPDATE checks SET result = ? WHERE id = ?", flipped, id)
    assert check_images(paths) == fresh(paths)
    assert len(read()) == 1
    assert check_images(paths) == fresh(paths) and read() == []


@pytest.mark.parametrize("wrong", ["NULL", "7", "'text'", "x''", "x'5b5d'", "CAST(x'c3' AS TEXT)"])
def test_fields_of_other_kinds_are_no_rows(paths, read, memory, wrong):
    check_images(paths)
    read()
    for field in ("result", "checksum"):
        change(memory, f"UPDATE checks SET {field} = {wrong}")
        assert check_images(paths) == fresh(paths) and read() == NAMES
        assert check_images(paths) == fresh(paths) and read() == []
    change(memory, f"UPDATE checks SET used = {wrong}")
    assert check_images(paths) == fresh(paths) and read() == []


def test_no_flipped_bit_gives_a_wrong_row(tmp_path, paths):
    rows = [[i, "x" * 300] for i in range(len(paths))]
    with CheckCache(tmp_path / "sound", rules="any") as memory:
        stamps = memory.file_states(paths)
        memory.save(stamps, rows)
    sound = (tmp_path / "sound" / NAME).read_bytes()
    used = [i for i in range(len(sound)) if sound[i]]  # much of it is empty pages
    for seed in range(400):
        place = random.Random(seed).choice(used)
        broken = tmp_path / "broken" / NAME
        shutil.rmtree(broken.parent, ignore_errors=True)
        broken.parent.mkdir()
        flipped = sound[place] ^ (1 << seed % 8)
        broken.write_bytes(sound[:place] + bytes([flipped]) + sound[place + 1 :])
        for _ in range(4):  # until it is found to be broken
            with CheckCache(broken.parent, rules="any") as memory:
                found = memory.load(stamps)
                assert all(one in (None, row) for one, row in zip(found, rows, strict=True)), (seed, place)
                new = [i for i, row in enumerate(found) if row is None]
                memory.save([stamps[i] for i in new], [rows[i] for i in new])
        assert found == rows, (seed, place)


def test_a_locked_database_is_done_without(paths, read, memory, monkeypatch):
    monkeypatch.setattr(check_cache, "_TIMEOUT", 0.01)
    monkeypatch.setattr(checking, "_CHUNK", 2)
    check_images(paths)
    read()
    with closing(sqlite3.connect(memory)) as other:
        other.execute("BEGIN IMMEDIATE")  # another process is about to write
        touched(Path(paths[0]))
        assert check_images(paths) == fresh(paths) and read() == ["0.png"]
        other.execute("COMMIT")
        other.execute("BEGIN EXCLUSIVE")
        assert check_images(paths) == fresh(paths) and read() == NAMES
        other.execute("COMMIT")
    assert check_images(paths) == fresh(paths) and read() == ["0.png"]
    assert check_images(paths) == fresh(paths) and read() == []


def test_a_folder_that_cannot_be_made_is_done_without(paths, read, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "kept", Path("/dev/null"), Path("~nobody-of-this-name/kept")):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TRANSFER_CACHE", str(place))
        assert check_images(paths) == fresh(paths) and read() == NAMES
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "taken"))
    (tmp_path / "taken" / NAME).mkdir(parents=True)
    assert check_images(paths) == fresh(paths) and read() == NAMES
    assert not caplog.records


def test_python_without_sqlite_is_done_without(paths, read, monkeypatch):
    monkeypatch.setattr(check_cache, "sqlite3", None)
    for _ in range(2):
        assert check_images(paths) == fresh(paths) and read() == NAMES


def test_a_full_disk_is_done_without(paths, read, memory):
    check_images(paths[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (memory.stat().st_size - 4096, limits[1]))
    try:
        read()
        assert check_images(paths) == fresh(paths) and read() == NAMES[2:]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert check_images(paths) == fresh(paths) and read() == NAMES[2:]
    assert check_images(paths) == fresh(paths) and read() == []


NOBODY = """
import os, sys
from pathlib import Path
from transfer.images import check_cache, checking
checking.check_images([])
checking.check(sys.argv[1])  # loads what may not be found later
check_cache.SETTLED_NS = 0
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    (Path(os.environ["TRANSFER_CACHE"]) / "x").touch()
    sys.exit("skip")
except PermissionError:
    pass
real, seen = checking.check, []
checking.check = lambda image: seen.append(image) or real(image)
checking.check_images(sys.argv[1:])
print(len(seen))
"""


def test_a_folder_that_can_only_be_read_is_read():
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        folder = Path(made)
        for i in range(3):
            write_image(folder / f"{i}.png", (1, 200, 2), seed=i)
        paths = [str(folder / f"{i}.png") for i in range(3)]
        environment = {**os.environ, "TRANSFER_CACHE": made}
        with pytest.MonkeyPatch.context() as patched:
            patched.setenv("TRANSFER_CACHE", made)
            check_images(paths[:2])
        folder.chmod(0o555)
        done = subprocess.run(
            [sys.executable, "-c", NOBODY, *paths], env=environment, capture_output=True, text=True
        )
        folder.chmod(0o755)
        if "skip" in done.stderr:
            pytest.skip("permissions stop nobody here")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


SOME = """
import sys
from pathlib import Path
from transfer.images import check_cache
check_cache.SETTLED_NS = 0
check_cache._TIMEOUT = 30  # on a machine that does much else
folder, *paths = sys.argv[1:]
for start in range(0, len(paths), 5):
    some = paths[start : start + 5]
    with check_cache.CheckCache(Path(folder), rules="any") as memory:
        stamps = memory.file_states(some)
        rows = [["row of", path] for path in some]
        assert all(one in (None, row) for one, row in zip(memory.load(stamps), rows))
        memory.save(stamps, rows)
        assert memory.load(stamps) == rows
"""


def test_several_processes_share_it(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(200)]
    for path in paths:
        Path(path).write_text(path)
    orders = [paths, paths[::-1], paths[100:] + paths[:100]]
    command = [sys.executable, "-c", SOME, str(tmp_path / "kept")]
    processes = [subprocess.Popen([*command, *order]) for order in orders]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with CheckCache(tmp_path / "kept", rules="any") as memory:
        assert memory.load(memory.file_states(paths)) == [["row of", path] for path in paths]


# How much is kept


def test_what_was_not_used_longest_goes_first(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(check_cache, "MAX_BYTES", 100_000)
    folder = tmp_path / "many"
    folder.mkdir()
    some = []
    for day in range(8):
        some.append([str(folder / f"{day}-{i}") for i in range(20)])
        for path in some[-1]:
            Path(path).write_text(path)
        monkeypatch.setattr("time.time", lambda day=day: 86_400.0 * day)
        with CheckCache(tmp_path / "kept", rules="any") as memory:
            stamps = memory.file_states([*some[0], *some[-1]])
            memory.load(stamps)  # the first are used every day
            memory.save(stamps, [["x" * 1000]] * 40)
    with CheckCache(tmp_path / "kept", rules="any") as memory:
        left = [sum(row is not None for row in memory.load(memory.file_states(each))) for each in some]
    assert left[0] == left[-1] == 20 and left[1] == 0 and left == [20, *sorted(left[1:])]
    assert (tmp_path / "kept" / NAME).stat().st_size < 200_000


def test_it_is_noted_that_a_row_was_used(paths, memory):
    check_images(paths)
    change(memory, "UPDATE checks SET used = 0")
    check_images(paths)
    assert all(used > 0 for (used,) in change(memory, "SELECT used FROM checks"))


def test_it_is_cleared_by_command(paths, read, memory, capsys):
    from transfer.features import main

    check_images(paths)
    read()
    assert main(["--clear"]) == 0
    assert "Removed 0.0 MB" in capsys.readouterr().out and not memory.exists()
    assert delete_check_cache(memory.parent) == 0
    check_images(paths)
    assert read() == NAMES and memory.exists()
    assert delete_check_cache(memory.parent) > 4000 and not list(memory.parent.iterdir())
