"""Train a tiny network as one of several workers, and save its weights; used by `distributed/test_process_group.py`.

    python tests/helpers/train_tiny.py FOLDER NAME=KIND[,two][,OPTION:VALUE ...] ...

KIND is `head`, `everything`, `scratch` or `upper`; `two` uses two devices of this process. TF_CONFIG lists the workers,
and KERAS_BACKEND sets Keras' backend. The weights of each run are written to FOLDER/NAME-WORKER.npz. The 77 training
images, in batches of 8, are noise with a weak signal of their class: a task that is learned perfectly would hide
differences.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path


class WithoutTensorFlow:
    """Make imports of TensorFlow fail, as on a machine without it."""

    def find_spec(self, name: str, path=None, target=None) -> None:
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


JAX = os.environ.get("KERAS_BACKEND") == "jax"
if JAX:
    if "TF_CONFIG" not in os.environ:
        os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    sys.meta_path.insert(0, WithoutTensorFlow())

import numpy as np  # noqa: E402

from transfer.distributed import process_group, strategies  # noqa: E402

CASES = {
    "head": ("small-similar", {}),
    "everything": ("large-similar", {}),
    "scratch": ("large-different", {"init": "random"}),
    "upper": ("small-similar", {"unfreeze_from": "block3_conv"}),
}


def main() -> None:
    folder, *runs = sys.argv[1:]
    warnings.simplefilter("ignore")
    devices = take_devices()
    for run in runs:
        name, _, text = run.partition("=")
        kind, *rest = text.split(",")
        options = dict(word.split(":") for word in rest if ":" in word)
        weights = train(kind, devices["two" if "two" in rest else "one"], options)
        np.savez(Path(folder) / f"{name}-{process_group.current_group().index}.npz", **weights)
    process_group.current_group().leave_together()


def train(kind: str, devices, options: dict[str, str]) -> dict[str, np.ndarray]:
    """Return the weights, and with them the losses on the test and validation images."""
    import keras
    from helpers.networks import make_tiny

    from transfer.cases import builders
    from transfer.common.tasks import TASK
    from transfer.evaluation import evaluate
    from transfer.frozen.feature_cache import FeatureCache
    from transfer.images import datasets
    from transfer.training import fit
    from transfer.training.recipes import Recipe

    seed = int(options.get("seed", 0))
    keras.utils.set_random_seed(seed)
    rng = np.random.default_rng(0)
    labels = np.minimum(np.arange(110) % 5, 2)  # the last class is three times as large
    noise = rng.normal(120, 60, (110, 24, 24, 3)) + 12 * np.eye(3)[labels][:, None, None, :]
    task = options.get("task", "single")
    names, given = {
        "single": (["a", "b", "c"], labels),
        "multi": (["a", "b", "c"], (labels[:, None] >= np.arange(3)) * (rng.random((110, 3)) < 0.8)),
        "regression": (["size"], 500 + 100.0 * labels + rng.normal(size=110)),
    }[task]
    data = datasets.load_data(
        (np.clip(noise, 0, 255).astype("uint8"), given.astype("float64") if task == "regression" else given + 0),
        class_names=names, val=0.2, test=0.1, seed=0, near_duplicates=False, task=task,
    )  # fmt: skip
    case, how = CASES[kind]
    outputs = data.num_classes
    model = builders.build(case, make_tiny(), outputs, strategy=devices, preprocessing="tf", task=task, **how)
    cache = FeatureCache(Path(tempfile.mkdtemp()))
    recipe = Recipe(mix=options.get("mix", "none"), layer_decay=float(options.get("layer_decay", 1.0)))
    done = fit.fit(
        model, data, epochs=None if kind == "head" else 3, batch_size=8, verbose=0, cache=cache, engine="keras",
        seed=seed, recipe=recipe if kind != "head" else None, class_weights="class_weights" in options,
    )  # fmt: skip
    weights = {v.path.replace("/", "_"): np.asarray(keras.ops.convert_to_numpy(v)) for v in model.weights}
    if task != "single":
        keys = "val_loss", f"val_{TASK[task].metric}"
        return {**weights, "rows": np.array([[row[key] for key in keys] for row in done.rows])}
    found = evaluate.evaluate(model, data, cache=cache, engine="keras")
    return {**weights, "evaluation": np.array([found.loss, done.rows[-1].get("val_loss", 0.0)])}


def take_devices() -> dict:
    strategies.start_quietly(repeatable=True)
    if "TF_CONFIG" in os.environ:
        return {"one": strategies.get_strategy("multiworker", patience=60)}
    one = strategies.get_strategy("default")
    if JAX:
        return {"one": one, "two": strategies.get_strategy("mirrored")}
    import tensorflow as tf

    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
    return {"one": one, "two": tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])}


if __name__ == "__main__":
    main()
