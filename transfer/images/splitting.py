"""The one place that splits: seeded, stratified, the same image and the same group on one side."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from transfer.common.errors import InputError
from transfer.images.decoding import decode, to_rgb_array
from transfer.images.duplicates import join
from transfer.images.tables import SPLITS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """Some images with their labels, not decoded yet unless they came as an array."""

    # Any sequence, read when it is indexed, by several threads at once: of paths, encoded images as
    # bytes, or arrays of shape (H, W[, C]), 0 to 255.
    images: Any
    # Int64 array of shape (N,), positions in the class names.
    labels: np.ndarray
    # What to call each image, each different: paths relative to the data folder, or numbers.
    names: Sequence[str]
    groups: Sequence[str] = ()
    # SHA-256 of each image's content, in hexadecimal.
    digests: Sequence[str] = ()
    # How images are brought to another shape, of `images.RESIZES`.
    resize: str = "stretch"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Sequence[int] | np.ndarray) -> Split:
        """Give the images at `positions`, in that order, as a new split; none is read."""
        picked = np.asarray(positions, "int64").reshape(-1)
        each = picked.tolist()
        return replace(
            self,
            images=_Picked(self.images, picked),
            labels=self.labels[picked],
            names=[self.names[p] for p in each],
            groups=[self.groups[p] for p in each] if len(self.groups) else (),
            digests=[self.digests[p] for p in each] if len(self.digests) else (),
        )

    def image(self, position: int, size: tuple[int, int]) -> np.ndarray:
        """Decode one image: uint8 of shape (height, width, 3)."""
        item = self.images[position]
        to_pixels = to_rgb_array if isinstance(item, np.ndarray) else decode
        return to_pixels(item, size, resize=self.resize)


@dataclass(frozen=True)
class SourceData:
    """What a source holds, before any image is opened."""

    parts: dict[str, Split]
    class_names: list[str]
    skipped: Sequence[tuple[str, str]] = ()
    ignored: Sequence[str] = ()


class _Picked(Sequence):
    """Some items of a sequence, each read when it is asked for."""

    def __init__(self, items: Sequence[Any] | np.ndarray, positions: np.ndarray) -> None:
        if isinstance(items, _Picked):  # one step to the item, however often it was picked from
            positions, items = items.positions[positions], items.items
        self.items: Any = items
        self.positions: np.ndarray = positions

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, i: Any) -> Any:
        return self.items[int(self.positions[i])]


def complete_splits(
    parts: Mapping[str, Split],
    same: Mapping[str, np.ndarray],
    class_names: Sequence[str],
    *,
    seed: int,
    val: float | int,
    test: float | int,
) -> dict[str, Split]:
    """Draw the splits that the source does not have from its training part."""
    if "val" in parts and "test" not in parts:
        log.info("There is no test split: val is the test set, and validation is drawn from train.")
        parts = {"train": parts["train"], "test": parts["val"]}
        same = {"train": same["train"], "test": same["val"]}
    sizes = {name: size for name, size in (("val", val), ("test", test)) if name not in parts}
    train = parts["train"]
    drawn = stratified_split(train, same["train"], sizes, seed=seed)
    done = {**parts, **{name: train.take(positions) for name, positions in drawn.items()}}
    if any(sizes.values()) and not len(done["val"]) and not len(done["test"]):
        groups = f" in {len(set(train.groups))} groups" if len(train.groups) else ""
        raise InputError(
            "Expected a class with at least 2 different images, to measure on those not trained on. Received: "
            f"{len(train)} images of {len(np.unique(train.labels))} classes{groups}, "
            f"{len(np.unique(same['train']))} of them different. Add images, or ask for val=0 and test=0."
        )
    if sizes.get("test"):
        unseen = sorted(set(train.labels.tolist()) - set(done["test"].labels.tolist()))
        if unseen:
            listed = ", ".join(class_names[i] for i in unseen)
            log.warning("No test images of %s: too few different ones to spare any.", listed)
    return {name: done[name] for name in SPLITS}


def stratified_split(
    images: Split, same: np.ndarray, sizes: Mapping[str, float | int], *, seed: int
) -> dict[str, list[int]]:
    """Draw disjoint splits, the same share from every class; what belongs together stays on one side."""
    units = _units(images, same)
    if any(unit.contradictory for unit in units):
        count = sum(len(unit.members) for unit in units if unit.contradictory)
        log.warning("%d images are, or belong to, the same image in several classes: kept to train.", count)
    free = [unit for unit in units if not unit.contradictory]
    left = _total(units)  # what train has yet, by class
    wanted = _wanted(_total(free), sizes)
    drawn: dict[str, list[int]] = {name: [] for name in sizes}
    taken = {name: Counter[int]() for name in sizes}
    by_home: dict[int, list[_Unit]] = {}
    for unit in free:
        by_home.setdefault(unit.home, []).append(unit)
    for label, home in sorted(by_home.items()):
        home = [home[i] for i in np.random.default_rng([seed, label]).permutation(len(home))]
        for name in reversed(list(sizes)):
            picked = _draw(home, label, wanted[name].get(label, 0), taken[name], left)
            drawn[name] += [i for unit in picked for i in unit.members]
            gone = {id(unit) for unit in picked}
            home = [unit for unit in home if id(unit) not in gone]
    rest = set(range(len(images))) - {i for positions in drawn.values() for i in positions}
    return {name: sorted(positions) for name, positions in (*drawn.items(), ("train", rest))}


@dataclass(frozen=True, eq=False, slots=True)
class _Unit:
    """Images that must stay together."""

    members: list[int]
    weights: dict[int, int]
    home: int
    contradictory: bool


def _units(images: Split, same: np.ndarray) -> list[_Unit]:
    """Join what shows the same and what is of one group, over however many steps."""
    links = [np.unique(numbers, return_inverse=True)[1] for numbers in (same, images.groups) if len(numbers)]
    count = len(images)
    pairs = [np.stack([np.arange(count), count * (i + 1) + link], axis=1) for i, link in enumerate(links)]
    together = join(count * (len(links) + 1), np.concatenate(pairs))[:count].tolist()
    members: dict[int, list[int]] = {}
    for i in sorted(range(count), key=images.names.__getitem__):
        members.setdefault(together[i], []).append(i)
    numbers, labels = (
        np.asarray(same).tolist(),
        images.labels.tolist(),
    )  # an array's items one by one are slow
    units = []
    for positions in members.values():
        shown = {(numbers[i], labels[i]) for i in positions}
        weights: dict[int, int] = {}
        for _, label in shown:
            weights[label] = weights.get(label, 0) + 1
        home = min(weights, key=lambda label: (-weights[label], label))
        units.append(_Unit(positions, weights, home, len({number for number, _ in shown}) < len(shown)))
    return units


def _total(units: Sequence[_Unit]) -> Counter[int]:
    total: Counter[int] = Counter()
    for unit in units:
        for label, count in unit.weights.items():
            total[label] += count
    return total


def _wanted(counts: Mapping[int, int], sizes: Mapping[str, float | int]) -> dict[str, dict[int, int]]:
    """How many of each class each split is to get, the last-named splits first where they are few."""
    most = max(0, sum(counts.values()) - len(counts))  # one of each class stays to train on
    if sum(size for size in sizes.values() if not isinstance(size, float)) > most:
        shown = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise InputError(
            f"Expected at most {most} images for {' and '.join(sizes)}, so that each of {len(counts)} classes "
            f"keeps one of its {sum(counts.values())} different ones to train on. Received: {shown}."
        )
    wanted: dict[str, dict[int, int]] = {name: {} for name in sizes}
    room = {label: count - 1 for label, count in counts.items()}
    asked = [name for name, size in sizes.items() if size > 0]
    for others, name in zip(reversed(range(len(asked))), reversed(asked), strict=True):
        size = sizes[name]
        if isinstance(size, float):  # and one for each of the other splits, where there are enough
            spare = {label: max(n - others, min(n, 1)) for label, n in room.items()}
            wanted[name] = {c: min(max(1, round(n * size)), spare[c]) for c, n in counts.items()}
        else:
            wanted[name] = _apportion(counts, size, room)
        room = {label: n - wanted[name][label] for label, n in room.items()}
    return wanted


def _apportion(counts: Mapping[int, int], size: int, room: Mapping[int, int]) -> dict[int, int]:
    """Share out a count over the classes by their sizes: largest remainders get what rounding down
    leaves."""
    total = max(1, sum(counts.values()))
    given = {label: min(size * n // total, room[label]) for label, n in counts.items()}
    by_remainder = sorted(counts, key=lambda label: (-(size * counts[label] % total), label))
    missing = min(size, sum(room.values())) - sum(given.values())
    while missing:
        for label in by_remainder:
            if missing and given[label] < room[label]:
                given[label] += 1
                missing -= 1
    return given


def _draw(
    home: Sequence[_Unit], label: int, wanted: int, taken: Counter[int], left: Counter[int]
) -> list[_Unit]:
    """Take units in order while that comes nearer to what is wanted, and leave each class one to train
    on."""
    drawn: list[_Unit] = []

    def take(unit: _Unit) -> None:
        drawn.append(unit)
        taken.update(unit.weights)
        left.subtract(unit.weights)

    def spare(unit: _Unit) -> bool:
        return all(left[c] > n for c, n in unit.weights.items())

    for unit in home:
        if taken[label] >= wanted:
            break
        if unit.weights[label] < 2 * (wanted - taken[label]) and spare(unit):
            take(unit)
    if wanted and not taken[label]:  # all are too large: one too many is better than none
        fitting = sorted(filter(spare, home), key=lambda unit: unit.weights[label])
        if fitting:
            take(fitting[0])
    return drawn


def few_per_class(images: Split, same: np.ndarray, count: int, *, seed: int) -> Split:
    """Keep some images of each class, all different, for experiments with little data."""
    chosen: list[int] = []
    order = sorted(range(len(images)), key=lambda i: images.names[i])
    by_class: dict[int, list[int]] = {}
    for i in order:
        by_class.setdefault(int(images.labels[i]), []).append(i)
    for label, members in sorted(by_class.items()):
        shuffled = [members[i] for i in np.random.default_rng([seed, label]).permutation(len(members))]
        first = {int(same[i]): i for i in reversed(shuffled)}  # of those that show the same, the first
        chosen += [i for i in shuffled if first[int(same[i])] == i][:count]
    return images.take(sorted(chosen))
