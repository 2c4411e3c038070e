"""Compare ways to predict ordered classes from frozen features.

    python tests/benchmarks/ordinal.py run --images path/to/images
    python tests/benchmarks/ordinal.py show

A unit is a data set and a random split into 240 training, 100 validation and at most 600 test images. The network is
EfficientNetLite0 at 96 pixels, frozen. The sets are `fingers` (sign digits 0 to 5), and CIFAR-10 photos in bands of a
random rotation (0 to 120 degrees), brightness (factor 0.3 to 1.7) or zoom (factor 1 to 3): 8, 7 and 6 classes. Each
photo has one band, and the boundaries of the bands are not visible, as with grades and ages.

The softmax head of the package decides by each of its rules, and by the one that the validation images choose
(`chosen`). `cumulative` is a proportional odds model (McCullagh, 1980) with an L2 penalty that three folds choose; its
rule is chosen in the same way. `run` adds a row for each unit to `--results`: mean absolute error in ranks, and
quadratic weighted kappa. Units that have a row are skipped. `show` prints the means.
"""

from __future__ import annotations

import argparse
import functools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np
from advice import stored
from anytime import MODEL, add
from PIL import Image, ImageEnhance
from scipy.optimize import minimize
from scipy.special import expit

SETS = {"fingers": 6, "rotation": 8, "brightness": 7, "zoom": 6}
SIZE, MAX_IMAGES, NUM_TRAIN, NUM_VAL = 96, 940, 240, 100
PENALTIES = np.logspace(-3, 1, 5)


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(10))
    default = Path(__file__).parent / "results" / "ordinal.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(stored(options.results))
        return
    done = {(row["data"], row["seed"]) for row in stored(options.results)}
    for name in options.sets:
        for seed in options.seeds:
            if (name, seed) not in done:
                add({"data": name, "seed": seed, **measure(name, seed, options.images)}, options.results)


@functools.cache
def features(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the features of the images of a set, and their ranks from 0."""
    from transfer.adviser.sample_features import extract_sample_features
    from transfer.distributed.strategies import start_quietly
    from transfer.images.datasets import load_data
    from transfer.images.splitting import concatenate
    from transfer.networks.backbones import load_backbone

    start_quietly()
    images, ranks = read(name, root)
    data = load_data((images, ranks), val=0, test=0, near_duplicates=False)
    found = extract_sample_features(concatenate([data.train]), load_backbone(MODEL, image_size=SIZE))
    return [*found.taps.values()][-1], np.asarray(data.train.labels)


def read(name: str, root: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the images of a set, uint8 of shape (N, SIZE, SIZE, 3), and their ranks from 0."""
    rng = np.random.default_rng(0)
    if name == "fingers":
        files = [path for k in range(6) for path in sorted((root / "sign_digits" / str(k)).iterdir())]
        levels = np.array([int(path.parent.name) / 6 for path in files])
    else:
        files = sorted((root / "cifar10" / "test").rglob("*.*"))
        levels = rng.uniform(size=len(files))
    chosen = rng.permutation(len(files))[:MAX_IMAGES]
    images = [np.asarray(change(Image.open(files[i]), name, levels[i])) for i in chosen]
    return np.stack(images), (levels[chosen] * SETS[name] + 1e-9).astype("int64")


def change(image: Image.Image, name: str, level: float) -> Image.Image:
    """Return an image that is rotated, brightened or enlarged by a level from 0 to 1."""
    image = image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    if name == "rotation":
        image = image.rotate(120 * level, Image.Resampling.BICUBIC)
    if name == "brightness":
        image = ImageEnhance.Brightness(image).enhance(0.3 + 1.4 * level)
    if name == "zoom":
        side = SIZE / (1 + 2 * level)
        edge = (SIZE - side) / 2
        box = (edge, edge, edge + side, edge + side)
        image = image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=box)
    return image


