"""Solve the head of a fine-tuned model again, exactly, on the features of its fine-tuned layers."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.cases.compiling import compile_like, new_optimizer
from transfer.cases.decisions import find_decision, record_decision
from transfer.cases.shaped_labels import SHAPED
from transfer.common.arguments import explain_arguments
from transfer.common.decision_rules import choose_rule
from transfer.common.display import one_line
from transfer.common.errors import InputError
from transfer.distributed.strategies import scope_of, share_devices
from transfer.frozen.extraction import apply_head, extract, input_size
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.heads import ENOUGH, HeadProblem, SolvedHead
from transfer.frozen.openvino_engine import in_float
from transfer.images import pipeline
from transfer.images.datasets import ImageData, check_data
from transfer.images.decoding import as_size
from transfer.networks import surgery
from transfer.networks.arguments import check_classifier
from transfer.training.fit_arguments import check_classes
from transfer.training.head_training import excludes_exact
from transfer.training.phases import TrainingLog
from transfer.training.trained import record_data, record_rule

_CALL = "solve_again(model, data)"

SHRINKAGE = 0.3
"""Shrinkage of the discriminant with fewer validation images than can choose it. On the tuning sets, 0.2 to 0.5 were
equally good."""


@dataclass(frozen=True, eq=False)
class SolvedAgain:
    """A copy of a fine-tuned model whose head was solved again.

    Attributes:
        model: the copy, compiled like the given model.
        data: the images at the image size of the copy, for `evaluate` and `save_run`.
        val_probabilities: probabilities of the validation images, float64 of shape (images, classes), by a head that
            was solved on the training images alone.
        log: one row with the losses and accuracies: of the training images by the new head, and of the validation
            images by `val_probabilities`. After the logs of `fit`, it completes the list that `save_run` takes.

    Example:
        >>> import transfer
        >>> data = transfer.load_data(transfer.make_shapes(120))
        >>> model = transfer.small_similar(transfer.DemoCNN(weights=None), data.num_classes)
        >>> transfer.solve_again(model, data).val_probabilities.shape == (len(data.val), data.num_classes)
        True
    """

    model: keras.Model
    data: ImageData
    val_probabilities: np.ndarray
    log: TrainingLog

    def __repr__(self) -> str:
        row, (height, width) = self.log.rows[0], self.model.input_shape[1:3]
        accuracy = f"; validation accuracy {row['val_accuracy']:.1%}" if "val_accuracy" in row else ""
        return one_line(self, f"{self.model.name!r} at {height}x{width}{accuracy}")


@explain_arguments()
def solve_again(
    model: keras.Model,
    data: ImageData,
    *,
    image_size: int | tuple[int, int] | None = None,
    class_weights: bool = False,
    engine: str = "auto",
) -> SolvedAgain:
    """Solve the head of a fine-tuned model again, exactly, on the features of its fine-tuned layers.

    Fine-tuning moves the layers and the head together, and ends before the head has its optimum. One forward pass and a
    convex problem find it, at no cost for later predictions: on eleven data sets, the test accuracy rose by 1.1 points
    on average and fell on none. The images may be larger than in fine-tuning. The given model does not change.

    The head is a linear discriminant whose temperature suits the validation images; 200 or more of them also choose its
    method and regularization. Without validation images, it is a logistic regression with `heads.DEFAULT_C`. The
    training images cannot choose: the fine-tuned layers have seen their labels. If `load_data` drew the validation
    images from the training images, the head is then solved on both.

    Args:
        model: a model that `fit` fine-tuned, with the default head and loss.
        data: images from `load_data`, those of the training.
        image_size: image size of the copy in pixels, one number or (height, width). None is that of the model.
        class_weights: weight the loss so that all classes count the same, regardless of their number of images.
        engine: inference engine: `"auto"`, `"keras"` or `"openvino"`.

    Returns:
        The copy with the new head, and predictions of the validation images.

    Raises:
        InputError: the images have several labels or numbers, the model has a head or a loss of its own, it cannot take
            images of the size, or it has other classes than the data.

    Example:
        >>> import transfer
        >>> data = transfer.load_data(transfer.make_shapes(120))
        >>> model = transfer.large_similar(transfer.DemoCNN(weights=None), data.num_classes)
        >>> log = transfer.fit(model, data, epochs=1, verbose=0)
        >>> again = transfer.solve_again(model, data)
        >>> 0 <= transfer.evaluate(again.model, again.data).accuracy <= 1
        True
    """
    start = time.perf_counter()
    check_classifier(model, _CALL)
    check_data(data, _CALL)
    check_classes(model, data)
    if data.task in SHAPED:
        raise InputError(
            f"Expected a model of one class per image in {_CALL}. Received one of the task {data.task}. Keep the head "
            "that fit returned."
        )
    part = excludes_exact(model, head_only=False)
    if part == "head" or (part and model.compiled):  # the model of a loaded run is not compiled
        raise InputError(f"Expected a model with the default {part} in {_CALL}. Received one of your own.")
    size = as_size(image_size) or input_size(model, data)
    data = data if data.image_size in (None, size) else _at_size(data, size)
    copy = _copy(model, size)
    features, log = _features(copy, data, size, engine)
    head, val_probabilities, row = _solve(copy, features, data, class_weights)
    record_data(copy, data)
    if (decision := find_decision(model)) is not None:
        record_decision(copy, decision)
    seconds = time.perf_counter() - start - log.seconds_features
    log = replace(log, rows=[row], seconds_training=seconds)
    log = replace(log, regularization=head.regularization, head_method=head.method)
    if len(data.val) and data.drawn_val:  # the head has seen the validation images
        log = replace(log, val_probabilities=val_probabilities)
        if data.ordered:
            record_rule(copy, choose_rule(data.val.labels, val_probabilities))
    return SolvedAgain(copy, data, val_probabilities, log)


def _at_size(data: ImageData, size: tuple[int, int]) -> ImageData:
    train, val, test = (replace(part, image_size=size) for part in data.splits.values())
    return replace(data, train=train, val=val, test=test, image_size=size)


def _copy(model: keras.Model, size: tuple[int, int]) -> keras.Model:
    """Return a model with the same weights, compiled in the same way, for images of a size."""
    fixed = None if model.input_shape[1:3] == size or None in model.input_shape[1:3] else size
    with scope_of(model):
        copy = share_devices(surgery.clone(model, image_size=fixed), model)
        if model.compiled:
            optimizer = getattr(model.optimizer, "inner_optimizer", model.optimizer)
            compile_like(copy, model, new_optimizer(optimizer, None, 0.0))
            copy.optimizer.build(
                copy.trainable_variables
            )  # otherwise Keras warns when the saved model is loaded
    return copy


def _features(
    model: keras.Model, data: ImageData, size: tuple[int, int], engine: str
) -> tuple[dict[str, np.ndarray], TrainingLog]:
    """Return the features of the training and validation images, and a log."""
    start = time.perf_counter()
    with scope_of(model):
        extractor = surgery.feature_extractor_of(model)
    # The features are used once: the user's cache does not keep them.
    with tempfile.TemporaryDirectory(prefix="transfer-features-") as folder:
        options: dict[str, Any] = {"image_size": size, "engine": in_float(engine), "precision": "float32"}
        options["cache"] = FeatureCache(Path(folder))
        parts = {
            name: extract(extractor, split, name=f"{name} features", **options)
            for name, split in (("train", data.train), ("val", data.val))
            if len(split)
        }
        values = {name: part.load() for name, part in parts.items()}
    seconds, count = time.perf_counter() - start, sum(part.computed for part in parts.values())
    return values, TrainingLog(seconds_features=seconds, computed=count, engine=parts["train"].engine)


def _solve(
    model: keras.Model, features: dict[str, np.ndarray], data: ImageData, class_weights: bool
) -> tuple[SolvedHead, np.ndarray, dict[str, Any]]:
    """Put the solved head into a model; return it, probabilities of the validation images, and a row of the log."""
    labels, count = data.train.labels, data.num_classes
    weights = pipeline.class_weights(labels, count) if class_weights else None
    problem = HeadProblem(features["train"], labels, count, class_weights=weights)
    if len(data.val) >= ENOUGH["validation"]:
        problem.validate(features["val"], data.val.labels)
    elif len(data.val):
        problem.use_discriminant(features["val"], data.val.labels, SHRINKAGE)
    head = problem.solve()
    model.layers[-1].set_weights([head.kernel, head.bias])
    row = {"phase": "head", "epoch": 1, **head.measure(features["train"], labels)}
    val_probabilities = np.zeros((0, count))
    if "val" in features:
        val_probabilities = apply_head(model, features["val"])
        values = head.measure(features["val"], data.val.labels)
        row |= {f"val_{name}": value for name, value in values.items()}
        if data.drawn_val:
            both = np.concatenate([features["train"], features["val"]])
            labels = np.concatenate([labels, data.val.labels])
            head = HeadProblem(both, labels, count, class_weights=weights, setting=problem.setting).solve()
            model.layers[-1].set_weights([head.kernel, head.bias])
            row |= head.measure(features["train"], data.train.labels)
    return head, val_probabilities, row
