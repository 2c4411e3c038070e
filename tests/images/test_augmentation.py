"""Augmentation changes only training images, differently in each epoch, and repeats with the same seed."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from transfer.common.errors import InputError
from transfer.images.augmentation import AUGMENTATIONS, ERASED, Shift, _steps, augmentation, mixing
from transfer.images.pipeline import make_dataset
from transfer.images.splitting import Split

SIDE = 20
LEVELS = [level for level in AUGMENTATIONS if level != "none"]
every_level = pytest.mark.parametrize("augment", LEVELS)


def halves(count=64) -> Split:
    """Images with a bright left half, which shows flips."""
    images = np.zeros((count, SIDE, SIDE, 3), "uint8")
    images[:, :, : SIDE // 2] = 200
    return Split(images, np.zeros(count, "int64"), [str(i) for i in range(count)])


def striped(count) -> Split:
    """Images with stripes on the left, which show flips under any change of color."""
    images = np.full((count, SIDE, SIDE, 3), 128, "uint8")
    images[:, :, : SIDE // 2] = np.tile([0, 0, 255, 255], 3)[: SIDE // 2, None]
    return Split(images, np.zeros(count, "int64"), [str(i) for i in range(count)])


def mirrored(images) -> np.ndarray:
    middle = SIDE // 2
    return images[:, :, :middle].std(axis=(1, 2, 3)) < images[:, :, middle:].std(axis=(1, 2, 3))


def numbered(count) -> Split:
    """Images of noise, each with its own class."""
    images = np.random.default_rng(0).integers(0, 256, (count, SIDE, SIDE, 3)).astype("uint8")
    return Split(images, np.arange(count), [str(i) for i in range(count)])


def dot() -> np.ndarray:
    image = np.zeros((SIDE, SIDE, 3), "uint8")
    image[SIDE // 2, SIDE // 2] = 255
    return image


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


@every_level
def test_two_epochs_differ(augment):
    """A cache behind the augmentation would repeat the same changes."""
    first, second, third = epochs(3, augment=augment)
    assert not np.array_equal(first, second) and not np.array_equal(second, third)


@every_level
def test_some_images_are_flipped(augment):
    for images in epochs(2, augment=augment, split=striped(128)):
        assert 0.25 < mirrored(images).mean() < 0.75


@every_level
def test_no_image_is_flipped_without_flips(augment):
    for images in epochs(2, augment=augment, flip=False, split=striped(128)):
        assert len(np.unique(images, axis=0)) > 60, "other changes remain"
        assert mirrored(images).mean() < (0.15 if augment == "strong" else 0.01), (
            "erasing may look like a flip"
        )


@every_level
def test_no_layer_flips_without_flips(augment):
    """Unlike the test above, this one does not depend on chance."""
    for flip in (False, True):
        layers = [layer for step in _steps(augment, flip) for layer in step]
        assert [layer.flip for layer in layers if isinstance(layer, Shift)] == [flip]
        assert "RandomFlip" not in {type(layer).__name__ for layer in layers}


@pytest.mark.parametrize("mirrored", [False, True])
def test_shifts_equal_those_of_keras(mirrored):
    """Keras' layers compute the same in three times the time."""
    images = np.random.default_rng(0).uniform(0, 255, (1, 18, SIDE, 3)).astype("float32")
    x, y = 0.37, -0.81
    layer = keras.layers.RandomTranslation(0.1, 0.1, fill_mode="nearest")
    amounts = {"translations": np.array([[x * 0.1 * SIDE, y * 0.1 * 18]], "float32")}
    expected = layer.transform_images(images, {**amounts, "input_shape": images.shape})
    drawn = np.array([y, x, -1 if mirrored else 1], "float32")
    shifted = Shift(0.1, flip=True).transform_images(images, drawn, training=True)
    np.testing.assert_allclose(shifted, np.flip(expected, axis=2) if mirrored else expected, atol=1e-3)


def test_images_of_one_batch_change_differently():
    assert len(np.unique(epochs(batch_size=64)[0], axis=0)) > 30


@every_level
def test_the_same_seed_makes_the_same_changes(augment):
    first, again, other = (epochs(2, seed=seed, augment=augment) for seed in (3, 3, 4))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@every_level
def test_the_number_of_threads_changes_nothing(augment):
    assert np.array_equal(*(epochs(2, threads=threads, augment=augment) for threads in (1, 8)))


