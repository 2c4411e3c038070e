"""Compare fine-tuning with Keras' guide, and measure the effect of each option of the recipe.

    python tests/benchmarks/fine_tuning.py table --images path/to/images
    python tests/benchmarks/fine_tuning.py ingredients --images path/to/images
    python tests/benchmarks/fine_tuning.py views --images path/to/images
    python tests/benchmarks/fine_tuning.py speed
    python tests/benchmarks/fine_tuning.py show

- `table` trains the same network on the same images for the same number of epochs in three ways: as Keras' guide
  "Transfer learning & fine-tuning" (the head with Adam at 1e-3 and dropout for two thirds of the epochs, then
  everything at 1e-5); the same with BatchNormalization frozen, since its statistics move in the guide; and with `fit`.
- `ingredients` changes one option of the recipe at a time, on fewer and smaller images.
- `views` trains the last third of the network on one to eight views of each image.
- `speed` measures the time per image of `fit`, plain Keras, PyTorch, and upper layers that are trained on the features
  of frozen layers. Each method runs in a separate process. Times of ten epochs include compilation and all passes over
  frozen layers.
- `show` prints the tables.
- `method` and `torch` are started by `speed`.

Each unit adds a row to `--results`. Units of accuracy that have a row are skipped. The images are those of advice.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
os.environ.setdefault("TQDM_DISABLE", "1")
sys.path.insert(0, str(Path(__file__).parent))

import advice
import numpy as np

SETS = ("emoji", "hymenoptera", "sign_digits", "cifar10", "fashion_mnist")
EPOCHS = 15
MANY = 2000  # training images, validation included
FEW = 400
TEN = ", ten epochs"
PLAIN_MALLOC = ", default allocator"  # glibc returns memory to the system after each step
INGREDIENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "no head phase": {"head": False},
    "no schedule": {"schedule": False},
    "no augmentation": {"augment": "none"},
    "augment standard": {"augment": "standard"},
    "layer_decay 0.3": {"recipe": {"layer_decay": 0.3}},
    "layer_decay 0.1": {"recipe": {"layer_decay": 0.1}},
    "gradual_unfreezing 0.5": {"recipe": {"gradual_unfreezing": 0.5}},
    "weight_decay 0.1": {"recipe": {"weight_decay": 0.1}},
    "clip_norm 1": {"recipe": {"clip_norm": 1.0}},
    "ema 0.98": {"recipe": {"ema": 0.98}},
    "label_smoothing 0.1": {"label_smoothing": 0.1},
    "mixup": {"recipe": {"mix": "mixup"}},
    "cutmix": {"recipe": {"mix": "cutmix"}},
    "batchnorm adapted": {"recipe": {"batchnorm": "adapted"}},
}
LAST_THIRD = "block6a"  # the first trainable block if the last third is trained
VIEWS: dict[str, dict[str, Any]] = {f"views {count}": {"views": count} for count in (1, 2, 4, 8)}
for _count in (1, 4):  # with the default number of epochs, 34 for 360 images
    VIEWS[f"long, views {_count}"] = {"views": _count, "epochs": None}
    VIEWS[f"long, 2,000 images, views {_count}"] = {"views": _count, "epochs": None}
    VIEWS[f"long, from block3a, views {_count}"] = {
        "views": _count,
        "epochs": None,
        "unfreeze_from": "block3a",
    }
METHODS: dict[str, tuple[str, ...]] = {
    "table": ("guide", "guide, BatchNormalization frozen", "transfer"),
    "ingredients": tuple(INGREDIENTS),
    "views": tuple(VIEWS),
}


def main() -> None:
    """Run a command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=(*METHODS, "speed", "method", "torch", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"), help="folder of the data sets")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", help="run only these methods")
    default = Path(__file__).parent / "results" / "fine_tuning.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    if options.command == "torch":
        print(train_in_torch(options.images))
        return
    if options.command == "method":
        print(seconds_of(options))
        return
    if options.command == "speed":
        speed(options)
        return
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    advice.SIZE = 96 if options.command == "ingredients" else 128
    for seed in options.seeds:
        for method in options.only or METHODS[options.command]:
            for name in options.sets:
                run({"task": options.command, "method": method, "data": name, "seed": seed}, options)


