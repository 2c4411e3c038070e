"""Splits are seeded, stratified, disjoint and complete, and never separate duplicates or groups."""

import logging

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.images.splitting import Split, complete_splits, few_per_class, stratified_split

FRACTIONS = {"val": 0.1, "test": 0.2}


def numbers(digests) -> np.ndarray:
    return np.unique(list(digests), return_inverse=True)[1]


def draw(labels, digests=None, names=None, *, fractions=None, seed=0, groups=None):
    names = names or [f"{i:04}.png" for i in range(len(labels))]
    split = Split(names, np.array(labels), names, groups or ())
    return stratified_split(split, numbers(digests or names), fractions or FRACTIONS, seed=seed)


def images(digests, labels) -> Split:
    """A split in which each image is its own digest."""
    return Split(list(digests), np.array(labels), [f"{i:04}" for i in range(len(labels))])


def complete(parts, *, val=0.1, test=0.2, seed=0):
    names = [f"class{i}" for i in range(1 + max(part.labels.max() for part in parts.values()))]
    same = {name: numbers(part.images) for name, part in parts.items()}
    return complete_splits(parts, same, names, seed=seed, val=val, test=test)


def random_data(seed):
    """Classes of all sizes, with duplicates within and across them."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 300).tolist() + list(range(6)) + [6]
    return labels, [str(d) for d in rng.integers(0, 250, len(labels))]


@pytest.mark.parametrize("seed", range(5))
def test_splits_are_disjoint_and_complete_and_keep_duplicates_together(seed):
    labels, digests = random_data(seed)
    parts = draw(labels, digests, seed=seed)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(labels)))
    seen = [{digests[i] for i in part} for part in parts.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])


@pytest.mark.parametrize("seed", range(5))
def test_every_class_keeps_an_image_for_training(seed):
    labels, digests = random_data(seed)
    parts = draw(labels, digests, fractions={"val": 0.45, "test": 0.5}, seed=seed)
    assert {labels[i] for i in parts["train"]} == set(labels)


def test_every_class_gives_the_same_fraction():
    labels = [0] * 100 + [1] * 50 + [2] * 10
    counts = {name: np.bincount(np.array(labels)[part]).tolist() for name, part in draw(labels).items()}
    assert counts == {"train": [70, 35, 7], "val": [10, 5, 1], "test": [20, 10, 2]}


def test_the_seed_decides_the_split():
    labels = [0, 1] * 50
    assert draw(labels, seed=3) == draw(labels, seed=3)
    assert draw(labels, seed=3)["test"] != draw(labels, seed=4)["test"]


def test_classes_of_one_size_draw_different_positions():
    parts = draw([0] * 50 + [1] * 50)
    first = [i for i in parts["test"] if i < 50]
    assert first != [i - 50 for i in parts["test"] if i >= 50]


def test_the_order_of_the_images_does_not_matter():
    labels, digests = random_data(0)
    names = [f"{i:04}.png" for i in range(len(labels))]
    order = np.random.default_rng(1).permutation(len(labels))
    straight = draw(labels, digests, names)
    other = draw([labels[i] for i in order], [digests[i] for i in order], [names[i] for i in order])
    for name, part in straight.items():
        assert {names[i] for i in part} == {names[order[i]] for i in other[name]}


def test_duplicates_count_as_one_image():
    """Ten copies of one image and ten different images are eleven images to draw from."""
    digests = ["same"] * 10 + [str(i) for i in range(10)]
    for seed in range(10):
        parts = draw([0] * 20, digests, fractions={"test": 0.2}, seed=seed)
        assert len({digests[i] for i in parts["test"]}) == 2


def test_duplicates_with_conflicting_labels_are_used_for_training_only(caplog):
    labels, digests = [0] * 10 + [1] * 10, [str(i) for i in range(10)] * 2
    digests[9], digests[19] = "nine", "nineteen"
    for seed in range(10):
        parts = draw(labels, digests, seed=seed)
        assert parts["train"] == list(range(20)), (
            "each class has one image without a conflict, which stays in train"
        )
    assert "Using 18 images for training only: their labels conflict" in caplog.text


@pytest.mark.parametrize(
    ("size", "sizes"), [(1, (1, 0, 0)), (2, (1, 0, 1)), (3, (1, 1, 1)), (4, (2, 1, 1)), (10, (7, 1, 2))]
)
def test_small_classes_fill_train_first_then_test_then_val(size, sizes):
    parts = draw([0] * size + [1] * 30)
    assert tuple(sum(i < size for i in parts[name]) for name in ("train", "val", "test")) == sizes


@pytest.mark.parametrize("test", [0.5, 0.85])
def test_a_large_test_set_leaves_an_image_for_validation(test):
    assert len(draw([0] * 3, fractions={"val": 0.1, "test": test})["val"]) == 1


def test_a_fraction_of_zero_draws_nothing():
    parts = draw([0] * 10, fractions={"val": 0.0, "test": 0.0})
    assert [len(part) for part in parts.values()] == [0, 0, 10]


def test_missing_splits_are_drawn_from_train():
    done = complete({"train": images(map(str, range(40)), [0, 1] * 20)})
    assert {name: len(part) for name, part in done.items()} == {"train": 28, "val": 4, "test": 8}
    for part in done.values():
        assert all(int(d) % 2 == label for d, label in zip(part.images, part.labels, strict=True))


def test_val_without_test_becomes_the_test_set_and_a_new_val_is_drawn():
    parts = {"train": images("abcdefghij" * 2, [0] * 20), "val": images("xyz", [0, 0, 0])}
    done = complete(parts)
    assert list(done["test"].images) == ["x", "y", "z"]
    assert len(done["val"]) and set(done["val"].images) <= set("abcdefghij")


def test_provided_splits_are_kept():
    parts = {name: images(name, [0] * len(name)) for name in ("train", "val", "test")}
    assert {name: list(part.images) for name, part in complete(parts).items()} == {
        "train": list("train"),
        "val": list("val"),
        "test": list("test"),
    }


def test_clean_splits_raise_no_warning(caplog):
    complete({"train": images("abcdefgh", [0, 1] * 4), "test": images("xy", [0, 1])})
    complete({"train": images(map(str, range(20)), [0, 1] * 10)})
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.mark.parametrize("labels", [[0] * 4 + [1] * 4, [0] * 8], ids=["across classes", "within one"])
def test_data_with_a_single_different_image_raise_an_error(labels):
    with pytest.raises(InputError, match=r"8 images .* 1 of them different. Add images"):
        complete({"train": images(["same"] * 8, labels)})


def test_one_image_per_class_raises_an_error_unless_nothing_is_drawn():
    single = {"train": images("ab", [0, 1])}
    with pytest.raises(InputError, match="at least 2 different images"):
        complete(single)
    assert len(complete(single, val=0, test=0)["train"]) == 2
    assert len(complete({**single, "test": images("xy", [0, 1])})["train"]) == 2, (
        "one-shot training with a provided test set"
    )


def test_classes_without_test_images_are_reported(caplog):
    digests = [*map(str, range(10)), *["same"] * 10, "single"]
    done = complete({"train": images(digests, [0] * 10 + [1] * 10 + [2])})
    assert set(done["test"].labels) == {0}
    assert "The test set has no images of class1, class2" in caplog.text


def test_taking_keeps_images_labels_and_names_together():
    part = images("abc", [2, 0, 1]).take(np.array([2, 0]))
    assert (list(part.images), part.labels.tolist(), part.names) == (["c", "a"], [1, 2], ["0002", "0000"])
    arrays = Split(np.arange(12).reshape(3, 2, 2), np.array([0, 1, 2]), list("abc")).take([1])
    assert arrays.images[0].tolist() == [[4, 5], [6, 7]] and arrays.names == ["b"]


def test_taking_from_a_taken_split_reads_no_image_until_it_is_indexed():
    class Unread(list):
        def __getitem__(self, i):
            read.append(i)
            return super().__getitem__(i)

    read: list[int] = []
    part = Split(Unread("abcdef"), np.arange(6), list("abcdef"), groups=list("uvwxyz"))
    part = part.take([5, 3, 1]).take([2, 0])
    assert not read
    assert (list(part.images), part.names, part.groups) == (["b", "f"], ["b", "f"], ["v", "z"])
    assert read == [1, 5]


def patients(seed, count=60):
    """Patients with 1 to 9 images each, of one class or of several."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 10, count)
    groups = np.repeat([f"patient{i}" for i in range(count)], sizes).tolist()
    usual = np.repeat(rng.integers(0, 3, count), sizes)
    other = rng.integers(0, 3, len(groups))
    return np.where(rng.random(len(groups)) < 0.3, other, usual).tolist(), groups


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_in_one_split_and_sizes_are_nearly_met(seed):
    labels, groups = patients(seed)
    parts = draw(labels, groups=groups, seed=seed)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(labels)))
    seen = [{groups[i] for i in part} for part in parts.values()]
    assert not (seen[0] & seen[1] or seen[0] & seen[2] or seen[1] & seen[2])
    for name, fraction in FRACTIONS.items():
        assert abs(len(parts[name]) / len(labels) - fraction) < 0.05
        assert {labels[i] for i in parts[name]} == {0, 1, 2}
    assert {labels[i] for i in parts["train"]} == {0, 1, 2}


