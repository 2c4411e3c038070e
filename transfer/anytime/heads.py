"""The best head on a frozen network: one forward pass, a choice by out-of-fold predictions, and its model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import keras
import numpy as np

from transfer.adviser.advise import choose_heads
from transfer.adviser.sample_features import (
    MAX_IMAGES,
    SampleFeatures,
    extract_sample_features,
    stratified_sample,
)
from transfer.cases import builders
from transfer.cases.cuts import ALL_LAYERS, cuts_of, keeps_whole
from transfer.cases.policies import frozen_case
from transfer.config import TrainConfig
from transfer.frozen.extraction import KnownFeatures
from transfer.frozen.head_choice import HeadCandidate, HeadChoice, features_of
from transfer.frozen.heads import SolvedHead, solve
from transfer.images.datasets import ImageData
from transfer.images.splitting import Split, concatenate
from transfer.networks.graphs import analyze
from transfer.training.fit import fit
from transfer.training.phases import TrainingLog
from transfer.training.trained import record_data

MAX_VALIDATION = 500
"""Largest number of validation images in a sample of the images."""

FIT_OPTIONS = ("views", "label_smoothing", "precision")
"""Options with which `fit` trains the head, instead of the features of the choice."""


@dataclass(frozen=True, eq=False)
class Pool:
    """The images from which heads are chosen: training images, then validation images."""

    images: Split
    # The validation images among them, which are the last ones, and their positions among all validation images.
    val: Split
    val_positions: np.ndarray
    # Whether these are all training and validation images.
    whole: bool
    # Whether the final head may be solved on the validation images too.
    joint: bool

    @property
    def num_train(self) -> int:
        """The number of training images."""
        return len(self.images) - len(self.val)

    @property
    def used(self) -> slice:
        """The images on which heads are chosen and solved."""
        return slice(None) if self.joint else slice(self.num_train)


def pool_of(data: ImageData, seed: int, most: int = MAX_IMAGES) -> Pool:
    """Return the training and validation images, or a stratified sample of them."""
    train, val = data.train, data.val
    positions = np.arange(len(val))
    whole = len(train) + len(val) <= most
    if not whole:
        positions = stratified_sample(val.labels, MAX_VALIDATION, seed) if len(val) else positions
        train = train.take(stratified_sample(train.labels, most - len(positions), seed))
        positions = positions[np.isin(val.labels[positions], train.labels)]
        val = val.take(positions)
    images = concatenate([train, val]) if len(val) else train
    return Pool(images, val, positions, whole, data.drawn_val and len(val) > 0)


@dataclass(frozen=True, eq=False)
class BestHead:
    """The best head on a network at an image size."""

    network: str
    base: keras.Model
    pool: Pool
    sample: SampleFeatures
    choice: HeadChoice

    @property
    def best(self) -> HeadCandidate:
        """The out-of-fold predictions of the head."""
        return self.choice.best

    @property
    def image_size(self) -> int:
        """Height of the images in pixels."""
        return self.sample.image_size[0]

    @property
    def labels(self) -> np.ndarray:
        """Labels of the out-of-fold predictions, as numbers of the classes in the sample."""
        return self.sample.labels[self.pool.used]

    @property
    def val_probabilities(self) -> np.ndarray:
        """Probabilities of the validation images by a head that was solved without them."""
        start = self.pool.num_train
        if self.pool.joint:
            return self.best.probabilities[start:]
        features = {name: self.sample.taps[name][start:] for name in self.best.cuts}
        return self.choice.solved.probabilities(features_of(features, self.best.cuts))

    @property
    def val_labels(self) -> np.ndarray:
        """Labels of the validation images, as numbers of the classes in the sample."""
        return self.sample.labels[self.pool.num_train :]

    @property
    def correct(self) -> np.ndarray:
        """For each validation image, whether the head classifies it correctly, bool of shape (N,)."""
        return self.val_probabilities.argmax(axis=1) == self.val_labels

    def on_all_layers(self, seed: int) -> SolvedHead:
        """Return a regression on all layers, solved on the training images alone."""
        train, names = self.sample.first(self.pool.num_train), cuts_of(analyze(self.base), ALL_LAYERS)
        features, methods = features_of(train.taps, names), ("regression",)
        return solve(features, train.labels, train.num_classes, methods=methods, seed=seed)


def extract_pool(config: TrainConfig, base: keras.Model, pool: Pool) -> SampleFeatures:
    """Run a network once over the images."""
    return extract_sample_features(
        pool.images, base, preprocessing=config.preprocessing, engine=config.engine
    )


def best_head(
    config: TrainConfig,
    network: str,
    base: keras.Model,
    pool: Pool,
    sample: SampleFeatures,
    best_cut: str | None,
) -> BestHead:
    """Choose the layers of a network's head by out-of-fold predictions; `best_cut` is the best single layer."""
    used = sample if pool.joint else sample.first(pool.num_train)
    choice = choose_heads(used, analyze(base), best_cut, config.seed, weighted=config.class_weights)
    return BestHead(network, base, pool, sample, choice)


def build_head(
    config: TrainConfig, data: ImageData, head: BestHead, devices: Any
) -> tuple[keras.Model, TrainingLog]:
    """Build the model of the best head, and return it with its log."""
    network, cuts = analyze(head.base), head.best.cuts
    case = frozen_case(whole=keeps_whole(network, cuts))
    given = replace(
        config,
        case=str(case),
        cut=",".join(cuts),
        image_size=head.image_size,
        model=head.network,
    )
    used = given.without_ignored()
    model = builders.build(
        base=head.base, num_classes=data.num_classes, strategy=devices, **used.build_options()
    )
    if not head.pool.whole or any(getattr(used, name) != getattr(TrainConfig, name) for name in FIT_OPTIONS):
        features = features_of(head.sample.taps, cuts)
        options = {**used.fit_options(), "epochs": None}
        return model, fit(model, data, **options, known_features=KnownFeatures(head.pool.images, features))
    solved = head.choice.solved
    model.layers[-1].set_weights([solved.kernel, solved.bias])
    if not model.optimizer.built:  # otherwise Keras warns when the saved model is loaded
        model.optimizer.build(model.trainable_variables)
    record_data(model, data)
    return model, _log_of(head)


def _log_of(head: BestHead) -> TrainingLog:
    """Return the log of a head that was solved exactly; its validation is that of the out-of-fold predictions."""
    solved, best = head.choice.solved, head.best
    features = features_of({name: head.sample.taps[name][head.pool.used] for name in best.cuts}, best.cuts)
    row: dict[str, Any] = {"phase": "head", "epoch": 1, **solved.measure(features, head.labels)}
    if head.choice.accuracy is not None:
        row |= {"val_loss": best.loss, "val_accuracy": best.accuracy}
    return TrainingLog(
        [row],
        computed=head.sample.computed,
        engine=head.sample.engine,
        seconds_features=head.sample.seconds,
        regularization=solved.regularization,
        head_method=solved.method,
        tried=solved.tried,
        tried_on="cross-validation" if solved.tried else "",
    )
