"""Evaluation of a model on a split, and calibration of its probabilities."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from scipy.special import softmax
from sklearn import metrics

from transfer.cases.decisions import find_decision
from transfer.common import display
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.text import plural
from transfer.distributed.process_group import current_group
from transfer.evaluation.metrics import (
    Calibration,
    ClassScore,
    Confused,
    accuracy_interval,
    calibration,
    class_scores,
    confused_pairs,
    fit_temperature,
    percent_range,
    top_k,
)
from transfer.frozen.extraction import BATCH_SIZE, extract, frozen_feature_extractor, input_size
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.shared_pass import local_copy
from transfer.images.augmentation import check_views
from transfer.images.datasets import ImageData, Split, check_data
from transfer.images.flips import flip_problem
from transfer.images.pipeline import make_dataset, plain_errors
from transfer.networks.arguments import check_classifier
from transfer.training.trained import as_test_data, count_seen

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

log = logging.getLogger(__name__)

MOST_CONFUSED = 10
"""Maximum number of pairs of confused classes in `Evaluation.to_dict`."""

_ROUNDING = 0.01  # probabilities in half precision exceed their range by less

MIN_IMAGES_TO_CALIBRATE = 30
"""Minimum number of validation images for calibration. With fewer, a few mistakes would set the temperature."""


@dataclass(frozen=True)
class Evaluation:
    """Predicted probabilities of a model on some images, and the metrics computed from them.

    Attributes:
        class_names: names in the order of the labels.
        labels: true class of each image, shape (N,).
        probabilities: predicted probabilities, shape (N, classes); rows sum to 1.
        names: name of each image.
        groups: group of each image, such as its patient; empty without groups.
        seen: number of images that were used for training or validation; 0 for held-out images.

    Example:
        >>> evaluation = Evaluation(("ant", "bee"), np.array([0, 1]), np.array([[0.9, 0.1], [0.6, 0.4]]), ("a", "b"))
        >>> evaluation.accuracy, evaluation.confusion.tolist()
        (0.5, [[1, 0], [1, 0]])
    """

    class_names: tuple[str, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    names: tuple[str, ...]
    groups: Sequence[str] = ()
    seen: int = 0

    @property
    def predictions(self) -> np.ndarray:
        """Most probable class of each image, shape (N,)."""
        return self.probabilities.argmax(axis=1)

    @property
    def accuracy(self) -> float:
        """Fraction of correctly classified images, 0 to 1."""
        return float(metrics.accuracy_score(self.labels, self.predictions))

    @property
    def loss(self) -> float:
        """Log loss: mean negative log probability of the true class, in nats."""
        return float(
            metrics.log_loss(self.labels, self.probabilities, labels=list(range(len(self.class_names))))
        )

    @property
    def confusion(self) -> np.ndarray:
        """Confusion matrix of counts, shape (classes, classes); rows are true classes."""
        return metrics.confusion_matrix(
            self.labels, self.predictions, labels=list(range(len(self.class_names)))
        )

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the accuracy, by the bootstrap over images, or over groups if there are any."""
        return accuracy_interval(self.labels == self.predictions, groups=self.groups)

    def top_k(self, k: int) -> float:
        """Fraction of images whose class is among the `k` most probable classes, 0 to 1."""
        return top_k(self.labels, self.probabilities, k)

    @cached_property
    def by_class(self) -> tuple[ClassScore, ...]:
        """Precision, recall and F1 of each class."""
        return class_scores(self.labels, self.predictions, self.class_names)

    @property
    def macro(self) -> ClassScore:
        """Macro average: mean precision, recall and F1 over the classes that have images."""
        scores = [score for score in self.by_class if score.images]
        precision, recall, f1 = (float(np.mean([score[i] for score in scores])) for i in (1, 2, 3))
        return ClassScore("macro average", precision, recall, f1, len(self.labels))

    @cached_property
    def calibration(self) -> Calibration:
        """Confidence and accuracy in bins of equal counts, and the expected calibration error in these bins."""
        return calibration(self.labels, self.probabilities)

    @property
    def confused(self) -> tuple[Confused, ...]:
        """Pairs of confused classes, the most frequent first."""
        return confused_pairs(self.confusion, self.class_names)

    @property
    def mistakes(self) -> np.ndarray:
        """Indices of misclassified images, the highest probability of the predicted, wrong class first."""
        wrong = np.flatnonzero(self.labels != self.predictions)
        return wrong[np.argsort(-self.probabilities[wrong].max(axis=1), kind="stable")]

    def to_dict(self) -> dict[str, Any]:
        """Return the metrics as a dictionary for JSON."""
        macro, ks = self.macro, range(1, min(5, len(self.class_names)) + 1)
        return {
            "num_images": len(self.labels),
            "num_seen": self.seen,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "top_k": {str(k): self.top_k(k) for k in ks},
            "log_loss": self.loss,
            "calibration_error": self.calibration.error,
            "macro": {"precision": macro.precision, "recall": macro.recall, "f1": macro.f1},
            "classes": [score._asdict() for score in self.by_class],
            "confused": [pair._asdict() for pair in self.confused[:MOST_CONFUSED]],
        }

    def to_text(self) -> str:
        """Return the metrics as lines of text."""
        if not len(self.labels):
            return "No images.\n"
        lines = [*self._sentences(), "", self._class_table([*self.by_class, self.macro]).to_text()]
        if self.confused:
            lines += ["", "Most frequent confusions:"]
            lines += [
                f"  {pair.label} predicted as {pair.predicted}: {pair.images:,} ({pair.fraction:.0%})"
                for pair in self.confused[:5]
            ]
        return "\n".join([*lines, ""])

    def _sentences(self) -> list[str]:
        count, k = len(self.labels), min(5, len(self.class_names) - 1)
        groups = f" in {len(set(self.groups)):,} groups" if len(self.groups) else ""
        lines = [
            f"Accuracy: {self.accuracy:.1%} on {count:,} {'' if self.seen else 'held-out '}images{groups} "
            f"(95% interval {percent_range(self.interval, 1)})."
        ]
        if self.seen:
            lines.append(
                f"Warning: {self.seen:,} of these images were used for training or validation, so all numbers here are "
                "optimistic."
            )
        lines += [f"Top-{k} accuracy: {self.top_k(k):.1%}."] if k > 1 else []
        lines.append(
            f"Log loss: {self.loss:.3f}. Expected calibration error: {self.calibration.error:.3f} (0 is perfect)."
        )
        return lines

    def _class_table(self, scores: Sequence[ClassScore]) -> display.Table:
        rows = [
            (one.name, *(f"{value:.1%}" for value in (one.precision, one.recall, one.f1)), f"{one.images:,}")
            for one in scores
        ]
        return display.Table(("class", "precision", "recall", "F1", "images"), rows)

    def __repr__(self) -> str:
        count = len(self.labels)
        if not count:
            return display.one_line(self, f"no images, {len(self.class_names)} classes")
        text = f"accuracy {self.accuracy:.1%} (95% interval {percent_range(self.interval)}) on {plural(count, 'image')}"
        seen = f", {self.seen:,} of them used for training or validation" if self.seen else ""
        return display.one_line(self, text + seen)

    def _repr_html_(self) -> str:
        """Return the metrics for a notebook; of many classes, those with the lowest F1."""
        if not len(self.labels):
            return display.to_html("No images.")
        scores, most = self.by_class, display.MAX_ROWS
        hidden = ""
        if len(scores) > most:
            hidden = f"The {most} of {len(scores):,} classes with the lowest F1:"
            scores = tuple(sorted((one for one in scores if one.images), key=lambda one: one.f1)[:most])
        return display.to_html(*self._sentences(), hidden, self._class_table([*scores, self.macro]))

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a pandas data frame with one row per image.

        Its columns are `name`, `label`, `predicted`, `group` if there are groups, and the probability of each class
        under the class's name. A class that is called like one of the other columns gets "(class)" behind its name.

        Raises:
            InputError: pandas is not installed.
        """
        names = np.array(self.class_names, dtype=object)
        columns: dict[str, Any] = {
            "name": list(self.names),
            "label": names[self.labels],
            "predicted": names[self.predictions],
        }
        columns |= {"group": list(self.groups)} if len(self.groups) else {}
        return display.data_frame(
            columns | display.class_columns(self.class_names, self.probabilities, columns)
        )

    def plot_confusion(self) -> Figure:
        """Draw the confusion matrix; each row is a true class."""
        from transfer.evaluation.evaluation_plots import confusion_matrix

        return confusion_matrix(self._not_empty())

    def plot_classes(self) -> Figure:
        """Draw recall and precision of each class with 95% intervals, the lowest F1 at the top."""
        from transfer.evaluation.evaluation_plots import class_plot

        return class_plot(self._not_empty())

    def plot_calibration(self) -> Figure:
        """Draw the reliability diagram: accuracy by confidence, in bins of nearly equal numbers of images."""
        from transfer.evaluation.evaluation_plots import calibration_plot

        return calibration_plot(self._not_empty().calibration)

    def _not_empty(self) -> Evaluation:
        if not len(self.labels):
            raise InputError(
                "Expected an evaluation of one image or more, to draw it. Received one without images."
            )
        return self


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
) -> Evaluation:
    """Run a model over a split and compare its predictions with the labels.

    If the model is a frozen network with a Dense softmax head, the frozen part runs as in `fit`, with the same engine,
    and its features are cached.

    Args:
        model: takes raw RGB images and returns class probabilities.
        data: images from `load_data`. Other labeled images, in any form that `load_data` takes, are the test set. The
            names of their classes are those of the training, or numbers if `fit` did not train the model.
        labels: labels of images that are passed as an array: whole numbers, class names or one-hot.
        split: `"train"`, `"val"` or `"test"`.
        views: number of views of each image, 1 or more. The first view is the image itself, the others are augmented.
            The probabilities are averaged over the views.
        augment: augmentation level of the other views, a key of `AUGMENTATIONS`.
        flip: whether augmentation flips images horizontally. None uses the decision of `fit` for this model. If `fit`
            did not decide, the class names do: classes such as left and right are not flipped.
        engine: engine for the frozen part, one of `ENGINES`.
        cache: feature cache. None is the user's default cache.
        seed: random seed of the augmented views.

    Returns:
        The evaluation, with the probabilities and metrics such as `accuracy`, `loss` and `confusion`.

    Raises:
        InputError: the split does not exist or is empty, the model and the data differ in their classes, the model does
            not return probabilities, or `views` is above 1 without augmentation.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> 0 <= evaluate(small_similar(base, 12), load_data("emoji"), split="val").accuracy <= 1
        True
    """
    check_classifier(model, "evaluate(model, data)")
    data, seen = _labeled_data(model, data, labels, split)
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
    size = input_size(model, data)
    # Use full precision, so that the metrics are those of the saved model.
    options: dict[str, Any] = {"image_size": size, "views": views, "augment": augment, "flip": flip}
    options |= {"seed": seed, "engine": engine, "precision": "float32", "cache": cache}
    extractor, activation = frozen_feature_extractor(model), getattr(model.layers[-1], "activation", None)
    if extractor is not None and getattr(activation, "__name__", "") == "softmax":
        features = extract(extractor, part, name=f"{split} features", **options).load().astype("float64")
        kernel, bias = model.layers[-1].get_weights()
        probabilities = softmax(features @ kernel + bias, axis=1)
    elif views > 1:
        probabilities = extract(model, part, name=f"{split} predictions", **options).load().astype("float64")
    else:
        own = part.take(current_group().own_part(len(part)).tolist())  # this worker's part
        dataset = make_dataset(own, image_size=size, batch_size=BATCH_SIZE)
        rows = local_copy(model).predict(dataset, verbose=0) if len(own) else np.zeros((0, data.num_classes))
        probabilities = current_group().gather(np.asarray(rows, "float32")).astype("float64")
    probabilities = probabilities.reshape(views, len(part), -1).mean(axis=0)
    check_probabilities(model, probabilities)
    # Sums in float32 miss 1 by 1e-7, and scikit-learn warns about that.
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    seen = seen if split == "test" else len(part)
    return Evaluation(
        data.class_names, part.labels, probabilities, tuple(part.names), tuple(part.groups), seen
    )


def _labeled_data(model: keras.Model, data: Any, labels: Any, split: str) -> tuple[ImageData, int]:
    """Return the images to evaluate on, and how many test images were used for training; warn about these."""
    if labels is not None:
        if isinstance(data, ImageData):
            raise InputError(
                "Expected labels only with an array of images. Received them with data from load_data."
            )
        data = data, labels
    data, seen = (data, count_seen(model, data)) if isinstance(data, ImageData) else as_test_data(model, data)
    if seen and split == "test":
        log.warning(
            "%d of the %d images were used for training or validation. Leave them out: with them, the results are "
            "too optimistic.",
            seen,
            len(data.test),
        )
    return data, seen


def check_probabilities(model: keras.Model, values: np.ndarray) -> None:
    """Raise if a model returns logits: their sum may be negative, and dividing by it would reverse their order."""
    low, high = values.min(), values.max()
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise InputError(
            f"Expected a model that returns probabilities, from 0 to 1. Received: {model.name!r}, with values "
            f"from {low:.3g} to {high:.3g}. End it with a softmax, such as keras.Sequential([model, "
            "keras.layers.Softmax()])."
        )


def check_evaluation(value: Any, call: str) -> None:
    """Raise unless an argument comes from `evaluate`; `call` shows the order of arguments."""
    if not isinstance(value, Evaluation):
        raise InputError(
            f"Expected an evaluation in {call}. Received: {'None' if value is None else type(value).__name__}. Make "
            "one first: evaluation = transfer.evaluate(model, data)."
        )


def check_calibration(data: ImageData) -> None:
    """Raise `InputError` if there are too few validation images to calibrate."""
    if len(data.val) < MIN_IMAGES_TO_CALIBRATE:
        raise InputError(
            f"Expected {MIN_IMAGES_TO_CALIBRATE} validation images or more to calibrate. Received: {len(data.val)}. "
            "Set a larger fraction aside with val=..., or train without calibration."
        )


@explain_arguments()
def calibrate(model: keras.Model, data: ImageData, **options: Any) -> float:
    """Calibrate a model's probabilities by temperature scaling on the validation images.

    The weights of the head are divided by the temperature (Guo et al., 2017, arXiv:1706.04599). Predicted classes do
    not change.

    Args:
        model: a model that ends in a Dense softmax. Its head is changed in place.
        data: images from `load_data`, with 30 validation images or more.
        options: options of `evaluate`.

    Returns:
        The temperature, 0.05 to 20. Above 1, the model was overconfident.

    Raises:
        InputError: the model does not end in a Dense softmax, or there are too few validation images.

    Example:
        >>> from transfer.cases.builders import small_similar
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> calibrate(small_similar(base, 12), load_data("emoji")) > 0
        True
    """
    check_classifier(model, "calibrate(model, data)")
    check_data(data, "calibrate(model, data)")
    head = model.layers[-1]
    if not isinstance(head, keras.layers.Dense) or head.activation is not keras.activations.softmax:
        raise InputError(
            f"Expected a model that ends in a Dense softmax. Received: one that ends in {head.name!r}."
        )
    check_calibration(data)
    evaluation = evaluate(model, data, split="val", **options)
    temperature = fit_temperature(evaluation.labels, evaluation.probabilities)
    head.set_weights([weights / temperature for weights in head.get_weights()])
    return temperature
