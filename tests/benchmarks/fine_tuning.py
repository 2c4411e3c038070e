"""Training everything beside the Keras guide's two phases, and what each ingredient of the recipe brings.

    python tests/benchmarks/fine_tuning.py table --images path/to/images
    python tests/benchmarks/fine_tuning.py ingredients --images path/to/images
    python tests/benchmarks/fine_tuning.py views --images path/to/images
    python tests/benchmarks/fine_tuning.py speed
    python tests/benchmarks/fine_tuning.py show

`table` trains the same network on the same images for the same number of passes: as the guide "Transfer learning &
fine-tuning" does (head alone with Adam at 1e-3 under dropout, then everything at 1e-5, two passes to one), as it does
but for BatchNormalization, whose statistics move there although it says that they do not, and as `fit` does.
`ingredients` changes one ingredient at a time, on fewer and smaller images; `views` trains the last third alone, on
one to eight views of each of few images. `speed` compares seconds per image with plain Keras, PyTorch, and a tail
that trains on what the frozen part gave, each in a process of its own; the tail pays for all, its pass over the frozen
part and compiling too, and so does the plain Keras that it is held against. A line per unit goes to `--results`, and
what is in it is not repeated. The images are those of advice.py.
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
PASSES = 15
MOST = 2000  # images to train on, validation included
FEW = 400
TEN = ", ten epochs, all included"
GIVEN_BACK = ", memory given back"  # to the system after each step, as glibc does by itself
INGREDIENTS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "no head first": {"head": False},
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
    "BatchNorm adapted": {"recipe": {"batchnorm": "adapted"}},
}
LAST_THIRD = "block6a"  # the first of the blocks that train where the last third does
VIEWS: dict[str, dict[str, Any]] = {f"views {count}": {"views": count} for count in (1, 2, 4, 8)}
for _count in (1, 4):  # for as many passes as the package's own rule says: 34 over 360 images
    VIEWS[f"long, views {_count}"] = {"views": _count, "epochs": None}
    VIEWS[f"long, 2,000 images, views {_count}"] = {"views": _count, "epochs": None}
    VIEWS[f"long, from block3a, views {_count}"] = {
        "views": _count,
        "epochs": None,
        "unfreeze_from": "block3a",
    }
WAYS: dict[str, tuple[str, ...]] = {
    "table": ("guide", "guide, pinned", "ours"),
    "ingredients": tuple(INGREDIENTS),
    "views": tuple(VIEWS),
}


def main() -> None:
    """Run one of the commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=(*WAYS, "speed", "way", "torch", "show"))
    parser.add_argument("--images", type=Path, default=Path("images"))
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--only", nargs="+", help="of the ways, these")
    default = Path(__file__).parent / "results" / "fine_tuning.jsonl"
    parser.add_argument("--results", type=Path, default=default)
    options = parser.parse_args()
    if options.command == "show":
        show(advice.stored(options.results))
        return
    if options.command == "torch":
        print(torch_alone(options.images))
        return
    if options.command == "way":
        print(one_way(options))
        return
    if options.command == "speed":
        speed(options)
        return
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    advice.SIZE = 96 if options.command == "ingredients" else 128
    for seed in options.seeds:
        for way in options.only or WAYS[options.command]:
            for name in options.sets:
                run({"task": options.command, "way": way, "data": name, "seed": seed}, options)


