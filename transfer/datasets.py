"""Data in, one way: a folder, a tensorflow_datasets name or arrays become `ImageData`.

This room alone checks and splits; it knows no model.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transfer.errors import InputError
from transfer.checking import check_all
from transfer.pictures import as_size
from transfer.sources import embedded_folder as embedded_folder
from transfer.sources import find_folder, read_arrays, read_folder
from transfer.splitting import Split, complete_splits

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageData:
    """Labelled pictures in three disjoint splits.

    Attributes:
        name: a short name, for titles and folders.
        class_names: in the order of the labels; it travels with every saved model.
        train: what is learnt from.
        val: what decides when to stop.
        test: what the accuracy is measured on, and nothing else.
        image_size: height and width asked for, or None to take the model's.
        skipped: pictures that could not be read, by name, with the reason.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    val: Split
    test: Split
    image_size: tuple[int, int] | None = None
    skipped: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        """How many classes there are."""
        return len(self.class_names)


def load_data(
    source: Any,
    *,
    image_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.2,
    class_names: Sequence[str] | None = None,
    strict: bool = False,
    data_dir: str | Path | None = None,
    download: bool = True,
) -> ImageData:
    """Load labelled pictures and split them into train, val and test.

    The split is stratified by class and depends on the seed and the pictures' names alone, not on the
    file system's order. Exact duplicates always stay on the same side. Splits that the source has
    already are kept, with a warning where they share pictures; where it has `val` but no `test`, its
    `val` becomes the test set and a new validation set is drawn from `train`, so that stopping and
    measuring never use the same pictures.

    A class keeps at least one picture to train on: of two different pictures the other is for the test,
    and a third for validation. A picture that is in several classes, byte for byte, is only trained on.

    Args:
        source: one of: a folder with a sub-folder of pictures per class, with or without `train`
            (`training`), `val` (`valid`, `validation`) and `test` (`testing`) above them, in any letter
            case; hidden ones are passed over; `"emoji"`, the data set that comes along;
            `"tfds:NAME"` for a tensorflow_datasets name; arrays `(images, labels)` or, as
            `keras.datasets` gives them, `((x_train, y_train), (x_test, y_test))`, images of shape
            (N, H, W[, C]), 0 to 255.
        image_size: pixels, one number or (height, width), to stretch to; None takes the model's.
        seed: of the split.
        val: share of the pictures for validation, 0 to 1, where the source has no such split.
        test: the same for the test set.
        class_names: for arrays: one name per label; otherwise numbers are the names.
        strict: stop at unreadable pictures instead of skipping and counting them.
        data_dir: where tensorflow_datasets keeps prepared data.
        download: let tensorflow_datasets download what is not prepared.

    Returns:
        The data; pictures in files are decoded when they are used.

    Raises:
        InputError: there is no such source, or it has fewer than two classes, unreadable pictures under
            `strict`, labels that do not fit, or shares that leave nothing to train on.

    Example:
        >>> data = load_data("emoji", seed=0)
        >>> data.num_classes
        12
    """
    if not (0 <= val < 1 and 0 <= test < 1 and val + test < 1):
        raise InputError(
            f"Expected shares of 0 or more, val + test below 1. Received: val={val}, test={test}. Leave some "
            "pictures to train on."
        )
    if seed < 0:
        raise InputError(f"Expected a seed of 0 or more. Received: {seed}. Any other number will do.")
    size = as_size(image_size)
    if isinstance(source, (str, Path)):
        if class_names is not None:
            raise InputError(
                f"Expected class_names with arrays alone. Received them with {str(source)!r}, which has its own. "
                "Leave them out."
            )
        text = str(source)
        if text.startswith("tfds:"):
            from transfer.tfds_source import read_tfds

            name, (parts, names) = text[5:], read_tfds(text[5:], data_dir=data_dir, download=download)
        else:
            folder = find_folder(text)
            name, (parts, names) = folder.name, read_folder(folder)
    else:
        name, (parts, names) = "arrays", read_arrays(source, class_names)
    parts, digests, skipped = _check(parts, strict=strict)
    _refuse_too_few(name, parts["train"], names)
    splits = complete_splits(parts, digests, names, seed=seed, val=val, test=test)
    return ImageData(name, tuple(names), **splits, image_size=size, skipped=skipped)


def _check(
    parts: dict[str, Split], *, strict: bool
) -> tuple[dict[str, Split], dict[str, list[str]], tuple[tuple[str, str], ...]]:
    """Drop what cannot be read, and give every remaining picture's digest."""
    good, digests, skipped = {}, {}, []
    for name, part in parts.items():
        if isinstance(part.pictures, np.ndarray):
            good[name] = part
            digests[name] = [hashlib.sha256(x.tobytes()).hexdigest() for x in part.pictures]
            continue
        checked = check_files(part.pictures)
        keep = [i for i, c in enumerate(checked) if not c.problem]
        skipped += [(part.names[i], c.problem) for i, c in enumerate(checked) if c.problem]
        good[name] = part.take(keep) if len(keep) < len(part) else part
        digests[name] = [checked[i].digest for i in keep]
    if skipped:
        shown = "; ".join(f"{name}: {problem}" for name, problem in skipped[:10])
        more = f"; and {len(skipped) - 10} more" if len(skipped) > 10 else ""
        if strict:
            raise InputError(
                f"Expected pictures that can be read. Received {len(skipped)} that cannot: {shown}{more}. Mend "
                "them or take them away; without strict they are skipped."
            )
        log.warning("Skipped %d pictures that cannot be read: %s%s.", len(skipped), shown, more)
    return good, digests, tuple(skipped)


def _refuse_too_few(name: str, train: Split, names: Sequence[str]) -> None:
    present = np.unique(train.labels)
    if len(present) < 2:
        have = f"{len(present)}" + (f" ({names[present[0]]})" if len(present) else "")
        raise InputError(
            f"Expected pictures of at least 2 classes in {name!r}. Received: {have}. "
            "Put each class' pictures into a sub-folder of its own."
        )
    missing = [names[i] for i in range(len(names)) if i not in present]
    if missing:
        raise InputError(
            f"Expected pictures of every class in {name!r}. None to train on for: {', '.join(missing)}."
        )


def flips_are_safe(class_names: Sequence[str]) -> bool:
    """Say whether mirrored pictures keep their class: not where the classes are letters or digits.

    Args:
        class_names: the names of the classes.

    Returns:
        False when every class is called by one letter or by a number.

    Example:
        >>> flips_are_safe(["0", "1", "2"]), flips_are_safe(["ants", "bees"])
        (False, True)
    """
    return not all(re.fullmatch(r"\d+|\w", name) for name in class_names)
