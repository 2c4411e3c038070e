"""Measure how well images of no class are found: distances to training images, and scores of the head.

    python tests/benchmarks/unknown.py run --images path/to/images
    python tests/benchmarks/unknown.py show

A unit is a task and a seed. Its network is EfficientNetLite0 at 224 pixels, frozen, with a new head.

- `SET`: 60% of the classes of a data set are known; the images of the others are unknown.
- `SET|OTHER`: all classes of a data set are known; the images of another data set are unknown.

The measures are the distance that the package uses (`package`), with other numbers of neighbors (`1 neighbor` to
`5 neighbors`) and with all blocks (`all layers`), the Mahalanobis distance and the relative one (Ren et al., 2021,
arXiv:2106.09022), and two scores of the head: the maximum softmax probability (Hendrycks and Gimpel, 2017,
arXiv:1610.02136) and the energy (Liu et al., 2020, arXiv:2010.03759).

`run` adds a row for each unit to `--results`: the AUROC of each measure, the fraction of unknown images above its
threshold, and that of new images of the known classes, the false alarms. `package` sets its threshold as the package
does; the others use the validation images. Units that have a row are skipped. `show` prints the means. `--images` is
the folder of the data sets, see `tuning_sets.py`.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
import tuning_sets
from advice import stored
from anytime import MODEL, add
from scipy.special import logsumexp
from sklearn.metrics import roc_auc_score

SETS = ("emoji", "cifar10", "fashion_mnist", "sign_digits")
PAIRS = (("emoji", "cifar10"), ("emoji", "hymenoptera"), ("cifar10", "emoji"), ("hymenoptera", "emoji"))
TASKS = (*SETS, *("|".join(pair) for pair in PAIRS))
MAX_IMAGES, MAX_TRAIN, MAX_TEST = 2500, 700, 500
KNOWN = 0.6  # fraction of the classes

Score = Callable[[dict[str, np.ndarray]], np.ndarray]


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    default = Path(__file__).parent / "results" / "unknown.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(stored(options.results))
        return
    done = {(row["task"], row["seed"]) for row in stored(options.results)}
    for task in options.tasks:
        for seed in options.seeds:
            if (task, seed) not in done:
                add({"task": task, "seed": seed, **measure(task, seed, options.images)}, options.results)


@functools.cache
def features(name: str, root: Path) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Return the features of the last layer and of all blocks of at most `MAX_IMAGES` images, and their labels."""
    from transfer.adviser.sample_features import extract_sample_features
    from transfer.distributed.strategies import start_quietly
    from transfer.frozen.head_choice import concatenate_normalized
    from transfer.images.splitting import concatenate
    from transfer.networks.backbones import load_backbone

    start_quietly()
    source = tuning_sets.read(name, root)
    images = concatenate([*source.parts.values()])
    images = images.take(np.random.default_rng(0).permutation(len(images))[:MAX_IMAGES].tolist())
    taps = [*extract_sample_features(images, load_backbone(MODEL)).taps.values()]
    return {"last": taps[-1], "all": concatenate_normalized(taps)}, np.asarray(images.labels)


def measure(task: str, seed: int, root: Path) -> dict[str, Any]:
    """Return the number of training images, and the results of each measure."""
    parts, labels = parts_of(task, seed, root)
    return {"num_train": len(labels), "num_val": len(parts["val"]["last"]), **results(parts, labels)}


def parts_of(task: str, seed: int, root: Path) -> tuple[dict[str, dict[str, np.ndarray]], np.ndarray]:
    """Return the features of the training, validation, test and unknown images, and the labels of the first."""
    rng, (name, _, other) = np.random.default_rng(seed), task.partition("|")
    known, labels = features(name, root)
    classes = rng.permutation(labels.max() + 1)
    if other:
        outside = {kind: x[:MAX_TEST] for kind, x in features(other, root)[0].items()}
    else:
        classes = classes[: round(KNOWN * len(classes))]
        rest = ~np.isin(labels, classes)
        outside = {kind: x[rest][:MAX_TEST] for kind, x in known.items()}
    order = rng.permutation(np.flatnonzero(np.isin(labels, classes)))
    train = min(MAX_TRAIN, round(0.6 * len(order)))
    val = train + round(0.15 * train)
    ends = {"train": (0, train), "val": (train, val), "test": (val, val + MAX_TEST)}
    chosen = {part: order[start:end] for part, (start, end) in ends.items()}
    parts = {part: {kind: x[rows] for kind, x in known.items()} for part, rows in chosen.items()}
    return {**parts, "unknown": outside}, np.searchsorted(np.sort(classes), labels[chosen["train"]])


