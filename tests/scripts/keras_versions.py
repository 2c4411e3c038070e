"""Write models of several kinds, or load those of another version of Keras and compare their predictions.

`python keras_versions.py write FOLDER` writes `NAME.keras` and `NAME.npy`; `load FOLDER` prints each name as it agrees.
`signatures FILE` writes the arguments of all constructors of Keras as JSON.
"""

from __future__ import annotations

import inspect
import json
import sys
from pathlib import Path

import keras
import numpy as np

CLASSES = 3


def models() -> dict[str, keras.Model]:
    """Return one model of each kind, compiled as runs are."""
    from transfer.cases.builders import build
    from transfer.networks.backbones import load_backbone

    def made(name: str, case: str = "small-similar", size: int = 32, **options: object) -> keras.Model:
        base = load_backbone(name, weights="none", image_size=size)
        return build(case, base, CLASSES, strategy="default", **options)

    layers = keras.layers
    image = keras.Input((16, 16, 3))
    x = layers.Dense(8, activation="gelu")(layers.Flatten()(layers.Conv2D(4, 3)(image)))
    x = layers.Embedding(8, 4)(
        layers.CategoryEncoding(8, output_mode="multi_hot")(keras.ops.cast(x > 0, "int32"))
    )
    x = layers.MultiHeadAttention(2, 4)(x, x)
    own = keras.Model(image, layers.Dense(CLASSES)(layers.GlobalAveragePooling1D()(x)))
    own.compile("adam", keras.losses.CategoricalCrossentropy(label_smoothing=0.1), metrics=["accuracy"])
    return {
        "demo": made("DemoCNN", size=64),
        "all_layers": made("DemoCNN", size=64, cut="all"),
        "lite": made("EfficientNetLite0", "large-similar", precision="mixed_bfloat16"),
        "mobilenet": made("MobileNetV2", "large-similar", precision="mixed_float16"),
        "efficientnet": made("EfficientNetB0"),
        "convnext": made("ConvNeXtTiny"),
        "random": made("MobileNetV3Small", "large-different", optimizer="rmsprop"),
        "own": own,
    }


def images(model: keras.Model) -> np.ndarray:
    """Return the same images in every version."""
    return np.random.default_rng(0).uniform(0, 255, (4, *model.input_shape[1:])).astype("float32")


def write(folder: Path) -> None:
    """Write each model as a run does, and its predictions."""
    from transfer.networks.model_files import save_model

    for name, model in models().items():
        save_model(model, folder / f"{name}.keras")
        np.save(folder / f"{name}.npy", model(images(model)))


def load(folder: Path) -> None:
    """Load each model in plain Keras, as a program without this package does."""
    for file in sorted(folder.glob("*.keras")):
        model = keras.models.load_model(file)
        predicted, expected = np.asarray(model(images(model))), np.load(file.with_suffix(".npy"))
        np.testing.assert_allclose(predicted, expected, rtol=1e-3, atol=1e-3)
        print(file.stem, model.compiled)


def signatures(file: Path) -> None:
    """Write the arguments of the constructors in the name spaces that a saved model refers to."""
    found: dict[str, dict[str, str]] = {}
    for space in ("layers", "initializers", "regularizers", "constraints", "optimizers", "losses", "metrics"):
        for name, kind in vars(getattr(keras, space)).items():
            if inspect.isclass(kind):
                found[f"{space}.{name}"] = {
                    p.name: repr(p.default) for p in inspect.signature(kind.__init__).parameters.values()
                }
    file.write_text(json.dumps(found))


if __name__ == "__main__":
    {"write": write, "load": load, "signatures": signatures}[sys.argv[1]](Path(sys.argv[2]))
