"""Freed memory: a training step must use the memory that the step before has freed."""

import platform
import subprocess
import sys

import pytest

from transfer.common.allocator import kept_memory

START = """
import contextlib, os, resource, sys
for name in list(os.environ):
    if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES":
        del os.environ[name]
import numpy as np
from transfer.common.allocator import kept_memory
"""
STEPS = """
def step():
    return [np.ones(10_000_000, "float32").sum() for _ in range(2)]
with kept_memory() if sys.argv[1] == "kept" else contextlib.nullcontext():
    step()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        step()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) * resource.getpagesize())
"""
HELD = """
def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
with kept_memory() as kept:
    assert kept
    np.ones(50_000_000, "float32").sum()
    before = held()
print(before - held())
"""


def number(script, *arguments):
    command = [sys.executable, "-c", START + script, *arguments]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_a_step_uses_the_memory_of_the_step_before():
    kept, default = (number(STEPS, way) for way in ("kept", "default"))
    assert kept < 40_000_000  # bytes: about one block; by default, every block of every step
    assert default > 10 * kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_free_memory_returns_to_the_system_after_the_block():
    assert number(HELD) > 150_000_000


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_settings_of_the_user_are_kept(name):
    with kept_memory({name: "glibc.malloc.trim_threshold=131072"}) as kept:
        assert not kept


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr("transfer.common.allocator.ctypes.CDLL", lambda name: object())
    with kept_memory({}) as kept:
        assert kept is False
