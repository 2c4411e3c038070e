"""Which images each process and device reads: together each one once, whatever their number."""

from __future__ import annotations

import numpy as np
import pytest

from transfer.distributed.batch_order import Order, Position
from transfer.distributed.process_group import BatchPart


def batch_parts(of: int, replicas: int = 1, **options) -> list[BatchPart]:
    return [BatchPart(first, replicas, of, **options) for first in range(0, of, replicas)]


@pytest.mark.parametrize("of, replicas", [(2, 1), (3, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("count", [32, 37, 40])
def test_parts_of_each_batch_are_the_batch(of, replicas, count):
    whole = [part.tolist() for part, _ in Order(count, 8, 0).batches()]
    parts = [
        [part.tolist() for part, _ in Order(count, 8, 0, batch_part=s).batches()]
        for s in batch_parts(of, replicas)
    ]
    for number, batch in enumerate(whole):
        step = [p for own in parts for p in own[number * replicas : (number + 1) * replicas]]
        if len(batch) >= of:
            assert [p for part in step for p in part] == batch
            assert max(map(len, step)) - min(map(len, step)) <= 1
        else:  # fewer images than replicas: each sees all of them
            assert step == [batch] * of


def test_keys_belong_to_images_and_not_to_places():
    whole = {
        p: k
        for part, keys in Order(20, 8, 3).batches()
        for p, k in zip(part.tolist(), keys.tolist(), strict=True)
    }
    for batch_part in batch_parts(3):
        for part, keys in Order(20, 8, 3, batch_part=batch_part).batches():
            assert [whole[p] for p in part.tolist()] == keys.tolist()


@pytest.mark.parametrize("of", [2, 3, 5])
@pytest.mark.parametrize("count", [5, 33, 64, 65, 97, 131])
def test_images_to_test_on_come_once_in_as_many_batches_everywhere(of, count):
    parts = [[p.tolist() for p, _ in Order(count, 32, None, batch_part=s).batches()] for s in batch_parts(of)]
    assert len({len(own) for own in parts}) == 1
    assert all(1 <= len(batch) <= 32 for own in parts for batch in own)
    assert sorted(p for own in parts for batch in own for p in batch) == list(range(count))


@pytest.mark.parametrize("of", [1, 2, 4])
def test_whole_batches_are_filled_up_with_what_counts_nothing(of):
    orders = [Order(21, 8, 0, batch_part=batch_part) for batch_part in batch_parts(of, whole=True)]
    parts = [[part for part, _ in order.batches()] for order in orders]
    assert {len(part) for own in parts for part in own} == {8 // of}
    plain = [part for part, _ in Order(21, 8, 0).batches()]
    for number, batch in enumerate(plain):
        filled = np.concatenate([own[number] for own in parts])
        weights = np.concatenate([order.weights(number) for order in orders])
        assert filled[: len(batch)].tolist() == batch.tolist()
        assert np.allclose(weights[: len(batch)], 8 / len(batch)) and not weights[len(batch) :].any()
        assert weights.mean() == pytest.approx(1)


def test_an_epoch_goes_on_where_it_was():
    batch_part = BatchPart(1, 1, 2)
    whole = [
        part.tolist() for part, _ in Order(37, 8, 5, position=Position(2), batch_part=batch_part).batches()
    ]
    rest = Order(37, 8, 5, position=Position(2, 16), batch_part=batch_part)
    assert [part.tolist() for part, _ in rest.batches()] == whole[2:]
    assert len(rest) == len(whole) - 2


def test_what_fills_up_the_last_batch_is_the_same_where_an_epoch_goes_on():
    batch_part = BatchPart(0, 1, 1, whole=True)
    whole = Order(37, 8, 5, position=Position(2), batch_part=batch_part)
    rest = Order(37, 8, 5, position=Position(2, 16), batch_part=batch_part)
    parts = [[part.tolist() for part, _ in order.batches()] for order in (whole, rest)]
    assert parts[1] == parts[0][2:]
    assert np.array_equal(whole.weights(4), rest.weights(2))