def run(unit: dict[str, Any], options: argparse.Namespace) -> None:
    """Train once and append what it gives."""
    import keras

    if any(unit.items() <= row.items() for row in advice.stored(options.results)):
        return
    keras.backend.clear_session()
    count = MOST if unit["task"] == "table" or "2,000" in unit["way"] else FEW
    data = advice.draw({**unit, "count": count}, options.images)
    keras.utils.set_random_seed(unit["seed"])
    base = advice.base_network()
    start = time.perf_counter()
    given = INGREDIENTS.get(unit["way"], {})
    if unit["task"] == "views":
        given = {"unfreeze_from": LAST_THIRD, **VIEWS[unit["way"]]}
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

    from transfer.networks import graphs, preprocessing, surgery

    layers = keras.layers
    extractor = surgery.clone(
        surgery.slice_at(base, graphs.analyze(base).last_layer)
    )  # averaged over the image
    extractor.trainable = False
    scale = preprocessing.preprocessing_of(base)
    inputs = keras.Input((advice.SIZE, advice.SIZE, 3))
    x = layers.RandomRotation(0.1)(layers.RandomFlip("horizontal")(inputs))
    x = extractor(scale(x) if scale else x, training=False)
    model = keras.Model(inputs, layers.Dense(data.num_classes, activation="softmax")(layers.Dropout(0.2)(x)))
    images = [data.train.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.train))]
    x, y = np.stack(images).astype("float32"), data.train.labels
    for trainable, rate, epochs in ((False, 1e-3, PASSES * 2 // 3), (True, 1e-5, PASSES - PASSES * 2 // 3)):
        extractor.trainable = trainable
        for layer in extractor.layers if pinned else ():
            if isinstance(layer, layers.BatchNormalization):
                layer.trainable = False
        model.compile(keras.optimizers.Adam(rate), "sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(x, y, batch_size=32, epochs=epochs, verbose=0)
    tests = [data.test.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.test))]
    scores = model.predict(np.stack(tests).astype("float32"), verbose=0)
    return float((scores.argmax(axis=1) == data.test.labels).mean())


def ours(
    base: Any,
    data: Any,
    seed: int,
    *,
    head: bool = True,
    schedule: bool = True,
    unfreeze_from: str | None = None,
    epochs: int | None = PASSES,
    recipe: dict[str, Any] | None = None,
    **options: Any,
) -> float:
    """Train as the package does, for as many passes."""
    import keras

    import transfer
    from transfer.training.recipes import Recipe

    build = transfer.small_similar if unfreeze_from else transfer.large_similar
    from transfer.cases import decisions

    model = build(base, data.num_classes, seed=seed, unfreeze_from=unfreeze_from)
    if not head:
        del decisions._DECISIONS[model]  # of a model that is not its own, `fit` takes the head as it is
    rate = float(model.optimizer.learning_rate.numpy())
    constant = [] if schedule else [keras.callbacks.LearningRateScheduler(lambda _: rate)]
    how = {"recipe": Recipe(**recipe or {}), "callbacks": constant, **options}
    transfer.fit(model, data, epochs=epochs, seed=seed, verbose=0, **how)
    return float(transfer.evaluate(model, data).accuracy)


def speed(options: argparse.Namespace) -> None:
    """Compare seconds per image, in one run, each way in a process of its own: how it takes memory lasts."""
    known = (*_ways(options), "MobileNetV2, PyTorch")
    wanted = options.only or known
    if not {*wanted} <= {*known}:
        sys.exit(f"Expected some of {known}. Received: {wanted}.")
    found: dict[str, list[float]] = {way: [] for name in wanted for way in (_held_against(name), name)}
    for _ in range(2):  # in turns, since other work comes and goes
        for way in found:
            command = [sys.executable, __file__, "way", "--images", options.images, "--only", way]
            own = {"GLIBC_TUNABLES": "glibc.malloc.tcache_count=7"} if way.endswith(GIVEN_BACK) else {}
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **own})
            if done.returncode:
                sys.exit(f"{way}: {done.stderr[-2000:]}")
            found[way].append(float(done.stdout.split()[-1]))
            print(f"{way}: {1000 * found[way][-1]:.2f} ms per image", flush=True)
    for way, seconds in found.items():
        of = _held_against(way)
        row = {"task": "speed", "way": way, "ms_per_image": round(1000 * min(seconds), 2)}
        write({**row, "of": of, "ratio": round(min(seconds) / min(found[of]), 3)}, options)


def _held_against(way: str) -> str:
    """The way that another is so many times as fast as."""
    plain = "MobileNetV2, plain Keras" if way.startswith("Mobile") else "plain Keras"
    return plain + (TEN if TEN in way else "")


def one_way(options: argparse.Namespace) -> float:
    """Seconds per image of one way, by itself."""
    advice.SIZE = 128
    ways = _ways(options)
    if options.only[0] not in ways:
        return _torch(*_pixels(_few(options)))
    from transfer.distributed.strategies import start_quietly

    start_quietly()
    return ways[options.only[0]]()


def _few(options: argparse.Namespace) -> Any:
    data = advice.draw({"data": "cifar10", "count": 1000, "seed": 0}, options.images)
    return data.__class__(**{**vars(data), "val": data.val.take([])})


def _pixels(data: Any) -> tuple[np.ndarray, np.ndarray]:
    images = [data.train.image(i, (advice.SIZE, advice.SIZE)) for i in range(len(data.train))]
    return np.stack(images).astype("float32"), data.train.labels


