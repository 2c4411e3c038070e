"""Code that all phases of training share: settings, log, feature extraction and loss."""

from __future__ import annotations

import functools
import operator
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from transfer.cases.compiling import compile_like
from transfer.cases.shaped_labels import SHAPED, ValueScale
from transfer.common import display
from transfer.common.errors import InputError
from transfer.common.tasks import metric_of_row, score_text
from transfer.common.text import format_duration, plural
from transfer.distributed.batch_order import BatchPart
from transfer.frozen.engines import Engine, make_engine
from transfer.frozen.extraction import BATCH_SIZE, Features, KnownFeatures, extract
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.openvino_engine import in_float
from transfer.frozen.quantization import calibration_of
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData
from transfer.images.pipeline import Position
from transfer.images.splitting import Split
from transfer.training.checkpoints import Checkpoints
from transfer.training.recipes import Recipe
from transfer.training.time_limit import StopInTime, TimeLimit
from transfer.training.user_callbacks import UserCallbacks

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class TrainingLog:
    """Log of a training with `fit`: metrics per epoch, durations, and counts of computed features.

    Attributes:
        rows: one dict per epoch with `phase` (`"head"`, `"fine-tune"` or `"from-scratch"`), `epoch` (from 1), `loss`,
            `accuracy`, and with validation images `val_loss` and `val_accuracy`. Losses are in nats, accuracies from 0
            to 1. A head that was solved exactly has a single row. For several labels per image, the metric is
            `mean_average_precision`, for a regression `r2`; the loss of a regression is that of standardized values.
        seconds_features: seconds spent on the features of the frozen layers.
        seconds_training: seconds spent on training, without the features.
        init: initial weights of the model that was kept: `"pretrained"` or `"random"`.
        computed: number of images whose features were computed; the features of the others were read from the cache.
        engine: inference engine that computed them, such as `"openvino bfloat16"`; `""` if none did.
        regularization: the inverse regularization strength C of a head that was solved exactly as a logistic or ridge
            regression (with several labels, the median), or the shrinkage of the covariance of a linear discriminant
            analysis; None otherwise.
        head_method: `"regression"`, `"discriminant"` or `"ridge"`.
        tried: a tuple (regularization, loss, metric) for each value that was tried. The lowest loss decides.
        tried_on: where they were measured: `"validation"` or `"cross-validation"` on the training images; `""` if no
            values were tried.
        views: number of views of each training image that the frozen layers saw; 1 is the image itself.
        flip: whether augmentation could flip images; None if no images were augmented.
        flip_problem: why flips are off; empty if they are on, or if the caller decided.
        kept_row: position in `rows` of the epoch whose weights the model has; -1 if it has the weights from before
            `fit`. None is the last one.
        val_probabilities: of a head that `solve_again` solved on the validation images too: their probabilities by one
            that was solved without them. None otherwise.
        thresholds: of a head for several labels that was solved exactly and kept: the probability above which each
            label is predicted, with the highest F1 on out-of-fold probabilities. Empty otherwise.
        options: arguments of `fit` under their names in `TrainConfig`; `save_run` writes them.

    Example:
        >>> log = TrainingLog([{"phase": "head", "epoch": 1, "loss": 0.5}])
        >>> log.history
        {'phase': ['head'], 'epoch': [1], 'loss': [0.5]}
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_features: float = 0.0
    seconds_training: float = 0.0
    init: str = "pretrained"
    computed: int = 0
    engine: str = ""
    regularization: float | None = None
    head_method: str = "regression"
    tried: Sequence[tuple[float, float, float]] = ()
    tried_on: str = ""
    views: int = 1
    flip: bool | None = None
    flip_problem: str = ""
    kept_row: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    val_probabilities: np.ndarray | None = None
    thresholds: Sequence[float] = ()

    @property
    def rolled_back(self) -> bool:
        """Whether `fit` undid fine-tuning, because it did not improve the validation metric."""
        if self.kept_row is None or "fine-tune" not in {row["phase"] for row in self.rows}:
            return False
        return self.kept_row < 0 or self.rows[self.kept_row]["phase"] == "head"

    @property
    def history(self) -> dict[str, list[Any]]:
        """The rows as one list per column, like `History.history` of Keras; None fills the gaps."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in self.rows] for key in columns}

    @property
    def exact(self) -> bool:
        """Whether a head was solved exactly, and nothing else was trained."""
        return len(self.rows) == 1 and self.regularization is not None

    def to_dataframe(self) -> pandas.DataFrame:
        """Return the history as a pandas data frame, one row per epoch.

        Raises:
            InputError: pandas is not installed.
        """
        return display.data_frame(self.history)

    def plot(self) -> Figure:
        """Draw the learning curves, or the regularization path of a head that was solved exactly.

        Raises:
            InputError: the log has no epochs.
        """
        from transfer.training import training_plots

        if self.exact and self.tried and self.regularization is not None:
            return training_plots.regularization_path(
                self.tried, self.regularization, measured_on=self.tried_on, method=self.head_method
            )
        if not self.rows:
            raise InputError(
                "Expected a log with one epoch or more, to draw it. Received one without epochs."
            )
        return training_plots.learning_curves(self.rows, kept_row=self.kept_row)

    def __repr__(self) -> str:
        phases = Counter(str(row.get("phase")) for row in self.rows)
        if self.exact:
            name = "shrinkage" if self.head_method == "discriminant" else "C"
            text = f"exact head with {name} = {self.regularization:.3g}"
        else:
            text = ", ".join(f"{name}: {plural(count, 'epoch')}" for name, count in phases.items())
        kept = len(self.rows) - 1 if self.kept_row is None else self.kept_row
        row = self.rows[kept] if kept >= 0 else {}
        task = metric_of_row(row)
        for key, name in (
            (task.metric, task.metric_name),
            (f"val_{task.metric}", f"validation {task.metric_name}"),
        ):
            text += f"; {name} {score_text(task.metric, row[key])}" if row.get(key) is not None else ""
        text += "; fine-tuning undone" if self.rolled_back else ""
        seconds = format_duration(self.seconds_features + self.seconds_training)
        return display.one_line(self, f"{text or 'no epochs'}; {seconds}")

    def _repr_html_(self) -> str:
        """Return the history for a notebook; of many epochs, the first and the last."""
        rows = [[_cell(value) for value in row] for row in zip(*self.history.values(), strict=True)]
        return display.to_html(repr(self), display.Table([*self.history], rows).shortened() if rows else "")

    def __add__(self, later: TrainingLog) -> TrainingLog:
        """Return the log of this training and of a later one of the same model."""
        before = len(self.rows) - 1 if self.kept_row is None else self.kept_row
        kept = {None: None, -1: before}.get(later.kept_row, len(self.rows) + (later.kept_row or 0))
        return self.with_phase(replace(later, kept_row=kept))

    def with_phase(self, phase: TrainingLog) -> TrainingLog:
        """Return this log with the log of the next phase, whose `kept_row` counts the rows of both."""
        kept_row = phase.kept_row if phase.rows else self.kept_row
        rows = [*self.rows, *phase.rows]
        kept = len(rows) - 1 if kept_row is None else kept_row
        # Thresholds of a solved head do not suit weights of a later phase. The log of a phase may lack the kept row.
        of_head = 0 <= kept < len(rows) and rows[kept].get("phase") == "head"
        return TrainingLog(
            rows=rows,
            seconds_features=self.seconds_features + phase.seconds_features,
            seconds_training=self.seconds_training + phase.seconds_training,
            init=self.init,
            computed=self.computed + phase.computed,
            engine=phase.engine or self.engine,
            regularization=self.regularization if phase.regularization is None else phase.regularization,
            head_method=(self if phase.regularization is None else phase).head_method,
            tried=phase.tried or self.tried,
            tried_on=phase.tried_on or self.tried_on,
            views=max(self.views, phase.views),
            flip=self.flip if phase.flip is None else phase.flip,
            flip_problem=phase.flip_problem or self.flip_problem,
            kept_row=kept_row,
            options={**self.options, **phase.options},
            val_probabilities=phase.val_probabilities,
            thresholds=(phase.thresholds or self.thresholds) if of_head else (),
        )


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def joined(logs: Sequence[TrainingLog]) -> TrainingLog:
    """Return the logs of several calls of `fit` on one model as one."""
    return functools.reduce(operator.add, logs)


