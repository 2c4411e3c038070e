"""What glibc does with freed memory: training must not pay for the same pages at each step."""

import platform
import subprocess
import sys

import pytest

from transfer.allocator import give_back, keep_memory

STEPS = """
import os, resource, sys
for name in list(os.environ):
    if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
        del os.environ[name]
import numpy as np
from transfer.allocator import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
def step():
    return [np.ones(10_000_000, "float32").sum() for _ in range(2)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_a_step_gets_the_pages_of_the_step_before():
    def paged(way):
        command = [sys.executable, "-c", STEPS, way]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert paged("kept") < 40_000_000  # one block; by default it is each block of each step
    assert paged("default") > 10 * paged("kept")


HELD = """
import os
for name in list(os.environ):
    if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
        del os.environ[name]
import numpy as np
from transfer.allocator import give_back, keep_memory
def held():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
assert keep_memory()
np.ones(50_000_000, "float32").sum()
before = held()
assert give_back()
print(before - held())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc")
def test_after_training_what_is_free_goes_back():
    done = subprocess.run([sys.executable, "-c", HELD], check=True, capture_output=True, text=True)
    assert int(done.stdout) > 150_000_000


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name):
    assert not keep_memory({name: "glibc.malloc.trim_threshold=131072"})


def test_where_the_c_library_is_another_nothing_happens(monkeypatch):
    monkeypatch.setattr("transfer.allocator.ctypes.CDLL", lambda name: object())
    assert keep_memory({}) is False
    assert give_back() is False
