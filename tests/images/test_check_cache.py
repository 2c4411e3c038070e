"""The cache of checks: results never differ from a check without it, whatever happens to the database."""

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
def database(tmp_path, monkeypatch):
    """The path of a database in an empty folder; files need not be two seconds old."""
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(check_cache, "SETTLED_NS", 0)
    return tmp_path / "cache" / NAME


@pytest.fixture
def read(monkeypatch):
    """A function that returns the names of the images that were read since its last call."""
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


def uncached(paths):
    """The results of a check without the cache."""
    return [check(path) for path in paths]


def change(database, statement, *values):
    with closing(sqlite3.connect(database)) as connection, connection:
        return connection.execute(statement, values).fetchall()


def test_a_second_load_reads_no_image_and_returns_the_same(color_folder, read):
    first = load_data(color_folder, few_shot=5)
    assert len(read()) == 90
    second = load_data(color_folder, few_shot=5)
    assert read() == []
    assert second.report == first.report and second.report.to_json() == first.report.to_json()
    for name, part in first.splits.items():
        assert list(second.splits[name].images) == list(part.images)
        assert second.splits[name].names == part.names and second.splits[name].digests == part.digests


def test_cached_results_equal_new_ones(tmp_path, read):
    folder = tmp_path / "photos"
    for i, mode in enumerate(("RGB", "L", "P", "RGBA")):
        write_image(folder / "a.png", (9, 99, 200), seed=i)
        Image.open(folder / "a.png").convert(mode).save(folder / f"{i}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 20), "red").save(folder / "4.jpg", exif=exif)  # a single color: the hash is empty
    paths = sorted(map(str, folder.iterdir()))
    assert check_images(paths) == uncached(paths)
    assert len(read()) == 6
    again = check_images(paths)
    assert again == uncached(paths) and read() == []
    assert [[type(field) for field in one] for one in again] == [
        [type(field) for field in one] for one in uncached(paths)
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
def test_changed_files_are_checked_again(paths, read, how):
    check_images(paths)
    read()
    how(Path(paths[0]))
    assert check_images(paths) == uncached(paths)
    assert read() == ["0.png"]
    assert check_images(paths) == uncached(paths)


def test_bad_images_are_checked_every_time(paths, read):
    good = Path(paths[2]).read_bytes()
    Path(paths[2]).write_bytes(good[:200])
    paths.append(str(Path(paths[0]).with_name("missing.png")))
    for expected in ([*NAMES, "missing.png"], ["2.png", "missing.png"], ["2.png", "missing.png"]):
        problems = [bool(one.problem) for one in check_images(paths)]
        assert problems == [False, False, True, False, True] and read() == expected
    Path(paths[2]).write_bytes(good)
    assert check_images(paths)[2] == check(paths[2]) and not check(paths[2]).problem


def test_files_that_changed_just_now_are_not_cached(paths, read, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("TRANSFER_CACHE", str(Path(paths[0]).parent.parent / "cache"))
    assert check_cache.SETTLED_NS == 2 * 10**9
    with CheckCache(Path(os.environ["TRANSFER_CACHE"]), rules="any") as cache:
        os.utime(paths[0], (0, 0))  # set back just now
        os.utime(paths[1], (2**33, 2**33))  # in the future
        states = cache.file_states([*paths, os.__file__])
        cache.save(states, [[i] for i in range(5)])
        assert cache.load(states) == [None] * 4 + [[4]]
        monkeypatch.setattr(check_cache, "SETTLED_NS", 0)
        assert cache.load(cache.file_states(paths)) == [None] * 4


def test_other_rules_check_all_files_again(paths, read, monkeypatch):
    check_images(paths)
    read()
    for name, value in (("_RULES", -1), ("MAX_PIXELS", 10**6), ("_SIZE", (32, 32))):
        with monkeypatch.context() as changed:
            changed.setattr(checking, name, value)
            assert check_images(paths) == uncached(paths) and read() == NAMES
    check_images(paths)
    assert read() == []


def test_files_are_identified_by_their_absolute_paths(paths, read, tmp_path, monkeypatch):
    check_images(paths)
    read()
    monkeypatch.chdir(tmp_path / "photos")
    assert check_images(NAMES) == uncached(paths) and read() == []
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    write_image(Path("0.png"), (1, 2, 200))
    assert check_images(["0.png"]) == uncached(["0.png"]) and read() == ["0.png"]


def test_names_of_any_bytes_are_cached(tmp_path, paths, read):
    strange = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n'.png")
    shutil.copy(paths[0], strange)
    assert check_images([strange]) == check_images([strange]) == uncached([strange])
    assert len(read()) == 1


def test_images_in_memory_are_not_cached(paths, database):
    content = Path(paths[0]).read_bytes()
    pixels = np.zeros((4, 4), "uint8")
    assert check_images([content, pixels]) == [check(content), check(pixels)]
    assert not database.exists()
    mixed = [paths[0], content, pixels, paths[0].encode()]
    for _ in range(2):
        assert check_images(mixed) == [check(image) for image in mixed]


# Damaged, locked and missing databases


@pytest.mark.parametrize("content", [b"no database at all" * 1000, b"", b"SQLite format 3\0" + bytes(5000)])
def test_a_damaged_database_is_replaced(paths, read, database, content):
    database.parent.mkdir()
    database.write_bytes(content)
    assert check_images(paths) == uncached(paths) and read() == NAMES
    assert check_images(paths) == uncached(paths) and read() == []


def test_a_truncated_database_is_replaced(paths, read, database):
    check_images(paths)
    os.truncate(database, 5000)
    read()
    assert check_images(paths) == uncached(paths) and read() == NAMES
    assert check_images(paths) == uncached(paths) and read() == []


def test_a_table_with_other_columns_is_replaced(paths, read, database):
    database.parent.mkdir()
    change(database, "CREATE TABLE checks (something TEXT)")
    assert check_images(paths) == uncached(paths) and read() == NAMES
    assert check_images(paths) == uncached(paths) and read() == []


def test_a_flipped_bit_loses_only_its_row(paths, read, database):
    check_images(paths)
    read()
    ((id, content),) = change(database, "SELECT id, result FROM checks LIMIT 1")
    flipped = content[:10] + bytes([content[10] ^ 1]) + content[11:]
    change(database, "UPDATE checks SET result = ? WHERE id = ?", flipped, id)
    assert check_images(paths) == uncached(paths)
    assert len(read()) == 1
    assert check_images(paths) == uncached(paths) and read() == []


@pytest.mark.parametrize("wrong", ["NULL", "7", "'text'", "x''", "x'5b5d'", "CAST(x'c3' AS TEXT)"])
def test_values_of_other_types_are_ignored(paths, read, database, wrong):
    check_images(paths)
    read()
    for field in ("result", "checksum"):
        change(database, f"UPDATE checks SET {field} = {wrong}")
        assert check_images(paths) == uncached(paths) and read() == NAMES
        assert check_images(paths) == uncached(paths) and read() == []
    change(database, f"UPDATE checks SET used = {wrong}")
    assert check_images(paths) == uncached(paths) and read() == []


def test_no_flipped_bit_returns_a_wrong_result(tmp_path, paths):
    rows = [[i, "x" * 300] for i in range(len(paths))]
    with CheckCache(tmp_path / "sound", rules="any") as cache:
        states = cache.file_states(paths)
        cache.save(states, rows)
    sound = (tmp_path / "sound" / NAME).read_bytes()
    used = [i for i in range(len(sound)) if sound[i]]  # many pages are empty
    for seed in range(400):
        place = random.Random(seed).choice(used)
        broken = tmp_path / "broken" / NAME
        shutil.rmtree(broken.parent, ignore_errors=True)
        broken.parent.mkdir()
        flipped = sound[place] ^ (1 << seed % 8)
        broken.write_bytes(sound[:place] + bytes([flipped]) + sound[place + 1 :])
        for _ in range(4):  # until the damage is detected
            with CheckCache(broken.parent, rules="any") as cache:
                found = cache.load(states)
                assert all(one in (None, row) for one, row in zip(found, rows, strict=True)), (seed, place)
                new = [i for i, row in enumerate(found) if row is None]
                cache.save([states[i] for i in new], [rows[i] for i in new])
        assert found == rows, (seed, place)


def test_a_locked_database_is_not_used(paths, read, database, monkeypatch):
    monkeypatch.setattr(check_cache, "_TIMEOUT", 0.01)
    monkeypatch.setattr(checking, "_CHUNK", 2)
    check_images(paths)
    read()
    with closing(sqlite3.connect(database)) as other:
        other.execute("BEGIN IMMEDIATE")  # another process is about to write
        touched(Path(paths[0]))
        assert check_images(paths) == uncached(paths) and read() == ["0.png"]
        other.execute("COMMIT")
        other.execute("BEGIN EXCLUSIVE")
        assert check_images(paths) == uncached(paths) and read() == NAMES
        other.execute("COMMIT")
    assert check_images(paths) == uncached(paths) and read() == ["0.png"]
    assert check_images(paths) == uncached(paths) and read() == []


def test_a_folder_that_cannot_be_created_is_not_used(paths, read, tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "cache", Path("/dev/null"), Path("~nobody-of-this-name/kept")):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("TRANSFER_CACHE", str(place))
        assert check_images(paths) == uncached(paths) and read() == NAMES
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "taken"))
    (tmp_path / "taken" / NAME).mkdir(parents=True)
    assert check_images(paths) == uncached(paths) and read() == NAMES
    assert not caplog.records


def test_python_without_sqlite_works_without_the_cache(paths, read, monkeypatch):
    monkeypatch.setattr(check_cache, "sqlite3", None)
    for _ in range(2):
        assert check_images(paths) == uncached(paths) and read() == NAMES


def test_a_full_disk_stops_only_the_cache(paths, read, database):
    check_images(paths[:2])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (database.stat().st_size - 4096, limits[1]))
    try:
        read()
        assert check_images(paths) == uncached(paths) and read() == NAMES[2:]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert check_images(paths) == uncached(paths) and read() == NAMES[2:]
    assert check_images(paths) == uncached(paths) and read() == []