def measure(name: str, seed: int, root: Path) -> dict[str, Any]:
    """Return the mean absolute error and the quadratic weighted kappa of each way to decide."""
    from transfer.common import decision_rules
    from transfer.evaluation import ordinal
    from transfer.evaluation.metrics import confusion_matrix
    from transfer.frozen import heads

    x, labels = features(name, root)
    count = int(labels.max()) + 1
    order = np.random.default_rng(seed).permutation(len(labels))
    train, val, test = np.split(order, [NUM_TRAIN, NUM_TRAIN + NUM_VAL])
    softmax = heads.solve(x[train], labels[train], count, seed=seed).probabilities
    cumulative = cumulative_logits(x[train], labels[train], count, seed)
    models = {"softmax": softmax, "cumulative": cumulative}
    found, row = {}, {}
    for kind, probabilities in models.items():
        held_out, new = probabilities(x[val]), probabilities(x[test])
        rule = row[f"{kind} rule"] = decision_rules.choose_rule(labels[val], held_out)
        found |= {f"{kind} {name}": decision_rules.decide(new, name) for name in decision_rules.RULES}
        found[f"{kind} chosen"] = decision_rules.decide(new, rule)
    for way, classes in found.items():
        scores = ordinal.ordinal_scores(confusion_matrix(labels[test], classes, count))
        row[way] = [round(float(value), 4) for value in scores[:2]]
    return row


def cumulative_logits(x: np.ndarray, labels: np.ndarray, count: int, seed: int) -> Any:
    """Fit a proportional odds model; return the function of its probabilities."""
    from transfer.frozen.heads import assign_folds

    folds = assign_folds(labels, count=3, seed=seed)
    losses = []
    for penalty in PENALTIES:
        parts = [(folds != fold, folds == fold) for fold in range(3)]
        rows = [fit(x[a], labels[a], count, penalty)(x[b])[np.arange(b.sum()), labels[b]] for a, b in parts]
        losses.append(-np.log(np.maximum(np.concatenate(rows), 1e-12)).mean())
    return fit(x, labels, count, PENALTIES[int(np.argmin(losses))])


def fit(x: np.ndarray, labels: np.ndarray, count: int, penalty: float) -> Any:
    """Minimize the mean log loss with a penalty on the weights, the gaps of the thresholds being positive."""
    mean, scale = x.mean(axis=0), x.std(axis=0) + 1e-6

    def standardized(rows: np.ndarray) -> np.ndarray:
        return (rows - mean) / scale / np.sqrt(x.shape[1])

    z, place = standardized(x), np.arange(len(labels))

    def unpack(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, gaps, weights = values[:1], values[1 : count - 1], values[count - 1 :]
        return np.concatenate([first, first + np.cumsum(np.exp(gaps))]), weights

    def cumulative(values: np.ndarray, rows: np.ndarray) -> np.ndarray:
        thresholds, weights = unpack(values)
        inner = expit(thresholds - (rows @ weights)[:, None])
        return np.concatenate([np.zeros((len(rows), 1)), inner, np.ones((len(rows), 1))], axis=1)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        c, weights = cumulative(values, z), values[count - 1 :]
        p = np.maximum(c[place, labels + 1] - c[place, labels], 1e-12)
        slope = c * (1 - c) / p[:, None] / len(p)  # of the log loss by each threshold; zero at both ends
        by_threshold = np.zeros_like(c)
        by_threshold[place, labels + 1] -= slope[place, labels + 1]
        by_threshold[place, labels] += slope[place, labels]
        later = np.cumsum(by_threshold.sum(axis=0)[1:-1][::-1])[::-1]  # a gap moves all later thresholds
        gaps = later[1:] * np.exp(values[1 : count - 1])
        by_weight = penalty * weights / len(p) - by_threshold.sum(axis=1) @ z
        value = -np.log(p).mean() + penalty * (weights @ weights) / 2 / len(p)
        return value, np.concatenate([later[:1], gaps, by_weight])

    start = np.zeros(count - 1 + z.shape[1])
    start[0] = -count / 2
    best = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 300}).x
    return lambda rows: np.diff(cumulative(best, standardized(rows)), axis=1)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the mean error and kappa of each way to decide, and how often it has the lower error than the first."""
    ways = [key for key in rows[0] if isinstance(rows[0][key], list)]
    for name in [*dict.fromkeys(row["data"] for row in rows), "all"]:
        some = [row for row in rows if name in (row["data"], "all")]
        print(f"\n{name}, {len(some)} units")
        first = np.array([row[ways[0]][0] for row in some])
        for way in ways:
            error, kappa = np.mean([row[way] for row in some], axis=0)
            difference = np.array([row[way][0] for row in some]) - first
            print(
                f"  {way:26} MAE {error:.3f} (sd of the difference {difference.std():.3f}, lower in "
                f"{(difference < 0).sum()}, higher in {(difference > 0).sum()}), kappa {kappa:.3f}"
            )


if __name__ == "__main__":
    main()
