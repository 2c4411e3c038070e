"""Classes merged from a finer tree: train on fine classes, and sum their probabilities up to coarse ones."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from transfer.common.errors import InputError, one_line, unknown
from transfer.evaluation.evaluate import Evaluation

COLUMNS = ("fine", "coarse")
"""Of a tree in a CSV file: a class, and what it belongs to."""


def merge(found: Evaluation, parents: Mapping[str, str], *, to: Sequence[str] | None = None) -> Evaluation:
    """Give the evaluation of coarser classes, each as probable as all fine ones that belong to it together.

    So do Esteva et al. 2017 (doi:10.1038/nature21056): the network learns many fine classes, which look alike within
    and differ from one another, and the probability of a coarse class is the sum of those of its descendants.

    Args:
        found: of `evaluate`, on the fine classes.
        parents: what each class belongs to, over as many levels as there are; one that belongs to itself stays.
        to: where to stop on the way up; None goes up to the classes that belong to none.

    Returns:
        The evaluation of the coarse classes, sorted by name; images and groups are the same.

    Raises:
        InputError: a fine class is not in the tree, or leads to none of `to`; the tree has a class that there is not,
            goes round in circles, or leaves a single class.

    Example:
        >>> probabilities = np.array([[0.3, 0.3, 0.4], [0.0, 0.2, 0.8]])
        >>> found = Evaluation(("ant", "bee", "cat"), np.array([0, 2]), probabilities, ("1.png", "2.png"))
        >>> coarse = merge(found, {"ant": "insect", "bee": "insect", "cat": "mammal"})
        >>> coarse.class_names, coarse.labels.tolist(), coarse.probabilities[0].tolist()
        (('insect', 'mammal'), [0, 1], [0.6, 0.4])
    """
    _check(found.class_names, parents, to)
    tops = [_top(name, parents, to) for name in found.class_names]
    names = tuple(sorted(set(tops)))
    if len(names) < 2:
        raise InputError(
            f"Expected a tree that leaves 2 classes or more. Received one that leaves {names[0]!r}."
        )
    places = np.array([names.index(top) for top in tops])
    probabilities = found.probabilities @ (places[:, None] == np.arange(len(names))).astype("float64")
    return replace(found, class_names=names, labels=places[found.labels], probabilities=probabilities)


def training_classes(
    counts: Mapping[str, int], parents: Mapping[str, str], *, most: int = 1000
) -> dict[str, str]:
    """Say on which classes to train: the largest parts of the tree that have no more than so many images.

    Every class from the top down that has few enough is one class with all that belongs to it; others are taken
    apart. That is the idea of the partition of Esteva et al. 2017, whose limit was 1,000 images: classes as fine as
    they can be learnt, and of like sizes.

    Args:
        counts: images of each class that has some.
        parents: what each class belongs to, as for `merge`.
        most: images of a training class, 1 or more; a class that cannot be taken apart may have more.

    Returns:
        For each class of `counts`, the one to train on: itself, or one above it.

    Raises:
        InputError: as for `merge`, or `most` is below 1.

    Example:
        >>> parents = {"ant": "insect", "bee": "insect", "cat": "mammal", "dog": "mammal"}
        >>> training_classes({"ant": 4, "bee": 5, "cat": 90, "dog": 80}, parents, most=100)
        {'ant': 'insect', 'bee': 'insect', 'cat': 'cat', 'dog': 'dog'}
    """
    if most < 1:
        raise InputError(f"Expected most of 1 image or more. Received: {most!r}.")
    _check(tuple(counts), parents, None)
    ways = {name: _way(name, parents) for name in counts}
    sums: dict[str, int] = {}
    for name, way in ways.items():
        for node in way:
            sums[node] = sums.get(node, 0) + counts[name]
    # From the top down; where none is small enough, the class itself.
    return {name: next((x for x in reversed(way) if sums[x] <= most), name) for name, way in ways.items()}


def read_tree(path: str | Path) -> dict[str, str]:
    """Read what each class belongs to.

    Args:
        path: of a CSV file in UTF-8 with the columns `fine` and `coarse`, or of a YAML or JSON mapping `fine: coarse`.

    Returns:
        What each class belongs to, for `merge`.

    Raises:
        InputError: it cannot be read, is no such file, or says two things of one class.

    Example:
        >>> _ = Path("tree.csv").write_text("fine,coarse\\nant,insect\\nbee,insect\\n")
        >>> read_tree("tree.csv")
        {'ant': 'insect', 'bee': 'insect'}
    """
    import yaml

    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = None if path.suffix.lower() == ".csv" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the tree in {path}: {one_line(error)}.") from None
    if path.suffix.lower() == ".csv":
        return _from_rows(path, list(csv.reader(text.splitlines())))
    if not isinstance(values, dict) or not all(isinstance(x, str) for x in [*values, *values.values()]):
        raise InputError(
            f"Expected 'fine: coarse' lines of text in {path}, with quotes around numbers. Received other values."
        )
    return values


def _from_rows(path: Path, rows: list[list[str]]) -> dict[str, str]:
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(COLUMNS) <= set(header):
        raise InputError(
            f"Expected the columns {' and '.join(COLUMNS)} in {path}. Received: {', '.join(header) or 'nothing'}."
        )
    places = [header.index(name) for name in COLUMNS]
    tree: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        fine, coarse = (row[i].strip() if i < len(row) else "" for i in places)
        if not fine or not coarse:
            raise InputError(
                f"Expected a fine and a coarse class in {path}, line {number}. Received: {row!r}."
            )
        if tree.setdefault(fine, coarse) != coarse:
            raise InputError(
                f"Expected one coarse class for {fine!r} in {path}, line {number}. Received {tree[fine]!r} and "
                f"{coarse!r}."
            )
    return tree


def _check(class_names: Sequence[str], parents: Mapping[str, str], to: Sequence[str] | None) -> None:
    inner = set(parents.values())
    for name in parents:
        if name not in inner and not set(_way(name, parents)) & set(
            class_names
        ):  # what lies below a class is part of it
            raise unknown("class", name, class_names, hint="It is in the tree, and there is no such class.")
    for name in class_names:
        if name not in parents and name not in inner:
            hint = f"The tree does not say what {name!r} belongs to; {name!r}: {name!r} would let it stay as it is."
            raise unknown("class", name, parents, hint=hint)
    for name in to or ():
        if name not in inner and name not in class_names:
            raise unknown("class", name, sorted(inner), hint="The tree does not have it.")


def _way(name: str, parents: Mapping[str, str]) -> list[str]:
    """The class and those above it, upwards."""
    way = [name]
    while (above := parents.get(way[-1], way[-1])) != way[-1]:
        if above in way:
            circle = " -> ".join(repr(x) for x in [*way[way.index(above) :], above])
            raise InputError(f"Expected a tree. Received one that goes round in circles: {circle}.")
        way.append(above)
    return way


def _top(name: str, parents: Mapping[str, str], to: Sequence[str] | None) -> str:
    way = _way(name, parents)
    if to is None:
        return way[-1]
    found = next((x for x in way if x in to), None)
    if found is None:
        raise InputError(
            f"Expected every class to belong to one of {', '.join(map(repr, to))}. Received {name!r}, which belongs to "
            f"{' -> '.join(map(repr, way[1:])) or 'none'}. Name what it is to be, too."
        )
    return found
