"""The data sets that the package is tuned on: small, varied, with fixed test images.

    python tests/benchmarks/tuning_sets.py build FOLDER
    python tests/benchmarks/tuning_sets.py list FOLDER

- `build` downloads and draws the images that are neither part of the package nor given (see `tuning_sources.py`).
- `list` prints the classes and images of each split for a seed.

`load` returns a set for other benchmarks. Images of one group (a font, an emoji in several styles) and near-duplicates
are never both in training and in test. `load_data` draws the validation images from the training images.

| Set | Images |
|---|---|
| `emoji` | the images of the package |
| `hymenoptera` | given: `FOLDER/hymenoptera/{train,val}/CLASS`; its own split is kept |
| `sign_digits` | given: `FOLDER/sign_digits/CLASS` |
| `cifar10` | given: `FOLDER/cifar10/{train,test}/CLASS` |
| `cifar10-blurred` | the same in gray and blurred |
| `fashion_mnist` | given: `FOLDER/fashion_mnist.npz` |
| `mixed` | CIFAR-10 and Fashion-MNIST together, 20 classes |
| `clipart` | drawings of 10 subjects, some of them in a wrong folder; few images in some classes |
| `letters` | 26 letters; the fonts of the test are not in training |
| `emoji-styles` | the classes of `emoji`, trained on one style and tested on another, with other emoji |
| `few-1` | 150 emoji, one training image each, tested in other styles |
| `few-3` | classes of all given sets and the folders of drawings, 3 training images each |
| `few-5` | 88 Japanese letters, 5 training images each, tested in other fonts |
"""

from __future__ import annotations

import argparse
import os
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

CLIPART = Path("sources/openclipart-png/usr/share/openclipart/png")
SUBJECTS = (
    *("animals/birds", "animals/bugs", "animals/mammals", "food/beverages", "food/desserts", "food/fruit"),
    *("people/clothing", "recreation/music", "recreation/sports", "transportation/vehicles"),
)
NO_SUBJECT = ("computer/icons", "logos", "special", "unsorted", "signs_and_symbols/flags", "shapes/stars")
SHIFT = {"train": "twemoji", "test": "openmoji"}
MAX_SIDE = 2000  # pixels of a drawing
BLURRED_SIZE = 96  # pixels


class Rule(NamedTuple):
    """How many images of a set are drawn."""

    train: int
    test: int
    per_class: bool = False  # whether the numbers are per class
    near_duplicates: bool = True  # False if all images look alike by nature


RULES = {
    "emoji": Rule(294, 200),
    "hymenoptera": Rule(244, 153),
    "sign_digits": Rule(400, 1000, near_duplicates=False),
    "cifar10": Rule(400, 1000, near_duplicates=False),
    "cifar10-blurred": Rule(400, 1000, near_duplicates=False),
    "fashion_mnist": Rule(400, 1000, near_duplicates=False),
    "mixed": Rule(400, 1000, near_duplicates=False),
    "clipart": Rule(330, 270),
    "letters": Rule(400, 600, near_duplicates=False),
    "emoji-styles": Rule(250, 200),
    "few-1": Rule(1, 4, per_class=True, near_duplicates=False),
    "few-3": Rule(3, 4, per_class=True),
    "few-5": Rule(5, 5, per_class=True, near_duplicates=False),
}
NAMES = tuple(RULES)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("build", "list"))
    parser.add_argument("folder", type=Path, help="folder of the data sets")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.command == "build":
        from tuning_sources import build

        build(options.folder)
        return
    print(f"{'set':16}{'classes':>8}{'train':>7}{'val':>7}{'test':>7}{'chance':>8}")
    for name in NAMES:
        data = load(name, options.folder, seed=options.seed)
        sizes = "".join(f"{len(part):7}" for part in data.splits.values())
        print(f"{name:16}{data.num_classes:8}{sizes}{chance(data):8.1%}", flush=True)


def chance(data: Any) -> float:
    """Return the test accuracy of the most frequent training class."""
    return float((data.test.labels == np.bincount(data.train.labels).argmax()).mean())


def load(name: str, root: Path, *, seed: int, image_size: int | None = None) -> Any:
    """Return a set as `ImageData`: training, validation and test images drawn with the seed."""
    from transfer.common.errors import unknown
    from transfer.images.data_config import DataConfig
    from transfer.images.datasets import load_data

    if name not in RULES:
        raise unknown("tuning set", name, NAMES)
    rule, source = RULES[name], read(name, root)
    train, test = draw(source.parts, rule, seed)
    data = load_data(
        {"train": train, "test": without_related(test, train, rule.near_duplicates)},
        class_names=source.class_names,
        near_duplicates=rule.near_duplicates,
        image_size=image_size,
        val=0 if rule.per_class and rule.train == 1 else DataConfig.val,
        seed=seed,
    )
    return replace(data, name=name)