def results(parts: dict[str, dict[str, np.ndarray]], labels: np.ndarray) -> dict[str, list[float]]:
    """Return the AUROC, the fraction of unknown images that are found, and the false alarms of each measure."""
    from transfer.evaluation import unknown

    last, every = parts["train"]["last"], parts["train"]["all"]
    references = unknown.as_directions(last)
    scores: dict[str, Score] = {
        "package": lambda x: unknown.neighbor_distances(x["last"], references),
        **{f"{k} neighbors": functools.partial(neighbors, last, count=k) for k in (1, 3, 5)},
        "all layers": lambda x: unknown.neighbor_distances(x["all"], every),
        **mahalanobis(last, labels),
        **head_scores(last, labels),
    }
    found = {}
    for name, score in scores.items():
        val, test, other = (score(parts[part]) for part in ("val", "test", "unknown"))
        held_out = val
        if name == "package" and len(val) < unknown_limit():
            held_out = unknown.neighbor_distances(last, references, leave_one_out=True)
        threshold = unknown.distance_threshold(held_out)
        truth = np.repeat([False, True], [len(test), len(other)])
        auroc = roc_auc_score(truth, np.concatenate([test, other]))
        row = [auroc, np.mean(other > threshold), np.mean(test > threshold)]
        found[name] = [round(float(value), 4) for value in row]
    return found


def unknown_limit() -> int:
    """Return the number of validation images from which on the package uses them."""
    from transfer.evaluation.reference import MIN_VALIDATION

    return MIN_VALIDATION["frozen"]


def neighbors(references: np.ndarray, x: dict[str, np.ndarray], *, count: int) -> np.ndarray:
    """Return the mean cosine distance to the nearest training images."""
    first, second = (y / np.linalg.norm(y, axis=1, keepdims=True) for y in (x["last"], references))
    return np.asarray(np.sort(1 - first @ second.T, axis=1)[:, :count].mean(axis=1))


def mahalanobis(x: np.ndarray, labels: np.ndarray) -> dict[str, Score]:
    """Return the Mahalanobis distance to the nearest class, and the same relative to all images; covariances shrink."""
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[labels == k].mean(axis=0) for k in range(labels.max() + 1)])
    whole, within = unit.mean(axis=0), precision(unit - means[labels])
    background = precision(unit - unit.mean(axis=0))

    def squares(y: np.ndarray, center: np.ndarray, inverse: np.ndarray) -> np.ndarray:
        return np.asarray(np.einsum("nd,nd->n", (y - center) @ inverse, y - center))

    def distance(y: dict[str, np.ndarray]) -> np.ndarray:
        z = y["last"] / np.linalg.norm(y["last"], axis=1, keepdims=True)
        return np.min([squares(z, center, within) for center in means], axis=0)

    def relative(y: dict[str, np.ndarray]) -> np.ndarray:
        z = y["last"] / np.linalg.norm(y["last"], axis=1, keepdims=True)
        return distance(y) - squares(z, whole, background)

    return {"Mahalanobis": distance, "relative Mahalanobis": relative}


def precision(x: np.ndarray, shrinkage: float = 0.1) -> np.ndarray:
    """Return the inverse of the shrunken covariance of centered features."""
    covariance = x.T @ x / len(x)
    mean = np.trace(covariance) / len(covariance)
    return np.asarray(
        np.linalg.inv((1 - shrinkage) * covariance + shrinkage * mean * np.eye(len(covariance)))
    )


def head_scores(x: np.ndarray, labels: np.ndarray) -> dict[str, Score]:
    """Return one minus the maximum softmax probability, and the energy, of the exact head."""
    from transfer.frozen import heads

    head = heads.solve(x, labels, int(labels.max()) + 1)

    def energy(y: dict[str, np.ndarray]) -> np.ndarray:
        return np.asarray(-logsumexp(y["last"] @ head.kernel + head.bias, axis=1))

    return {
        "maximum probability": lambda y: 1 - head.probabilities(y["last"]).max(axis=1),
        "energy": energy,
    }


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the mean AUROC, detection and false alarms of each measure, by task."""
    measures = [name for name, value in rows[0].items() if isinstance(value, list)]
    tasks = [task for task in TASKS if any(row["task"] == task for row in rows)]
    groups = {task: [row for row in rows if row["task"] == task] for task in tasks}
    groups |= {"held-out classes": [row for row in rows if "|" not in row["task"]]}
    groups |= {"other data set": [row for row in rows if "|" in row["task"]]}
    print("AUROC / found at 5% false alarms on held-out images / measured false alarms")
    for task, some in groups.items():
        print(f"\n{task}, {len(some)} units")
        for name in measures:
            values = np.array([row[name] for row in some])
            auroc, found, alarms = values.mean(axis=0)
            print(f"  {name:22}{auroc:6.3f} (sd {values[:, 0].std():.3f}) / {found:6.1%} / {alarms:5.1%}")


if __name__ == "__main__":
    main()