def test_the_global_seed_changes_nothing():
    found = []
    for seed in (1, 2):
        tf.random.set_seed(seed)
        found.append(epochs(2, augment="strong", split=numbered(64)))
    assert np.array_equal(*found)


@pytest.mark.parametrize("options", [{"training": False}, {"augment": "none"}], ids=str)
def test_other_images_do_not_change(options):
    for images in epochs(2, **options):
        assert np.array_equal(images, halves().images)


@every_level
def test_values_stay_from_0_to_255(augment):
    for values in (range(256), (0, 255)):  # only the extreme values
        noise = np.random.default_rng(0).choice(values, (200, SIDE, SIDE, 3)).astype("uint8")
        (images,) = epochs(split=Split(noise, np.zeros(200, "int64"), ["x"] * 200), augment=augment)
        assert images.dtype == np.float32 and images.shape == noise.shape
        assert np.isfinite(images).all() and images.min() >= 0 and 250 < images.max() <= 255


@every_level
def test_plain_images_stay_finite(augment):
    """AutoContrast of a single value would divide by zero."""
    plain = np.repeat(np.arange(0, 256, 2, "uint8"), SIDE * SIDE * 3).reshape(-1, SIDE, SIDE, 3)
    (images,) = epochs(split=Split(plain, np.zeros(128, "int64"), ["x"] * 128), augment=augment)
    assert np.isfinite(images).all()


@pytest.mark.parametrize(
    "options", [{"augment": "standard"}, {"augment": "strong", "mix": "cutmix"}], ids=str
)
def test_mixed_precision_leaves_images_exact(options):
    import keras

    expected = epochs(num_classes=1, **options)
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        assert np.array_equal(epochs(num_classes=1, **options), expected)
    finally:
        keras.mixed_precision.set_global_policy("float32")


@every_level
def test_a_change_depends_only_on_its_seed(augment):
    change, again = augmentation(augment), augmentation(augment)
    made = [change(dot(), seed).numpy() for seed in seeds(12)]
    backwards = [again(dot(), seed).numpy() for seed in reversed(seeds(12))]
    assert np.array_equal(made, backwards[::-1])
    assert len({image.tobytes() for image in made}) >= 11
    compiled = tf.function(augmentation(augment))
    assert np.allclose([compiled(dot(), seed) for seed in seeds(12)], made, atol=0.01), (
        "a graph draws the same"
    )


def test_shifts_reach_a_tenth_in_both_directions_and_repeat_the_edge():
    change, far = augmentation("light", flip=False), SIDE // 10
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
    assert abs(np.corrcoef(*np.array(moves).T)[0, 1]) < 0.4, "the directions are independent"
    plain = np.full((SIDE, SIDE, 3), 90, "uint8")
    assert np.allclose([change(plain, seed) for seed in seeds(5)], 90, atol=0.01)


@every_level
def test_images_of_any_shape_keep_it(augment):
    for seed in seeds(20):
        assert augmentation(augment)(np.zeros((12, 30, 3), "uint8"), seed).shape == (12, 30, 3)


