"""Draw stratified splits from a seed; duplicates and groups are never separated."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.images.duplicates import component_ids
from transfer.images.split import SourceData as SourceData
from transfer.images.split import Split as Split
from transfer.images.split import concatenate as concatenate
from transfer.images.split import groups_of as groups_of
from transfer.images.split_words import SPLITS
from transfer.images.stratification import distribute, strata_of

log = logging.getLogger(__name__)

Item = TypeVar("Item")


def complete_splits(
    parts: Mapping[str, Split],
    duplicate_ids: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    seed: int,
    val: float | int,
    test: float | int,
) -> dict[str, Split]:
    """Return train, val and test; splits that the source lacks are drawn from train."""
    if "val" in parts and "test" not in parts and test:
        log.info(
            "Found no test split: val becomes the test set, and a new validation set is drawn from train."
        )
        parts = {"train": parts["train"], "test": parts["val"]}
    train, ids = parts["train"], duplicate_ids["train"]
    sizes = {name: size for name, size in (("val", val), ("test", test)) if name not in parts}
    drawn = stratified_split(train, ids, sizes, seed=seed)
    splits = {**parts, **{name: train.take(positions) for name, positions in drawn.items()}}
    if any(sizes.values()) and not len(splits["val"]) and not len(splits["test"]):
        groups = f" in {plural(len(set(train.groups)), 'group')}" if len(train.groups) else ""
        raise InputError(
            "Expected a class with at least 2 different images, so that one can be held out. Received: "
            f"{plural(len(train), 'image')} of {len(np.unique(train.labels, axis=0))} classes{groups}, "
            f"{len(np.unique(ids))} of them different. Add images, or set val=0 and test=0."
        )
    for name, purpose in (("test", "test"), ("val", "validation")):
        lacking = sorted(_present(train.labels) - _present(splits[name].labels))
        if sizes.get(name) and lacking:
            why = "too few different images or groups to hold one out"
            if not isinstance(sizes[name], float) and sizes[name] < len(class_names):
                why = f"{name}={sizes[name]} is less than one image for each of {len(class_names)} classes"
            names = ", ".join(class_names[i] for i in lacking)
            log.warning("The %s set has no images of %s: %s.", purpose, names, why)
    return {name: splits[name] for name in SPLITS}


def _present(labels: np.ndarray) -> set[int]:
    """Return the classes or labels that images have; empty for a regression."""
    if labels.dtype.kind == "f":
        return set()
    found = np.flatnonzero(labels.any(axis=0)) if labels.ndim == 2 else np.unique(labels)
    return set(found.tolist())


def split_sizes(val: float | int, test: float | int) -> dict[str, float | int]:
    """Return the sizes of splits as fractions (float) or numbers of images (int), fractions first."""
    sizes = {"val": val, "test": test}
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int | float | np.integer | np.floating):
            raise InputError(
                f"Expected {name} as a fraction below 1 or a number of images; 0 for none. Received: {name}={size!r}."
            )
    counts = {name: size for name, size in sizes.items() if isinstance(size, int | np.integer)}
    fractions = {name: float(size) for name, size in sizes.items() if name not in counts}
    if not all(size >= 0 for size in sizes.values()) or not sum(fractions.values()) < 1:
        raise InputError(
            "Expected val and test of 0 or more: fractions with a sum below 1, or whole numbers of images. Received: "
            f"val={val}, test={test}. Leave some images for training."
        )
    return {**fractions, **counts}


def stratified_split(
    images: Split,
    duplicate_ids: np.ndarray,
    sizes: Mapping[str, float | int],
    *,
    seed: int,
    warn: bool = True,
) -> dict[str, list[int]]:
    """Return the positions of disjoint splits, and the rest as "train"; classes keep their proportions."""
    units = _units(images, duplicate_ids)
    if warn and (conflicts := sum(len(unit.members) for unit in units if unit.conflicting)):
        log.warning(
            "Using %s for training only: their labels conflict, or they share a group with such an image.",
            plural(conflicts, "image"),
        )
    free = [unit for unit in units if not unit.conflicting]
    if images.labels.ndim == 2:
        return _distributed(images, free, sizes, seed=seed)
    if images.labels.dtype.kind == "f":  # fractions of each band would be rounded ten times
        total = sum(unit.weights.total() for unit in free)
        sizes = {
            name: round(size * total) if isinstance(size, float) else size for name, size in sizes.items()
        }
    left = _different_images(units)  # number of different images that remain in train, by class
    wanted = _wanted(_different_images(free), sizes)
    drawn: dict[str, list[int]] = {name: [] for name in sizes}
    taken = {name: Counter[int]() for name in sizes}
    by_class: dict[int, list[_Unit]] = {}
    for unit in free:
        by_class.setdefault(unit.main_class, []).append(unit)
    for label, remaining in sorted(by_class.items()):
        remaining = _shuffled(remaining, seed, label)
        for name in reversed(list(sizes)):
            chosen = _draw(remaining, label, wanted[name].get(label, 0), taken[name], left)
            drawn[name] += [i for unit in chosen for i in unit.members]
            gone = set(chosen)
            remaining = [unit for unit in remaining if unit not in gone]
    rest = set(range(len(images))) - {i for positions in drawn.values() for i in positions}
    return {name: sorted(positions) for name, positions in (*drawn.items(), ("train", rest))}


def _distributed(
    images: Split, units: Sequence[_Unit], sizes: Mapping[str, float | int], *, seed: int
) -> dict[str, list[int]]:
    """Return the positions of disjoint splits of images with several labels, and the rest as "train"."""
    members = np.array([i for unit in units for i in unit.members], "int64")
    unit_of = np.repeat(np.arange(len(units)), [len(unit.members) for unit in units])
    total = max(1, len(members))
    fractions = [size if isinstance(size, float) else size / total for size in sizes.values()]
    if sum(fractions) >= 1:
        raise InputError(
            f"Expected fewer than {total} images for {' and '.join(sizes)}. Received: "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}. Use smaller numbers."
        )
    chosen = np.zeros(0, "int64")
    if len(members):
        random = np.random.default_rng(seed)
        chosen = distribute(
            images.labels[members], unit_of, [1 - sum(fractions), *fractions], random, keep=True
        )
    drawn = {name: sorted(members[chosen == i].tolist()) for i, name in enumerate(sizes, start=1)}
    rest = set(range(len(images))) - {i for positions in drawn.values() for i in positions}
    return {**drawn, "train": sorted(rest)}


def assign_folds(images: Split, duplicate_ids: np.ndarray, count: int, *, seed: int) -> np.ndarray:
    """Return the fold of each image, int64 from 0; -1 marks images that are in the training part of every fold."""
    from sklearn.model_selection import StratifiedGroupKFold

    # As in a drawn split, images with conflicting labels only train, and every class keeps an image for training.
    strata = strata_of(images.labels)
    free = [unit for unit in _units(images, duplicate_ids) if not unit.conflicting]
    most = max(Counter(label for unit in free for label in unit.weights).values(), default=0)
    if not 2 <= count <= most:
        what = "groups" if len(images.groups) else "different images"
        expected = f"2 to {most} folds" if most > 2 else "2 folds" if most == 2 else "more images for folds"
        raise InputError(
            f"Expected {expected}: no class has more than {most} {what} without conflicting labels. Received: {count} "
            "folds. Choose another number of folds, or add images."
        )
    members = np.array([i for unit in free for i in unit.members], "int64")
    unit_of = np.repeat(np.arange(len(free)), [len(unit.members) for unit in free])
    folds = np.full(len(images), -1, "int64")
    if images.labels.ndim == 2:
        random = np.random.default_rng(seed)
        folds[members] = distribute(images.labels[members], unit_of, [1 / count] * count, random)
        for column in images.labels.T > 0:  # each label keeps an image for training, as above
            if len(where := np.unique(folds[column])) == 1 and where[0] >= 0:
                folds[free[unit_of[np.isin(members, np.flatnonzero(column))][0]].members] = -1
        return folds
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # small classes are not in all folds
        for fold, (_, out) in enumerate(splitter.split(members, strata[members], unit_of)):
            folds[members[out]] = fold
    for label in np.unique(strata).tolist():
        if len(where := np.unique(folds[strata == label])) == 1 and where[0] >= 0:
            first = next(unit for unit in free if label in unit.weights)
            folds[first.members] = -1
    return folds


@dataclass(frozen=True, eq=False, slots=True)
class _Unit:
    """Images that must stay in one split."""

    members: list[int]
    # Number of different images, by class, by label, or by the band of their numbers.
    weights: Counter[int]
    # The class of most of these images.
    main_class: int
    # Whether an image has several labels.
    conflicting: bool


def _units(images: Split, duplicate_ids: np.ndarray) -> list[_Unit]:
    """Merge the images that duplicates or groups link, directly or through other images."""
    count = len(images)
    # The graph has a node for each image, each duplicate id and each group.
    kinds = [np.unique(ids, return_inverse=True)[1] for ids in (duplicate_ids, images.groups) if len(ids)]
    links = [np.stack([np.arange(count), count * (i + 1) + ids], axis=1) for i, ids in enumerate(kinds)]
    components = component_ids(count * (len(kinds) + 1), np.concatenate(links))[:count].tolist()
    members: dict[int, list[int]] = {}
    for i in sorted(range(count), key=images.names.__getitem__):
        members.setdefault(components[i], []).append(i)
    # Lists index faster than arrays. Several labels of an image are a tuple.
    ids, labels, strata = (
        np.asarray(duplicate_ids).tolist(),
        images.labels.tolist(),
        strata_of(images.labels).tolist(),
    )
    several = images.labels.ndim == 2
    if several:
        labels = [*map(tuple, labels)]
    units = []
    for positions in members.values():
        different = {(ids[i], labels[i]): strata[i] for i in positions}
        weights = Counter(
            [label for row in different.values() for label in np.flatnonzero(row).tolist()]
            if several
            else different.values()
        )
        main_class = min(weights, key=lambda label: (-weights[label], label), default=0)
        conflicting = len({image for image, _ in different}) < len(different)
        units.append(_Unit(positions, weights, main_class, conflicting))
    return units


def _different_images(units: Sequence[_Unit]) -> Counter[int]:
    """Count the different images of each class."""
    return Counter(label for unit in units for label in unit.weights.elements())


def _shuffled(items: Sequence[Item], seed: int, label: int) -> list[Item]:
    """Shuffle the items of a class; each class has its own random numbers."""
    return [items[i] for i in np.random.default_rng([seed, label]).permutation(len(items))]


def _wanted(counts: Mapping[int, int], sizes: Mapping[str, float | int]) -> dict[str, dict[int, int]]:
    """Return the number of images per split and class; if images are few, the last split comes first."""
    total = sum(counts.values())
    most = max(0, total - len(counts))  # each class keeps an image for training
    if sum(size for size in sizes.values() if not isinstance(size, float)) > most:
        raise InputError(
            f"Expected at most {most} images for {' and '.join(sizes)}: there are {total} different images, and each "
            f"of {len(counts)} classes keeps one for training. Received: "
            f"{', '.join(f'{name}={size}' for name, size in sizes.items())}. Use smaller numbers."
        )
    wanted: dict[str, dict[int, int]] = {name: {} for name in sizes}
    capacity = {label: count - 1 for label, count in counts.items()}
    nonempty = [name for name, size in sizes.items() if size > 0]
    for others, name in reversed([*enumerate(nonempty)]):
        size = sizes[name]
        if isinstance(size, float):  # leaves an image for each of the other splits, if there are enough
            spare = {label: max(n - others, min(n, 1)) for label, n in capacity.items()}
            wanted[name] = {c: min(max(1, round(n * size)), spare[c]) for c, n in counts.items()}
        else:
            wanted[name] = _apportion(counts, size, capacity)
        capacity = {label: n - wanted[name][label] for label, n in capacity.items()}
    return wanted


def _apportion(counts: Mapping[int, int], size: int, capacity: Mapping[int, int]) -> dict[int, int]:
    """Distribute `size` over the classes by the largest-remainder method, at most `capacity` to each."""
    total = max(1, sum(counts.values()))
    given = {label: min(size * n // total, capacity[label]) for label, n in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(size * counts[label] % total), label))
    missing = min(size, sum(capacity.values())) - sum(given.values())
    while missing:
        for label in by_remainder:
            if missing and given[label] < capacity[label]:
                given[label] += 1
                missing -= 1
    return given


def _draw(
    units: Sequence[_Unit], label: int, wanted: int, taken: Counter[int], left: Counter[int]
) -> list[_Unit]:
    """Choose units of about `wanted` images of a class, and move their counts from `left` to `taken`."""
    drawn: list[_Unit] = []

    def take(unit: _Unit) -> None:
        drawn.append(unit)
        taken.update(unit.weights)
        left.subtract(unit.weights)

    def can_be_spared(unit: _Unit) -> bool:  # every class keeps an image for training
        return all(left[c] > n for c, n in unit.weights.items())

    for unit in units:
        missing = wanted - taken[label]
        # A unit of twice the missing number or more would end farther from `wanted`.
        if missing > 0 and unit.weights[label] < 2 * missing and can_be_spared(unit):
            take(unit)
    if wanted and not taken[label]:  # all units are too large: take the smallest
        for unit in sorted(filter(can_be_spared, units), key=lambda unit: unit.weights[label])[:1]:
            take(unit)
    return drawn


def few_per_class(images: Split, duplicate_ids: np.ndarray, count: int, *, seed: int) -> Split:
    """Return at most `count` different images of each class; a label of several may have more, from other labels."""
    by_class: dict[int, list[int]] = {}
    several, strata = images.labels.ndim == 2, strata_of(images.labels)
    for i in sorted(range(len(images)), key=images.names.__getitem__):
        for label in np.flatnonzero(strata[i]).tolist() if several else [int(strata[i])]:
            by_class.setdefault(label, []).append(i)
    chosen: list[int] = []
    for label, members in by_class.items():
        first: dict[int, int] = {}
        for i in _shuffled(members, seed, label):
            first.setdefault(int(duplicate_ids[i]), i)
        chosen += [*first.values()][:count]
    return images.take(sorted(set(chosen)))