def log_from(saved: Mapping[str, Any]) -> TrainingLog:
    """Return the log that a checkpoint saved as a dict; other keys are ignored."""
    return TrainingLog(**{item.name: saved[item.name] for item in fields(TrainingLog) if item.name in saved})


class Rows(keras.callbacks.Callback):
    """Collect a row of the log for each epoch as soon as it ends, so that checkpoints contain it."""

    def __init__(self, phase: str) -> None:
        super().__init__()
        self.phase = phase
        self.rows: list[dict[str, Any]] = []

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Add the row of an epoch."""
        values = {name: float(value) for name, value in (logs or {}).items()}
        self.rows.append({"phase": self.phase, "epoch": epoch + 1, **values})


@dataclass(frozen=True)
class Trainee:
    """A model that Keras' `fit` trains in a phase: the whole model or its upper layers, with their batches."""

    model: keras.Model
    # Return the training batches from a position on.
    batches: Callable[[Position], Iterable[Any]]
    val_batches: Iterable[Any] | None
    # The part of each batch that this process reads; None for all of it.
    batch_part: BatchPart | None = None
    # The features that were computed for this model.
    log: TrainingLog = field(default_factory=TrainingLog)


@dataclass(frozen=True)
class TrainingSettings:
    """The arguments of `fit`, checked and with their defaults filled in."""

    model: keras.Model
    data: ImageData
    # Whether all layers but the head are frozen.
    head_only: bool
    # "solve" or "keep": whether the head is trained before fine-tuning; None before that is decided.
    initial_head: str | None
    # Height and width in pixels.
    image_size: tuple[int, int]
    epochs: int | None
    batch_size: int
    augment: str
    # Whether augmentation may flip images; None if that is to be measured.
    flip: bool | None
    views: int | None
    # The weight of each class in the loss, for one class per image.
    class_weights: dict[int, float] | None
    solver: str
    dropout: float
    engine: str
    cache: FeatureCache | None
    seed: int
    recipe: Recipe
    known_features: KnownFeatures | None
    checkpoints: Checkpoints | None
    callbacks: UserCallbacks
    verbose: str | int
    time_limit: TimeLimit | None = None
    # Why the class names forbid flips.
    flip_problem: str = ""
    # The weights of images with and without each label in the loss, shape (2, labels), for several labels per image.
    label_weights: np.ndarray | None = None
    # The mean and the standard deviation of the training values of a regression.
    value_scale: ValueScale | None = None

    @property
    def balanced(self) -> bool:
        """Whether all classes count the same in the loss."""
        return self.class_weights is not None or self.label_weights is not None

    @property
    def shaped(self) -> bool:
        """Whether labels have the shape of the outputs: several labels per image, or numbers."""
        return self.data.task in SHAPED

    def for_training(self, split: Split) -> Split:
        """Return a split with labels as the network trains on them: standardized values, shape (N, 1)."""
        if self.value_scale is None:
            return split
        return replace(split, labels=self.value_scale.standardized(split.labels)[:, None])

    def labels_for_training(self, split: Split) -> np.ndarray:
        """Return the labels of `for_training`, as float32 if they have the shape of the outputs."""
        labels = self.for_training(split).labels
        return labels.astype("float32") if self.shaped else labels

    def make_engine(self, extractor: keras.Model, precision: str = "auto") -> Engine:
        """Return an engine for a part of the model."""
        exact = precision == "float32"
        return make_engine(
            local_copy(extractor),
            engine=in_float(self.engine) if exact else self.engine,
            precision=precision,
            batch_size=BATCH_SIZE,
            calibration=None if exact else calibration_of(self.data.train, self.image_size),
        )

    def extract(
        self, extractor: keras.Model, *, engine: Engine, views: int, name: str
    ) -> tuple[dict[str, Features], TrainingLog]:
        """Return features of the training images, in several views, and of the validation images; and a log."""
        start = time.perf_counter()
        options: dict[str, Any] = {"image_size": self.image_size, "engine": engine, "cache": self.cache}
        training: dict[str, Any] = {
            "augment": self.augment,
            "flip": self.flip is not False,
            "seed": self.seed,
        }
        training |= {"views": views, "known": self.known_features}
        features = {"train": extract(extractor, self.data.train, name=f"train {name}", **options, **training)}
        if len(self.data.val):
            features["val"] = extract(extractor, self.data.val, name=f"val {name}", **options)
        log = TrainingLog(
            seconds_features=time.perf_counter() - start,
            computed=sum(part.computed for part in features.values()),
            engine=features["train"].engine,
            views=views,
        )
        return features, log

    def fit_options(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, Any]:
        """Return the arguments of Keras' `fit` that all phases share."""
        return {
            "callbacks": list(callbacks),
            "class_weight": self.class_weights,
            "verbose": self.verbose,
            "shuffle": False,  # the data sets shuffle themselves
        }

    def compile_like_model(self, other: keras.Model) -> None:
        """Compile another model of the same layers with the model's optimizer, for soft labels if needed."""
        soft = self.recipe.mix != "none"
        # The model's optimizer scales the loss already.
        options: dict[str, Any] = {"soft_labels": soft, "auto_scale_loss": False}
        self.compile_with(other, self.model.optimizer, **options)

    def compile_with(self, other: keras.Model, optimizer: keras.optimizers.Optimizer, **options: Any) -> None:
        """Compile a part of the model with an optimizer, the loss with its smoothing and weights, and the metrics."""
        smoothing = self.recipe.label_smoothing
        forms: dict[str, Any] = {"weights": self.label_weights, "scale": self.value_scale}
        compile_like(other, self.model, optimizer, smoothing=smoothing, **forms, **options)


def stop_in_time(
    settings: TrainingSettings, *, epochs: int, per_epoch: int, start: int = 0
) -> StopInTime | None:
    """Return a callback that ends a phase at the time limit, or None without a limit."""
    if settings.time_limit is None:
        return None
    # A forward pass takes a third of the time of a training step; the first validation also compiles.
    validation = len(settings.data.val) / settings.batch_size
    options: dict[str, int] = {"epochs": epochs, "per_epoch": per_epoch, "start": start}
    return StopInTime(settings.time_limit, validation_steps=validation, **options)