def draw(parts: Mapping[str, Any], rule: Rule, seed: int) -> tuple[Any, Any]:
    """Return training and test images; from a single part, one end of the random order each."""
    train, test = parts["train"], parts.get("test", parts["train"])
    first = positions(train, seed).argsort(kind="stable")
    last = positions(test, seed).argsort(kind="stable")[::-1]
    return (
        train.take(leading(first, train.labels, rule.train, rule.per_class)),
        test.take(leading(last, test.labels, rule.test, rule.per_class)),
    )


def positions(part: Any, seed: int) -> np.ndarray:
    """Return a random position of each image; the images of a group have the same."""
    if not len(part.groups):
        return spread(part.labels, seed)
    _, first, group = np.unique(part.groups, return_index=True, return_inverse=True)
    return spread(part.labels[first], seed)[group]


def spread(labels: np.ndarray, seed: int) -> np.ndarray:
    """Return random positions that spread each class evenly from 0 to 1."""
    rng = np.random.default_rng(seed)
    position = rng.permutation(len(labels)).astype("float64")
    for label in np.unique(labels):
        ranks = position[labels == label].argsort().argsort()
        position[labels == label] = (ranks + rng.uniform()) / len(ranks)
    return position


def leading(order: np.ndarray, labels: np.ndarray, count: int, per_class: bool) -> np.ndarray:
    """Return the first `count` images of an order, in total or of each class."""
    if not per_class:
        return order[:count]
    return np.concatenate([order[labels[order] == label][:count] for label in np.unique(labels)])


def without_related(test: Any, train: Any, near_duplicates: bool) -> Any:
    """Return the test images that have no duplicate and no member of their group in training."""
    from transfer.images.checking import check_images
    from transfer.images.duplicates import find_duplicates
    from transfer.images.splitting import concatenate, groups_of

    checked = check_images(concatenate([train, test]).images)
    ids = find_duplicates(
        [image.digest or str(i) for i, image in enumerate(checked)],
        [image.hash if near_duplicates else b"" for image in checked],
    )
    related = set(ids[: len(train)].tolist())
    groups = set(groups_of(train)) if len(train.groups) else set()
    keep = [
        i
        for i, (id_, group) in enumerate(zip(ids[len(train) :].tolist(), groups_of(test), strict=True))
        if id_ not in related and group not in groups
    ]
    return test.take(keep)


def read(name: str, root: Path) -> Any:
    """Return the images of a set in their original size as `SourceData`, before they are drawn."""
    from transfer.images.datasets import embedded_folder

    if name in READERS:
        return READERS[name](root)
    return given(embedded_folder() if name == "emoji" else root / name)


def given(folder: Path) -> Any:
    """Return the images of a folder, with at most the parts train and test, in this order."""
    from transfer.images.folder_source import read_folder

    source = read_folder(folder)
    names = {"train": "train", "val": "test", "test": "test"}
    parts = {names[split]: source.parts[split] for split in names if split in source.parts}
    return replace(source, parts=parts)


def one_part(
    images: Any, labels: Any, class_names: Sequence[str], names: Sequence[str] = (), **columns: Any
) -> Any:
    """Return `SourceData` of images without splits; without names, they have numbers."""
    from transfer.images.splitting import SourceData, Split

    names = names or [f"{number:06}" for number in range(len(images))]
    part = Split(images, np.asarray(labels, "int64"), names, **columns)
    return SourceData({"train": part}, [*class_names])


def together(sources: Mapping[str, Any]) -> Any:
    """Return the images of all parts of several sources, with the classes of each."""
    from transfer.images.splitting import SourceData, concatenate

    parts: list[Any] = []
    class_names: list[str] = []
    for name, source in sources.items():
        part = concatenate([*source.parts.values()])
        names = [f"{name}/{image}" for image in part.names]
        parts.append(replace(part, labels=part.labels + len(class_names), names=names))
        class_names += [f"{name}/{label}" for label in source.class_names]
    return SourceData({"train": concatenate(parts)}, class_names)


def files(classes: Mapping[str, Sequence[Path]], group: Callable[[Path], str] | None = None) -> Any:
    """Return the files of each class as `SourceData`."""
    labels = np.repeat(np.arange(len(classes)), [len(paths) for paths in classes.values()])
    paths = [path for paths in classes.values() for path in paths]
    names = ["/".join(path.parts[-3:]) for path in paths]
    groups = [group(path) for path in paths] if group else ()
    return one_part([*map(str, paths)], labels, [*classes], names, groups=groups)


def built(folder: Path) -> Path:
    """Return a folder that `build` makes; raise an error if it is missing."""
    from transfer.common.errors import InputError

    if not folder.is_dir():
        raise InputError(
            f"Expected the folder {folder}. Received no such folder. "
            "Run: python tests/benchmarks/tuning_sets.py build FOLDER"
        )
    return folder


