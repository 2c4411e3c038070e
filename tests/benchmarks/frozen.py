"""How fast a frozen network runs forward, and how fast and good training a head on it is, beside peers.

    python tests/benchmarks/frozen.py engines
    python tests/benchmarks/frozen.py tail
    python tests/benchmarks/frozen.py limit --data emoji@128 photos=path/to/photos@160 --weights FILE
    python tests/benchmarks/frozen.py peers --data photos=path/to/photos@160 --weights FILE --counts 500 2000

`engines` gives the rate of the bare forward pass on prepared arrays at 224 px in batches of 32, of Keras'
`predict` and of each engine, in turn, in one process, and how far each is from Keras. Besides the rates it
gives the seconds of CPU, which other work on the machine changes less.

`tail` trains the last blocks, first on what the frozen part gave once, then through the whole network.

`peers` goes from images on disk to a trained head on MobileNetV2: the Keras guide's recipe, the same in PyTorch
where that is installed, and ours, each in a process of its own; methods are told in peers.py. `limit` gives the bare
rates of reading images and of the forward pass. With `--counts` both take so many images, stratified, validation
included, and test on others. A line per unit goes to `--results`, and what is in it is not repeated; `peers` prints
how far ours are from the limit where that is in it too.
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
METHODS = ("guide", "torch", "ours keras", "ours openvino", "ours keras all", "ours openvino all")
COMPARED = 10  # epochs of the guide, whose seconds others are compared with


def main() -> None:
    """Run one of the benchmarks."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    engines_ = commands.add_parser("engines", help="bare forward rates of Keras and of each engine")
    engines_.add_argument("--rounds", type=int, default=7)
    engines_.add_argument("--batches", type=int, default=4, help="in each round")
    engines_.set_defaults(run=engines)
    for name, run in (("peers", peers), ("limit", limit)):
        command = commands.add_parser(name, help="see above")
        command.set_defaults(run=run)
        command.add_argument("--data", nargs="+", default=["emoji"], metavar="NAME=PATH[@SIZE]")
        command.add_argument("--counts", nargs="+", type=int, default=[0], help="images; 0 is all")
        command.add_argument("--test-images", type=int, default=2000, help="at most, with a count")
        command.add_argument("--size", type=int, default=SIZE, help="of images, where --data has none")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
        command.add_argument("--weights", default="imagenet", help="a file for Keras' MobileNetV2")
        command.add_argument("--results", type=Path, default=Path("frozen.jsonl"))
        if name == "peers":
            command.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
            command.add_argument("--epochs", type=int, default=20, help="of guide and torch")
    tail_ = commands.add_parser("tail", help="training behind a frozen part against training through it")
    tail_.add_argument("--blocks", nargs="+", default=["block4a", "block6a", "block7a"])
    tail_.add_argument("--size", type=int, default=128)
    tail_.add_argument("--epochs", type=int, default=4)
    tail_.set_defaults(run=tail)
    options = parser.parse_args()
    options.run(options)


def engines(options: argparse.Namespace) -> None:
    """Compare rates of the forward pass of two networks."""
    batches = images(options.batches * BATCH_SIZE).reshape(options.batches, BATCH_SIZE, SIZE, SIZE, 3)
    for name in ("EfficientNetLite0", "MobileNetV2"):
        model = extractor(name, batches[0])
        ways = forward_passes(model)
        expected = model.predict(batches[0], batch_size=BATCH_SIZE, verbose=0)
        starts, errors = {}, {}
        for way, one_pass in ways.items():
            start = time.perf_counter()
            errors[way] = relative(one_pass(batches[:1])[0], expected)
            starts[way] = time.perf_counter() - start
        print(f"{name}, {SIZE} px, batches of {BATCH_SIZE}, medians of {options.rounds} rounds")
        figures = in_turn(ways, batches, options.rounds)
        first_rate, first_cpu = (
            statistics.median(seen) for seen in zip(*figures["Keras predict"], strict=True)
        )
        for way, seen in figures.items():
            rate, cpu = (statistics.median(column) for column in zip(*seen, strict=True))
            print(
                f"  {way:18} {rate:5.0f} images/s, {rate / first_rate:5.2f} times predict; "
                f"{cpu:5.2f} ms of CPU each, {first_cpu / cpu:5.2f} times; "
                f"first batch {starts[way]:.1f} s; error {errors[way]:.0e}"
            )


def tail(options: argparse.Namespace) -> None:
    """Compare training behind a frozen part with training through it, on the emoji images."""
    import keras

    import transfer
    from transfer.frozen.feature_cache import FeatureCache

    data = transfer.load_data("emoji")
    base = transfer.load_backbone("EfficientNetLite0", image_size=options.size)
    for block in options.blocks:
        for augment in ("none", "light"):
            for way, callbacks in (("tail alone", []), ("whole network", [keras.callbacks.Callback()])):
                model = transfer.small_similar(base, data.num_classes, unfreeze_from=block)
                with tempfile.TemporaryDirectory() as folder:
                    given = {
                        "augment": augment,
                        "epochs": options.epochs,
                        "cache": FeatureCache(Path(folder)),
                    }
                    log = transfer.fit(model, data, callbacks=callbacks, verbose=0, **given)
                    accuracy = transfer.evaluate(model, data, cache=FeatureCache(Path(folder))).accuracy
                epochs = sum(phase != "head" for phase in log.history["phase"])
                rate = epochs * len(data.train) / log.seconds_training
                print(
                    f"from {block}, augment {augment:5}, {way:13}: frozen part {log.seconds_features:5.1f} s, "
                    f"{epochs} epochs {log.seconds_training:5.1f} s, {rate:4.0f} "
                    f"images/s; views {log.views}; val loss {log.history['val_loss'][-1]:.4f}, test {accuracy:.3f}",
                    flush=True,
                )


