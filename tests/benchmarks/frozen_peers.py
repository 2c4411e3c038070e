"""Run one unit of `frozen.py peers` or `frozen.py limit` in a separate process.

    python tests/benchmarks/frozen_peers.py JOB

frozen.py starts this script. JOB is JSON with the method, the images, their size, a seed and the file of the result.
Times start after the imports, before the first image is read. All methods use MobileNetV2.

- `guide` is the recipe of Keras' guide "Transfer learning & fine-tuning": cached decoded images in batches of 32;
  random flips and rotations, scaling, the frozen network and dropout in one model; Adam with its default learning rate.
- `torch` is the same recipe in PyTorch: two workers read the images with Pillow in every epoch.
- `transfer ENGINE [all]` is this package. With `all`, the head sees several layers.
"""

from __future__ import annotations

import csv
import importlib
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import numpy as np

START = time.perf_counter()

BATCH_SIZE = 32
MARKS = (5, 10, 20)  # epochs after which guide and torch are evaluated
MIN_TEST = 100  # test images
MAX_FORWARD = 2048  # images to time the forward pass with
STAGES = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip
"""MobileNetV2, table 2 of arXiv:1801.04381: expansion, channels, number of blocks, stride of the first block."""


def main() -> None:
    """Run the method of the job and write its result."""
    job = json.loads(sys.argv[1])
    methods = {"prepare": prepare, "limit": limit, "guide": guide, "torch": pytorch}
    if job["method"] != "torch":
        importlib.import_module("transfer.distributed.strategies").start_quietly()
    Path(job["out"]).write_text(json.dumps(methods.get(job["method"], train_with_transfer)(job)))


