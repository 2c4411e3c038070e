"""Folds follow the rules of a drawn split: stratified, seeded, with duplicates and groups together."""

import logging

import numpy as np
import pytest
from helpers.images import COLORS, write_image

from transfer.common.errors import InputError
from transfer.images.datasets import load_data
from transfer.images.folds import fold_data
from transfer.images.splitting import Split, assign_folds


def folds_of(labels, digests=None, *, count=5, seed=0, groups=(), names=None):
    names = names or [f"{i:04}.png" for i in range(len(labels))]
    ids = np.unique([*(digests or names)], return_inverse=True)[1]
    return assign_folds(Split(names, np.array(labels), names, groups), ids, count, seed=seed)


def random_data(seed):
    """Classes of all sizes, with duplicates within and across them, in groups."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 6, 300).tolist() + list(range(6)) + [6]
    digests = [str(d) for d in rng.integers(0, 280, len(labels))]
    groups = [str(g) for g in rng.integers(0, 90, len(labels))]
    return np.array(labels), digests, groups


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_folds_keep_duplicates_and_groups_together_and_every_class_in_training(seed, grouped):
    labels, digests, groups = random_data(seed)
    if grouped:  # otherwise all groups with a conflicting image would only train
        digests = [f"{label} {digest}" for label, digest in zip(labels, digests, strict=True)]
    folds = folds_of(labels, digests, seed=seed, groups=groups if grouped else ())
    for keys in (digests, groups if grouped else digests):
        assert all(
            len({fold for fold, k in zip(folds, keys, strict=True) if k == key}) == 1 for key in set(keys)
        )
    for fold in range(5):
        assert set(labels[folds != fold]) == set(labels)
        assert len(np.unique(labels[folds == fold])) >= 2
    conflicting = {d for d in digests if len({y for y, e in zip(labels, digests, strict=True) if e == d}) > 1}
    assert all(fold == -1 for fold, d in zip(folds, digests, strict=True) if d in conflicting)
    assert grouped or conflicting
    assert folds[-1] == -1  # the only image of its class


def test_folds_are_stratified():
    labels = np.repeat([0, 1, 2], [100, 50, 10])
    folds = folds_of(labels)
    counts = np.stack([np.bincount(labels[folds == fold]) for fold in range(5)])
    assert np.abs(counts - [20, 10, 2]).max() <= 1 and (folds >= 0).all()


def test_folds_depend_on_names_and_seed_and_not_on_the_order():
    labels, names = np.array([0, 1] * 30), [f"{i:04}.png" for i in range(60)]
    order = np.random.default_rng(0).permutation(60)
    again = folds_of(labels[order], names=[names[i] for i in order])
    assert again.tolist() == folds_of(labels, names=names)[order].tolist()
    assert folds_of(labels, seed=1).tolist() != folds_of(labels).tolist()


def test_a_class_of_few_images_is_in_few_folds_and_always_in_training():
    labels = np.array([0] * 20 + [1] * 2)
    folds = folds_of(labels)
    assert all((labels[folds != fold] == 1).any() for fold in range(5)) and (folds[labels == 1] >= 0).any()


@pytest.mark.parametrize(("labels", "groups", "text"), [
    ([0, 0, 0, 1, 1], (), "Expected 2 to 3 folds"),
    ([0, 1] * 20, ["a", "b"] * 20, "Expected more images for folds: no class has more than 1 group"),
    ([0, 1] * 20, [str(i // 10) for i in range(40)], "Expected 2 to 4 folds"),
])  # fmt: skip
def test_more_folds_than_different_images_are_refused(labels, groups, text):
    with pytest.raises(InputError, match=text):
        folds_of(labels, groups=groups)


def test_every_image_is_tested_once_whatever_split_was_drawn(color_folder):
    data = load_data(color_folder)
    folded = fold_data(data, 4, seed=0)
    assert (
        folded.count == 4
        and len(folded.data.train) == 90
        and not len(folded.data.val) + len(folded.data.test)
    )
    parts = [folded.fold(number, 0.1) for number in range(4)]
    assert sorted(name for part in parts for name in part.test.names) == sorted(folded.data.train.names)
    for part in parts:
        names = [set(split.names) for split in part.splits.values()]
        assert len(part.val) >= 3 and sum(map(len, names)) == len(set.union(*names)) == 90
    other = fold_data(load_data(color_folder, seed=5, val=0.3, test=0.4), 4, seed=0)
    assert other.data.train.names == folded.data.train.names and (other.folds == folded.folds).all()
    final = folded.final()
    assert (len(final.train), len(final.val), len(final.test)) == (90, 0, 0)
    assert {name: sum(counts) for name, counts in final.report.counts.items()} == {
        "train": 90,
        "val": 0,
        "test": 0,
    }


def test_near_duplicates_are_in_one_fold(tmp_path):
    for number, color in enumerate(COLORS.values()):
        for i in range(8):
            write_image(tmp_path / "ab"[number % 2] / f"{number}{i}.png", color, seed=10 * number + i)
    from PIL import Image

    for file in sorted((tmp_path / "a").glob("*.png")):
        Image.open(file).resize((80, 80)).save(file.with_name(f"copy of {file.name}"))
    data = load_data(tmp_path)
    folded = fold_data(data, 4, seed=0)
    fold_of = dict(zip(folded.data.train.names, folded.folds.tolist(), strict=True))
    sets = [same.names for same in data.report.duplicates]
    assert len(sets) >= 16 and all(len({fold_of[name] for name in names}) == 1 for names in sets)


def test_splits_of_the_source_keep_their_role(tmp_path):
    for split, count in (("train", 12), ("val", 3), ("test", 4)):
        for number, (name, color) in enumerate(COLORS.items()):
            for i in range(count):
                write_image(tmp_path / split / name / f"{i}.png", color, seed=100 * number + i + 50 * count)
    folded = fold_data(load_data(tmp_path), 3, seed=0)
    part = folded.fold(0, 0.2)
    assert [len(folded.data.train), len(part.val), len(part.test)] == [36, 9, 12]
    assert all("val" in name for name in part.val.names) and all("train" in name for name in part.test.names)
    assert [len(split) for split in folded.final(0.2).splits.values()] == [36, 9, 12]


def test_images_that_only_train_are_reported(color_folder, tmp_path, caplog):
    for name in COLORS:
        for i in range(6):
            write_image(tmp_path / name / f"{i}.png", COLORS[name], seed=i)
    (tmp_path / "red" / "also blue.png").write_bytes((tmp_path / "blue" / "0.png").read_bytes())
    with caplog.at_level(logging.WARNING):
        folded = fold_data(load_data(tmp_path), 3, seed=0)
    assert "2 images are used for training only" in caplog.text
    assert len(folded.tested) == 17 and "also blue.png" not in "".join(folded.fold(0).test.names)
