"""Rows come in random order, each once, mixed from everywhere, with few disk reads."""

import threading

import numpy as np
import pytest

from transfer.frozen import sampling
from transfer.frozen.sampling import Sampler, count_runs, order, windows

SMALL = {"block": 8, "mixed": 4}


@pytest.fixture
def rows():
    """Places of 1,000 rows on disk: in another order, and with gaps for the rows of other splits."""
    draw = np.random.default_rng(3)
    return draw.permutation(draw.choice(1500, 1000, replace=False))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 31, 32, 33, 100, 1000])
@pytest.mark.parametrize("epoch", [0, 1, 5])
def test_every_position_comes_exactly_once(count, epoch, rows):
    found = order(rows[:count], seed=1, epoch=epoch, **SMALL)
    assert found.dtype == np.int64 and np.array_equal(np.sort(found), np.arange(count))


def test_epochs_and_seeds_differ_and_repeat(rows):
    first = order(rows, seed=0, epoch=0, **SMALL)
    assert np.array_equal(first, order(rows, seed=0, epoch=0, **SMALL))
    assert not np.array_equal(first, order(rows, seed=0, epoch=1, **SMALL))
    assert not np.array_equal(first, order(rows, seed=1, epoch=0, **SMALL))


def test_rows_of_one_window_are_a_plain_permutation(rows):
    expected = np.random.default_rng([4, 2]).permutation(np.arange(len(rows)))
    assert np.array_equal(order(rows, seed=4, epoch=2), expected)
    assert not np.array_equal(order(rows, seed=4, epoch=2, **SMALL), expected)


def test_a_window_has_blocks_from_everywhere_and_needs_few_reads():
    rows = np.arange(1000)
    whole = [w for w in windows(rows, seed=0, epoch=0, **SMALL) if len(w) == 32]
    assert len(whole) == 31
    for window in whole:
        assert count_runs(rows[window]) <= 6, "four blocks, one of them cut by the window, and a short one"
        assert np.ptp(window) > 100
    assert np.mean([count_runs(rows[window]) for window in whole]) > 3.5
    plain = np.random.default_rng(0).permutation(1000)
    assert count_runs(plain[:32]) > 25, "a plain permutation needs about one read per row"


def test_rows_of_a_window_are_mixed():
    found = order(np.arange(1000), seed=0, epoch=0, **SMALL)
    assert (np.abs(np.diff(found)) == 1).mean() < 0.1


def test_blocks_start_elsewhere_in_each_epoch():
    rows = np.arange(1000)
    edges = []
    for epoch in range(8):
        first = np.sort(next(iter(windows(rows, seed=0, epoch=epoch, block=8, mixed=1))))
        edges.append(first[0] % 8)
    assert len(set(edges)) > 2


def test_blocks_are_neighbors_on_disk(rows):
    """Positions follow the split, but blocks hold neighbors on disk."""
    compact = np.random.default_rng(0).permutation(1000)
    for window in windows(compact, seed=0, epoch=0, **SMALL):
        assert count_runs(compact[window]) <= 6


def test_a_sampler_reads_each_window_once(rows):
    values = np.random.default_rng(0).normal(size=(1000, 3)).astype("float32")
    reads = []

    def take(positions):
        reads.append(len(positions))
        return values[positions]

    sampler = Sampler(take, rows, seed=0, **SMALL)
    for epoch in range(2):
        reads.clear()
        found = sampler.order(epoch)
        assert np.array_equal(found, order(rows, seed=0, epoch=epoch, **SMALL))
        for start in range(0, 1000, 50):  # some batches span two windows
            batch = found[start : start + 50]
            assert np.array_equal(sampler.take(batch), values[batch])
        assert sum(reads) == 1000 and max(reads) == 32
    strange = np.array([999, 0, 500, 0])
    assert np.array_equal(sampler.take(strange), values[strange])
    assert sampler.take(np.zeros(0, "int64")).shape == (0, 3)


def test_a_sampler_without_an_order_reads_rows(rows):
    values = np.arange(1000.0)
    assert np.array_equal(Sampler(values.__getitem__, rows, seed=0).take([5, 3]), [5.0, 3.0])


def test_a_sampler_is_safe_for_threads(rows):
    values = np.arange(1000.0)
    sampler = Sampler(values.__getitem__, rows, seed=0, **SMALL)
    found = sampler.order(0)
    wrong = []

    def read(first):
        for start in range(first, 1000, 40):
            batch = found[start : start + 10]
            if not np.array_equal(sampler.take(batch), values[batch]):
                wrong.append(start)

    threads = [threading.Thread(target=read, args=(first,)) for first in (0, 10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_reads_are_counted():
    assert [count_runs(np.array(rows)) for rows in ([], [3], [4, 3], [1, 3, 5], [2, 2, 3])] == [0, 1, 1, 3, 1]
    assert sampling.BLOCK * sampling.MIXED == 8192