class Stopwatch:
    """Time since the start of a method, without pauses; accuracy after the epochs in `MARKS` and the last one."""

    def __init__(self, epochs: int = 0) -> None:
        self.epochs = epochs
        self.measured_epochs = {mark for mark in MARKS if mark < epochs} | {epochs}
        self.at: dict[int, dict[str, float]] = {}
        self.started = time.perf_counter()
        self.imports = round(self.started - START, 2)

    @property
    def seconds(self) -> float:
        """Seconds until now."""
        return round(time.perf_counter() - self.started, 3)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the time during a block of code."""
        start = time.perf_counter()
        yield
        self.started += time.perf_counter() - start

    def mark(self, epoch: int, accuracy: Callable[[], float]) -> None:
        """Record seconds and accuracy after an epoch, if it is one to measure."""
        if epoch in self.measured_epochs:
            seconds = self.seconds
            with self.paused():
                self.at[epoch] = {"seconds": seconds, "accuracy": accuracy()}

    def result(self, split: dict[str, Any], engine: str) -> dict[str, Any]:
        """Return the row of a unit."""
        last = self.at[self.epochs]["seconds"]
        return {
            "at": self.at,
            "seconds": last,
            "seconds_imports": self.imports,
            "images_per_s": round(len(split["train"]["labels"]) * self.epochs / last, 1),
            "accuracy": max(mark["accuracy"] for mark in self.at.values()),
            "engine": engine,
            **{f"num_{name}": len(split[name]["labels"]) for name in ("train", "val", "test")},
        }


def prepare(job: dict) -> dict:
    """Write the inputs of the other methods: a list of images, the split, and the weights of the network."""
    from transfer.images.datasets import load_data
    from transfer.networks.backbones import load_backbone

    folder, source = Path(job["folder"]), job["source"]
    if job["count"]:
        problem = write_list(folder / "list.csv", job)
        if problem:
            return {"problem": problem}
        source = str(folder / "list.csv")
    data = load_data(source, seed=job["seed"])
    split = {
        name: {"paths": [str(path) for path in part.images], "labels": part.labels.tolist()}
        for name, part in data.splits.items()
    }
    (folder / "split.json").write_text(json.dumps({"num_classes": data.num_classes, **split}))
    size = job["size"]
    base = load_backbone("MobileNetV2", weights=job["weights_file"], image_size=size, include_top=False)
    base.save_weights(folder / "base.weights.h5")
    probe = np.stack([data.train.image(i, (size, size)) for i in range(4)]) / np.float32(127.5) - 1
    arrays = [array for layer in base.layers for array in layer.get_weights()]
    expected = np.asarray(base(probe, training=False)).mean(axis=(1, 2))
    np.savez(folder / "base.npz", *arrays, probe=probe, expected=expected)
    return {"source": source}


def write_list(path: Path, job: dict) -> str:
    """Write a stratified sample of training and of test images; return the problem if there are too few."""
    from transfer.images.datasets import load_data
    from transfer.images.folder_source import find_source, read_folder

    def sample(labels: np.ndarray, count: int) -> np.ndarray:
        position = np.random.default_rng(job["seed"]).permutation(len(labels)).astype("float64")
        for label in np.unique(labels):  # each class is spread evenly from 0 to 1
            ranks = position[labels == label].argsort().argsort()
            position[labels == label] = (ranks + 0.5) / len(ranks)
        return np.sort(position.argsort(kind="stable")[:count])

    parts = read_folder(find_source(job["source"])).parts
    available, wanted = len(parts["train"]), {"train": job["count"], "test": job["test_images"]}
    if len(parts) == 1:
        wanted["test"] = min(wanted["test"], available - job["count"])
    if job["count"] > available or wanted["test"] < MIN_TEST:
        return f"{available} images are too few for {job['count']} training images and at least {MIN_TEST} test images"
    # `load_data` draws the test split if there is none, and keeps near-duplicates in one split.
    data = load_data(job["source"], seed=job["seed"], val=0, test=wanted["test"])
    rows = [("path", "label", "split")]
    for name, count in wanted.items():
        part = data.splits[name]
        for i in sample(part.labels, count).tolist():
            rows.append((str(part.images[i]), data.class_names[part.labels[i]], name))
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)
    return ""


def read_split(job: dict) -> dict[str, Any]:
    """Read the split and shuffle the training images, as the guide does."""
    split = json.loads((Path(job["folder"]) / "split.json").read_text())
    order = np.random.default_rng(job["seed"]).permutation(len(split["train"]["labels"]))
    split["train"] = {key: [values[i] for i in order] for key, values in split["train"].items()}
    return split


def guide(job: dict) -> dict:
    """Train with the recipe of Keras' guide, which caches the decoded images."""
    import keras
    import tensorflow as tf

    split, size = read_split(job), (job["size"], job["size"])
    watch = Stopwatch(job["epochs"])
    keras.utils.set_random_seed(job["seed"])

    def read(path: Any, label: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, size), label

    def batches(part: dict, cached: bool = True) -> Any:
        files = tf.data.Dataset.from_tensor_slices((part["paths"], part["labels"]))
        images = files.map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return (images.cache() if cached else images).batch(BATCH_SIZE).prefetch(10)

    def accuracy() -> float:
        logits = model.predict(batches(split["test"], cached=False), verbose=0)
        return float((logits.argmax(axis=1) == split["test"]["labels"]).mean())

    model = guide_model(job, split["num_classes"])
    marks = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, _: watch.mark(epoch + 1, accuracy))
    train, val = batches(split["train"]), batches(split["val"])
    model.fit(train, validation_data=val, epochs=job["epochs"], callbacks=[marks], verbose=0, shuffle=False)
    return watch.result(split, f"keras {keras.__version__} fit")


