"""The training that each fold of a cross-validation repeats: a head on shared features, or a whole training."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.adviser.advise import choose_heads, probe_sample
from transfer.adviser.sample_features import (
    MAX_IMAGES,
    SampleFeatures,
    extract_sample_features,
    stratified_sample,
)
from transfer.cases import builders
from transfer.cases.cuts import keeps_whole
from transfer.cases.policies import Case, frozen_case
from transfer.common.streams import quiet
from transfer.common.text import seconds_of
from transfer.config import TrainConfig
from transfer.evaluation.evaluate import evaluate
from transfer.frozen import heads
from transfer.frozen.extraction import KnownFeatures, extract, input_size
from transfer.frozen.head_choice import features_of
from transfer.frozen.openvino_engine import INT8, in_float
from transfer.images.folds import FoldedData
from transfer.images.image_data import ImageData
from transfer.images.pipeline import class_weights
from transfer.images.splitting import concatenate
from transfer.networks import surgery
from transfer.networks.graphs import analyze
from transfer.training.fit import fit
from transfer.training.head_training import MAX_EXACT_BYTES
from transfer.training.option_table import HEAD, Situation
from transfer.training.phases import TrainingLog


class FoldTraining:
    """Trains one model for each fold, and one on the images of all folds, with the same options."""

    # The case `auto` chooses the layers of a head anew in each training, on the training images of the fold alone.

    def __init__(
        self, config: TrainConfig, folded: FoldedData, base: keras.Model, *, devices: Any = None
    ) -> None:
        if config.case == "auto" and (config.cut is not None or config.unfreeze_from is not None):
            config = replace(config, case=str(Case.SMALL_SIMILAR))  # nothing is left to choose
        self.config, self.folded, self.base, self._devices = config, folded, base, devices
        data = folded.data
        # Given validation images help to choose the regularization, as in `fit`.
        self._images = concatenate([data.train, data.val]) if len(data.val) else data.train
        self._sample: SampleFeatures | None = None
        self._features: np.ndarray | None = None

    def extract(self) -> None:
        """Run the frozen network once over all images, if all heads can share its features."""
        config = self.config
        if config.case == "auto":
            self._sample = extract_sample_features(
                self._images,
                self.base,
                image_size=self.folded.data.image_size,
                preprocessing=config.preprocessing,
                engine=config.engine,
            )
        elif self._solvable:
            model = self._build(config)
            extractor = surgery.feature_extractor_of(model)
            if self._fits(extractor.output_shape[-1]):
                size = input_size(model, self.folded.data)
                options: dict[str, Any] = {"engine": in_float(config.engine), "precision": "float32"}
                self._features = extract(extractor, self._images, image_size=size, **options).load()

    @property
    def exact(self) -> bool:
        """Whether each head is solved on the features of `extract`."""
        if self._sample is None:
            return self._features is not None
        return self._solvable and self._fits(sum(x.shape[1] for x in self._sample.taps.values()))

    @property
    def _solvable(self) -> bool:
        """Whether the options allow heads that are solved on features of the images as they are."""
        config = self.config
        kinds = config.situations
        plain = (config.views or 1) == 1 and config.batchnorm != "adapted" and config.engine != INT8
        return plain and kinds <= HEAD and Situation.EXACT in kinds

    def _fits(self, width: int) -> bool:
        """Return whether features of this width are small enough for the exact solver, as in `fit`."""
        return 4 * width * len(self._images) <= MAX_EXACT_BYTES

    @property
    def val(self) -> float | int:
        """Size of the validation set to draw: a head that is solved exactly needs none."""
        return 0 if self.exact else self.config.val

    def predict(self, number: int, checkpoints: Path | None) -> np.ndarray:
        """Return the probabilities of the images of a fold by a model that was trained without them."""
        folds = self.folded.folds
        train, test = np.flatnonzero(folds != number), np.flatnonzero(folds == number)
        if self.exact:
            return self._solve(train, test)
        data = self.folded.fold(number, self.val)
        with quiet("tensorflow", logging.ERROR):  # it warns that each model is traced anew
            model, _, used = self._train(data, train, checkpoints)
            return evaluate(model, data, **used.evaluate_options()).outputs

    def final(self, checkpoints: Path | None) -> tuple[keras.Model, ImageData, TrainingLog]:
        """Train the model on the images of all folds; return it with its data and its log."""
        data = self.folded.final(self.val)
        with quiet("tensorflow", logging.ERROR):
            model, log, _ = self._train(data, np.arange(len(self.folded.folds)), checkpoints)
        return model, data, log

    def _train(
        self, data: ImageData, train: np.ndarray, checkpoints: Path | None
    ) -> tuple[keras.Model, TrainingLog, TrainConfig]:
        """Build and fit a model; `train` are the positions of its images, validation images included."""
        used = self._chosen(train)
        model, features = self._build(used), self._features_of(used)
        known = None if features is None else KnownFeatures(self._images, features)
        every = seconds_of(used.checkpoint_every) or 0.0
        options: dict[str, Any] = {"checkpoints": checkpoints, "checkpoint_every": every}
        return model, fit(model, data, known_features=known, **options, **used.fit_options()), used

    def _build(self, used: TrainConfig) -> keras.Model:
        """Build a model with the same random numbers in each fold, also after an interruption."""
        keras.utils.set_random_seed(self.config.seed)
        classes = self.folded.data.num_classes
        return builders.build(
            base=self.base,
            num_classes=classes,
            strategy=self._devices,
            **used.without_ignored().build_options(),
        )

    def _chosen(self, train: np.ndarray) -> TrainConfig:
        """Return the options, with the layers of the best head on some images if the case is `auto`."""
        config = self.config
        if self._sample is None:
            return config.without_ignored()
        rows = train[stratified_sample(self._sample.labels[train], MAX_IMAGES, config.seed)]
        part, network = self._sample.take(np.sort(rows)), analyze(self.base)
        curve = probe_sample(part, config.seed).curve
        cut = None if curve is None else curve.cut
        cuts = choose_heads(part, network, cut, config.seed, weighted=config.class_weights).best.cuts
        case = frozen_case(whole=keeps_whole(network, cuts))
        return replace(config, case=str(case), cut=",".join(cuts)).without_ignored()

    def _features_of(self, used: TrainConfig) -> np.ndarray | None:
        """Return the features that a head with these options sees; None if they are not known."""
        if self._sample is None or used.cut is None:
            return self._features
        return features_of(self._sample.taps, used.cut.split(","))

    def _solve(self, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        """Solve a head on the training images of a fold, as `fit` does, and predict its test images."""
        x, labels, data = self._features_of(self._chosen(train)), self._images.labels, self.folded.data
        if x is None:
            raise RuntimeError("extract() comes before predict()")
        groups, val = data.train.groups, np.arange(len(data.train), len(labels))
        weights = class_weights(labels[train], data.num_classes) if self.config.class_weights else None
        head = heads.solve(
            x[train],
            labels[train],
            data.num_classes,
            val=(x[val], labels[val]) if len(val) else None,
            class_weights=weights,
            groups=[groups[i] for i in train.tolist()] if len(groups) else (),
            seed=self.config.seed,
        )
        return head.probabilities(x[test])
