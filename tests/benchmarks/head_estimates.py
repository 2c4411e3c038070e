"""Measure how far the estimate of a head is from its test accuracy, on samples of the tuning sets.

    python tests/benchmarks/head_estimates.py run --images path/to/images
    python tests/benchmarks/head_estimates.py show

`run` chooses heads (EfficientNetLite0, 128 pixels) on all images of a set, two halves and two quarters, and adds a row
for each to `--results`. `show` prints the errors of the estimate for exponents of the number of images per class:
`transfer.common.accuracies.ERROR_EXPONENT` is one of them.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import tuning_sets
from advice import stored
from anytime import MODEL, SIZE, add

SHIFTED = ("emoji-styles", "few-1")  # tested in another style, and one image per class
SAMPLES = ((1, 0), (2, 0), (2, 1), (4, 0), (4, 1))  # fraction of the images, as its inverse, and seed


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    sets = [name for name in tuning_sets.NAMES if name not in SHIFTED]
    parser.add_argument("--sets", nargs="+", default=sets)
    default = Path(__file__).parent / "results" / "head_estimates.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(stored(options.results))
        return
    done = {row["data"] for row in stored(options.results)}
    for name in options.sets:
        if name not in done:
            measure(name, options)


def measure(name: str, options: argparse.Namespace) -> None:
    """Choose heads on samples of a set, and add their rows."""
    import transfer
    from transfer.adviser.sample_features import extract_sample_features
    from transfer.frozen.head_choice import choose_head, features_of
    from transfer.frozen.heads import assign_folds
    from transfer.images.splitting import concatenate

    data = tuning_sets.load(name, options.images, seed=0)
    images = concatenate([data.train, data.val]) if len(data.val) else data.train
    base = transfer.load_backbone(MODEL, image_size=SIZE)
    known, test = (extract_sample_features(part, base).taps for part in (images, data.test))
    groups = np.array(images.groups, object)
    for count, seed in SAMPLES:
        folds = assign_folds(images.labels, groups=groups, count=count, seed=seed + 100)
        used = np.flatnonzero(folds == 0)
        classes, labels = np.unique(images.labels[used], return_inverse=True)
        if len(used) < 1.6 * len(classes):
            continue
        taps, own = {key: x[used] for key, x in known.items()}, groups[used] if len(groups) else ()
        choice = choose_head(taps, labels, len(classes), groups=own, seed=seed)
        scores = features_of(test, choice.best.cuts) @ choice.solved.kernel + choice.solved.bias
        seen = np.isin(data.test.labels, classes)
        found = (classes[scores.argmax(axis=1)] == data.test.labels)[seen]
        fractions = fractions_of(labels, choice.folds)
        row = {"data": name, "count": count, "seed": seed, "per_class": len(used) / len(classes)}
        row |= {"accuracy": choice.accuracy, "errors": choice.errors, "spread": choice.spread(choice.best)}
        row |= {"fractions": fractions, "test": float(found.mean()), "num_test": int(seen.sum())}
        add(row, options.results)


def fractions_of(labels: np.ndarray, folds: np.ndarray) -> list[float]:
    """Return the distinct fractions of known images of a class, rounded, one per image."""
    from transfer.common.accuracies import known_fractions

    fractions = known_fractions(labels, folds)
    return np.round(fractions[fractions > 0], 3).tolist()


def show(rows: list[dict[str, Any]]) -> None:
    """Print the errors for several exponents, and the intervals of the present one."""
    for exponent in np.arange(0, 0.85, 0.05):
        errors = np.array([estimate(row, exponent) - row["test"] for row in rows])
        print(
            f"exponent {exponent:.2f}: mean error {100 * errors.mean():+.1f}, "
            f"absolute {100 * np.abs(errors).mean():.1f}"
        )
    half = [1.645 * np.hypot(r["spread"], np.sqrt(r["test"] * (1 - r["test"]) / r["num_test"])) for r in rows]
    inside = np.mean([abs(r["accuracy"] - r["test"]) <= width for r, width in zip(rows, half, strict=True)])
    print(f"{inside:.0%} of {len(rows)} intervals hold")


def estimate(row: dict[str, Any], exponent: float) -> float:
    """Return the estimate of a row with another exponent."""
    out_of_fold = 1 - (1 - row["accuracy"]) / row["errors"]
    return 1 - (1 - out_of_fold) * float(np.mean(np.array(row["fractions"]) ** exponent))


if __name__ == "__main__":
    main()