def run(unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Run a unit and append its row."""
    import keras

    if any(unit.items() <= row.items() for row in advice.stored(options.results)):
        return
    keras.backend.clear_session()
    method = unit["method"]
    count = MANY if unit["task"] == "table" or "2,000" in method else FEW
    data = advice.draw({**unit, "count": count}, options.images)
    keras.utils.set_random_seed(unit["seed"])
    base = advice.base_network()
    start = time.perf_counter()
    changed = INGREDIENTS.get(method, {})
    if unit["task"] == "views":
        changed = {"unfreeze_from": LAST_THIRD, **VIEWS[method]}
    if method.startswith("guide"):
        accuracy = guide(base, data, freeze_batchnorm="frozen" in method)
    else:
        accuracy = fine_tune(base, data, unit["seed"], **changed)
    seconds = round(time.perf_counter() - start, 1)
    row = {**unit, "num_train": len(data.train), "num_test": len(data.test), "accuracy": round(accuracy, 4)}
    write({**row, "seconds": seconds}, options)


def write(row: dict[str, Any], options: argparse.Namespace) -> None:
    """Append a row to the results and print it."""
    options.results.parent.mkdir(exist_ok=True)
    with options.results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def guide(base: Any, data: Any, *, freeze_batchnorm: bool) -> float:
    """Train in the two phases of Keras' guide; optionally freeze each BatchNormalization layer."""
    import keras

    from transfer.networks import graphs, preprocessing, surgery

    layers = keras.layers
    # The last layer is after the global average pooling.
    extractor = surgery.clone(surgery.slice_at(base, graphs.analyze(base).last_layer))
    extractor.trainable = False
    scale = preprocessing.preprocessing_of(base)
    inputs = keras.Input((advice.SIZE, advice.SIZE, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = extractor(scale(x), training=False)
    model = keras.Model(inputs, layers.Dense(data.num_classes, activation="softmax")(layers.Dropout(0.2)(x)))
    images = [data.train.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.train))]
    x, y = np.stack(images).astype("float32"), data.train.labels
    for trainable, rate, epochs in ((False, 1e-3, EPOCHS * 2 // 3), (True, 1e-5, EPOCHS - EPOCHS * 2 // 3)):
        extractor.trainable = trainable
        for layer in extractor.layers if freeze_batchnorm else ():
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    tests = [data.test.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.test))]
    scores = model.predict(np.stack(tests).astype("float32"), verbose=0)
    return float((scores.argmax(axis=1) == data.test.labels).mean())


def fine_tune(
    base: Any,
    data: Any,
    seed: int,
    *,
    head: bool = True,
    schedule: bool = True,
    unfreeze_from: str | None = None,
    epochs: int | None = EPOCHS,
    recipe: dict[str, Any] | None = None,
    **options: Any,
) -> float:
    """Train with the package; `head` and `schedule` turn the head phase and the learning-rate schedule off."""
    import keras

    import transfer
    from transfer.cases import decisions

    build = transfer.small_similar if unfreeze_from else transfer.large_similar
    model = build(base, data.num_classes, seed=seed, unfreeze_from=unfreeze_from)
    if not head:
        del decisions._DECISIONS[model]  # `fit` has no head phase for a model that no builder made
    rate = float(model.optimizer.learning_rate.numpy())
    constant = [] if schedule else [keras.callbacks.LearningRateScheduler(lambda _: rate)]
    options = {"recipe": transfer.Recipe(**recipe or {}), "callbacks": constant, **options}
    transfer.fit(model, data, epochs=epochs, seed=seed, verbose=0, **options)
    return float(transfer.evaluate(model, data).accuracy)


def speed(options: argparse.Namespace) -> None:
    """Compare the time per image of all methods, each in a separate process."""
    known = (*_methods(options), "MobileNetV2, PyTorch")
    wanted = options.only or known
    if not {*wanted} <= {*known}:
        sys.exit(f"Expected some of {known}. Received: {wanted}.")
    measured: dict[str, list[float]] = {m: [] for name in wanted for m in (_baseline_of(name), name)}
    for _ in range(2):  # in turn, since other work on the machine varies
        for method in measured:
            command = [sys.executable, __file__, "method", "--images", options.images, "--only", method]
            malloc = (
                {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"} if method.endswith(PLAIN_MALLOC) else {}
            )
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **malloc})
            if done.returncode:
                sys.exit(f"{method} failed: {done.stderr[-2000:]}")
            measured[method].append(float(done.stdout.split()[-1]))
            print(f"{method}: {1000 * measured[method][-1]:.2f} ms per image", flush=True)
    for method, seconds in measured.items():
        baseline = _baseline_of(method)
        row = {"task": "speed", "method": method, "ms_per_image": round(1000 * min(seconds), 2)}
        ratio = round(min(seconds) / min(measured[baseline]), 3)
        write({**row, "baseline": baseline, "ratio": ratio}, options)


