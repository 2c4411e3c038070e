"""Measure frozen networks: inference rates, and the time and accuracy of a new head compared with other recipes.

    python tests/benchmarks/frozen.py engines
    python tests/benchmarks/frozen.py upper-layers
    python tests/benchmarks/frozen.py limit --data emoji@128 photos=path/to/photos@160 --weights FILE
    python tests/benchmarks/frozen.py peers --data photos=path/to/photos@160 --weights FILE --counts 500 2000

- `engines` measures the forward pass of Keras' `predict` and of each engine in turn, on arrays at 224 pixels in batches
  of 32. It also prints the difference to Keras, and the CPU time, which other work changes less.
- `upper-layers` trains the last blocks on the cached features of the frozen layers, then through the whole network.
- `peers` measures the way from image files to a trained head on MobileNetV2: with the recipe of Keras' guide, with the
  same recipe in PyTorch if that is installed, and with `transfer`. Each method runs in a separate process;
  frozen_peers.py describes them.
- `limit` measures the rates of reading images and of the forward pass alone.

With `--counts`, `peers` and `limit` use stratified samples with these numbers of images (validation included), and
test on other images. Each unit adds a row to `--results`. Units that have a row are skipped. `peers` prints the ratio
to the limit if the results contain it.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

SIZE = 224
BATCH_SIZE = 32
METHODS = (
    *("guide", "torch", "transfer keras", "transfer openvino"),
    *("transfer keras all", "transfer openvino all"),
)
COMPARED_EPOCHS = 10  # epochs of the guide whose seconds are compared


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    engines_ = commands.add_parser("engines", help="compare the inference rates of Keras and of each engine")
    engines_.add_argument("--rounds", type=int, default=7)
    engines_.add_argument("--batches", type=int, default=4, help="batches per round (default: 4)")
    engines_.set_defaults(run=engines)
    helps = {"peers": "compare recipes", "limit": "measure reading and the forward pass alone"}
    for name, run in (("peers", peers), ("limit", limit)):
        command = commands.add_parser(name, help=helps[name])
        command.set_defaults(run=run)
        command.add_argument(
            "--data", nargs="+", default=["emoji"], metavar="NAME=PATH[@SIZE]", help="data sets"
        )
        command.add_argument(
            "--counts", nargs="+", type=int, default=[0], help="numbers of images; 0 for all"
        )
        command.add_argument("--test-images", type=int, default=2000, help="maximum, with --counts")
        command.add_argument("--size", type=int, default=SIZE, help="image size in pixels if --data has none")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
        command.add_argument("--weights", default="imagenet", help="file for MobileNetV2 of Keras, or none")
        command.add_argument("--results", type=Path, default=Path("frozen.jsonl"))
        if name == "peers":
            command.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
            command.add_argument(
                "--epochs", type=int, default=20, help="epochs of guide and torch (default: 20)"
            )
    upper = commands.add_parser("upper-layers", help="train on cached features and through the whole network")
    upper.add_argument("--blocks", nargs="+", default=["block4a", "block6a", "block7a"])
    upper.add_argument("--size", type=int, default=128)
    upper.add_argument("--epochs", type=int, default=4)
    upper.set_defaults(run=upper_layers)
    options = parser.parse_args()
    options.run(options)


def engines(options: argparse.Namespace) -> None:
    """Compare the engines on two networks."""
    batches = images(options.batches * BATCH_SIZE).reshape(options.batches, BATCH_SIZE, SIZE, SIZE, 3)
    for name in ("EfficientNetLite0", "MobileNetV2"):
        model = extractor(name, batches[0])
        passes = forward_passes(model)
        expected = model.predict(batches[0], batch_size=BATCH_SIZE, verbose=0)
        starts, errors = {}, {}
        for engine, one_pass in passes.items():
            start = time.perf_counter()
            errors[engine] = relative_error(one_pass(batches[:1])[0], expected)
            starts[engine] = time.perf_counter() - start
        print(f"{name}, {SIZE} px, batches of {BATCH_SIZE}, medians of {options.rounds} rounds")
        measured = in_turn(passes, batches, options.rounds)
        medians = {
            engine: [statistics.median(column) for column in zip(*rows, strict=True)]
            for engine, rows in measured.items()
        }
        keras_rate, keras_cpu = medians["Keras predict"]
        for engine, (rate, cpu) in medians.items():
            print(
                f"  {engine:18} {rate:5.0f} images/s, {rate / keras_rate:5.2f} times Keras; "
                f"{cpu:5.2f} ms of CPU time per image, Keras takes {keras_cpu / cpu:5.2f} times that; "
                f"first batch {starts[engine]:.1f} s; relative error {errors[engine]:.0e}"
            )


def upper_layers(options: argparse.Namespace) -> None:
    """Compare training on cached features of frozen layers with training through the whole network, on emoji."""
    import keras

    import transfer
    from transfer.frozen.feature_cache import FeatureCache

    data = transfer.load_data("emoji")
    base = transfer.load_backbone("EfficientNetLite0", image_size=options.size)
    for block in options.blocks:
        for augment in ("none", "light"):
            # Callbacks of the user see the whole model, so `fit` trains through it.
            for method, callbacks in (
                ("cached features", []),
                ("whole network", [keras.callbacks.Callback()]),
            ):
                model = transfer.small_similar(base, data.num_classes, unfreeze_from=block)
                with tempfile.TemporaryDirectory() as folder:
                    cache = FeatureCache(Path(folder))
                    settings = {"augment": augment, "epochs": options.epochs, "cache": cache}
                    log = transfer.fit(model, data, callbacks=callbacks, verbose=0, **settings)
                    accuracy = transfer.evaluate(model, data, cache=cache).accuracy
                epochs = sum(phase != "head" for phase in log.history["phase"])
                rate = epochs * len(data.train) / log.seconds_training
                print(
                    f"from {block}, augment {augment:5}, {method:15}: frozen layers {log.seconds_features:5.1f} s, "
                    f"{epochs} epochs {log.seconds_training:5.1f} s, {rate:4.0f} images/s; views {log.views}; "
                    f"validation loss {log.history['val_loss'][-1]:.4f}; test accuracy {accuracy:.3f}",
                    flush=True,
                )


def peers(options: argparse.Namespace) -> None:
    """Compare `transfer` with other recipes from image files to a trained head."""
    modules = {"torch": "torch", "transfer openvino": "openvino", "transfer openvino all": "openvino"}
    missing = [m for m in options.methods if m in modules and not importlib.util.find_spec(modules[m])]
    for method in missing:
        print(f"{method}: skipped, {modules[method]} is not installed.")
    rows = run_units(options, [method for method in options.methods if method not in missing])
    limits = {group_of(row): row for row in stored(options.results) if row["method"] == "limit"}
    for group in dict.fromkeys(map(group_of, rows)):
        show([row for row in rows if group_of(row) == group], limits.get(group))


def limit(options: argparse.Namespace) -> None:
    """Print the rates of reading and of the forward pass, and the seconds that they take."""
    for row in run_units(options, ["limit"]):
        count = row["num_images"]
        rates = {"reading": row["decode"], **{row["engines"][e]: rate for e, rate in row["forward"].items()}}
        parts = (f"{name} {rate:.0f} images/s, {count / rate:.2f} s" for name, rate in rates.items())
        print(f"{row['data']}, {count} images at {row['size']} px: {'; '.join(parts)}")


def group_of(row: dict) -> tuple:
    """Return the values that comparable rows have in common."""
    return tuple(row[key] for key in ("data", "count", "size", "test_images", "weights"))


def stored(results: Path) -> list[dict]:
    """Read the rows of earlier runs."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def run_units(options: argparse.Namespace, methods: Sequence[str]) -> list[dict]:
    """Run the units that have no row yet; return the rows of all units."""
    wanted = []
    for text in options.data:
        source, _, size = text.partition("@")
        name, _, path = source.partition("=")
        for count in options.counts:
            for seed in options.seeds:
                common = {"data": name, "count": count, "size": int(size or options.size), "seed": seed}
                common |= {"test_images": options.test_images, "weights": Path(options.weights).name}
                units = [{**common, "method": method} for method in methods]
                for unit in units:
                    if unit["method"] in ("guide", "torch"):
                        unit["epochs"] = options.epochs
                wanted += units
                rows = stored(options.results)
                units = [unit for unit in units if not any(unit.items() <= row.items() for row in rows)]
                if units:
                    run_group(units, path or name, options)
    return [row for row in stored(options.results) if any(unit.items() <= row.items() for unit in wanted)]