def _ways(options: argparse.Namespace) -> dict[str, Callable[[], float]]:
    def plain(mobile: bool = False, batch_size: int = 32, epochs: int = 3, **how: Any) -> float:
        import keras

        import transfer

        data, clock = _few(options), _clock()
        shape = (advice.SIZE, advice.SIZE, 3)
        network = keras.applications.MobileNetV2(weights=None, input_shape=shape) if mobile else None
        model = transfer.large_similar(network or advice.base_network(), data.num_classes, **how)
        x, labels = _pixels(data)
        model.fit(x, labels, batch_size=batch_size, epochs=epochs, verbose=0, callbacks=[clock])
        return clock.per_image(len(x))

    def fitted(augment: str, **how: Any) -> float:
        import transfer

        data, clock = _few(options), _clock()
        model = transfer.large_similar(advice.base_network(), data.num_classes, **how)
        transfer.fit(model, data, epochs=3, augment=augment, verbose=0, callbacks=[clock])
        return clock.per_image(len(data.train))

    def plain_ten() -> float:
        import transfer

        data = _few(options)
        x, labels = _pixels(data)
        start = time.perf_counter()
        transfer.large_similar(advice.base_network(), data.num_classes).fit(x, labels, epochs=10, verbose=0)
        return (time.perf_counter() - start) / (10 * len(x))

    def fitted_ten(build: str, **how: Any) -> float:
        import transfer
        from transfer.frozen.feature_cache import FeatureCache

        data, views = _few(options), how.pop("views", None)
        start = time.perf_counter()
        model = getattr(transfer, build)(advice.base_network(), data.num_classes, **how)
        with tempfile.TemporaryDirectory() as folder:  # nothing is known from before
            transfer.fit(model, data, epochs=10, views=views, verbose=0, cache=FeatureCache(folder))
            return (time.perf_counter() - start) / (10 * len(data.train))

    tail = functools.partial(fitted_ten, "small_similar", unfreeze_from=LAST_THIRD)
    return {
        "plain Keras": plain,
        "fit, augment none": lambda: fitted("none"),
        "fit, augment light": lambda: fitted("light"),
        f"fit, augment light{GIVEN_BACK}": lambda: fitted("light"),
        "fit, steps_per_execution 8": lambda: fitted("light", steps_per_execution=8),
        "plain Keras, batch 64": lambda: plain(batch_size=64),
        "plain Keras, bfloat16": lambda: plain(epochs=2, precision="mixed_bfloat16"),
        f"plain Keras{TEN}": plain_ten,
        f"fit{TEN}": lambda: fitted_ten("large_similar"),
        f"tail from {LAST_THIRD}{TEN}": tail,
        f"tail from {LAST_THIRD}{TEN}{GIVEN_BACK}": tail,
        f"tail from {LAST_THIRD}, four views{TEN}": lambda: tail(views=4),
        "MobileNetV2, plain Keras": lambda: plain(mobile=True),
    }


def _clock() -> Any:
    """A callback that knows how long an image took after the first epoch, when all is compiled."""
    import keras

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs: Any = None) -> None:
            self.ends: list[float] = []

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.ends.append(time.perf_counter())

        def per_image(self, count: int) -> float:
            return min(np.diff(self.ends)) / count

    return Clock()


def _torch(x: np.ndarray, labels: np.ndarray) -> float:
    """Train MobileNetV2 in PyTorch, in a process of its own: the two libraries do not bear each other in one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "images.npz"
        np.savez(file, x=x, labels=labels)
        done = subprocess.run(
            [sys.executable, __file__, "torch", "--images", file], capture_output=True, text=True
        )
    return float(done.stdout) if done.returncode == 0 else float("nan")


def torch_alone(file: Path) -> float:
    """Train as PyTorch's users do on a CPU, channels last, from arrays; give seconds per image."""
    import peers
    import torch

    x, labels = np.load(file)["x"], np.load(file)["labels"]
    network = torch.nn.Sequential(peers.mobilenet_v2(torch, x.shape[1]), torch.nn.Linear(1280, 10))
    network = network.eval().to(memory_format=torch.channels_last)  # BatchNorm as pinned as in Keras' run
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
    for task in WAYS:
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
                f"{row['way']:44} {row['ms_per_image']:7.2f} ms per image, {row['ratio']:.2f} of {row['of']}"
            )


if __name__ == "__main__":
    main()
