"""Evaluation of a model on a split, and calibration of its probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from transfer.cases.decisions import find_decision
from transfer.common.arguments import explain_arguments
from transfer.common.decision_rules import MOST_PROBABLE, RULES, choose_rule
from transfer.common.errors import InputError, unknown
from transfer.common.label_metrics import label_thresholds
from transfer.common.tasks import MULTI, ORDINAL, REGRESSION, SINGLE
from transfer.distributed.process_group import current_group
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.metrics import fit_temperature
from transfer.evaluation.prediction_sets import COVERAGE, conformal_quantile
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.frozen.extraction import (
    BATCH_SIZE,
    apply_head,
    extract,
    frozen_feature_extractor,
    input_size,
)
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.openvino_engine import in_float
from transfer.frozen.quantization import calibration_of
from transfer.frozen.shared_pass import local_copy
from transfer.images.augmentation import check_views
from transfer.images.datasets import ImageData, Split, check_data
from transfer.images.flips import flip_problem
from transfer.images.pipeline import make_dataset, plain_errors
from transfer.networks.arguments import check_classifier
from transfer.networks.gradients import averaged_models, softmax_layer
from transfer.training.trained import TrainedModel, as_test_data, count_seen, find_trained

log = logging.getLogger(__name__)

_ROUNDING = 0.01  # probabilities in half precision exceed their range by less

MIN_IMAGES_TO_CALIBRATE = 30
"""Minimum number of validation images for calibration. With fewer, a few mistakes would set the temperature."""


@explain_arguments(
    dict.fromkeys(
        ("batch_size", "verbose", "steps", "callbacks", "return_dict"), "Leave it out: it has no effect."
    )
    | {"sample_weight": "Leave it out: each image counts once."},
    {"x": "data", "y": "labels"},
)
@plain_errors()
def evaluate(
    model: keras.Model,
    data: Any,
    labels: Any = None,
    *,
    split: str = "test",
    views: int = 1,
    augment: str = "none",
    flip: bool | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    seed: int = 0,
    rule: str | None = None,
    thresholds: Sequence[float] | np.ndarray | None = None,
) -> AnyEvaluation:
    """Run a model over a split and compare its predictions with the labels.

    The result is an `Evaluation` for single and ordered classes, a `LabelEvaluation` for several labels per image, or a
    `ValueEvaluation` for a number per image.

    If the model is a frozen network with a head, the frozen part runs as in `fit`, with the same engine,
    and its features are cached.

    Args:
        model: takes raw RGB images and returns class probabilities, or a number for regression.
        data: images from `load_data`. Other labeled images, in any form that `load_data` takes, are the test set. The
            names of their classes are those of the training, or numbers if `fit` did not train the model.
        labels: labels of images that are passed as an array: whole numbers, class names or one-hot; rows of 0 and 1
            for several labels; numbers for regression.
        split: `"train"`, `"val"` or `"test"`.
        views: number of views of each image, 1 or more. The first view is the image itself, the others are augmented.
            The probabilities are averaged over the views.
        augment: augmentation level of the other views, a key of `AUGMENTATIONS`.
        flip: whether augmentation flips images horizontally. None uses the decision of `fit` for this model. If `fit`
            did not decide, the class names do: classes such as left and right are not flipped.
        engine: engine for the frozen part, one of `ENGINES`.
        cache: feature cache. None is the user's default cache.
        seed: random seed of the augmented views.
        rule: rule that decides the classes of ordered classes: `"most-probable"`, `"median"` or `"expected"` (the
            rounded expected rank). None is the rule of the run; after `fit` on data with `task="ordinal"`, it is the
            one with the lowest mean absolute error on the validation images.
        thresholds: for several labels per image, the probability of each label above which it is predicted, 0 to 1.
            None uses those of the run; after `fit` on data with `task="multi"`, those with the highest F1 on held-out
            images.

    Returns:
        The evaluation, with the outputs of the model and metrics: `accuracy`, `loss` and `confusion` of classes,
        `mean_average_precision` and `f1_micro` of several labels, `r2` and `mean_absolute_error` of numbers.

    Raises:
        InputError: the split does not exist or is empty, the model and the data differ in their classes, the model does
            not return the outputs of the task, `views` is above 1 without augmentation, or a rule or thresholds do not
            suit the task.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> 0 <= evaluate(small_similar(base, 12), load_data("emoji"), split="val").accuracy <= 1
        True
    """
    check_classifier(model, "evaluate(model, data)")
    if rule is not None and rule not in RULES:
        raise unknown("rule", rule, RULES)
    data, seen = _labeled_data(model, data, labels, split)
    check_decisions(data, rule, thresholds)
    part = getattr(data, str(split), None)
    if not isinstance(part, Split) or not len(part):
        raise InputError(f"Expected a split with images: train, val or test. Received: {split!r}.")
    if model.output_shape[-1] != data.num_classes:
        raise InputError(
            f"Expected a model with {data.num_classes} classes, as in the data. Received: a model with "
            f"{model.output_shape[-1]}."
        )
    check_views(views, augment)
    if flip is None:
        decision = find_decision(model)
        flip = decision.flip if decision else None
    flip = not flip_problem(data.class_names) if flip is None else flip
    shared: dict[str, Any] = {"views": views, "augment": augment, "flip": flip, "seed": seed, "cache": cache}
    outputs = _outputs(model, data, part, name=split, engine=engine, **shared)
    check_outputs(model, outputs, data.task)
    named = tuple(part.names), tuple(part.groups), seen if split == "test" else len(part)
    if data.task == REGRESSION:
        width = None if split == "val" else _interval_width(model, data, engine=engine, **shared)
        return ValueEvaluation(data.class_names, part.labels, outputs[:, 0], *named, width)
    if data.task == MULTI:
        found = thresholds_of(model, data, engine=engine, **shared) if thresholds is None else thresholds
        return LabelEvaluation(data.class_names, part.labels, outputs, *named, np.array(found, "float64"))
    # Sums in float32 miss 1 by 1e-7, and scikit-learn warns about that.
    outputs /= outputs.sum(axis=1, keepdims=True)
    rule = rule or decision_rule(model, data, engine=engine, **shared)
    return Evaluation(data.class_names, part.labels, outputs, *named, rule)


def _outputs(
    model: keras.Model, data: ImageData, part: Split, *, name: str, engine: str, views: int, **how: Any
) -> np.ndarray:
    """Return the mean outputs of a model over the views of the images of a split, float64 of shape (N, outputs)."""
    size = input_size(model, data)
    # Use full precision, so that the metrics are those of the saved model.
    options = {**how, "views": views, "image_size": size, "precision": "float32"}
    extractor = frozen_feature_extractor(model)
    if extractor is not None:
        # As in `fit`, training images set the quantization ranges of int8; images of this split do not.
        options |= {"engine": engine, "calibration": calibration_of(data.train, size)}
        outputs = apply_head(model, extract(extractor, part, name=f"{name} features", **options).load())
    elif views > 1:
        rows = extract(model, part, name=f"{name} predictions", engine=in_float(engine), **options).load()
        outputs = rows.astype("float64")
    else:
        own = part.take(current_group().own_part(len(part)).tolist())  # this worker's part
        dataset = make_dataset(own, image_size=size, batch_size=BATCH_SIZE)
        rows = local_copy(model).predict(dataset, verbose=0) if len(own) else np.zeros((0, data.num_classes))
        outputs = current_group().gather(np.asarray(rows, "float32")).astype("float64")
    return np.asarray(outputs.reshape(views, len(part), -1).mean(axis=0))


def decision_options(model: keras.Model, data: ImageData | None, **options: Any) -> dict[str, Any]:
    """Return the arguments of `evaluate` with which a model decides: the rule or the thresholds of its task."""
    trained = find_trained(model)
    task = data.task if data is not None else trained.task if trained is not None else SINGLE
    if task == MULTI:
        return {"thresholds": thresholds_of(model, data, **options)}
    rule = decision_rule(model, data, **options) if task != REGRESSION else None
    return {} if rule is None else {"rule": rule}


def decision_rule(model: keras.Model, data: ImageData | None, **options: Any) -> str | None:
    """Return the rule of a run, or the best one on the validation images; None for classes without an order."""
    trained = find_trained(model)
    if trained is not None and trained.rule is not None:
        return trained.rule
    data = _training_data(trained, data, ORDINAL)
    if data is None:
        return None
    if not len(data.val):
        return MOST_PROBABLE
    val = evaluate(model, data, split="val", rule=MOST_PROBABLE, **options)
    return choose_rule(val.labels, val.outputs)


def thresholds_of(model: keras.Model, data: ImageData | None, **options: Any) -> np.ndarray:
    """Return the thresholds of a run, or those with the highest F1 on the validation images; 0.5 without these."""
    trained = find_trained(model)
    if trained is not None and trained.thresholds is not None:
        return trained.thresholds
    even, data = np.full(model.output_shape[-1], 0.5), _training_data(trained, data, MULTI)
    if data is None or not len(data.val):
        return even
    val = evaluate(model, data, split="val", thresholds=even, **options)
    return label_thresholds(val.outputs, val.labels)


def _interval_width(model: keras.Model, data: ImageData, **options: Any) -> float | None:
    """Return the width of the intervals of predicted numbers by the validation images; None if these are too few."""
    found = _training_data(find_trained(model), data, REGRESSION)
    if found is None or not len(found.val):
        return None
    val = evaluate(model, found, split="val", **options)
    half = conformal_quantile(np.abs(val.outputs[:, 0] - val.labels), COVERAGE)
    return None if half is None else 2 * half


def _training_data(trained: TrainedModel | None, data: ImageData | None, task: str) -> ImageData | None:
    """Return data of a task, or for a test set the data that `fit` got, if they are still in memory."""
    if data is None or data.task != task or not len(data.train):
        data = trained.find_data() if trained is not None else None
    return data if data is not None and data.task == task else None


def check_decisions(data: ImageData, rule: str | None, thresholds: Any) -> None:
    """Raise for a rule or for thresholds that do not suit the task."""
    if rule is not None and data.task in (MULTI, REGRESSION):
        raise InputError(
            f"Expected a rule with one class per image. Received it with the task {data.task}. Leave it out."
        )
    if thresholds is None:
        return
    if data.task != MULTI:
        raise InputError(
            f"Expected thresholds with the task multi. Received them with the task {data.task}. Leave them out."
        )
    values = np.asarray(thresholds, "float64")
    if values.shape != (data.num_classes,) or not ((values >= 0) & (values <= 1)).all():
        raise InputError(
            f"Expected {data.num_classes} thresholds from 0 to 1, one for each label. Received: {thresholds!r}."
        )


def _labeled_data(model: keras.Model, data: Any, labels: Any, split: str) -> tuple[ImageData, int]:
    """Return the images to evaluate on, and how many test images were used for training; warn about these."""
    if labels is not None:
        if isinstance(data, ImageData):
            raise InputError(
                "Expected labels only with an array of images. Received them with data from load_data. Leave them out."
            )
        data = data, labels
    data, seen = (data, count_seen(model, data)) if isinstance(data, ImageData) else as_test_data(model, data)
    if seen and split == "test":
        log.warning(
            "%d of the %d images were used for training or validation. Leave them out: they make the results "
            "too optimistic.",
            seen,
            len(data.test),
        )
    return data, seen


def check_outputs(model: keras.Model, values: np.ndarray, task: str = SINGLE) -> None:
    """Raise for outputs that the head of a task cannot return, such as logits in place of probabilities."""
    if task == REGRESSION:
        if not np.isfinite(values).all():
            raise InputError(
                f"Expected a model that returns numbers. Received: {model.name!r}, which returns NaN or infinity. "
                "Check its weights. It must take raw RGB images from 0 to 255."
            )
        return
    # The sum of logits may be negative, and dividing by it would reverse their order.
    low, high = values.min(), values.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        ends = "a sigmoid, such as keras.layers.Dense(..., activation='sigmoid')"
        if task != MULTI:
            ends = "a softmax, such as keras.Sequential([model, keras.layers.Softmax()])"
        raise InputError(
            f"Expected a model that returns probabilities, from 0 to 1. Received: {model.name!r}, with values "
            f"from {low:.3g} to {high:.3g}. End it with {ends}."
        )


def check_calibration(data: ImageData) -> None:
    """Raise `InputError` for other tasks, and if there are too few validation images to calibrate."""
    if data.task in (MULTI, REGRESSION):
        raise InputError(
            f"Expected images with one class each to calibrate. Received: the task {data.task}. Train without "
            "calibration."
        )
    if len(data.val) < MIN_IMAGES_TO_CALIBRATE:
        raise InputError(
            f"Expected {MIN_IMAGES_TO_CALIBRATE} validation images or more to calibrate. Received: {len(data.val)}. "
            "Set a larger fraction aside with val=..., or train without calibration."
        )


@explain_arguments()
def calibrate(model: keras.Model, data: ImageData, **options: Any) -> float:
    """Calibrate a model's probabilities by temperature scaling on the validation images.

    The weights of the last layer are divided by the temperature (Guo et al., 2017, arXiv:1706.04599). Predicted classes
    do not change. In an average of models, the last layer of each model is divided by the same temperature, and a few
    predicted classes may change.

    Args:
        model: a model that ends in a Dense layer and a softmax, or the `average` of such models. The weights of this
            layer are changed in place.
        data: images from `load_data`, with 30 validation images or more.
        options: options of `evaluate`.

    Returns:
        The temperature, 0.05 to 20. Above 1, the model was overconfident.

    Raises:
        InputError: the model does not end in a Dense layer and a softmax, or there are too few validation images.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> calibrate(small_similar(base, 12), load_data("emoji")) > 0
        True
    """
    check_classifier(model, "calibrate(model, data)")
    check_data(data, "calibrate(model, data)")
    models = averaged_models(model)
    check_calibration(data)
    for one in models:
        softmax_layer(one)  # raises for other models
    evaluations = [evaluate(one, data, split="val", **options) for one in models]
    temperature = fit_temperature(data.val.labels, *(one.outputs for one in evaluations))
    scale_head(model, temperature)
    return temperature


def scale_head(model: keras.Model, temperature: float) -> None:
    """Divide the weights of a model's last layer by a temperature; in an average, those of each model."""
    for one in averaged_models(model):
        head = softmax_layer(one)
        head.set_weights([weights / temperature for weights in head.get_weights()])
