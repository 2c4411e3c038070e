"""Keras on JAX, on a machine without TensorFlow."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("jax")

WITHOUT = """
import sys
class Nothing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tensorflow", "tensorflow_datasets"):
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nothing())
"""


def run(code: str, **environment: str) -> str:
    """Run a program on JAX without TensorFlow, and return its output."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + code],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": "jax", "TQDM_DISABLE": "1", **environment},
        cwd=Path(__file__).parents[1],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_all_modules_but_those_for_tensorflow_can_be_imported():
    output = run(
        "import importlib, pathlib, transfer\n"
        "package = pathlib.Path(transfer.__file__).parent\n"
        "names = ['.'.join(p.relative_to(package).with_suffix('').parts) for p in package.rglob('*.py')]\n"
        "for name in names:\n"
        "    if name.split('.')[-1] not in ('__init__', 'tfds_records', 'tfds_source', 'beam_features', "
        "'beam_extraction', 'formats', 'saved_model'):\n"
        "        importlib.import_module(f'transfer.{name}')\n"
        "print('tensorflow' in sys.modules, len(names))\n"
    )
    assert output.startswith("False")


def test_the_four_cases_train_and_do_not_change_frozen_layers():
    output = run(
        "import numpy as np, transfer\n"
        "from helpers.networks import make_tiny\n"
        "rng = np.random.default_rng(0)\n"
        "labels = np.arange(60) % 3\n"
        "tint = 100 * np.eye(3)[labels][:, None, None, :]\n"
        "images = np.clip(rng.normal(90, 30, (60, 24, 24, 3)) + tint, 0, 255).astype('uint8')\n"
        "data = transfer.load_data((images, labels), val=0.2, test=0.2, near_duplicates=False)\n"
        "base = make_tiny()\n"
        "before = [np.array(w) for w in base.get_weights()]\n"
        "for case in ('small-similar', 'small-different', 'large-similar', 'large-different'):\n"
        "    model = transfer.build(case, base, 3, preprocessing='tf')\n"
        "    start = [np.array(w) for w in model.get_weights()]\n"
        "    epochs = None if case.startswith('small') else 3\n"
        "    transfer.fit(model, data, epochs=epochs, augment='standard', verbose=0)\n"
        "    moved = sum(not np.array_equal(a, b) for a, b in zip(start, model.get_weights()))\n"
        "    print(case, moved, transfer.evaluate(model, data).accuracy)\n"
        "print(all(np.array_equal(a, b) for a, b in zip(before, base.get_weights())))\n",
        TRANSFER_CACHE=os.environ.get("TRANSFER_CACHE", ""),
    )
    rows = [line.split() for line in output.splitlines()]
    assert rows[-1] == ["True"]  # the caller's network is unchanged
    moved = {row[0]: int(row[1]) for row in rows[:-1]}
    assert moved["small-similar"] == moved["small-different"] == 2
    assert moved["large-similar"] > 2 and moved["large-different"] > 2
    assert all(float(row[2]) > 0.6 for row in rows[:-1])


@pytest.mark.parametrize("level", ["light", "standard", "strong"])
def test_augmentation_depends_on_the_keys_of_the_images(level):
    output = run(
        "import numpy as np\n"
        "from transfer.images.augmentation import augmentation\n"
        "from transfer.images.python_batches import image_batches\n"
        "from transfer.distributed.batch_order import BatchOrder\n"
        "images = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3)).astype('uint8')\n"
        f"change = augmentation('{level}')\n"
        "def epochs(seed):\n"
        "    read = lambda positions: (images[positions], positions)\n"
        "    batches = image_batches(BatchOrder(6, 6, seed), read, change, None)\n"
        "    return [{int(p): np.asarray(x) for p, x in zip(y, xs)} for _ in range(2) for xs, y in batches]\n"
        "one, two = epochs(0)\n"
        "again, _ = epochs(0)\n"
        "same = [np.array_equal(one[p], again[p]) for p in one]\n"
        "other = [not np.array_equal(one[p], two[p]) for p in one]\n"
        "ranges = all(0 <= x.min() and x.max() <= 255 for x in one.values())\n"
        "print(all(same), sum(other) > 3, ranges)\n"
    )
    assert output.split() == ["True", "True", "True"]


def test_mixed_labels_sum_to_one():
    output = run(
        "import numpy as np\n"
        "from transfer.images.augmentation import mixing\n"
        "images, labels = np.random.default_rng(0).uniform(0, 255, (8, 16, 16, 3)), np.arange(8) % 3\n"
        "for kind in ('mixup', 'cutmix'):\n"
        "    x, y = mixing(kind, 3)(images, labels, np.array([1, 2], 'uint32'))\n"
        "    print(x.shape == images.shape, bool(np.allclose(np.asarray(y).sum(axis=1), 1)))\n"
    )
    assert output.split() == ["True"] * 4


def test_features_that_need_tensorflow_raise_an_error():
    output = run(
        "import keras\n"
        "from transfer.frozen.engines import make_engine\n"
        "from transfer.distributed.strategies import get_strategy\n"
        "from transfer.training.layer_decay import optimizer_following\n"
        "from transfer.training.recipes import Recipe\n"
        "model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.GlobalAveragePooling2D()])\n"
        "unfreeze = lambda: optimizer_following(Recipe(gradual_unfreezing=0.5), model).__enter__()\n"
        "for ask in (lambda: make_engine(model, engine='openvino'), lambda: get_strategy('tpu'), unfreeze):\n"
        "    try:\n"
        "        ask()\n"
        "    except ValueError as error:\n"
        "        print(error)\n"
    )
    assert "compiles the rates" in output
    assert "needs TensorFlow as Keras' backend" in output and "No TPU was found: JAX has cpu:0" in output