def peers(options: argparse.Namespace) -> None:
    """Compare whole runs with those of peers."""
    modules = {"torch": "torch", "ours openvino": "openvino", "ours openvino all": "openvino"}
    missing = [m for m in options.methods if m in modules and not importlib.util.find_spec(modules[m])]
    for method in missing:
        print(f"{method}: skipped, since {modules[method]} is not installed")
    rows = run_units(options, [method for method in options.methods if method not in missing])
    limits = {group_of(row): row for row in stored(options.results) if row["method"] == "limit"}
    for group in dict.fromkeys(map(group_of, rows)):
        show([row for row in rows if group_of(row) == group], limits.get(group))


def limit(options: argparse.Namespace) -> None:
    """Print the bare rates and the seconds that they imply."""
    for row in run_units(options, ["limit"]):
        count = row["num_images"]
        rates = {"reading": row["decode"], **{row["engines"][e]: rate for e, rate in row["forward"].items()}}
        told = (f"{name} {rate:.0f} images/s, {count / rate:.2f} s" for name, rate in rates.items())
        print(f"{row['data']}, {count} images at {row['size']} px: {'; '.join(told)}")


def group_of(row: dict) -> tuple:
    """Say what rows must share to be compared."""
    return tuple(row[key] for key in ("data", "count", "size", "test_images", "weights"))


def stored(results: Path) -> list[dict]:
    """Read what earlier runs gave."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def run_units(options: argparse.Namespace, methods: Sequence[str]) -> list[dict]:
    """Run the units that are not in the results yet; give the rows of all that are wanted."""
    wanted = []
    for text in options.data:
        named, _, size = text.partition("@")
        name, _, path = named.partition("=")
        for count in options.counts:
            for seed in options.seeds:
                about = {"data": name, "count": count, "size": int(size or options.size), "seed": seed}
                about |= {"test_images": options.test_images, "weights": Path(options.weights).name}
                units = [{**about, "method": method} for method in methods]
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
    """Run units on the same images; append what they give to the results."""
    with tempfile.TemporaryDirectory() as folder:
        given = {"source": source, "weights_file": options.weights, "folder": folder}
        prepared = run_process({**units[0], **given, "method": "prepare"})
        if "problem" in prepared:
            print(f"{units[0]['data']}, {units[0]['count']}: skipped, {prepared['problem']}")
            return
        for unit in units:
            job = {**unit, **given, "source": prepared.get("source", source)}
            job["features"] = f"{folder}/{unit['method']}"
            row = {**unit, **run_process(job)}
            if unit["method"].startswith("ours") and "problem" not in row:
                row["seconds_again"] = run_process({**job, "again": True}).get("seconds")
            seconds = f"{row['seconds']:.2f} s" if "seconds" in row else row.get("problem", "done")
            print(unit["data"], unit["count"], unit["method"], seconds, flush=True)
            if "problem" not in row:
                with options.results.open("a") as file:
                    file.write(json.dumps(row) + "\n")


def run_process(job: dict) -> dict:
    """Run one unit in a process of its own; give its result, or the problem, and the memory of that process.

    Of processes that this one starts in turn, such as readers of PyTorch's, the largest counts where it is larger.
    """
    out = Path(job["folder"]) / "out.json"
    out.unlink(missing_ok=True)
    command = [
        sys.executable,
        str(Path(__file__).with_name("peers.py")),
        json.dumps({**job, "out": str(out)}),
    ]
    process = subprocess.Popen(command, env={**os.environ, "TQDM_DISABLE": "1"})
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        return {"problem": f"the process ended with {process.returncode}"}
    return {**json.loads(out.read_text()), "peak_mb": round(usage.ru_maxrss / 2**10)}


def show(rows: list[dict], bare: dict | None) -> None:
    """Print a line per method on the same images, means over seeds; seconds of peers after some epochs."""
    by_method = {m: [row for row in rows if row["method"] == m] for m in METHODS}
    means = {m: summary(of_method, bare) for m, of_method in by_method.items() if of_method}
    first = rows[0]
    print(
        f"\n{first['data']} at {first['size']} px: {first['num_train']} images to train on, {first['num_val']} for "
        f"validation, {first['num_test']} for the test; {len({row['seed'] for row in rows})} seeds"
    )
    print("faster than the guide; points of accuracy beyond the guide's; seconds over those of the limit")
    print(f"{'':18}  seconds   faster  images/s  peak MB  accuracy  - guide  / limit    again  imports")
    guide = means.get("guide", {})
    for method, mean in means.items():
        faster = guide["seconds"] / mean["seconds"] if guide else None
        better = 100 * (mean["accuracy"] - guide["accuracy"]) if guide else None
        cells = [
            f"{mean['seconds']:9.2f}", cell(faster, 8, 1), f"{mean['images_per_s']:11.0f}", f"{mean['peak_mb']:8.0f}",
            f"{100 * mean['accuracy']:8.1f}%", cell(better, 8, 1), cell(mean["ratio"], 8, 2),
            cell(mean["seconds_again"], 8, 2), f"{mean['seconds_imports']:8.1f}",
        ]  # fmt: skip
        print(f"{method:18}", *cells, " ", by_method[method][0]["engine"], mean["epochs"])


def summary(rows: list[dict], bare: dict | None) -> dict[str, Any]:
    """Average over seeds; a peer's accuracy is the best of all epochs measured, its seconds those of `COMPARED`."""
    mean: dict[str, Any] = {"ratio": None, "seconds_again": None, "epochs": ""}
    for key in ("seconds", "images_per_s", "peak_mb", "accuracy", "seconds_imports", "seconds_again"):
        if all(row.get(key) is not None for row in rows):
            mean[key] = statistics.mean(row[key] for row in rows)
    if "at" in rows[0]:
        marks = sorted(map(int, rows[0]["at"]))
        mark = max((mark for mark in marks if mark <= COMPARED), default=marks[0])
        mean["seconds"] = statistics.mean(row["at"][str(mark)]["seconds"] for row in rows)
        mean["epochs"] = f"(seconds of {mark} epochs; accuracy the best after {', '.join(map(str, marks))})"
    elif bare and (forward := bare["forward"].get(rows[0]["method"].split()[1])):
        mean["ratio"] = mean["seconds"] / (bare["num_images"] / min(bare["decode"], forward))
    return mean