def test_duplicates_join_groups_over_several_steps():
    """a1 and b1 are duplicates, and so are b2 and c1: groups a, b and c stay together."""
    names = ["a1", "a2", "b1", "b2", "c1", "c2"] + [f"x{i}" for i in range(20)]
    digests = ["1", "2", "1", "3", "3", "4", *names[6:]]
    groups = ["a", "a", "b", "b", "c", "c", *names[6:]]
    for seed in range(20):
        parts = draw([0] * 26, digests, names, groups=groups, seed=seed)
        assert len({name for name, part in parts.items() if set(part) & set(range(6))}) == 1


def test_of_two_large_groups_the_smaller_one_is_the_test_set():
    parts = draw([0] * 40, groups=["p"] * 25 + ["q"] * 15, fractions={"test": 0.2})
    assert parts["test"] == list(range(25, 40)), "the smaller group"
    assert draw([0] * 40, groups=["p"] * 40, fractions={"test": 0.2})["test"] == []


def test_a_group_with_all_images_of_a_class_stays_in_train():
    labels, groups = [0] * 30 + [1] * 3, [str(i % 10) for i in range(30)] + ["3"] * 3
    for seed in range(20):
        parts = draw(labels, groups=groups, seed=seed)
        assert {30, 31, 32, 3, 13, 23} <= set(parts["train"]) and parts["test"]


