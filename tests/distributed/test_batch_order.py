"""The images that each process and device reads: together, every image once, for any number of them."""

from __future__ import annotations

import numpy as np
import pytest

from transfer.distributed.batch_order import BatchOrder, BatchPart, Position


def batch_parts(total: int, replicas: int = 1, **options) -> list[BatchPart]:
    return [BatchPart(first, replicas, total, **options) for first in range(0, total, replicas)]


@pytest.mark.parametrize("total, replicas", [(2, 1), (3, 1), (4, 2), (2, 2)])
@pytest.mark.parametrize("count", [32, 37, 40])
def test_parts_of_each_batch_are_the_batch(total, replicas, count):
    whole = [part.tolist() for part, _ in BatchOrder(count, 8, 0).batches()]
    parts = [
        [part.tolist() for part, _ in BatchOrder(count, 8, 0, batch_part=s).batches()]
        for s in batch_parts(total, replicas)
    ]
    for number, batch in enumerate(whole):
        step = [p for own in parts for p in own[number * replicas : (number + 1) * replicas]]
        if len(batch) >= total:
            assert [p for part in step for p in part] == batch
            assert max(map(len, step)) - min(map(len, step)) <= 1
        else:  # fewer images than replicas: each sees all of them
            assert step == [batch] * total


def test_keys_belong_to_images_and_not_to_positions_in_a_batch():
    whole = {
        p: k
        for part, keys in BatchOrder(20, 8, 3).batches()
        for p, k in zip(part.tolist(), keys.tolist(), strict=True)
    }
    for batch_part in batch_parts(3):
        for part, keys in BatchOrder(20, 8, 3, batch_part=batch_part).batches():
            assert [whole[p] for p in part.tolist()] == keys.tolist()


@pytest.mark.parametrize("total", [2, 3, 5])
@pytest.mark.parametrize("count", [5, 33, 64, 65, 97, 131])
def test_evaluation_reads_each_image_once_in_the_same_number_of_batches_on_each_replica(total, count):
    parts = [
        [p.tolist() for p, _ in BatchOrder(count, 32, None, batch_part=s).batches()]
        for s in batch_parts(total)
    ]
    assert len({len(own) for own in parts}) == 1
    assert all(1 <= len(batch) <= 32 for own in parts for batch in own)
    assert sorted(p for own in parts for batch in own for p in batch) == list(range(count))


@pytest.mark.parametrize("total", [1, 2, 4])
def test_padded_images_have_weight_zero(total):
    orders = [BatchOrder(21, 8, 0, batch_part=batch_part) for batch_part in batch_parts(total, padded=True)]
    parts = [[part for part, _ in order.batches()] for order in orders]
    assert {len(part) for own in parts for part in own} == {8 // total}
    plain = [part for part, _ in BatchOrder(21, 8, 0).batches()]
    for number, batch in enumerate(plain):
        filled = np.concatenate([own[number] for own in parts])
        weights = np.concatenate([order.weights(number) for order in orders])
        assert filled[: len(batch)].tolist() == batch.tolist()
        assert np.allclose(weights[: len(batch)], 8 / len(batch)) and not weights[len(batch) :].any()
        assert weights.mean() == pytest.approx(1)


def test_an_epoch_resumes_at_its_position():
    batch_part = BatchPart(1, 1, 2)
    whole = [
        part.tolist()
        for part, _ in BatchOrder(37, 8, 5, position=Position(2), batch_part=batch_part).batches()
    ]
    rest = BatchOrder(37, 8, 5, position=Position(2, 16), batch_part=batch_part)
    assert [part.tolist() for part, _ in rest.batches()] == whole[2:]
    assert len(rest) == len(whole) - 2


def test_padding_is_the_same_in_a_resumed_epoch():
    batch_part = BatchPart(0, 1, 1, padded=True)
    whole = BatchOrder(37, 8, 5, position=Position(2), batch_part=batch_part)
    rest = BatchOrder(37, 8, 5, position=Position(2, 16), batch_part=batch_part)
    parts = [[part.tolist() for part, _ in order.batches()] for order in (whole, rest)]
    assert parts[1] == parts[0][2:]
    assert np.array_equal(whole.weights(4), rest.weights(2))
