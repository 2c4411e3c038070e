"""Training everything beside the Keras guide's two phases, and what each ingredient of the recipe brings.

    python tests/benchmarks/fine_tuning.py table --pictures path/to/pictures
    python tests/benchmarks/fine_tuning.py ingredients --pictures path/to/pictures
    python tests/benchmarks/fine_tuning.py speed
    python tests/benchmarks/fine_tuning.py show

`table` trains the same network on the same pictures for the same number of passes: as the guide "Transfer learning &
fine-tuning" does (head alone with Adam at 1e-3 under dropout, then everything at 1e-5, two passes to one), as it does
but for BatchNormalization, whose statistics move there although it says that they do not, and as `fit` does.
`ingredients` changes one ingredient at a time, on fewer and smaller pictures. `speed` compares seconds per step with
plain Keras, and with a tail that trains on what the frozen part gave. A line per unit goes to `--results`, and what is
in it is not repeated. The pictures are those of advice.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import advice
import numpy as np

SETS = ("emoji", "hymenoptera", "sign_digits", "cifar10", "fashion_mnist")
PASSES = 15
MOST = 2000  # pictures to train on, validation included
FEW = 400
INGREDIENTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no head first": {"head": False},
    "no schedule": {"schedule": False},
    "no augmentation": {"augment": "none"},
    "augment standard": {"augment": "standard"},
    "depth_rate 0.3": {"recipe": {"depth_rate": 0.3}},
    "depth_rate 0.1": {"recipe": {"depth_rate": 0.1}},
    "thaw 0.5": {"recipe": {"thaw": 0.5}},
    "weight_decay 0.1": {"recipe": {"weight_decay": 0.1}},
    "clip_norm 1": {"recipe": {"clip_norm": 1.0}},
    "ema 0.98": {"recipe": {"ema": 0.98}},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "mixup": {"recipe": {"mix": "mixup"}},
    "cutmix": {"recipe": {"mix": "cutmix"}},
    "BatchNorm adapted": {"recipe": {"batchnorm": "adapted"}},
}


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=("table", "ingredients", "speed", "show"))
    parser.add_argument("--pictures", type=Path, default=Path("pictures"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", help="of the ingredients, these")
    default = Path(__file__).parent / "results" / "fine_tuning.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    from transfer.strategy import start_quietly

    start_quietly()
    if options.command == "speed":
        speed(options)
        return
    table = options.command == "table"
    advice.SIZE = 128 if table else 96
    ways = ("guide", "guide, pinned", "ours") if table else options.only or tuple(INGREDIENTS)
    for seed in options.seeds:
        for way in ways:
            for name in options.sets:
                run({"task": options.command, "way": way, "data": name, "seed": seed}, options)


def run(unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Train once and append what it gives."""
    import keras

    if any(unit.items() <= row.items() for row in advice.stored(options.results)):
        return
    keras.backend.clear_session()
    count = MOST if unit["task"] == "table" else FEW
    data = advice.draw({**unit, "count": count}, options.pictures)
    keras.utils.set_random_seed(unit["seed"])
    base = advice.base_network()
    start = time.perf_counter()
    given = INGREDIENTS.get(unit["way"], {})
    if unit["way"].startswith("guide"):
        accuracy = guide(base, data, pinned="pinned" in unit["way"])
    else:
        accuracy = ours(base, data, unit["seed"], **given)
    seconds = round(time.perf_counter() - start, 1)
    row = {**unit, "num_train": len(data.train), "num_test": len(data.test), "accuracy": round(accuracy, 4)}
    write({**row, "seconds": seconds}, options)