@pytest.mark.parametrize("test", [7, 20, 61])
def test_numbers_of_images_are_met_exactly_and_in_proportion_to_classes(test):
    labels = [0] * 100 + [1] * 50 + [2] * 10
    parts = draw(labels, fractions={"val": 5, "test": test})
    assert (len(parts["val"]), len(parts["test"])) == (5, test)
    counts = np.bincount([labels[i] for i in parts["test"]], minlength=3)
    assert np.abs(counts - test * np.array([100, 50, 10]) / 160).max() <= 1


def test_a_fraction_and_a_number_can_be_combined():
    parts = draw([0] * 100, fractions={"val": 0.1, "test": 7})
    assert (len(parts["val"]), len(parts["test"])) == (10, 7)


def test_too_many_images_raise_an_error_with_the_largest_possible_number():
    with pytest.raises(InputError, match=r"at most 18 images for val and test.*val=9, test=10"):
        draw([0, 1] * 10, fractions={"val": 9, "test": 10})
    assert len(draw([0, 1] * 10, fractions={"val": 9, "test": 9})["train"]) == 2


def test_few_per_class_are_different_nested_and_repeatable():
    labels = np.repeat([0, 1, 2], [50, 20, 4])
    names = [f"{i:03}" for i in range(74)]
    split, same = Split(names, labels, names), np.arange(74)
    same[:50] //= 2  # pairs of duplicates
    few = {n: few_per_class(split, same, n, seed=0).names for n in (1, 3, 10, 60)}
    assert [len(few[n]) for n in few] == [3, 9, 24, 49]
    assert set(few[1]) < set(few[3]) < set(few[10]) < set(few[60])
    assert len({same[int(name)] for name in few[60]}) == 49
    assert few[3] == few_per_class(split, same, 3, seed=0).names
    assert few[3] != few_per_class(split, same, 3, seed=1).names


@pytest.mark.parametrize("seed", range(20))
def test_each_label_of_several_keeps_a_training_image(seed):
    random = np.random.default_rng(seed)
    labels = (random.random((60, 8)) < [0.5, 0.3, 0.1, 0.05, 0.03, 0.03, 0.02, 0.02]).astype("int8")
    groups = [f"g{i}" for i in random.integers(0, 25, 60)]
    split = Split([f"{i}" for i in range(60)], labels, [f"{i}.png" for i in range(60)], groups)
    drawn = stratified_split(split, np.arange(60), {"val": 0.3, "test": 0.5}, seed=seed)
    assert sorted(i for positions in drawn.values() for i in positions) == [*range(60)]
    assert labels[drawn["train"]].any(axis=0).tolist() == labels.any(axis=0).tolist()
    of_group = {}
    for name, positions in drawn.items():
        for i in positions:
            assert of_group.setdefault(groups[i], name) == name