def test_standard_changes_colors_but_not_hues_and_light_does_not():
    plain = np.tile(np.array([150, 90, 60], "uint8"), (SIDE, SIDE, 1))
    for level in ("light", "standard"):
        change = augmentation(level)
        colors = np.array([change(plain, seed)[SIDE // 2, SIDE // 2] for seed in seeds(60)])
        if level == "light":
            assert np.allclose(colors, plain[0, 0], atol=0.1)
            continue
        brightness, saturation = colors.max(axis=1) / 150, 1 - colors.min(axis=1) / colors.max(axis=1)
        assert brightness.std() > 0.05 and saturation.std() > 0.04
        assert brightness.min() > 0.7 and brightness.max() < 1.3, "moderate"
        assert (np.diff(colors, axis=1) < 0).all(), "the order of red, green and blue stays"


def test_standard_zooms_by_at_most_a_quarter():
    widths = []
    disc = np.zeros((80, 80, 3), "uint8")
    disc[35:45, 35:45] = 255
    change = augmentation("standard", flip=False)
    for seed in seeds(60):
        bright = change(disc, seed).numpy()[..., 0]
        bright = (bright - bright.min()) / (bright.max() - bright.min())
        widths.append([bright.sum(axis=axis).sum() / bright.sum(axis=axis).max() for axis in (0, 1)])
    widths = np.array(widths)
    assert 9 < widths.min() < 10 and 12 < widths.max() < 13.8


def test_strong_erases_a_piece_of_some_images():
    """The erased piece is noise, which is rougher than any other change of a plain image."""
    plain = np.full((400, SIDE, SIDE, 3), 90, "uint8")
    (images,) = epochs(split=Split(plain, np.zeros(400, "int64"), ["x"] * 400), augment="strong")
    rough = (np.abs(np.diff(images, axis=2)) > 20).any(axis=3)
    erased = rough.any(axis=(1, 2))
    assert abs(erased.mean() - ERASED) < 0.08
    assert (rough[erased].mean(axis=(1, 2)) < 0.6).all(), "a piece, not all"


def test_unknown_levels_and_mixes_raise_an_error():
    with pytest.raises(InputError, match=r"Unknown augmentation 'stong'\. Did you mean 'strong'"):
        augmentation("stong")
    with pytest.raises(InputError, match=r"Unknown mix 'mixupp'\. Did you mean 'mixup'"):
        mixing("mixupp", 3)


def constant(count=24, classes=6) -> tuple[np.ndarray, np.ndarray]:
    """A batch of images of one value each, ten times their class."""
    labels = np.arange(count) % classes
    return np.full((count, SIDE, SIDE, 3), 10.0, "float32") * labels[:, None, None, None], labels


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_labels_match_the_mixed_images(kind):
    """The mean of a mixed image is the mean of the values of its labels."""
    images, labels = constant()
    values = 10.0 * np.arange(6)
    for seed in seeds(10):
        mixed, weights = mixing(kind, 6)(images, labels, seed)
        assert mixed.dtype == weights.dtype == tf.float32 and weights.shape == (24, 6)
        assert np.allclose(weights.numpy().sum(axis=1), 1) and weights.numpy().min() >= 0
        assert np.allclose(mixed.numpy().mean(axis=(1, 2, 3)), weights.numpy() @ values, atol=1e-3)


def test_mixup_blends_whole_images_and_most_of_them_slightly():
    images, labels = constant()
    own = []
    for seed in seeds(20):
        mixed, weights = mixing("mixup", 6)(images, labels, seed)
        assert np.allclose(mixed.numpy().std(axis=(1, 2, 3)), 0, atol=1e-4)
        own.append(weights.numpy()[np.arange(24), labels])
    weights = np.concatenate(own)
    # 80% of Beta(0.2, 0.2) lies below 0.2 or above 0.8; images mixed with their own class count as 1.
    assert 0.05 < ((weights > 0.2) & (weights < 0.8)).mean() < 0.3
    other = np.concatenate(
        [mixing("mixup", 6, alpha=20)(images, labels, s)[1].numpy().max(axis=1) for s in seeds(5)]
    )
    assert np.median(other) < 0.7, "a larger alpha mixes more"


def test_cutmix_pastes_one_rectangle_of_another_image():
    images, labels = constant(24, 24)
    areas = []
    for seed in seeds(10):
        mixed, weights = (tensor.numpy() for tensor in mixing("cutmix", 24)(images, labels, seed))
        for image, weight, label in zip(mixed[..., 0], weights, labels, strict=True):
            pasted = image != 10 * label
            assert len(np.unique(image)) <= 2
            rows, columns = pasted.any(axis=1).sum(), pasted.any(axis=0).sum()
            assert pasted.sum() == rows * columns
            assert weight[label] == pytest.approx(1 - pasted.mean(), abs=1e-6), "weighted by pixels"
            areas.append(pasted.mean())
    assert min(areas) < 0.1 and max(areas) > 0.8 and 0.3 < np.mean(areas) < 0.6


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixes_differ_by_epoch_and_repeat_by_seed_on_any_number_of_threads(kind):
    def labels(seed, threads):
        options = {"training": True, "mix": kind, "num_classes": 64, "batch_size": 10, "seed": seed}
        dataset = make_dataset(numbered(64), image_size=(SIDE, SIDE), **options)
        limits = tf.data.Options()
        limits.threading.private_threadpool_size = threads
        return [np.concatenate([y for _, y in dataset.with_options(limits)]) for _ in range(2)]

    first, again, other = labels(1, 1), labels(1, 8), labels(2, 8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first, other)
    assert first[0].shape == (64, 64), "the small last batch is mixed too"
    for one, other in ((first[0][:10], first[0][10:20]), (first[0][:10], first[1][:10])):
        assert not np.allclose(one.max(axis=1), other.max(axis=1)), "each batch draws its own weights"
    in_two = (first[0] > 0).sum(axis=1)
    assert in_two.max() == 2 and (in_two == 2).mean() > 0.5
