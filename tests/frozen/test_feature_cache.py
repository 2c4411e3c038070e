"""Features on disk are read back unchanged or not at all, and damage affects no other features."""

import gc
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.frozen import feature_cache
from transfer.frozen.feature_cache import HOUR, LIMIT, FeatureCache
from transfer.frozen.row_files import SUFFIX, VERSION

KEY, OTHER = "0a1b2c3d4e5f", "ffffffffffff"


def digests_of(numbers):
    return [sha256(str(number).encode()).hexdigest() for number in numbers]


def rows_of(numbers, shape=(3,), dtype="float16"):
    """Return made-up features for each image: noise with its number as the seed."""
    made = [np.random.default_rng([number]).normal(size=shape) for number in numbers]
    return np.array(made, dtype).reshape(-1, *shape)


def open_store(folder, *, key=KEY, shape=(3,), dtype="float16", limit=LIMIT):
    return FeatureCache(folder, limit=limit).store(key, shape=shape, dtype=dtype, about={"network": "tiny"})


def fill(store, numbers):
    return store.append(digests_of(numbers), rows_of(numbers, store.shape, store.dtype))


def files_of(store):
    return sorted(store.folder.glob("*" + SUFFIX))


def check(store, numbers):
    """Check that the store has all of these images, with their own rows."""
    ids = store.find(digests_of(numbers))
    assert (ids >= 0).all()
    assert np.array_equal(store.take(ids), rows_of(numbers, store.shape, store.dtype))


def run(code, *arguments, **options):
    """Start Python with the helpers of this file."""
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_feature_cache import *\n"
        + code
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)


def finish(process):
    out = process.communicate(timeout=120)[0]
    assert process.returncode == 0
    return out


# Round trips


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("shape", [(), (5,), (2, 3, 4)])
def test_rows_come_back_in_any_order_from_any_files(shape, dtype, tmp_path):
    rng = np.random.default_rng(0)
    store = open_store(tmp_path, shape=shape, dtype=dtype)
    edges = [0, 1, 3, 3, 17, 60, 61, 100]
    ids = np.concatenate([fill(store, range(a, b)) for a, b in pairwise(edges)])
    rows = rows_of(range(100), shape, dtype)
    assert len(files_of(store)) == 6 and len(store) == 100
    for each in (store, open_store(tmp_path, shape=shape, dtype=dtype)):
        assert len(each) == 100 and np.array_equal(each.find(digests_of(range(100))), ids)
        for _ in range(20):
            wanted = rng.integers(0, 100, rng.integers(0, 150))  # some of them repeated
            found = each.find(digests_of(wanted))
            assert np.array_equal(found, ids[wanted])
            taken = each.take(found)
            assert taken.dtype == dtype and taken.shape == (len(wanted), *shape)
            assert np.array_equal(taken, rows[wanted])


def test_unknown_images_have_row_minus_one(tmp_path):
    store = open_store(tmp_path)
    assert store.find(digests_of(range(3))).tolist() == [-1, -1, -1] and len(store) == 0
    fill(store, [5, 6])
    found = store.find(digests_of([9, 6, 8, 5, 7]))
    assert (found >= 0).tolist() == [False, True, False, True, False]
    assert found.dtype == np.int64


def test_empty_input_is_valid(tmp_path):
    store = open_store(tmp_path, shape=(2, 2, 3))
    assert store.append([], np.zeros((0, 2, 2, 3))).shape == (0,)
    assert not files_of(store)
    assert store.find([]).shape == (0,) and store.take(np.zeros(0, int)).shape == (0, 2, 2, 3)


@pytest.mark.parametrize("ids", [[0, -1], [2], [10**12]])
def test_invalid_rows_are_errors(ids, tmp_path):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    with pytest.raises(IndexError):
        store.take(ids)


def test_the_same_image_may_be_appended_twice(tmp_path):
    store = open_store(tmp_path)
    fill(store, [1, 2, 1])
    fill(store, [2, 3])
    for each in (store, open_store(tmp_path)):
        check(each, [3, 2, 1, 1, 2])


def test_keys_shapes_and_dtypes_have_separate_stores(tmp_path):
    fill(open_store(tmp_path), [1])
    assert len(open_store(tmp_path, key=OTHER)) == 0
    assert len(open_store(tmp_path, shape=(3, 1))) == 0
    assert len(open_store(tmp_path, dtype="float32")) == 0
    check(open_store(tmp_path), [1])