def guide_model(job: dict, num_classes: int) -> Any:
    """Build the network of Keras' guide for several classes."""
    import keras

    shape = (job["size"], job["size"], 3)
    base = keras.applications.MobileNetV2(input_shape=shape, include_top=False, weights=None)
    base.load_weights(Path(job["folder"]) / "base.weights.h5")
    base.trainable = False
    inputs = keras.Input(shape)
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(x)
    x = base(x, training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dropout(0.2)(x)
    model = keras.Model(inputs, keras.layers.Dense(num_classes)(x))
    model.compile(
        optimizer=keras.optimizers.Adam(),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def pytorch(job: dict) -> dict:
    """Train with the same recipe in PyTorch."""
    import torch
    from PIL import Image  # noqa: F401 (imported before the time starts)

    split = read_split(job)
    watch = Stopwatch(job["epochs"])
    torch.manual_seed(job["seed"])
    network = mobilenet_v2(torch, job["size"]).eval()
    copy_weights(torch, network, Path(job["folder"]) / "base.npz", watch)
    head = torch.nn.Sequential(torch.nn.Dropout(0.2), torch.nn.Linear(1280, split["num_classes"]))
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)

    def batches(name: str) -> Any:
        images = Images(split[name]["paths"], split[name]["labels"], job["size"])
        options = {"num_workers": 2, "persistent_workers": name != "test"}
        return torch.utils.data.DataLoader(images, BATCH_SIZE, shuffle=name == "train", **options)

    def scores(images: Any) -> Any:
        with torch.no_grad():
            features = network(images / 127.5 - 1)
        return head(features)

    def accuracy(loader: Any) -> float:
        head.eval()
        correct = [scores(images.permute(0, 3, 1, 2)).argmax(1) == labels for images, labels in loader]
        return float(torch.cat(correct).float().mean())

    train, val = batches("train"), batches("val")
    for epoch in range(1, job["epochs"] + 1):
        head.train()
        for images, labels in train:
            loss = torch.nn.functional.cross_entropy(scores(augmented(torch, images)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        accuracy(val)
        watch.mark(epoch, lambda: accuracy(batches("test")))
    return watch.result(split, f"torch {torch.__version__}")


class Images:
    """Image files as a data set for the DataLoader of PyTorch."""

    def __init__(self, paths: list[str], labels: list[int], size: int) -> None:
        self.paths, self.labels, self.size = paths, labels, size

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        from PIL import Image

        with Image.open(self.paths[i]) as image:
            small = image.convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR)
        return np.array(small), self.labels[i]


def augmented(torch: Any, images: Any) -> Any:
    """Flip half of the images and rotate each by up to 36 degrees, as the guide does."""
    images = images.permute(0, 3, 1, 2).float()
    angle = (torch.rand(len(images)) * 2 - 1) * 0.1 * 2 * torch.pi
    flip = torch.randint(0, 2, (len(images),)) * 2.0 - 1
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros(len(images))
    rows = torch.stack([flip * cos, -sin, zero, flip * sin, cos, zero], dim=1)
    grid = torch.nn.functional.affine_grid(rows.reshape(-1, 2, 3), list(images.shape), align_corners=False)
    return torch.nn.functional.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def mobilenet_v2(torch: Any, size: int) -> Any:
    """Build MobileNetV2 in PyTorch with the padding of Keras, without top, with global average pooling."""
    nn = torch.nn

    shortcut = {"forward": lambda self, x: x + nn.Sequential.forward(self, x)}
    residual = type("Residual", (nn.Sequential,), shortcut)

    def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[Any]:
        nonlocal size
        before = size % 2 if stride == 2 else kernel // 2
        size = -(-size // stride)
        pad = [nn.ZeroPad2d((before, 1, before, 1))] if kernel == 3 else []
        layer = nn.Conv2d(inputs, outputs, kernel, stride, groups=groups, bias=False)
        return [*pad, layer, nn.BatchNorm2d(outputs, eps=1e-3)]

    layers, channels = [*conv(3, 32, 3, 2), nn.ReLU6()], 32
    for expansion, outputs, blocks, first_stride in STAGES:
        for block in range(blocks):
            stride = first_stride if block == 0 else 1
            wide = channels * expansion
            inside = [*conv(channels, wide), nn.ReLU6()] if expansion > 1 else []
            inside += [*conv(wide, wide, 3, stride, groups=wide), nn.ReLU6(), *conv(wide, outputs)]
            layers.append((residual if stride == 1 and channels == outputs else nn.Sequential)(*inside))
            channels = outputs
    layers += [*conv(channels, 1280), nn.ReLU6(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def copy_weights(torch: Any, network: Any, file: Path, watch: Stopwatch) -> None:
    """Copy the weights of Keras layer by layer to PyTorch, and compare the outputs of both networks."""
    arrays = dict(np.load(file))
    probe, expected = arrays.pop("probe"), arrays.pop("expected")
    weights = (torch.from_numpy(arrays[f"arr_{i}"]) for i in range(len(arrays)))
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.Conv2d):
                order = (2, 3, 0, 1) if module.groups > 1 else (3, 2, 0, 1)
                module.weight.copy_(next(weights).permute(order))
            elif isinstance(module, torch.nn.BatchNorm2d):
                for value in (module.weight, module.bias, module.running_mean, module.running_var):
                    value.copy_(next(weights))
        assert next(weights, None) is None, "The network in Keras has more weights."
        with watch.paused():
            result = network(torch.from_numpy(probe).permute(0, 3, 1, 2)).numpy()
            error = np.linalg.norm(result - expected) / np.linalg.norm(expected)
            print(f"relative difference of PyTorch and Keras: {error:.0e}")
            assert error < 1e-3


def train_with_transfer(job: dict) -> dict:
    """Load the data, build the model and fit it; evaluate it in the first run."""
    from transfer.cases import builders
    from transfer.evaluation.evaluate import evaluate
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.frozen.openvino_engine import import_openvino
    from transfer.images import datasets
    from transfer.networks.backbones import load_backbone
    from transfer.training.fit import fit

    _, engine, *cut = job["method"].split()
    if engine == "openvino":
        import_openvino()
    watch = Stopwatch()
    options: dict[str, Any] = {"engine": engine, "cache": FeatureCache(Path(job["features"]))}
    data = datasets.load_data(job["source"], seed=job["seed"])
    base = load_backbone("MobileNetV2", weights=job["weights_file"], image_size=job["size"])
    model = builders.build("small-similar", base, data.num_classes, cut=cut[0] if cut else None)
    log = fit(model, data, seed=job["seed"], verbose=0, **options)
    seconds = watch.seconds
    if job.get("again"):
        return {"seconds": seconds, "computed": log.computed}
    return {
        "seconds": seconds,
        "seconds_imports": watch.imports,
        "seconds_features": round(log.seconds_features, 3),
        "seconds_training": round(log.seconds_training, 3),
        "images_per_s": round(log.computed / log.seconds_features, 1),
        "accuracy": evaluate(model, data, **options).accuracy,
        "engine": log.engine,
        **{f"num_{name}": len(part) for name, part in data.splits.items()},
    }


def limit(job: dict) -> dict:
    """Measure the rates of reading images and of the forward pass on images in memory."""
    from transfer.cases import builders
    from transfer.frozen import extraction
    from transfer.frozen.engines import make_engine
    from transfer.frozen.openvino_engine import import_openvino
    from transfer.images import datasets, reading
    from transfer.networks.backbones import load_backbone

    data = datasets.load_data(job["source"], seed=job["seed"])
    base = load_backbone("MobileNetV2", weights=job["weights_file"], image_size=job["size"])
    extractor = extraction.frozen_feature_extractor(builders.build("small-similar", base, data.num_classes))
    size, count = (job["size"], job["size"]), len(data.train) + len(data.val)
    batches: list[np.ndarray] = []
    start = time.perf_counter()
    for part in (data.val, data.train):
        for images in reading.batches_ahead(part, image_size=size, batch_size=BATCH_SIZE):
            batches = [*batches, images][-8:]
    decode = count / (time.perf_counter() - start)
    batches = [images for images in batches if len(images) == BATCH_SIZE]
    forward, engines = {}, {}
    for name in ("keras", *(["openvino"] if import_openvino() is not None else [])):
        engine = make_engine(extractor, engine=name, batch_size=BATCH_SIZE)
        engine(batches[0])  # compiles, and compares with Keras
        processed, start = 0, time.perf_counter()
        for images in itertools.cycle(batches):
            processed += len(engine(images))
            if processed >= min(count, MAX_FORWARD):
                break
        forward[name] = round(processed / (time.perf_counter() - start), 1)
        engines[name] = engine.name
    return {"num_images": count, "decode": round(decode, 1), "forward": forward, "engines": engines}


if __name__ == "__main__":
    main()
