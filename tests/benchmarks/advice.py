"""Measure the quality of advice: the regret of the recommended case, and the errors of its estimates.

    python tests/benchmarks/advice.py truth --images path/to/images
    python tests/benchmarks/advice.py advise --images path/to/images
    python tests/benchmarks/advice.py fit
    python tests/benchmarks/advice.py show

A unit is a data set, a number of training images (validation images included) and a seed.

- `truth` trains every choice: heads on each block and on all layers, the whole network from the pre-trained weights,
  and with `--scratch` the whole network from random weights.
- `advise` runs the adviser and the rules that it is compared with.
- `fit` prints the constants of `transfer/adviser/estimates.py`, measured on the tuning sets.
- `show` prints the tables.

Each unit adds a row to `--results`. Units that have a row are skipped.

Images: `emoji` is part of the package. `--images` is a folder of the other sets, see `tuning_sets.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")

import numpy as np
import tuning_sets

MODEL = "EfficientNetLite0"
SIZE = 96
TUNING = ("emoji", "sign_digits", "cifar10", "cifar10-blurred")
HELD_OUT = ("hymenoptera", "fashion_mnist", "mixed")
COUNTS = (100, 400, 1600)
MAX_TEST = 1000  # images


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("truth", "advise", "fit", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=[*TUNING, *HELD_OUT], help="data sets (default: all)")
    parser.add_argument("--counts", nargs="+", type=int, default=COUNTS, help="numbers of training images")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--scratch", action="store_true", help="truth: also train from random weights")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "advice.jsonl")
    options = parser.parse_args()
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    if options.command in ("fit", "show"):
        {"fit": fit, "show": show}[options.command](options)
        return
    tasks = {"truth": [truth, *([scratch] if options.scratch else [])], "advise": [advised]}[options.command]
    for seed in options.seeds:
        for count in options.counts:
            for name in options.sets:
                for task in tasks:
                    unit = {"task": task.__name__, "data": name, "count": count, "seed": seed}
                    if not any(unit.items() <= row.items() for row in stored(options.results)):
                        run(task, unit, options)


def run(task: Any, unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Run a unit and append its row; skip a number of images that hardly exceeds a smaller one."""
    import keras

    labels = read(unit["data"], options.images)[1]
    available = len(labels) - num_test(len(labels))
    if any(unit["count"] > count > 0.7 * available for count in COUNTS):
        return
    start = time.perf_counter()
    keras.backend.clear_session()
    row = {**task(draw(unit, options.images), unit["seed"]), **unit}
    row["seconds"] = round(time.perf_counter() - start, 1)
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def num_test(count: int) -> int:
    """Return the number of test images of a set."""
    return min(MAX_TEST, int(0.4 * count))


