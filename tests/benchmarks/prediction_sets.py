"""Measure the coverage and the size of prediction sets.

    python tests/benchmarks/prediction_sets.py run --images path/to/images
    python tests/benchmarks/prediction_sets.py show

A unit is a data set and a random split. Its network is EfficientNetLite0 at 224 pixels, frozen, with a new head. The
thresholds are calibrated on validation images (`validation`), on the same images after a temperature was fitted on them
(`calibrated`), or on out-of-fold predictions of a head that is then solved on all of the images (`out-of-fold`, as
`--case auto` does). LAC (Sadinle et al., 2019, arXiv:1609.00451) is what the package uses; APS is that of Romano et al.
(2020, arXiv:2006.02544), randomized.

`run` adds a row for each unit to `--results`, with the coverage on the test images and the mean size of the sets. Units
that have a row are skipped. `show` prints the means. `--images` is the folder of the data sets, see `tuning_sets.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from advice import stored
from anytime import add
from unknown import MAX_TEST, SETS, features

COVERAGES = (0.8, 0.9, 0.95)
NUM_TRAIN, NUM_VAL = 240, 100


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("run", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(20))
    default = Path(__file__).parent / "results" / "prediction_sets.jsonl"
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


def measure(name: str, seed: int, root: Path) -> dict[str, Any]:
    """Return the coverage and the mean size by calibration, method and nominal coverage."""
    from transfer.evaluation.metrics import averaged_probabilities, fit_temperature
    from transfer.frozen import heads

    known, labels = features(name, root)
    x, count = known["last"], int(labels.max()) + 1
    order = np.random.default_rng(seed).permutation(len(labels))
    pool, test = order[: NUM_TRAIN + NUM_VAL], order[NUM_TRAIN + NUM_VAL :][:MAX_TEST]
    train, val = pool[:NUM_TRAIN], pool[NUM_TRAIN:]
    head = heads.solve(x[train], labels[train], count, seed=seed)
    of_val, of_test = (head.probabilities(x[part]) for part in (val, test))
    temperature = fit_temperature(labels[val], of_val)
    tempered = [averaged_probabilities([one], temperature) for one in (of_val, of_test)]
    problem = heads.HeadProblem(x[pool], labels[pool], count)
    problem.cross_validate(heads.assign_folds(labels[pool], count=heads.FOLDS, seed=seed))
    of_pool, of_both = problem.out_of_fold(), problem.solve().probabilities(x[test])
    row = {"accuracy": float((of_test.argmax(axis=1) == labels[test]).mean())}
    return row | {
        "validation": sets_of(of_val, labels[val], of_test, labels[test], seed),
        "calibrated": sets_of(tempered[0], labels[val], tempered[1], labels[test], seed),
        "out-of-fold": sets_of(of_pool, labels[pool], of_both, labels[test], seed),
    }


def sets_of(
    known: np.ndarray, labels: np.ndarray, new: np.ndarray, truth: np.ndarray, seed: int
) -> dict[str, list[float]]:
    """Return the coverage and the mean size of the sets of new images, by method and nominal coverage."""
    from transfer.evaluation import prediction_sets

    scores, rng, found = prediction_sets.set_scores(known, labels), np.random.default_rng(seed), {}
    own = np.sort(cumulative(known, rng)[np.arange(len(labels)), labels])
    of_new = cumulative(new, rng)
    for coverage in COVERAGES:
        threshold = prediction_sets.set_threshold(scores, coverage)
        inside = {"LAC": prediction_sets.prediction_sets(new, threshold)}
        inside["APS"] = of_new <= (prediction_sets.conformal_quantile(own, coverage) or 1.0)
        for name, sets in inside.items():
            covered = sets[np.arange(len(truth)), truth].mean()
            found[f"{name} {coverage}"] = [round(float(v), 4) for v in (covered, sets.sum(axis=1).mean())]
    return found


def cumulative(probabilities: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return for each class the sum of all larger probabilities, and a random part of its own."""
    order = np.argsort(-probabilities, axis=1)
    ordered = np.take_along_axis(probabilities, order, axis=1)
    before = np.cumsum(ordered, axis=1) - ordered
    sums = np.empty_like(probabilities)
    np.put_along_axis(sums, order, before + rng.uniform(size=(len(order), 1)) * ordered, axis=1)
    return sums


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the mean coverage with its standard deviation over the splits, and the mean size."""
    names = [*dict.fromkeys(row["data"] for row in rows), "all"]
    for name in names:
        some = [row for row in rows if name in (row["data"], "all")]
        print(f"\n{name}, {len(some)} units, accuracy {np.mean([row['accuracy'] for row in some]):.1%}")
        for calibration in ("validation", "calibrated", "out-of-fold"):
            for key in some[0][calibration]:
                values = np.array([row[calibration][key] for row in some])
                coverage, size = values.mean(axis=0)
                print(
                    f"  {calibration:12}{key:10} coverage {coverage:6.1%} (sd {values[:, 0].std():5.1%}), "
                    f"mean size {size:.2f}"
                )


if __name__ == "__main__":
    main()