def _baseline_of(method: str) -> str:
    """Return the method that a method is compared with."""
    plain = "MobileNetV2, plain Keras" if method.startswith("Mobile") else "plain Keras"
    return plain + (TEN if TEN in method else "")


def seconds_of(options: argparse.Namespace) -> float:
    """Return the seconds per image of the method in `--only`."""
    advice.SIZE = 128
    methods = _methods(options)
    if options.only[0] not in methods:
        return _torch(*_pixels(_data(options)))
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    return methods[options.only[0]]()


def _data(options: argparse.Namespace) -> Any:
    """Load 900 training images without validation."""
    data = advice.draw({"data": "cifar10", "count": 1000, "seed": 0}, options.images)
    return data.__class__(**{**vars(data), "val": data.val.take([])})


def _pixels(data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the training images as float32, and their labels."""
    images = [data.train.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.train))]
    return np.stack(images).astype("float32"), data.train.labels


def _methods(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    """Return functions that measure the seconds per image, by the name of the method."""

    def plain(mobile: bool = False, batch_size: int = 32, epochs: int = 3, **build: Any) -> float:
        import keras

        import transfer

        data, timer = _data(options), _epoch_timer()
        shape = (advice.SIZE, advice.SIZE, 3)
        network = keras.applications.MobileNetV2(weights=None, input_shape=shape) if mobile else None
        model = transfer.large_similar(network or advice.base_network(), data.num_classes, **build)
        x, labels = _pixels(data)
        model.fit(x, labels, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[timer])
        return timer.per_image(len(x))

    def fitted(augment: str, **build: Any) -> float:
        import transfer

        data, timer = _data(options), _epoch_timer()
        model = transfer.large_similar(advice.base_network(), data.num_classes, **build)
        transfer.fit(model, data, epochs=3, augment=augment, verbose=0, callbacks=[timer])
        return timer.per_image(len(data.train))

    def plain_ten() -> float:
        import transfer

        data = _data(options)
        x, labels = _pixels(data)
        start = time.perf_counter()
        transfer.large_similar(advice.base_network(), data.num_classes).fit(x, labels, epochs=10, verbose=0)
        return (time.perf_counter() - start) / (10 * len(x))

    def fitted_ten(builder: str, views: int | None = None, **build: Any) -> float:
        import transfer
        from transfer.frozen.feature_cache import FeatureCache

        data = _data(options)
        start = time.perf_counter()
        model = getattr(transfer, builder)(advice.base_network(), data.num_classes, **build)
        with tempfile.TemporaryDirectory() as folder:  # an empty cache
            transfer.fit(model, data, epochs=10, views=views, verbose=0, cache=FeatureCache(Path(folder)))
            return (time.perf_counter() - start) / (10 * len(data.train))

    upper = functools.partial(fitted_ten, "small_similar", unfreeze_from=LAST_THIRD)
    return {
        "plain Keras": plain,
        "fit, augment none": lambda: fitted("none"),
        "fit, augment light": lambda: fitted("light"),
        f"fit, augment light{PLAIN_MALLOC}": lambda: fitted("light"),
        "fit, steps_per_execution 8": lambda: fitted("light", steps_per_execution=8),
        "plain Keras, batch 64": lambda: plain(batch_size=64),
        "plain Keras, bfloat16": lambda: plain(epochs=2, precision="mixed_bfloat16"),
        f"plain Keras{TEN}": plain_ten,
        f"fit{TEN}": lambda: fitted_ten("large_similar"),
        f"unfreeze from {LAST_THIRD}{TEN}": upper,
        f"unfreeze from {LAST_THIRD}{TEN}{PLAIN_MALLOC}": upper,
        f"unfreeze from {LAST_THIRD}, four views{TEN}": lambda: upper(views=4),
        "MobileNetV2, plain Keras": lambda: plain(mobile=True),
    }


def _epoch_timer() -> Any:
    """Return a callback that measures the time per image, without the first epoch and its compilation."""
    import keras

    class EpochTimer(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.ends: list[float] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

        def per_image(self, count: int) -> float:
            return min(np.diff(self.ends)) / count

    return EpochTimer()


def _torch(x: np.ndarray, labels: np.ndarray) -> float:
    """Train MobileNetV2 in PyTorch, in a separate process: PyTorch and TensorFlow may conflict in one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, x=x, labels=labels)
        done = subprocess.run(
            [sys.executable, __file__, "torch", "--images", file], capture_output=True, text=True
        )
    return float(done.stdout) if done.returncode == 0 else float("nan")