def cell(value: float | None, width: int, digits: int) -> str:
    """Format a number that may not be there."""
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"


def images(count: int) -> np.ndarray:
    """Make smooth images, 0 to 255: on noise a network rounds worse than on what it was trained for."""
    import tensorflow as tf

    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype("float32")
    return np.clip(tf.image.resize(coarse, (SIZE, SIZE), "bicubic").numpy(), 0, 255)


def extractor(name: str, images: np.ndarray) -> Any:
    """Make a frozen trunk that eats raw images, with real weights where these come with the package.

    A random network with the BatchNorm statistics that it is born with shrinks every image to the same tiny
    numbers, with which arithmetic is not as fast as with ordinary ones: they are taken from images.
    """
    import keras

    import transfer
    from transfer.networks import surgery
    from transfer.networks.preprocessing import preprocessing_of

    keras.utils.set_random_seed(0)
    if name.startswith("EfficientNetLite"):
        whole = transfer.load_backbone(name, image_size=SIZE)
        return surgery.feature_extractor_of(surgery.clone(whole, preprocess=preprocessing_of(whole)))
    base = getattr(keras.applications, name)(
        weights=None, input_shape=(SIZE, SIZE, 3), include_top=False, pooling="avg"
    )
    model = surgery.clone(base, preprocess=preprocessing_of(base))
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    model(images[:8], training=True)
    return model


def forward_passes(model: Any) -> dict[str, Callable[[np.ndarray], list[np.ndarray]]]:
    """Give what runs over batches, by name: Keras first, then all engines that there are."""
    from transfer.frozen.engines import Engine, make_engine

    def keras_predict(batches: np.ndarray) -> list[np.ndarray]:
        flat = batches.reshape(-1, *batches.shape[2:])
        return [model.predict(flat, batch_size=BATCH_SIZE, verbose=0)]

    def run(name: str) -> Callable[[np.ndarray], list[np.ndarray]]:
        engine = Engine(model, [name], BATCH_SIZE)
        engine._trusted = True  # the errors are in the table
        return lambda batches: [engine(batch) for batch in batches]

    names = [name for name in reversed(make_engine(model)._names) if name != "keras predict"]
    return {"Keras predict": keras_predict, **{name: run(name) for name in names}}


def in_turn(
    ways: dict[str, Callable[[np.ndarray], list[np.ndarray]]], batches: np.ndarray, rounds: int
) -> dict[str, list[tuple[float, float]]]:
    """Run all of them `rounds` times, in turn; images/s and CPU ms per image of each round.

    Other work on the machine changes the seconds of CPU less than the rate.
    """
    figures: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    count = batches.shape[0] * batches.shape[1]
    for _ in range(rounds):
        for name, one_pass in ways.items():
            start, cpu = time.perf_counter(), time.process_time()
            one_pass(batches)
            wall, cpu = time.perf_counter() - start, time.process_time() - cpu
            figures[name].append((count / wall, 1e3 * cpu / count))
    return figures


def relative(result: np.ndarray, expected: np.ndarray) -> float:
    """Give the Euclidean length of an error, relative to what was expected."""
    return float(np.linalg.norm(result - expected) / np.linalg.norm(expected))


if __name__ == "__main__":
    main()