def in_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the PNG files of each sub-folder."""
    return {
        path.name: sorted(path.glob("*.png")) for path in sorted(built(folder).iterdir()) if path.is_dir()
    }


def read_cifar10(root: Path) -> Any:
    """Return 3,000 images of each part of CIFAR-10."""
    from transfer.images.splitting import concatenate

    source = given(root / "cifar10")
    parts = [
        part.take(np.random.default_rng(0).permutation(len(part))[:3000])  # not the seed of `draw`
        for part in source.parts.values()
    ]
    return replace(source, parts={"train": concatenate(parts)})


def read_blurred(root: Path) -> Any:
    """Return gray and blurred images of CIFAR-10."""
    from PIL import Image, ImageFilter

    from transfer.images.image_sequences import LazySequence

    source = read_cifar10(root)
    part = source.parts["train"]

    def blurred(i: int) -> np.ndarray:
        image = Image.fromarray(part.image(i, (BLURRED_SIZE, BLURRED_SIZE))).convert("L")
        return np.asarray(image.filter(ImageFilter.GaussianBlur(4)).convert("RGB"))

    return replace(source, parts={"train": replace(part, images=LazySequence(len(part), blurred))})


def read_fashion(root: Path) -> Any:
    """Return 6,000 images of Fashion-MNIST."""
    with np.load(root / "fashion_mnist.npz") as file:
        return one_part([*file["x_test"][:6000]], file["y_test"][:6000], "0123456789")


def read_clipart(root: Path) -> Any:
    """Return the drawings of the folders in `SUBJECTS`; drawings whose names begin alike are a group."""
    subjects = {subject: drawings(root / CLIPART / subject) for subject in SUBJECTS}
    return files(subjects, lambda path: f"{path.parent.name}/{path.stem[:10]}")


def drawings(folder: Path) -> list[Path]:
    """Return the drawings of a folder that are not huge, without its sub-folders."""
    found = []
    for path in sorted(built(folder).glob("*.png")):
        with path.open("rb") as file:
            head = file.read(24)
        if len(head) == 24 and max(struct.unpack(">II", head[16:])) <= MAX_SIDE:
            found.append(path)
    return found


def read_characters(folder: Path) -> Any:
    """Return images of characters, with the package of the font as the group."""
    return files(in_folders(folder), lambda path: path.stem.split("--")[0])


def read_styles(root: Path) -> Any:
    """Return emoji of one style for training and of another for the test; an emoji is a group."""
    styles = {split: in_folders(root / "emoji-styles" / style) for split, style in SHIFT.items()}
    stems = [{path.stem for paths in style.values() for path in paths} for style in styles.values()]
    sources = {
        split: files(
            {
                name: [path for path in paths if path.stem in set.intersection(*stems)]
                for name, paths in style.items()
            },
            lambda path: path.stem,
        )
        for split, style in styles.items()
    }
    return replace(
        sources["train"], parts={split: source.parts["train"] for split, source in sources.items()}
    )


def read_few_1(root: Path) -> Any:
    """Return 150 emoji as classes, in all styles."""
    by_name: dict[str, list[Path]] = {}
    styles = in_folders(root / "emoji-styles")
    for style in styles:
        for paths in in_folders(root / "emoji-styles" / style).values():
            for path in paths:
                by_name.setdefault(path.stem, []).append(path)
    complete = sorted(name for name, paths in by_name.items() if len(paths) == len(styles))
    return files(
        {complete[i]: by_name[complete[i]] for i in np.linspace(0, len(complete) - 1, 150).astype(int)}
    )


def read_few_3(root: Path) -> Any:
    """Return the classes of all given sets, and the folders of drawings without sub-folders."""
    folder = root / CLIPART
    leaves = [
        path
        for path in sorted(built(folder).rglob("*"))
        if path.is_dir() and not any(map(Path.is_dir, path.iterdir()))
    ]
    subjects = {path.relative_to(folder).as_posix(): drawings(path) for path in leaves}
    subjects = {
        name: paths
        for name, paths in subjects.items()
        if len(paths) >= 12 and not name.startswith(NO_SUBJECT)
    }
    others = ("emoji", "hymenoptera", "sign_digits", "cifar10", "fashion_mnist")
    return together({"clipart": files(subjects), **{name: read(name, root) for name in others}})


READERS: dict[str, Callable[[Path], Any]] = {
    "cifar10": read_cifar10,
    "cifar10-blurred": read_blurred,
    "fashion_mnist": read_fashion,
    "mixed": lambda root: together({name: read(name, root) for name in ("cifar10", "fashion_mnist")}),
    "clipart": read_clipart,
    "letters": lambda root: read_characters(root / "letters"),
    "emoji-styles": read_styles,
    "few-1": read_few_1,
    "few-3": read_few_3,
    "few-5": lambda root: read_characters(root / "kana"),
}

if __name__ == "__main__":
    main()