def train_in_torch(file: Path) -> float:
    """Train from arrays with channels last, as usual in PyTorch on a CPU; return the seconds per image."""
    import frozen_peers
    import torch

    x, labels = np.load(file)["x"], np.load(file)["labels"]
    network = torch.nn.Sequential(frozen_peers.mobilenet_v2(torch, x.shape[1]), torch.nn.Linear(1280, 10))
    network = network.eval().to(
        memory_format=torch.channels_last
    )  # BatchNormalization is frozen, as in Keras
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-5)
    images = torch.from_numpy(x / 127.5 - 1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    targets, ends = torch.from_numpy(labels.astype("int64")), []
    for _ in range(3):
        for first in range(0, len(x), 32):
            optimizer.zero_grad()
            scores = network(images[first : first + 32])
            torch.nn.functional.cross_entropy(scores, targets[first : first + 32]).backward()
            optimizer.step()
        ends.append(time.perf_counter())
    return float(min(np.diff(ends)) / len(x))


def show(rows: list[dict[str, Any]]) -> None:
    """Print the tables."""
    width = max((len(row["method"]) for row in rows), default=0) + 1
    for task in METHODS:
        chosen = [row for row in rows if row["task"] == task]
        sets = list(dict.fromkeys(row["data"] for row in chosen))
        print(
            f"\n{task}: test accuracy in %, mean over seeds\n{'':{width}}"
            + "".join(f"{name:>16}" for name in [*sets, "mean"])
        )
        for method in dict.fromkeys(row["method"] for row in chosen):
            cells = [[r["accuracy"] for r in chosen if (r["method"], r["data"]) == (method, s)] for s in sets]
            means = [100 * np.mean(cell) if cell else np.nan for cell in cells]
            print(f"{method:{width}}" + "".join(f"{value:16.1f}" for value in [*means, np.mean(means)]))
    print("\nspeed: time per training image, and its ratio to a baseline")
    for row in rows:
        if row["task"] == "speed":
            ratio = f"{row['ratio']:.2f} times {row['baseline']}"
            print(f"{row['method']:{width}} {row['ms_per_image']:7.2f} ms per image, {ratio}")


if __name__ == "__main__":
    main()
