"""What the phases of training share: what was asked for, what happened, when to stop."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras

from transfer.frozen.engines import make_engine
from transfer.frozen.extraction import BATCH_SIZE, Features, extract
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData
from transfer.training.checkpoints import Checkpoints
from transfer.training.recipes import Recipe

log = logging.getLogger(__name__)

PATIENCE = 10
"""Epochs without a better validation loss before a head stops training and takes the best weights back."""

MIN_DELTA = 1e-3
"""A validation loss lower by less than this, in nats, is not better: the head of an easy problem would creep on."""


@dataclass
class TrainingLog:
    """What happened in `fit`.

    Attributes:
        rows: one per epoch: `phase` (`"head"`, `"fine-tune"`, `"from-scratch"`), `epoch`, `loss`,
            `accuracy`, and `val_loss`, `val_accuracy` where there is a validation set.
        seconds_features: spent in forward passes over the frozen part.
        seconds_training: spent in training proper.
        init: where the weights that were kept started from: `"pretrained"` or `"random"`.
        computed: images that the frozen part ran over; the features of the others were kept from before.
        engine: what ran it.
        regularization: that was chosen for an exact head (see `heads.SolvedHead`).
        tried: what it was chosen from: C, loss and accuracy of images left out.
        views: how often the frozen part saw each training image, where it ran once and not in each epoch.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    seconds_features: float = 0.0
    seconds_training: float = 0.0
    init: str = "pretrained"
    computed: int = 0
    engine: str = ""
    regularization: float | None = None
    tried: tuple[tuple[float, float, float], ...] = ()
    views: int = 1

    @property
    def history(self) -> dict[str, list[Any]]:
        """The rows as Keras' `History.history` gives them: a list per column."""
        columns = dict.fromkeys(key for row in self.rows for key in row)
        return {key: [row.get(key) for row in self.rows] for key in columns}

    def note_features(self, cached: Mapping[str, Features], seconds: float) -> None:
        """Add what a pass over the frozen part computed."""
        self.seconds_features += seconds
        self.computed += sum(part.computed for part in cached.values())
        self.engine = cached["train"].engine or self.engine

    def add(self, phase: str, history: keras.callbacks.History) -> None:
        """Append the epochs of one call of Keras' `fit`."""
        for i, epoch in enumerate(history.epoch):
            values = {key: float(values[i]) for key, values in history.history.items()}
            self.rows.append({"phase": phase, "epoch": epoch + 1, **values})


@dataclass(frozen=True)
class TrainingSettings:
    """The arguments of `fit`, handed on together."""

    model: keras.Model
    data: ImageData
    image_size: tuple[int, int]
    batch_size: int
    augment: str
    flip: bool
    views: int | None
    class_weights: dict[int, float] | None
    solver: str
    dropout: float
    label_smoothing: float
    engine: str
    cache: FeatureCache | None
    seed: int
    recipe: Recipe
    kept: Checkpoints | None
    callbacks: list[keras.callbacks.Callback]
    verbose: str | int

    def extract(
        self, extractor: keras.Model, *, views: int, name: str = "", precision: str = "auto"
    ) -> dict[str, Features]:
        """Run a frozen part once over the training images, in views, and over those for validation, as
        they are."""
        own = local_copy(extractor)
        run = make_engine(own, engine=self.engine, precision=precision, batch_size=BATCH_SIZE)
        options: dict[str, Any] = {"image_size": self.image_size, "engine": run, "cache": self.cache}
        changes: dict[str, Any] = {
            "views": views,
            "augment": self.augment,
            "flip": self.flip,
            "seed": self.seed,
        }
        cached = {"train": extract(extractor, self.data.train, name=f"train {name}", **options, **changes)}
        if len(self.data.val):
            cached["val"] = extract(extractor, self.data.val, name=f"val {name}", **options)
        return cached

    def fit_options(self, callbacks: Sequence[keras.callbacks.Callback]) -> dict[str, Any]:
        """The arguments of Keras' `fit` that all phases share."""
        return {
            "callbacks": list(callbacks),
            "class_weight": self.class_weights,
            "verbose": self.verbose,
            "shuffle": False,  # the data sets shuffle themselves
        }

    def early_stopping(self) -> list[keras.callbacks.Callback]:
        """What ends a head's training when validation gets no better, and takes the best weights back."""
        if not len(self.data.val):
            log.warning(
                "There are no validation images: training runs all its epochs and keeps the last weights."
            )
            return []
        return [
            keras.callbacks.EarlyStopping(
                "val_loss", min_delta=MIN_DELTA, patience=PATIENCE, restore_best_weights=True
            )
        ]

    def compile_alike(self, trainee: keras.Model) -> None:
        """Compile a model of the same layers like the model itself, with its optimizer, for soft labels if
        need be."""
        model = self.model
        if self.recipe.mix == "none" and not self.label_smoothing:
            trainee.compile_from_config(model.get_compile_config())
            trainee.optimizer = model.optimizer
            return
        loss = smoothed(self.label_smoothing, self.data.num_classes)
        steps = model.steps_per_execution
        scaled: dict[str, Any] = {
            "steps_per_execution": steps,
            "auto_scale_loss": False,
        }  # by the model's own
        trainee.compile(model.optimizer, loss, metrics=["accuracy"], **scaled)


def smoothed(share: float, classes: int) -> Callable[[Any, Any], Any]:
    """Give the cross-entropy with a share of each label spread over all classes (Szegedy et al. 2016,
    arXiv:1512.00567)."""

    def loss(labels: Any, probabilities: Any) -> Any:
        if len(labels.shape) < 2 or labels.shape[-1] == 1 != classes:
            labels = keras.ops.one_hot(keras.ops.reshape(labels, (-1,)), classes)
        return keras.losses.categorical_crossentropy(labels, probabilities, label_smoothing=share)

    return loss