def stored(results: Path) -> list[dict[str, Any]]:
    """Read the rows of earlier runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


@functools.cache
def read(name: str, root: Path) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    """Return the images of a set, uint8 of shape (N, SIZE, SIZE, 3), their labels, and the class names."""
    from transfer.images.splitting import concatenate

    source = tuning_sets.read(name, root)
    part = concatenate([*source.parts.values()])
    images = np.stack([part.image(i, (SIZE, SIZE)) for i in range(len(part))])
    return images, part.labels, tuple(source.class_names)


def draw(unit: dict[str, Any], root: Path) -> Any:
    """Load a stratified sample of training images, and other images for the test."""
    from transfer.images.datasets import load_data

    images, labels, names = read(unit["data"], root)
    order = tuning_sets.spread(labels, unit["seed"]).argsort(kind="stable")
    test = order[-num_test(len(labels)) :]
    train = order[: min(unit["count"], len(labels) - len(test))]
    splits = {key: (images[part], labels[part]) for key, part in (("train", train), ("test", test))}
    return load_data(splits, class_names=names, val=0.1, seed=unit["seed"], near_duplicates=False)


def base_network() -> Any:
    """Load the network of all units."""
    from transfer.networks.backbones import load_backbone

    return load_backbone(MODEL, image_size=SIZE)


def truth(data: Any, seed: int) -> dict[str, Any]:
    """Train a head on each block and on all layers, and the whole network from the pre-trained weights."""
    import keras

    import transfer
    from transfer.adviser.sample_features import extract_sample_features
    from transfer.frozen import heads
    from transfer.frozen.head_choice import candidate_cuts, features_of

    base = base_network()
    parts = {name: extract_sample_features(part, base, engine="auto") for name, part in data.splits.items()}
    heads_at = {}
    taps = tuple(parts["train"].taps)
    late = [cuts for name, cuts in candidate_cuts(taps).items() if name.endswith(" blocks")]
    for cuts in [*late, *((name,) for name in taps), taps]:
        name = "all" if cuts == taps else ",".join(cuts)
        x = {split: features_of(sample.taps, cuts) for split, sample in parts.items()}
        head = heads.solve(
            x["train"], data.train.labels, data.num_classes, val=(x["val"], data.val.labels), seed=seed
        )
        scores = x["test"] @ head.kernel + head.bias
        heads_at[name] = round(float((scores.argmax(axis=1) == data.test.labels).mean()), 4)
    keras.utils.set_random_seed(seed)
    model = transfer.large_similar(base, data.num_classes, seed=seed)
    seconds, tuned = trained(model, data, seed)
    figures = {"num_train": len(data.train), "num_val": len(data.val), "num_test": len(data.test)}
    return {**figures, "heads": heads_at, "fine-tuned": tuned, "seconds_fine_tuning": seconds}


def scratch(data: Any, seed: int) -> dict[str, Any]:
    """Train the whole network from random weights."""
    import keras

    import transfer

    keras.utils.set_random_seed(seed)
    model = transfer.large_different(base_network(), data.num_classes, init="random", seed=seed)
    seconds, accuracy = trained(model, data, seed)
    return {"from-scratch": accuracy, "seconds_scratch": seconds}


def trained(model: Any, data: Any, seed: int) -> tuple[float, float]:
    """Train a model for the default number of epochs; return seconds and test accuracy."""
    import transfer

    start = time.perf_counter()
    transfer.fit(model, data, seed=seed, verbose=0)
    seconds = round(time.perf_counter() - start, 1)
    return seconds, round(transfer.evaluate(model, data).accuracy, 4)


def advised(data: Any, seed: int) -> dict[str, Any]:
    """Return the advice, and the choices of the rules that it is compared with."""
    from transfer.adviser.advise import advise
    from transfer.adviser.sample_features import extract_sample
    from transfer.cases.policies import early_position, rule_of_thumb
    from transfer.networks.backbones import block_ends

    base = base_network()
    # The cache keeps these features, so that the seconds of the advice do not include the forward pass.
    sample = extract_sample(data, base, seed=seed)
    advice = advise(data, base, seed=seed)
    result = {key: value for key, value in advice.to_dict().items() if key != "images_per_class"}
    similar = advice.similarity is not None and advice.similarity.similar
    ends, last = block_ends(base), list(sample.taps)[-1]
    thumb = rule_of_thumb(len(data.train), similar)
    knn = {name: nearest_neighbours(x, sample.labels) for name, x in sample.taps.items()}
    shuffled = advise(with_shuffled_labels(data, seed), base, trial=False, seed=seed)
    return {
        **result,
        "rule of thumb": last if thumb.value == "small-similar" else ends[early_position(len(ends))],
        "kNN": max(knn, key=lambda name: knn[name]),
        "signal_shuffled": shuffled.signal,
    }


def with_shuffled_labels(data: Any, seed: int) -> Any:
    """Shuffle the labels of the training images."""
    from dataclasses import replace

    shuffled = np.random.default_rng(seed).permutation(data.train.labels)
    return replace(data, train=replace(data.train, labels=shuffled))


def nearest_neighbours(x: np.ndarray, labels: np.ndarray) -> float:
    """Return the leave-one-out accuracy of 5 nearest neighbors by cosine similarity."""
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    near = x @ x.T
    np.fill_diagonal(near, -np.inf)
    votes = labels[np.argsort(-near, axis=1)[:, :5]]
    predicted = [np.bincount(row).argmax() for row in votes]
    return float((np.array(predicted) == labels).mean())


BUDGETS = (60, 300, 1200)  # seconds of training


def fit(options: argparse.Namespace) -> None:
    """Print the errors of the evidence on the tuning sets, and the constants that follow from them."""
    from transfer.adviser.estimates import best_head

    units = {unit: rows for unit, rows in joined(options).items() if unit[0] in TUNING}
    errors: dict[str, list[float]] = {"one layer": [], "late blocks": [], "all": [], "from-scratch": []}
    gains = []
    for rows in units.values():
        evidence, truth = rows["advised"]["evidence"], rows["truth"]
        for head in evidence["heads"]:
            kind = "all" if head["cut"] == "all" else "late blocks" if "," in head["cut"] else "one layer"
            errors[kind].append(truth["heads"][head["cut"]] - head["accuracy"])
        if "scratch" in rows:
            errors["from-scratch"].append(rows["scratch"]["from-scratch"] - evidence["pixel_accuracy"])
        best = best_head(choices(rows["advised"]))
        gains.append(truth["fine-tuned"] - truth["heads"][best.cut])
    for kind, values in errors.items():
        if values:
            summary = (
                f"mean {np.mean(values):+.3f}, standard deviation {np.std(values):.3f}, {len(values)} values"
            )
            print(f"{kind}: test accuracy minus cross-validated accuracy: {summary}")
    for name, rule in (
        ("best layer", advised_cut),
        ("deepest layer within a standard error of the best", cut_within_error),
    ):
        cuts = [(r["truth"]["heads"], rule(r)) for r in units.values()]
        lost = [
            max(v for k, v in heads.items() if k != "all" and "," not in k) - heads[cut]
            for heads, cut in cuts
        ]
        print(f"cut at the {name}: loses {100 * np.mean(lost):.2f} points compared with the best cut")
    print(
        f"gain of fine-tuning over the best head: {np.mean(gains):.3f}; standard deviation {np.std(gains):.3f}"
    )


def cut_within_error(rows: dict[str, dict]) -> str:
    """Return the deepest layer within a standard error of the best one."""
    curve = rows["advised"]["layer_curve"]
    best = max(curve, key=lambda point: point["accuracy"])
    near = [p for p in curve if p["accuracy"] >= best["accuracy"] - best["standard_error"]]
    return near[-1]["layer"]


def joined(options: argparse.Namespace) -> dict[tuple, dict[str, dict]]:
    """Return the rows of each unit that has both truth and advice, by task."""
    units: dict[tuple, dict[str, dict]] = {}
    for row in stored(options.results):
        if row["data"] in options.sets:
            units.setdefault((row["data"], row["count"], row["seed"]), {})[row["task"]] = row
    return {unit: rows for unit, rows in units.items() if {"truth", "advised"} <= set(rows)}


def show(options: argparse.Namespace) -> None:
    """Print the regret of each adviser, with and without a time budget, and the errors of the estimates."""
    units = joined(options)
    for title, sets in (("tuning sets", TUNING), ("held-out sets", HELD_OUT), ("all", (*TUNING, *HELD_OUT))):
        chosen = [rows for (name, _, _), rows in units.items() if name in sets]
        if chosen:
            print(f"\n{title}: {len(chosen)} units")
            show_regret(chosen)
            show_estimates(chosen)
    print(
        "\nby set and number of training images, mean over seeds: best accuracy in % | regret in points of"
        f"\n{', '.join(ADVISERS)}"
    )
    for name, count in sorted({unit[:2] for unit in units}):
        rows = [rows for unit, rows in units.items() if unit[:2] == (name, count)]
        regrets = [np.mean([regret(r, adviser) for r in rows]) for adviser in ADVISERS]
        best = np.mean([max(accuracies(r).values()) for r in rows])
        cells = ", ".join(f"{value:5.1f}" for value in regrets)
        print(f"{name:16} {count:5} {100 * best:5.1f} | {cells}")


def accuracies(rows: dict[str, dict], budget: float | None = None) -> dict[str, float]:
    """Return the test accuracy of every choice that fits a time budget."""
    truth = rows["truth"]
    result = dict(truth["heads"])
    if budget is None or truth["seconds_fine_tuning"] <= budget:
        result["fine-tuned"] = truth["fine-tuned"]
    if "scratch" in rows and (budget is None or rows["scratch"]["seconds_scratch"] <= budget):
        result["from-scratch"] = rows["scratch"]["from-scratch"]
    return result


def chosen_by(rows: dict[str, dict], adviser: str, budget: float | None = None) -> str:
    """Return the choice of an adviser."""
    advice, heads = rows["advised"], rows["truth"]["heads"]
    last = list(heads)[-2]
    if adviser == "transfer":
        from transfer.adviser.estimates import pick

        return key_of(pick(choices(advice), time_budget=budget))
    if adviser == "always case 3":
        return "fine-tuned" if "fine-tuned" in accuracies(rows, budget) else last
    return {"rule of thumb": advice["rule of thumb"], "always case 1": last, "kNN": advice["kNN"]}[adviser]


def choices(advice: dict) -> Any:
    """Estimate each choice from the evidence of a piece of advice."""
    from transfer.adviser.estimates import Evidence, HeadEvidence, estimate_choices
    from transfer.adviser.trials import Trial

    heads = sorted(advice["evidence"]["heads"], key=lambda head: -head["accuracy"])
    heads = tuple(HeadEvidence(**head) for head in heads)
    trial = advice["trial"] and Trial(**advice["trial"])
    return estimate_choices(Evidence(**{**advice["evidence"], "heads": heads, "trial": trial}))


def key_of(choice: Any) -> str:
    """Return the name of a choice in the results."""
    return {None: "fine-tuned", "random": "from-scratch"}.get(choice.cut, choice.cut)


ADVISERS = ("transfer", "rule of thumb", "always case 1", "always case 3", "kNN")


def regret(rows: dict[str, dict], adviser: str, budget: float | None = None) -> float:
    """Return the points of accuracy that an adviser loses against the best of the four cases."""
    known, heads = accuracies(rows, budget), rows["truth"]["heads"]
    last = list(heads)[-2]
    # The four cases as a user trains them: last layer, early cut, all layers, whole network.
    compared = [known[key] for key in (last, "all", "fine-tuned", "from-scratch") if key in known]
    compared += [heads[cut] for cut in (rows["advised"]["rule of thumb"], advised_cut(rows))]
    # A choice that exceeds the budget is replaced by a head on the last layer.
    return 100 * (max(compared) - known.get(chosen_by(rows, adviser, budget), heads[last]))


def advised_cut(rows: dict[str, dict]) -> str:
    """Return the cut of a frozen network that the adviser recommends."""
    curve = rows["advised"]["layer_curve"]
    return max(reversed(curve), key=lambda point: point["accuracy"])["layer"]


def show_regret(units: list[dict[str, dict]]) -> None:
    """Print the regret of each adviser for each time budget."""
    title = "regret in points: mean, 90th percentile, worst"
    print(f"{title:48}" + "".join(f"{adviser:>18}" for adviser in ADVISERS))
    for budget in (None, *BUDGETS):
        cells = []
        for adviser in ADVISERS:
            values = [regret(rows, adviser, budget) for rows in units]
            cells.append(f"{np.mean(values):5.2f} {np.percentile(values, 90):5.1f} {max(values):5.1f}")
        title = "no time limit" if budget is None else f"{budget // 60} min of training"
        print(f"  {title:46}" + "".join(f"{cell:>18}" for cell in cells))


def show_estimates(units: list[dict[str, dict]]) -> None:
    """Print the errors of the estimates, the coverage of the intervals, and the quality of the layer curve."""
    from scipy.stats import kendalltau

    errors: dict[str, list[float]] = {}
    inside: dict[str, list[bool]] = {}
    taus, cut_regrets = [], []
    for rows in units:
        known = accuracies(rows)
        for choice in choices(rows["advised"]):
            key = key_of(choice)
            if key not in known:
                continue
            kind = key if key in ("fine-tuned", "from-scratch", "all") else "one layer"
            recommended = key == chosen_by(rows, "transfer")
            for name in (kind, *(["recommended"] if recommended else [])):
                errors.setdefault(name, []).append(choice.expected_accuracy - known[key])
                low, high = choice.interval
                inside.setdefault(name, []).append(low <= known[key] <= high)
        heads = rows["truth"]["heads"]
        curve = {point["layer"]: point["accuracy"] for point in rows["advised"]["layer_curve"]}
        taus.append(kendalltau([curve[name] for name in curve], [heads[name] for name in curve])[0])
        cut_regrets.append(100 * (max(heads[name] for name in curve) - heads[advised_cut(rows)]))
    for name in sorted(errors):
        error = 100 * np.array(errors[name])
        print(
            f"  estimated accuracy, {name:12}: mean absolute error {np.abs(error).mean():.1f} points (bias "
            f"{error.mean():+.1f}, standard deviation {error.std():.1f}); {np.mean(inside[name]):.0%} of "
            f"{len(error)} intervals contain the true value"
        )
    print(
        f"  layer curve: Kendall's tau with trained heads {np.mean(taus):.2f} ({min(taus):.2f} to {max(taus):.2f}); "
        f"the recommended cut loses {np.mean(cut_regrets):.2f} points compared with the best cut "
        f"(median {np.median(cut_regrets):.2f})"
    )
    signal = [rows["advised"]["signal"] for rows in units]
    shuffled = [rows["advised"]["signal_shuffled"] for rows in units]
    seconds = [rows["advised"]["seconds"] for rows in units]
    print(
        f"  signal found in {sum(signal)} of {len(signal)} sets, and in {sum(shuffled)} of {len(shuffled)} with "
        f"shuffled labels; the advice took {np.median(seconds):.0f} s (at most {max(seconds):.0f} s), without the "
        "forward pass"
    )


if __name__ == "__main__":
    main()
