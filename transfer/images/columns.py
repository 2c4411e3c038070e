"""Decide which column of a list holds the paths, labels, splits and groups, by its name and its cells."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from transfer.common.errors import InputError, nearest, unknown
from transfer.common.tasks import REGRESSION
from transfer.images.cells import FLAGS, split_in
from transfer.images.column_names import (
    Column,
    has_split_name,
    label_columns,
    path_columns,
    quoted_list,
    rank,
)

KINDS = ("path", "label", "split", "group")
NONE = "none"
"""Option value for a column that should not be used."""


_SURE_NAMES = frozenset(("set", "subset", "usage", "partition", "split", "splits", "fold", "kfold"))
# Words for training in other languages.
_TRAINING = re.compile(
    "entrenamiento|treino|treinamento|apprentissage|entra[iî]nement|addestramento|trainings?daten|uczenie|treningow|"
    "e[gğ]itim|обуч|трен|训练|訓練|学習|훈련|학습"
)


class Given(NamedTuple):
    """Names of columns that the user chose; several names have commas between them."""

    path: str | None = None
    label: str | None = None
    split: str | None = None
    group: str | None = None
    # Whether to find a missing column by its usual names instead.
    optional: bool = False


AUTOMATIC = Given()
"""No column is named."""


class Unused(NamedTuple):
    """A column that is not used."""

    name: str
    # Examples of its cells, or why it is not used; may be empty.
    reason: str = ""
    # Its probable kind: "group", "split", "box" or "".
    like: str = ""


_NOTES = {
    "group": "may name groups, such as patients, but {be} not used: images of one group may be in several splits. Use "
    "--group-column NAME, or --group-column none if no images belong together.",
    "split": "may state the split, but {be} not used. Write train, val or test in it, and use --split-column NAME; or "
    "use --split-column none.",
    "box": "{be} not used: the boxes of a list are not cut out, and whole images are classified. Cut them out first.",
    "": "{be} not used. The options --label-column, --split-column and --group-column use a column.",
}


class Roles(NamedTuple):
    """Indices of the columns that are used; several labels are one-hot columns."""

    path: int
    labels: tuple[int, ...]
    # Index, and the split that a flag such as `is_valid` marks; "" for a column of words.
    splits: tuple[tuple[int, str], ...]
    groups: tuple[int, ...]

    def of_columns(self) -> set[int]:
        """Return the indices of all columns that are used."""
        return {self.path, *self.labels, *(i for i, _ in self.splits), *self.groups} - {-1}


def choose(
    columns: Sequence[Column],
    pairs: Mapping[tuple[int, int], Collection[tuple[str, str]]],
    *,
    given: Given = AUTOMATIC,
    task: str = "auto",
    required: Collection[str] = ("path", "label"),
    exists: Callable[[str], bool] = lambda path: False,
) -> Roles:
    """Return the columns to use, by kind; `pairs` are the different pairs of cells of label columns."""
    named = {kind: _given(columns, getattr(given, kind), kind, optional=given.optional) for kind in KINDS}
    paths = named["path"] or [
        i for i in path_columns(columns) if not any(i in (own or ()) for own in named.values())
    ]
    with_files = (
        i for i in (paths if len(paths) > 1 else ()) if any(map(exists, [*columns[i].filled][:100]))
    )
    path = next(with_files, next(iter(paths), -1))
    if path < 0 and named["path"] is None and "path" in required:
        path = _of_files(columns, named, exists)
    free = [i for i in range(len(columns)) if i != path]
    labels = named["label"]
    if labels is None:
        taken = {*(named["split"] or ()), *(named["group"] or ())}
        open_columns = [i for i in free if i not in taken]
        labels = _label([i for i in label_columns(columns) if i in open_columns], columns, pairs, task)
        if task == REGRESSION and "label" in required and not labels:
            labels = _numbers(columns, open_columns)
    free = [i for i in free if i not in labels]
    splits = _split(columns, free, named["split"], named["group"] or ())
    free = [i for i in free if i not in dict(splits)]
    groups = named["group"]
    if groups is None:
        groups = sorted(
            (i for i in free if rank(columns[i]) is not None), key=lambda i: rank(columns[i]) or 0
        )
    if not labels and named["label"] is None and "label" in required and task != REGRESSION:
        labels = _one_hot(columns, [i for i in free if i not in groups])
    if task == REGRESSION and len(labels) > 1:
        raise InputError(
            f"expected one column of numbers, for the task regression. Received: {given.label!r}. Name one column."
        )
    roles = Roles(path, tuple(labels), splits, tuple(groups))
    for kind, found in zip(KINDS, (path >= 0, labels, splits, groups), strict=True):
        if kind in required and not found:
            raise _missing(kind, columns, task)
    return roles


def _of_files(
    columns: Sequence[Column], named: Mapping[str, list[int] | None], exists: Callable[[str], bool]
) -> int:
    """Return the only column whose cells are files, whatever its name is; -1 if there is none."""
    taken = {*label_columns(columns), *(i for own in named.values() for i in own or ())}
    found = [
        i
        for i, column in enumerate(columns)
        # Numbers could be those of the rows instead.
        if i not in taken
        and not column.is_number
        and 2 * len(column.filled) > sum(column.filled.values())
        and all(map(exists, [*column.filled][:20]))
    ]
    return found[0] if len(found) == 1 else -1


def _given(columns: Sequence[Column], text: str | None, kind: str, *, optional: bool) -> list[int] | None:
    """Return the indices of the columns that an option names; None without the option."""
    if text is None:
        return None
    names = [column.name for column in columns]
    if text in names:
        return [names.index(text)]
    if text.lower() == NONE:
        return []
    found = []
    for one in text.split(","):
        same = [i for i, column in enumerate(columns) if column.name.lower() == one.strip().lower()]
        if not same and optional:
            return None
        if not same:
            raise unknown("column", one.strip(), names, hint=f"The {kind} column is set to {text!r}.")
        found.append(same[0])
    if kind == "path" and len(found) > 1:
        raise InputError(f"Expected one path column. Received: {text!r}. Name one column.")
    return found


def _label(
    found: Sequence[int],
    columns: Sequence[Column],
    pairs: Mapping[tuple[int, int], Collection[tuple[str, str]]],
    task: str,
) -> list[int]:
    """Return the label column: of several with one meaning, that with words, or for a regression that with numbers."""
    found = [i for i in found if columns[i].filled] or found
    for one, other in ((a, b) for a in found for b in found if a < b):
        both = pairs.get((one, other), ())
        if len(both) != len({a for a, _ in both}) or len(both) != len({b for _, b in both}):
            raise InputError(
                f"expected one column for the label. Received {columns[one].name!r} and {columns[other].name!r}, "
                f"which are not the same classes. Use --label-column {columns[one].name}, or the other one."
            )
    return sorted(found, key=lambda i: columns[i].is_number != (task == REGRESSION))[:1]


def _numbers(columns: Sequence[Column], free: Sequence[int]) -> list[int]:
    """Return the only column of numbers with a usual name for a quantity, such as "age"; raise if there are several."""
    found = [i for i in free if columns[i].is_quantity]
    if len(found) > 1:
        raise InputError(
            f"expected one column of numbers for the label. Received: {quoted_list([columns[i].name for i in found])}. "
            f"Use --label-column {columns[found[0]].name}, or another one."
        )
    return found


def _split(
    columns: Sequence[Column], free: Sequence[int], named: Sequence[int] | None, groups: Sequence[int]
) -> tuple[tuple[int, str], ...]:
    """Return the split columns; raise for a column of split words with an unknown name."""
    if named is not None:
        for i in named:
            if columns[i].is_flag and not columns[i].flagged_split:
                raise InputError(
                    f"expected train, val or test in the column {columns[i].name!r}. Received only yes and no, and "
                    "the name does not say for which split. Rename it to is_train, is_val or is_test."
                )
        return tuple((i, columns[i].flagged_split) for i in named)
    words = [i for i in free if i not in groups and _states_splits(columns[i])]
    if len(words) > 1:
        words = [i for i in words if not columns[i].is_constant] or words[:1]
    known_names = [i for i in words if has_split_name(columns[i])]
    strange = [i for i in words if i not in known_names]
    flags = [i for i in free if i not in groups and columns[i].flagged_split]
    if len(words) > 1 or strange:
        raise InputError(
            f"the {'columns' if len(words) > 1 else 'column'} {quoted_list([columns[i].name for i in words])} "
            f"{'state' if len(words) > 1 else 'states'} the split of each image. Use --split-column "
            f"{columns[words[0]].name}, or --split-column {NONE} to draw another split."
        )
    if words or not flags:
        return tuple((i, "") for i in words)
    for i in flags:
        held_out = sum(n for cell, n in columns[i].counts.items() if FLAGS[cell.lower()])
        if columns[i].flagged_split == "val" and 2 * held_out > sum(columns[i].counts.values()) > 1:
            raise InputError(
                f"the column {columns[i].name!r} marks most images, so that its meaning is unclear. If these are for "
                f"validation, use --split-column {columns[i].name}. Otherwise use --split-column {NONE}."
            )
    return tuple((i, columns[i].flagged_split) for i in flags)


def _states_splits(column: Column) -> bool:
    """Return whether the cells are words of splits; under the name of a split, most of them suffice."""
    if has_split_name(column):
        known = sum(n for cell, n in column.filled.items() if split_in(cell))
        named_split = bool({"split", "splits"} & set(column.words)) and not column.flagged_split
        return named_split or (bool(column.filled) and 2 * known >= sum(column.filled.values()))
    return len(column.splits) > 1


def _one_hot(columns: Sequence[Column], free: Sequence[int]) -> list[int]:
    """Return the columns with 0 or 1 for each class; raise if they hold other fractions."""
    found = [i for i in free if columns[i].name and columns[i].filled and columns[i].is_flag]
    fractions = [i for i in free if columns[i].is_fraction and i not in found]
    if len(found) + len(fractions) > 1 and len(fractions) > len(found):
        raise InputError(
            "expected one label for each image. Received numbers between 0 and 1 in the columns "
            f"{quoted_list([columns[i].name for i in fractions])}: probabilities cannot be trained on. Write the "
            "class of each image to a column 'label'."
        )
    return found if len(found) > 1 else []


def _missing(kind: str, columns: Sequence[Column], task: str) -> InputError:
    """Return the error for a list without a column."""
    examples = {
        "path": "'path' (or file, filename, image, image_id)",
        "label": "'label' (or target, age, price, score)"
        if task == REGRESSION
        else "'label' (or class, category, target)",
        "split": "'split' (or set, subset)",
        "group": "'group' (or patient, subject)",
    }
    names = [column.name for column in columns]
    wanted = re.findall(r"\w+", examples[kind].replace("or ", ""))
    near = [*dict.fromkeys(name for word in wanted for name in nearest(word, names))]
    remedy = (
        f"Did you mean {quoted_list(near)}? " if near else ""
    ) + f"Name the column with --{kind}-column."
    if kind == "path" and any(column.words[:1] in (("pixel",), ("pixels",)) for column in columns):
        remedy = "Pixels in a list are not read: load them as arrays, with load_data((images, labels))."
    elif len(columns) < 2:
        remedy = "Separate columns by commas, semicolons, tabs or bars, and name them in the first line."
    return InputError(
        f"expected a column {examples[kind]}. Received the columns: {quoted_list(names, limit=12)}. {remedy}"
    )


def unused(columns: Sequence[Column], roles: Roles, given: Given) -> list[Unused]:
    """Return the columns that are not used, and those that look like groups or splits."""
    used = roles.of_columns()
    num_classes = len(columns[roles.labels[0]].filled) if len(roles.labels) == 1 else 0
    found = []
    for i, column in enumerate(columns):
        is_index = column.joined in ("", "unnamed0", "index", "sha256") and not column.repeats
        if i in used or is_index or not column.filled:
            continue
        if column.is_constant and rank(Column(column.name)) is not None:
            found.append(Unused(column.name, "the same in all rows"))
        elif column.joined in ("xmin", "ymin", "xmax", "ymax", "bbox", "boundingbox"):
            found.append(Unused(column.name, like="box"))
        elif given.split is None and (column.flagged_split or (not roles.splits and _like_split(column))):
            found.append(Unused(column.name, f"{quoted_list([*column.filled])}", "split"))
        elif not roles.groups and given.group is None and _like_group(column, num_classes):
            found.append(Unused(column.name, f"{quoted_list([*column.filled], limit=2)}", "group"))
        else:
            found.append(Unused(column.name))
    return found


def _like_split(column: Column) -> bool:
    """Return whether a column may state splits: numbers of folds, unknown words, or words of other languages."""
    if not 1 < len(column.filled) <= 20:
        return False
    named = has_split_name(column) and (column.is_number or bool(_SURE_NAMES.intersection(column.words)))
    known = {split for cell in column.filled if (split := split_in(cell))}
    return named or len(known) > 1 or any(_TRAINING.match(cell.lower()) for cell in column.filled)


def _like_group(column: Column, num_classes: int) -> bool:
    """Return whether cells name groups: many codes or numbers, some of them shared by rows."""
    if not column.repeats or len(column.filled) < 3 or len(column.filled) == num_classes:
        return False
    return column.is_code or column.is_whole


def notes_on(columns: Sequence[Unused], used: Mapping[str, Sequence[str]]) -> list[tuple[str, bool]]:
    """Return sentences on the used and the unused columns, and whether each needs action."""
    notes = []
    if any([kind] != names for kind, names in used.items()):
        read = [f"{kind} from {quoted_list(names)}" for kind, names in used.items()]
        notes.append((f"Columns of the list: {', '.join(read)}.", False))
    for like, text in _NOTES.items():
        if found := [f"{c.name!r}" + f" ({c.reason})" * bool(c.reason) for c in columns if c.like == like]:
            more = f" and {len(found) - 12} more" if len(found) > 12 else ""
            plural, be = ("s", "are") if len(found) > 1 else ("", "is")
            names = ", ".join(found[:12])
            notes.append((f"The column{plural} {names}{more} {text.format(be=be)}", bool(like)))
    return notes
