"""Trees of classes: train on fine classes, then sum their probabilities to coarse classes."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, one_line, unknown
from transfer.evaluation.evaluation import Evaluation, check_evaluation

COLUMNS = ("fine", "coarse")
"""Columns of a tree in a CSV file: a class, and its parent."""


@explain_arguments()
def merge(
    evaluation: Evaluation, parents: Mapping[str, str], *, to: Sequence[str] | None = None
) -> Evaluation:
    """Return the evaluation of coarser classes.

    The probability of a coarse class is the sum of the probabilities of its descendants, as in Esteva et al. (2017),
    doi:10.1038/nature21056. There, a network learns many fine classes that are visually uniform.

    Args:
        evaluation: evaluation on the fine classes.
        parents: parent of each class, over any number of levels. A class that is its own parent stays.
        to: coarse classes at which to stop. None goes up to the classes that have no parent.

    Returns:
        The evaluation of the coarse classes, sorted by name, with the same images and groups.

    Raises:
        InputError: a fine class is not in the tree or has no ancestor in `to`; the tree has an unknown class, has a
            cycle, or leaves a single class.

    Example:
        >>> probabilities = np.array([[0.3, 0.3, 0.4], [0.0, 0.2, 0.8]])
        >>> fine = Evaluation(("ant", "bee", "cat"), np.array([0, 2]), probabilities, ("1.png", "2.png"))
        >>> coarse = merge(fine, {"ant": "insect", "bee": "insect", "cat": "mammal"})
        >>> coarse.class_names, coarse.labels.tolist(), coarse.probabilities[0].tolist()
        (('insect', 'mammal'), [0, 1], [0.6, 0.4])
    """
    check_evaluation(evaluation, "merge(evaluation, parents)")
    _check_tree(evaluation.class_names, parents, to)
    tops = [_coarse_class(name, parents, to) for name in evaluation.class_names]
    names = tuple(sorted(set(tops)))
    if len(names) < 2:
        raise InputError(
            f"Expected a tree that leaves 2 classes or more. Received one that leaves {names[0]!r}."
        )
    columns = np.array([names.index(top) for top in tops])
    probabilities = evaluation.probabilities @ (columns[:, None] == np.arange(len(names))).astype("float64")
    return replace(
        evaluation, class_names=names, labels=columns[evaluation.labels], probabilities=probabilities
    )


@explain_arguments()
def training_classes(
    counts: Mapping[str, int], parents: Mapping[str, str], *, most: int = 1000
) -> dict[str, str]:
    """Choose the classes to train on: the largest subtrees with a limited number of images.

    Going down from the top of the tree, a class with at most `most` images becomes one training class, together with
    all its descendants. A larger class is divided into its children. This follows the partition of Esteva et al.
    (2017), doi:10.1038/nature21056, with a limit of 1,000 images: training classes are fine and similar in size.

    Args:
        counts: number of images of each class that has images.
        parents: parent of each class, as for `merge`.
        most: largest number of images of a training class, 1 or more. A class without children may have more.

    Returns:
        The training class of each class of `counts`: the class itself, or one of its ancestors.

    Raises:
        InputError: `most` is below 1, or the tree is invalid (see `merge`).

    Example:
        >>> parents = {"ant": "insect", "bee": "insect", "cat": "mammal", "dog": "mammal"}
        >>> training_classes({"ant": 4, "bee": 5, "cat": 90, "dog": 80}, parents, most=100)
        {'ant': 'insect', 'bee': 'insect', 'cat': 'cat', 'dog': 'dog'}
    """
    if most < 1:
        raise InputError(f"Expected `most` of 1 image or more. Received: {most!r}.")
    _check_tree(tuple(counts), parents, None)
    paths = {name: _path_up(name, parents) for name in counts}
    sums: dict[str, int] = {}
    for name, path in paths.items():
        for node in path:
            sums[node] = sums.get(node, 0) + counts[name]
    return {
        name: next((node for node in reversed(path) if sums[node] <= most), name)
        for name, path in paths.items()
    }


def read_tree(path: str | Path) -> dict[str, str]:
    """Read the parent of each class from a file.

    Args:
        path: a CSV file in UTF-8 with the columns `fine` and `coarse`, or a YAML or JSON mapping `fine: coarse`.

    Returns:
        The parent of each class, for `merge`.

    Raises:
        InputError: the file cannot be read, has another format, or gives a class two parents.

    Example:
        >>> _ = Path("tree.csv").write_text("fine,coarse\\nant,insect\\nbee,insect\\n")
        >>> read_tree("tree.csv")
        {'ant': 'insect', 'bee': 'insect'}
    """
    import yaml

    path = Path(path)
    is_csv = path.suffix.lower() == ".csv"
    try:
        text = path.read_text(encoding="utf-8-sig")
        values = None if is_csv else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the tree in {path}: {one_line(error)}.") from None
    if is_csv:
        return _read_rows(path, list(csv.reader(text.splitlines())))
    if not isinstance(values, dict) or not all(isinstance(x, str) for x in [*values, *values.values()]):
        raise InputError(
            f"Expected 'fine: coarse' lines of text in {path}. Received other values. Put quotes around numbers."
        )
    return values


def _read_rows(path: Path, rows: list[list[str]]) -> dict[str, str]:
    header = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(COLUMNS) <= set(header):
        raise InputError(
            f"Expected the columns {' and '.join(COLUMNS)} in {path}. Received: {', '.join(header) or 'nothing'}."
        )
    columns = [header.index(name) for name in COLUMNS]
    tree: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if not any(cell.strip() for cell in row):
            continue
        fine, coarse = (row[i].strip() if i < len(row) else "" for i in columns)
        if not fine or not coarse:
            raise InputError(
                f"Expected a fine and a coarse class in {path}, line {number}. Received: {row!r}."
            )
        if tree.setdefault(fine, coarse) != coarse:
            raise InputError(
                f"Expected one coarse class for {fine!r} in {path}, line {number}. Received: {tree[fine]!r} and "
                f"{coarse!r}."
            )
    return tree


def _check_tree(class_names: Sequence[str], parents: Mapping[str, str], to: Sequence[str] | None) -> None:
    """Raise `InputError` if the tree does not fit the classes."""
    inner = set(parents.values())
    for name in parents:
        # A class below one of `class_names` is part of that class, so it may be in the tree.
        if name not in inner and not set(_path_up(name, parents)) & set(class_names):
            raise unknown("class", name, class_names, hint="The tree has this class, the data do not.")
    for name in class_names:
        if name not in parents and name not in inner:
            hint = f"The tree has no parent for {name!r}. To keep the class as it is, add {name!r}: {name!r}."
            raise unknown("class", name, parents, hint=hint)
    for name in to or ():
        if name not in inner and name not in class_names:
            raise unknown("class", name, sorted(inner), hint="The tree does not have this class.")


def _path_up(name: str, parents: Mapping[str, str]) -> list[str]:
    """Return a class and its ancestors, from the class upwards."""
    path = [name]
    while (parent := parents.get(path[-1], path[-1])) != path[-1]:
        if parent in path:
            cycle = " -> ".join(repr(x) for x in [*path[path.index(parent) :], parent])
            raise InputError(f"Expected a tree. Received one with a cycle: {cycle}.")
        path.append(parent)
    return path


def _coarse_class(name: str, parents: Mapping[str, str], to: Sequence[str] | None) -> str:
    path = _path_up(name, parents)
    if to is None:
        return path[-1]
    top = next((node for node in path if node in to), None)
    if top is None:
        raise InputError(
            f"Expected every class to have one of these ancestors: {', '.join(map(repr, to))}. Received: {name!r}, "
            f"with the ancestors {' -> '.join(map(repr, path[1:])) or 'none'}. Add one of them to `to`."
        )
    return top