def run_group(units: Sequence[dict], source: str, options: argparse.Namespace) -> None:
    """Run units on the same images and append their rows."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = {"source": source, "weights_file": options.weights, "folder": folder}
        prepared = run_process({**units[0], **inputs, "method": "prepare"})
        if "problem" in prepared:
            print(f"{units[0]['data']}, {units[0]['count']}: skipped: {prepared['problem']}")
            return
        for unit in units:
            job = {**unit, **inputs, "source": prepared.get("source", source)}
            job["features"] = f"{folder}/{unit['method']}"
            row = {**unit, **run_process(job)}
            if unit["method"].startswith("transfer") and "problem" not in row:
                row["seconds_again"] = run_process({**job, "again": True}).get("seconds")
            seconds = f"{row['seconds']:.2f} s" if "seconds" in row else row.get("problem", "done")
            print(unit["data"], unit["count"], unit["method"], seconds, flush=True)
            if "problem" not in row:
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def run_process(job: dict) -> dict:
    """Run a unit in a separate process; return its result or problem, and its peak memory."""
    out = Path(job["folder"]) / "out.json"
    out.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).with_name("frozen_peers.py")),
        json.dumps({**job, "out": str(out)}),
    ]
    process = subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "1"})
    # The usage is the maximum over the process and its child processes, such as the data loaders of PyTorch.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        return {"problem": f"the process ended with exit code {process.returncode}"}
    return {**json.loads(out.read_text()), "peak_mb": round(usage.ru_maxrss / 2**10)}


def show(rows: list[dict], bare: dict | None) -> None:
    """Print a row per method on the same images, with means over seeds."""
    by_method = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    means = {m: summary(of_method, bare) for m, of_method in by_method.items() if of_method}
    first = rows[0]
    print(
        f"\n{first['data']} at {first['size']} px: {first['num_train']} training, {first['num_val']} validation "
        f"and {first['num_test']} test images; seeds: {len({row['seed'] for row in rows})}"
    )
    print("speedup over the guide; accuracy minus that of the guide in points; seconds relative to the limit")
    print(f"{'':22}  seconds  speedup  images/s  peak MB  accuracy  - guide  / limit    again  imports")
    guide = means.get("guide", {})
    for method, mean in means.items():
        faster = guide["seconds"] / mean["seconds"] if guide else None
        better = 100 * (mean["accuracy"] - guide["accuracy"]) if guide else None
        cells = [
            f"{mean['seconds']:9.2f}", cell(faster, 8, 1), f"{mean['images_per_s']:11.0f}", f"{mean['peak_mb']:8.0f}",
            f"{100 * mean['accuracy']:8.1f}%", cell(better, 8, 1), cell(mean["ratio"], 8, 2),
            cell(mean["seconds_again"], 8, 2), f"{mean['seconds_imports']:8.1f}",
        ]  # fmt: skip
        print(f"{method:22}", *cells, " ", by_method[method][0]["engine"], mean["epochs"])


def summary(rows: list[dict], bare: dict | None) -> dict[str, Any]:
    """Average over seeds; the guide and PyTorch report their best accuracy, and the seconds of 10 epochs."""
    mean: dict[str, Any] = {"ratio": None, "seconds_again": None, "epochs": ""}
    for key in ("seconds", "images_per_s", "peak_mb", "accuracy", "seconds_imports", "seconds_again"):
        if all(row.get(key) is not None for row in rows):
            mean[key] = statistics.mean(row[key] for row in rows)
    if "at" in rows[0]:
        marks = sorted(map(int, rows[0]["at"]))
        mark = max((mark for mark in marks if mark <= COMPARED_EPOCHS), default=marks[0])
        mean["seconds"] = statistics.mean(row["at"][str(mark)]["seconds"] for row in rows)
        mean["epochs"] = f"(seconds of {mark} epochs; best accuracy after {', '.join(map(str, marks))})"
    elif bare and (forward := bare["forward"].get(rows[0]["method"].split()[1])):
        mean["ratio"] = mean["seconds"] / (bare["num_images"] / min(bare["decode"], forward))
    return mean


def cell(value: float | None, width: int, digits: int) -> str:
    """Format a number, or a dash for None."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def images(count: int) -> np.ndarray:
    """Return smooth images with values from 0 to 255. On noise, rounding errors would be unusually large."""
    import tensorflow as tf

    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype("float32")
    return np.clip(tf.image.resize(coarse, (SIZE, SIZE), "bicubic").numpy(), 0, 255)