def write(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Append a line."""
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def guide(base: Any, data: Any, *, pinned: bool) -> float:
    """Train in the guide's two phases, BatchNormalization pinned layer by layer or, as the guide has it, not."""
    import keras

    from transfer import backbones, graphs, surgery

    layers = keras.layers
    trunk = surgery.clone(
        surgery.slice_at(base, graphs.layer_before_classifier(base))
    )  # averaged over the picture
    trunk.trainable = False
    scale = backbones.preprocessing_of(base, None)
    inputs = keras.Input((advice.SIZE, advice.SIZE, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = trunk(scale(x) if scale else x, training=False)
    model = keras.Model(inputs, layers.Dense(data.num_classes, activation="softmax")(layers.Dropout(0.2)(x)))
    pictures = [data.train.picture(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.train))]
    x, y = np.stack(pictures).astype("float32"), data.train.labels
    for trainable, rate, epochs in ((False, 1e-3, PASSES * 2 // 3), (True, 1e-5, PASSES - PASSES * 2 // 3)):
        trunk.trainable = trainable
        for layer in trunk.layers if pinned else ():
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    tests = [data.test.picture(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.test))]
    scores = model.predict(np.stack(tests).astype("float32"), verbose=0)
    return float((scores.argmax(axis=1) == data.test.labels).mean())


def ours(
    base: Any,
    data: Any,
    seed: int,
    *,
    head: bool = True,
    schedule: bool = True,
    recipe: dict[str, Any] | None = None,
    **options: Any,
) -> float:
    """Train as the package does, for as many passes."""
    import keras

    import transfer
    from transfer.recipes import Recipe

    model = transfer.large_similar(base, data.num_classes, seed=seed)
    if not head:
        del model.plan  # of a model that is not its own, `fit` takes the head as it is
    rate = float(model.optimizer.learning_rate.numpy())
    constant = [] if schedule else [keras.callbacks.LearningRateScheduler(lambda _: rate)]
    how = {"recipe": Recipe(**recipe or {}), "callbacks": constant, **options}
    transfer.fit(model, data, epochs=PASSES, seed=seed, verbose=0, **how)
    return float(transfer.evaluate(model, data).accuracy)


def speed(options: argparse.Namespace) -> None:
    """Compare seconds per step, in one run: plain Keras, `fit`, and a tail on cached features."""
    import keras

    import transfer
    from transfer import training

    advice.SIZE = 128
    data = advice.draw({"data": "cifar10", "count": 1000, "seed": 0}, options.pictures)
    base, epochs = advice.base_network(), 4
    found: dict[str, list[float]] = {}

    class Clock(keras.callbacks.Callback):
        def __init__(self) -> None:
            super().__init__()
            self.ends: list[float] = []

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

    def per_step(clock: Clock, steps: int) -> float:
        return (clock.ends[-1] - clock.ends[steps - 1]) / (len(clock.ends) - steps)

    steps = -(-len(data.train) // 32)
    size = (advice.SIZE, advice.SIZE)
    x = np.stack([data.train.picture(i, size) for i in range(len(data.train))]).astype("float32")
    for _ in range(2):  # in turns, since other work comes and goes
        model = transfer.large_similar(base, data.num_classes)
        clock = Clock()
        model.fit(x, data.train.labels, batch_size=32, epochs=epochs, verbose=0, callbacks=[clock])
        found.setdefault("plain Keras", []).append(per_step(clock, steps))
        for augment in ("none", "light"):
            model, clock = transfer.large_similar(base, data.num_classes), Clock()
            some = data.__class__(**{**vars(data), "val": data.val.take([])})
            options_of_fit = {"epochs": epochs, "augment": augment, "verbose": 0, "callbacks": [clock]}
            training.fit(model, some, **options_of_fit)
            found.setdefault(f"fit, augment {augment}", []).append(per_step(clock, steps))
        model = transfer.small_similar(base, data.num_classes, unfreeze_from="block6a")
        done = training.fit(model, some, epochs=10, verbose=0)
        found.setdefault("tail from block6a, its pass over the frozen part included", []).append(
            (done.seconds_training + done.seconds_features) / (10 * steps)
        )
    plain = min(found["plain Keras"])
    for way, seconds in found.items():
        row = {"task": "speed", "way": way, "seconds_per_step": round(min(seconds), 4)}
        write({**row, "of_plain": round(min(seconds) / plain, 3)}, options)


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    for task in ("table", "ingredients"):
        chosen = [row for row in rows if row["task"] == task]
        sets = list(dict.fromkeys(row["data"] for row in chosen))
        print(
            f"\n{task}: test accuracy, mean over seeds\n{'':24}"
            + "".join(f"{name:>16}" for name in [*sets, "mean"])
        )
        for way in dict.fromkeys(row["way"] for row in chosen):
            cells = [[r["accuracy"] for r in chosen if (r["way"], r["data"]) == (way, name)] for name in sets]
            means = [100 * np.mean(cell) if cell else np.nan for cell in cells]
            print(f"{way:24}" + "".join(f"{value:16.1f}" for value in [*means, np.mean(means)]))
    for row in rows:
        if row["task"] == "speed":
            print(
                f"{row['way']:60} {row['seconds_per_step']:.3f} s per step, {row['of_plain']:.2f} of plain Keras"
            )


if __name__ == "__main__":
    main()