NOBODY = """
import os, sys
from pathlib import Path
from transfer.images import check_cache, checking
checking.check_images([])
checking.check(sys.argv[1])  # imports modules that the other user cannot read
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


def test_a_read_only_folder_is_read():
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
            pytest.skip("permissions are not enforced here")
        assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


SOME = """
import sys
from pathlib import Path
from transfer.images import check_cache
check_cache.SETTLED_NS = 0
check_cache._TIMEOUT = 30  # for a busy machine
folder, *paths = sys.argv[1:]
for start in range(0, len(paths), 5):
    some = paths[start : start + 5]
    with check_cache.CheckCache(Path(folder), rules="any") as cache:
        states = cache.file_states(some)
        rows = [["row of", path] for path in some]
        assert all(one in (None, row) for one, row in zip(cache.load(states), rows))
        cache.save(states, rows)
        assert cache.load(states) == rows
"""


def test_several_processes_share_the_database(tmp_path):
    paths = [str(tmp_path / f"{i}.png") for i in range(200)]
    for path in paths:
        Path(path).write_text(path)
    orders = [paths, paths[::-1], paths[100:] + paths[:100]]
    command = [sys.executable, "-c", SOME, str(tmp_path / "cache")]
    processes = [subprocess.Popen([*command, *order]) for order in orders]
    assert [process.wait() for process in processes] == [0, 0, 0]
    with CheckCache(tmp_path / "cache", rules="any") as cache:
        assert cache.load(cache.file_states(paths)) == [["row of", path] for path in paths]


# Size and deletion


def test_the_least_recently_used_rows_are_deleted_first(tmp_path, paths, monkeypatch):
    monkeypatch.setattr(check_cache, "MAX_BYTES", 100_000)
    folder = tmp_path / "many"
    folder.mkdir()
    some = []
    for day in range(8):
        some.append([str(folder / f"{day}-{i}") for i in range(20)])
        for path in some[-1]:
            Path(path).write_text(path)
        monkeypatch.setattr("time.time", lambda day=day: 86_400.0 * day)
        with CheckCache(tmp_path / "cache", rules="any") as cache:
            states = cache.file_states([*some[0], *some[-1]])
            cache.load(states)  # the first files are used every day
            cache.save(states, [["x" * 1000]] * 40)
    with CheckCache(tmp_path / "cache", rules="any") as cache:
        left = [sum(row is not None for row in cache.load(cache.file_states(each))) for each in some]
    assert left[0] == left[-1] == 20 and left[1] == 0 and left == [20, *sorted(left[1:])]
    assert (tmp_path / "cache" / NAME).stat().st_size < 200_000


def test_the_day_of_the_last_use_is_saved(paths, database):
    check_images(paths)
    change(database, "UPDATE checks SET used = 0")
    check_images(paths)
    assert all(used > 0 for (used,) in change(database, "SELECT used FROM checks"))


def test_the_command_deletes_the_database(paths, read, database, capsys):
    from transfer.features import main

    check_images(paths)
    read()
    assert main(["--clear"]) == 0
    assert "Removed 0.0 MB" in capsys.readouterr().out and not database.exists()
    assert delete_check_cache(database.parent) == 0
    check_images(paths)
    assert read() == NAMES and database.exists()
    assert delete_check_cache(database.parent) > 4000 and not list(database.parent.iterdir())