def extractor(name: str, images: np.ndarray) -> Any:
    """Return a feature extractor for raw images, with pre-trained weights if the package has them."""
    import keras

    import transfer
    from transfer.networks import surgery
    from transfer.networks.preprocessing import preprocessing_of

    keras.utils.set_random_seed(0)
    if name.startswith("EfficientNetLite"):
        base = transfer.load_backbone(name, image_size=SIZE)
        return surgery.feature_extractor_of(surgery.clone(base, preprocess=preprocessing_of(base)))
    base = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), include_top=False, pooling="avg"
    )
    model = surgery.clone(base, preprocess=preprocessing_of(base))
    # With their initial statistics, random weights give tiny activations, with which arithmetic is slower.
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images[:8], training=True)
    return model


def forward_passes(model: Any) -> dict[str, Callable[[np.ndarray], list[np.ndarray]]]:
    """Return functions that run a network over batches, by name: Keras first, then the available engines."""
    from transfer.frozen.engines import Engine, make_engine

    def keras_predict(batches: np.ndarray) -> list[np.ndarray]:
        flat = batches.reshape(-1, *batches.shape[2:])
        return [model.predict(flat, batch_size=BATCH_SIZE, verbose=0)]

    def run(name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
        engine = Engine(model, [name], BATCH_SIZE)
        engine._trusted = True  # do not compare with Keras; the table shows the errors
        return lambda batches: [engine(batch) for batch in batches]

    names = [name for name in reversed(make_engine(model)._names) if name != "keras predict"]
    return {"Keras predict": keras_predict, **{name: run(name) for name in names}}


def in_turn(
    passes: dict[str, Callable[[np.ndarray], list[np.ndarray]]], batches: np.ndarray, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Run all passes in turn; return the images/s and the CPU ms per image of each round."""
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in passes}
    count = batches.shape[0] * batches.shape[1]
    for _ in range(rounds):
        for name, one_pass in passes.items():
            start, cpu = time.perf_counter(), time.process_time()
            one_pass(batches)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            measured[name].append((count / wall, 1e3 * cpu / count))
    return measured


def relative_error(result: np.ndarray, expected: np.ndarray) -> float:
    """Return the Euclidean norm of the error relative to that of the expected result."""
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