def test_rows_larger_than_one_read(tmp_path, monkeypatch):
    monkeypatch.setattr("transfer.frozen.row_files._PIECE", 100)
    store = open_store(tmp_path, shape=(70,))
    fill(store, range(10))
    check(store, [7, 2, 3, 4, 9])
    monkeypatch.setattr("transfer.frozen.row_files._PIECE", 500)
    check(open_store(tmp_path, shape=(70,)), [7, 2, 3, 4, 9, 9])


def test_more_files_than_are_kept_open(tmp_path):
    store = open_store(tmp_path)
    for i in range(150):
        fill(store, [i])
    del store
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    store = open_store(tmp_path)
    for _ in range(2):
        check(store, np.random.default_rng(0).permutation(150).tolist())
    assert 0 < len(os.listdir("/dev/fd")) - before <= 70
    del store
    gc.collect()
    assert len(os.listdir("/dev/fd")) == before


def test_threads_read_while_another_writes(tmp_path):
    store = open_store(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        jobs = []
        for i in range(0, 300, 3):
            fill(store, range(i, i + 3))
            jobs.append(pool.submit(check, store, range(i, -1, -7)))
        for job in jobs:
            job.result()


# Damaged and invalid features


def test_every_flipped_bit_is_noticed(tmp_path, caplog):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    [path] = files_of(store)
    content = path.read_bytes()
    assert len(content) < 150
    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        caplog.clear()
        store = open_store(tmp_path)
        assert store.find(digests_of([0, 1])).tolist() == [-1, -1], position
        assert path.name in caplog.text and "computed again" in caplog.text
        assert not path.exists() and len(store) == 0
    fill(store, [0, 1])
    check(store, [0, 1])


def test_every_wrong_length_is_noticed(tmp_path, caplog):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    [path] = files_of(store)
    content = path.read_bytes()
    for broken in [*(content[:length] for length in range(len(content))), content + b"\0", content * 2]:
        path.write_bytes(broken)
        caplog.clear()
        assert open_store(tmp_path).find(digests_of([0, 1])).tolist() == [-1, -1], len(broken)
        assert path.name in caplog.text and not path.exists()
    path.write_bytes(content)
    check(open_store(tmp_path), [0, 1])


def test_only_the_damaged_file_is_lost(tmp_path):
    store = open_store(tmp_path)
    for numbers in ([0, 1, 2], [3, 4, 5], [5, 6]):
        fill(store, numbers)
    path = files_of(store)[1]
    content = bytearray(path.read_bytes())
    content[-1] ^= 4  # in the row of image 5, which is in the third file too
    path.write_bytes(content)
    store = open_store(tmp_path)
    found = store.find(digests_of(range(7)))
    assert (found >= 0).tolist() == [True] * 3 + [False] * 2 + [True] * 2
    check(store, [0, 1, 2, 5, 6])
    assert len(store) == 5 and len(files_of(store)) == 2
    fill(store, [3, 4])
    for each in (store, open_store(tmp_path)):
        check(each, range(7))


def test_a_damaged_file_loses_all_images_of_one_query(tmp_path, monkeypatch):
    """Damage that is noticed at the last image of a query also removes the first image of the file."""
    monkeypatch.setattr("transfer.frozen.feature_store._LOOKUP", 2)
    store = open_store(tmp_path)
    fill(store, range(4))
    fill(store, range(10, 20))
    path = files_of(store)[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    store = open_store(tmp_path)
    found = store.find(digests_of([0, *range(10, 20), 3]))
    assert found[0] == found[-1] == -1 and (found[1:-1] >= 0).all()


def test_rows_damaged_after_they_were_found_are_an_error(tmp_path):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    ids = store.find(digests_of([0, 1]))
    [path] = files_of(store)
    with open(path, "r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))
    assert np.array_equal(store.find(digests_of([0, 1])), ids)  # it was checked before and is not read again
    with pytest.raises(
        InputError, match=rf"{path.name}' were lost .*: its checksum is wrong. Run the command again"
    ):
        store.take(ids)
    assert np.array_equal(store.take(ids[:1]), rows_of([0]))  # found before and not damaged
    assert store.find(digests_of([0, 1])).tolist() == [-1, -1]
    fill(store, [0, 1])
    check(store, [0, 1])


def test_rows_truncated_after_they_were_found_are_an_error(tmp_path):
    store = open_store(tmp_path)
    ids = fill(store, [0, 1])
    os.truncate(files_of(store)[0], 80)
    with pytest.raises(InputError, match="it is truncated"):
        store.take(ids)


def test_another_version_is_never_read(tmp_path, caplog):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    [path] = files_of(store)
    content = bytearray(path.read_bytes())
    later = path.with_suffix(f".rows{VERSION + 1}")
    later.write_bytes(b"whatever comes")
    content[8] += 1
    path.write_bytes(content)
    assert open_store(tmp_path).find(digests_of([0])).tolist() == [-1]
    assert f"version {VERSION + 1}, expected {VERSION}" in caplog.text and path.name in caplog.text
    assert later.exists() and later.name not in caplog.text  # kept for the version that wrote it
    FeatureCache(tmp_path).clear()
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_store_is_never_read(tmp_path, caplog):
    other, store = open_store(tmp_path, key=OTHER), open_store(tmp_path)
    fill(other, [0])
    os.link(files_of(other)[0], store.folder / f"copy{SUFFIX}")
    assert open_store(tmp_path).find(digests_of([0])).tolist() == [-1]
    assert "belongs to another store" in caplog.text
    check(other, [0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_errors(value, tmp_path):
    store = open_store(tmp_path)
    rows = rows_of(range(3), dtype="float32")
    rows[1, 2] = value
    with pytest.raises(InputError, match="The network returned NaN or infinity for 1 of 3 images"):
        store.append(digests_of(range(3)), rows)
    assert not files_of(store) and len(store) == 0


def test_values_too_large_for_float16_are_errors(tmp_path):
    rows = np.full((2, 3), 7e4, "float32")
    with pytest.raises(InputError, match=r"above 65504, .* for 2 of 2 images. Store its features as float32"):
        open_store(tmp_path).append(digests_of(range(2)), rows)
    store = open_store(tmp_path, dtype="float32")
    assert np.array_equal(store.take(store.append(digests_of(range(2)), rows)), rows)


def test_invalid_arguments_are_errors(tmp_path):
    store = open_store(tmp_path)
    with pytest.raises(InputError, match=r"Expected features of shape \(2, 3\). Received: \(2, 4\)"):
        store.append(digests_of(range(2)), np.zeros((2, 4)))
    with pytest.raises(InputError, match=r"Expected features of shape \(1, 3\). Received: \(2, 3\)"):
        store.append(digests_of(range(1)), np.zeros((2, 3)))
    for wrong in ("", "ab", "x" * 64, "0" * 31, "0" * 30 + "  "):
        with pytest.raises(InputError, match=f"Expected digests of 32 .* Received: '{wrong}'"):
            store.find([*digests_of([1]), wrong])
    with pytest.raises(InputError, match="Expected digests"):
        store.find(["0" * 31, "0" * 33])
    for wrong in ({"key": "../../x"}, {"key": "ab"}, {"dtype": "int8"}, {"shape": (3, 0)}):
        with pytest.raises(InputError, match="Expected a key"):
            open_store(tmp_path, **wrong)


# Full disks and missing permissions


def test_a_full_disk_is_reported_and_keeps_earlier_features(tmp_path):
    store = open_store(tmp_path, shape=(1000,))
    fill(store, [0, 1])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"Cannot write .*--clear.*TRANSFER_CACHE.*room.*are kept"):
            fill(store, range(2, 6))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(path.name for path in store.folder.iterdir()) == sorted(
        ["about.json", "used", files_of(store)[0].name]
    )
    check(store, [0, 1])
    assert store.find(digests_of([2])).tolist() == [-1]
    fill(store, range(2, 6))
    check(open_store(tmp_path, shape=(1000,)), range(6))


NOBODY = """
rows_of([0])  # imports modules that may not be readable later
if os.getuid() == 0:
    os.setgroups([]); os.setgid(65534); os.setuid(65534)
try:
    (Path(sys.argv[1]) / "x").mkdir()
except PermissionError:
    exec(sys.argv[2])
    print("done")
"""


def as_nobody(code, made):
    """Run code as a user without write permission."""
    process = run(NOBODY, made, code, cwd="/")
    if not finish(process):
        pytest.skip("permissions stop nobody here")


@pytest.fixture
def open_to_all():
    """A folder that any user may read, with all its parents."""
    with tempfile.TemporaryDirectory(dir="/tmp") as made:
        os.chmod(made, 0o755)
        yield Path(made)
        os.chmod(made, 0o755)


def test_a_folder_without_write_permission_is_reported(open_to_all):
    os.chmod(open_to_all, 0o555)
    as_nobody(
        """
with pytest.raises(InputError, match=r"Cannot write .*: permission denied.*TRANSFER_CACHE.*room.*are kept"):
    open_store(Path(sys.argv[1]) / "features")
""",
        open_to_all,
    )
    assert not list(open_to_all.iterdir())


def test_a_read_only_cache_is_read(open_to_all):
    store = open_store(open_to_all)
    fill(store, [0, 1])
    (store.folder / "used").chmod(0o666)
    store.folder.chmod(0o555)
    os.chmod(open_to_all, 0o555)
    del store
    as_nobody(
        """
cache = FeatureCache(Path(sys.argv[1]), limit=1)
assert cache.evict() == 0
store = open_store(Path(sys.argv[1]))
check(store, [1, 0])
with pytest.raises(InputError, match="Cannot write .*: permission denied.*TRANSFER_CACHE.*are kept"):
    fill(store, [2])
check(store, [1, 0])
with pytest.raises(InputError, match="Cannot delete .*: permission denied.*TRANSFER_CACHE"):
    cache.clear()
""",
        open_to_all,
    )
    next(open_to_all.iterdir()).chmod(0o755)
    check(open_store(open_to_all), [0, 1])


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "features").write_text("mine")
    with pytest.raises(InputError, match="Cannot write features to"):
        open_store(tmp_path / "features")
    assert (tmp_path / "features").read_text() == "mine"


# Several processes


def test_two_processes_that_append_lose_nothing(tmp_path):
    code = """
store, first = open_store(Path(sys.argv[1])), int(sys.argv[2])
for i in range(50):
    fill(store, [first + i, 10_000 + i])
"""
    open_store(tmp_path)
    for process in [run(code, tmp_path, 0), run(code, tmp_path, 1000)]:
        finish(process)
    store = open_store(tmp_path)
    assert len(files_of(store)) == 100 and len(store) == 200
    check(store, [*range(50), *range(1000, 1050), *range(10_000, 10_050)])


def test_a_killed_process_leaves_complete_files(tmp_path, caplog):
    code = """
store, first = open_store(Path(sys.argv[1]), shape=(1000,)), int(sys.argv[2])
while True:
    fill(store, range(first, first + 50))
    first += 50
    print(first, flush=True)
"""
    rng, done = np.random.default_rng(0), 0
    for _ in range(6):
        process = run(code, tmp_path, done)
        done = int(process.stdout.readline())
        time.sleep(rng.uniform(0, 0.2))
        process.send_signal(signal.SIGKILL)
        done = max([done, *map(int, process.communicate()[0].split())])
    store = open_store(tmp_path, shape=(1000,))
    check(store, range(0, done, 7))
    assert not caplog.records and done <= len(store) <= done + 6 * 50
    leftovers = [path for path in store.folder.iterdir() if path.name.endswith(".partial")]
    FeatureCache(tmp_path).evict()
    assert all(path.exists() for path in leftovers)  # they may still be written
    for path in leftovers:
        os.utime(path, (0, 0))
    FeatureCache(tmp_path).evict()
    assert sorted(path.name for path in store.folder.iterdir() if path not in files_of(store)) == [
        "about.json",
        "used",
    ]


def test_clearing_while_another_appends_breaks_nothing(tmp_path):
    code = """
store = open_store(Path(sys.argv[1]))
print(flush=True)
for i in range(150):
    fill(store, [i])
"""
    process = run(code, tmp_path)
    process.stdout.readline()
    while process.poll() is None:
        FeatureCache(tmp_path).clear()
        open_store(tmp_path)
    finish(process)
    store = open_store(tmp_path)
    fill(store, range(150))
    check(store, range(150))


def test_several_processes_may_clear_and_evict(tmp_path):
    code = """
cache = FeatureCache(Path(sys.argv[1]), limit=1)
while not (Path(sys.argv[1]) / "enough").exists():
    cache.clear(), cache.evict(), cache.stores()
"""
    processes = [run(code, tmp_path), run(code, tmp_path)]
    for i in range(300):
        fill(open_store(tmp_path, key=f"{i:08x}"), [i])
    (tmp_path / "enough").touch()
    for process in processes:
        finish(process)


def test_an_open_store_survives_clearing(tmp_path):
    store = open_store(tmp_path)
    fill(store, [0, 1])
    check(store, [0, 1])
    FeatureCache(tmp_path).clear()
    assert not list(tmp_path.iterdir())
    check(store, [1, 0])
    fill(store, [2])
    check(store, [2, 1, 0])
    [info] = FeatureCache(tmp_path).stores()
    assert info.rows == 1 and info.about == {"network": "tiny"}
    check(open_store(tmp_path), [2])


def test_rows_cleared_before_they_were_read_are_missing(tmp_path, caplog):
    fill(open_store(tmp_path), [0, 1])
    store, other = open_store(tmp_path), open_store(tmp_path)
    FeatureCache(tmp_path).clear()
    with pytest.raises(InputError, match="were lost during use: no such file"):
        other.take([0])
    assert store.find(digests_of([0, 1])).tolist() == [-1, -1] and not len(store)
    assert not caplog.records


# Size limit, list and clear


def make_stores(folder, ages):
    """Make stores of 10 kB each that are closed and were used some seconds ago."""
    for number, age in enumerate(ages):
        store = open_store(folder, key=f"{number:08x}", shape=(5000,))
        fill(store, [number])
        used = store.folder / "used"
        del store
        gc.collect()
        os.utime(used, (time.time() - age,) * 2)
    return FeatureCache(folder)


def keys(cache):
    return [int(info.key, 16) for info in cache.stores()]


def test_stores_are_listed_oldest_first(tmp_path):
    cache = make_stores(tmp_path, [500, 1500, 1000])
    assert keys(cache) == [1, 2, 0]
    info = cache.stores()[0]
    assert info.key == "00000001" and info.about == {"network": "tiny"} and info.rows == 1
    files = (path for path in tmp_path.glob("00000001*/*"))
    assert info.bytes == sum(path.stat().st_size for path in files) > 10_000
    assert 1500 <= time.time() - info.last_used.timestamp() < 1600
    open_store(tmp_path, key="00000001", shape=(5000,))
    assert keys(cache) == [2, 0, 1]


def test_the_least_recently_used_stores_are_evicted_down_to_the_limit(tmp_path):
    make_stores(tmp_path, [500, 1500, 1000, 2000])
    assert FeatureCache(tmp_path, limit=50_000).evict() == 0
    freed = FeatureCache(tmp_path, limit=25_000).evict()
    assert 20_000 < freed < 21_000 and keys(FeatureCache(tmp_path)) == [2, 0]
    assert FeatureCache(tmp_path, limit=25_000).evict() == 0


def test_appending_evicts_no_open_store(tmp_path):
    make_stores(tmp_path, [500, 1500, 1000])
    oldest = open_store(tmp_path, key="00000001", shape=(5000,))
    os.utime(oldest.folder / "used", (0, 0))
    store = open_store(tmp_path, key=OTHER, shape=(5000,), limit=45_000)
    fill(store, [7])
    assert keys(FeatureCache(tmp_path)) == [1, 2, 0, int(OTHER, 16)]
    fill(store, [8])
    assert keys(FeatureCache(tmp_path)) == [1, 0, int(OTHER, 16)]
    fill(store, range(9, 13))  # more than the limit by itself
    assert keys(FeatureCache(tmp_path)) == [1, int(OTHER, 16)]
    check(store, range(7, 13))
    check(oldest, [1])


def test_a_store_open_in_another_process_is_not_evicted(tmp_path):
    make_stores(tmp_path, [500])
    code = """
store = open_store(Path(sys.argv[1]), key="00000000", shape=(5000,))
print(flush=True)
sys.stdin.readline()
"""
    process = run(code, tmp_path, stdin=subprocess.PIPE)
    process.stdout.readline()
    assert FeatureCache(tmp_path, limit=1).evict() == 0
    process.kill()
    process.communicate()
    assert FeatureCache(tmp_path, limit=1).evict() > 10_000


def test_without_locks_recently_used_stores_are_not_evicted(tmp_path, monkeypatch):
    def no_locks(place, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(feature_cache.fcntl, "flock", no_locks)
    make_stores(tmp_path, [HOUR / 2, HOUR * 2])
    FeatureCache(tmp_path, limit=1).evict()
    assert keys(FeatureCache(tmp_path)) == [0]


def test_clear_deletes_the_stores_of_the_given_keys(tmp_path):
    cache = make_stores(tmp_path, [500, 1500, 1000])
    open_store(tmp_path, key="00000002", dtype="float32")
    freed = cache.clear(["00000002", "00000000"])
    assert 20_000 < freed < 21_000 and keys(cache) == [1]
    with pytest.raises(InputError, match=r"Unknown key '00000002'. Did you mean '00000001'"):
        cache.clear(["00000002"])
    assert cache.clear() > 10_000 and cache.stores() == [] and not list(tmp_path.iterdir())
    assert cache.clear() == 0 and FeatureCache(tmp_path / "none").clear() == 0


def test_stores_of_earlier_versions_are_listed_and_cleared(tmp_path):
    old = tmp_path / f"{OTHER}-float32-3.shelf"
    old.mkdir()
    for name in ("used", "about.json", "1-2.rows1"):
        (old / name).write_text("{}")
    fill(open_store(tmp_path), [0])
    assert [info.key for info in FeatureCache(tmp_path).stores()].count(OTHER) == 1
    FeatureCache(tmp_path).clear()
    assert not list(tmp_path.iterdir())


def test_foreign_files_are_not_deleted(tmp_path):
    mine = [tmp_path / "thesis.txt", tmp_path / "photos" / "a.rows1", tmp_path / "used"]
    store = open_store(tmp_path)
    mine.append(store.folder / "notes.txt")
    for path in mine:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    fill(store, [0])
    FeatureCache(tmp_path).clear()
    assert all(path.read_text() == "mine" for path in mine)
    assert not files_of(store) and not (store.folder / "used").exists()


def test_a_store_with_a_damaged_description_is_listed(tmp_path):
    store = open_store(tmp_path)
    fill(store, [0])
    about = store.folder / "about.json"
    assert json.loads(about.read_text()) == {"network": "tiny"}
    for content in ("{", "[1]"):
        about.write_text(content)
        assert [info.about for info in FeatureCache(tmp_path).stores()] == [{}]
    (store.folder / f"broken{SUFFIX}").write_bytes(b"x")
    assert [info.rows for info in FeatureCache(tmp_path).stores()] == [1]


def test_environment_variables_set_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "named"))
    assert FeatureCache().folder == tmp_path / "named"
    monkeypatch.delenv("TRANSFER_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = FeatureCache().folder
    assert folder.parts[-2:] == ("transfer", "features") and folder.is_absolute()
    monkeypatch.chdir(tmp_path)
    cache = FeatureCache(Path("here"))
    monkeypatch.chdir("/")
    assert cache.folder == tmp_path / "here"


def test_memory_holds_an_index_and_no_rows(tmp_path):
    if not os.path.exists("/proc/self/status"):
        pytest.skip("memory is read from /proc")
    code = """
def memory():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1000

store = open_store(Path(sys.argv[1]), shape=(128,))
rows = np.random.default_rng(0).normal(size=(10_000, 128)).astype("float16")
ten = [f"{i:032x}" for i in range(10_000)]
before = memory()
for i in range(20):
    store.append([f"{i:02x}" + digest[2:] for digest in ten], rows)
store = open_store(Path(sys.argv[1]), shape=(128,))
for i in range(20):
    ids = store.find([f"{i:02x}" + digest[2:] for digest in ten])
    for j in range(0, 10_000, 1000):
        assert np.array_equal(store.take(ids[j:j + 1000][::-1]), rows[j:j + 1000][::-1])
print(len(store), memory() - before)
"""
    count, grown = finish(run(code, tmp_path)).split()
    assert int(count) == 200_000
    assert float(grown) < 35  # MB; the rows take 51 MB


def test_reading_logs_nothing(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    fill(open_store(tmp_path), range(10))
    check(open_store(tmp_path), range(10))
    assert not caplog.records
