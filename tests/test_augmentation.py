"""Augmentation: of training pictures alone, another each epoch, the same for the same seed."""

import numpy as np
import pytest
import tensorflow as tf

from transfer.augmentation import light
from transfer.pipeline import make_dataset
from transfer.splitting import Split

SIDE = 20


def halves(count=64) -> Split:
    """Pictures with a bright left half: a flip shows whatever else was done."""
    pictures = np.zeros((count, SIDE, SIDE, 3), "uint8")
    pictures[:, :, : SIDE // 2] = 200
    return Split(pictures, np.zeros(count, "int64"), [str(i) for i in range(count)])


def dot() -> np.ndarray:
    picture = np.zeros((SIDE, SIDE, 3), "uint8")
    picture[SIDE // 2, SIDE // 2] = 255
    return picture


def seeds(count):
    return [np.array([7, i], "int32") for i in range(count)]


def epochs(count=1, *, split=None, threads=None, **options):
    settings = {"training": True, "augment": "light", "batch_size": 10, **options}
    dataset = make_dataset(split or halves(), image_size=(SIDE, SIDE), **settings)
    if threads:
        limits = tf.data.Options()
        limits.threading.private_threadpool_size = threads
        dataset = dataset.with_options(limits)
    return [np.concatenate([x for x, _ in dataset]) for _ in range(count)]


def flipped(pictures) -> np.ndarray:
    middle = SIDE // 2
    return pictures[:, :, :middle].mean(axis=(1, 2, 3)) < pictures[:, :, middle:].mean(axis=(1, 2, 3))


def test_two_epochs_differ():
    """Caching after augmenting would show the same changes forever."""
    first, second, third = epochs(3)
    assert not np.array_equal(first, second) and not np.array_equal(second, third)


def test_some_pictures_are_flipped_and_some_are_not():
    for pictures in epochs(2):
        assert 0.25 < flipped(pictures).mean() < 0.75


def test_nothing_is_flipped_where_flips_are_off():
    for pictures in epochs(2, flip=False):
        assert not flipped(pictures).any()
        assert len(np.unique(pictures, axis=0)) > 30, "they are shifted all the same"


def test_pictures_of_one_batch_change_differently():
    assert len(np.unique(epochs(batch_size=64)[0], axis=0)) > 30


def test_the_same_seed_makes_the_same_changes():
    first, again, other = epochs(2, seed=3), epochs(2, seed=3), epochs(2, seed=4)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_number_of_threads_changes_nothing():
    assert np.array_equal(epochs(2, threads=1), epochs(2, threads=8))


@pytest.mark.parametrize("options", [{"training": False}, {"augment": "none"}], ids=str)
def test_other_pictures_stay_as_they_are(options):
    for pictures in epochs(2, **options):
        assert np.array_equal(pictures, halves().pictures)


def test_values_stay_from_0_to_255():
    noise = np.random.default_rng(0).integers(0, 256, (30, SIDE, SIDE, 3)).astype("uint8")
    (pictures,) = epochs(split=Split(noise, np.zeros(30, "int64"), ["x"] * 30))
    assert pictures.dtype == np.float32
    assert pictures.min() >= 0 and 250 < pictures.max() <= 255


def test_a_change_depends_on_its_seed_alone():
    change, again = light(), light()
    made = [change(dot(), seed).numpy() for seed in seeds(12)]
    backwards = [again(dot(), seed).numpy() for seed in reversed(seeds(12))]
    assert np.array_equal(made, backwards[::-1])
    assert len({picture.tobytes() for picture in made}) == 12


def test_shifts_are_at_most_a_tenth_both_ways_and_fill_with_the_edge():
    change, far = light(flip=False), SIDE // 10
    moves = []
    for seed in seeds(60):
        brightness = change(dot(), seed).numpy()[..., 0]
        rows, columns = np.nonzero(brightness > 1)
        assert brightness.sum() == pytest.approx(255, rel=0.02), "nothing appears at the edges"
        moves.append(
            [np.average(at, weights=brightness[rows, columns]) - SIDE // 2 for at in (rows, columns)]
        )
    for axis in np.array(moves).T:
        assert -far - 0.1 <= axis.min() < -far / 2 and far / 2 < axis.max() <= far + 0.1
    assert abs(np.corrcoef(*np.array(moves).T)[0, 1]) < 0.4, "each way by itself"
    plain = np.full((SIDE, SIDE, 3), 90, "uint8")
    assert np.allclose([change(plain, seed) for seed in seeds(5)], 90, atol=0.01)


def test_a_picture_of_any_shape_keeps_it():
    assert light()(np.zeros((12, 30, 3), "uint8"), seeds(1)[0]).shape == (12, 30, 3)
