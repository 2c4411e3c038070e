"""Images in a temporary file are read back unchanged by any thread."""

import gc
import os
import resource
import tempfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.images.image_sequences import TemporaryImages


def open_files():
    return len(os.listdir("/proc/self/fd" if os.path.isdir("/proc/self/fd") else "/dev/fd"))


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, "uint8")


def test_images_are_read_back_unchanged():
    given = [b"encoded", noise(4, 5, 3), noise(7, 2), b"", noise(1, 1, 1), noise(4, 5, 3, seed=1)]
    images = TemporaryImages()
    assert [images.append(image) for image in given] == list(range(6)) and len(images) == 6
    for back in (list(images), [images[np.int64(i)] for i in range(6)], [images[i - 6] for i in range(6)]):
        for old, new in zip(given, back, strict=True):
            assert type(old) is type(new) and np.array_equal(old, new) and np.shape(old) == np.shape(new)
    assert images[1].dtype == np.uint8


@pytest.mark.parametrize("position", [2, -3, 10**9])
def test_indices_past_the_end_are_errors(position):
    images = TemporaryImages()
    images.append(b"a")
    images.append(b"b")
    with pytest.raises(IndexError):
        images[position]


def test_views_of_larger_arrays_are_stored_as_arrays():
    images, pixels = TemporaryImages(), noise(6, 6, 3)
    images.append(pixels[::2, ::-1, :1])
    assert np.array_equal(images[0], pixels[::2, ::-1, :1])


def test_threads_read_while_one_writes():
    images = TemporaryImages()
    with ThreadPoolExecutor(8) as pool:
        jobs = []
        for i in range(400):
            images.append(noise(1 + i % 7, 3, seed=i))
            jobs.append(pool.submit(lambda i=i: np.array_equal(images[i], noise(1 + i % 7, 3, seed=i))))
        assert all(job.result() for job in jobs)


def test_the_file_has_no_name_and_is_deleted_with_the_object(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    gc.collect()
    before = open_files()
    images = TemporaryImages()
    images.append(b"x" * 1000)
    assert open_files() == before + 1 and not list(tmp_path.iterdir())
    del images
    gc.collect()
    assert open_files() == before


def test_a_full_disk_is_reported_and_earlier_images_stay():
    images = TemporaryImages()
    images.append(b"x" * 1000)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))
    try:
        with pytest.raises(
            InputError, match=r"Cannot write a temporary copy .* Set the environment variable TMPDIR"
        ):
            images.append(b"y" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(images) == [b"x" * 1000]
    images.append(b"z" * 1000)
    assert images[1] == b"z" * 1000
