"""The models of the steps: a head on a frozen network, and the network fine-tuned from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.anytime.heads import BestHead, build_head
from transfer.anytime.plan import Kind, Step
from transfer.cases import builders
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.decisions import decision_of
from transfer.cases.policies import Case
from transfer.common.streams import progress_bar
from transfer.common.text import seconds_of
from transfer.config import TrainConfig
from transfer.frozen.extraction import KnownFeatures
from transfer.frozen.head_choice import features_of
from transfer.images.datasets import ImageData
from transfer.training.averaging import average
from transfer.training.fit import fit
from transfer.training.phases import TrainingLog
from transfer.training.solved_again import solve_again

LEARNING_RATE = 6e-4
"""Learning rate of fine-tuning, twice that of case 3. With it, 100 steps are as good as 200 steps of case 3."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """The model of a step, with predictions of validation images by a head that was solved without them."""

    model: keras.Model
    training: TrainingLog
    # Name of the network, as the user writes it.
    network: str
    # Probabilities of each averaged model, or of the only one, shape (N, K), and labels, for calibration.
    probabilities: Sequence[np.ndarray]
    labels: np.ndarray
    # For each validation image of the pool, whether it is classified correctly.
    correct: np.ndarray
    # Features of the images of the pool, if the advice computed them.
    known: KnownFeatures | None = None
    # Whether the predictions are those of random images. Of a part of a pool, small classes have more images.
    random: bool = True

    @property
    def case(self) -> Case:
        """The case of the model."""
        return decision_of(self.model).case


def head_candidate(config: TrainConfig, data: ImageData, head: BestHead, devices: Any) -> Candidate:
    """Build the model of a head."""
    model, training = build_head(config, data, head, devices)
    classes = np.unique(head.pool.images.labels)  # the sample may have only some classes
    if head.pool.joint or not len(head.pool.val):
        few, labels = head.best.probabilities, head.labels
    else:
        few, labels = head.val_probabilities, head.val_labels
    probabilities = np.zeros((len(few), data.num_classes))
    probabilities[:, classes] = few
    known = KnownFeatures(head.pool.images, features_of(head.sample.taps, head.best.cuts))
    return Candidate(
        model,
        training,
        head.network,
        [probabilities],
        classes[labels],
        head.correct,
        known=known,
        random=head.pool.whole,
    )


def fine_tuned_candidate(
    config: TrainConfig,
    data: ImageData,
    head: BestHead,
    step: Step,
    *,
    case: Case,
    devices: Any,
    start: list[np.ndarray] | None,
    before: TrainingLog | None,
    checkpoints: Path,
    time_limit: float | None,
) -> tuple[keras.Model, Candidate]:
    """Fine-tune the network from its head, or from the weights `start`; return it, and with its head solved again."""
    model, used = build_network(config, data, head, case, step.training_size, devices, start)
    keep = start is None and head.pool.whole
    if keep:  # the features of the choice have the head already
        solved = head.on_all_layers(config.seed)
        model.layers[-1].set_weights([solved.kernel, solved.bias])
    random = decision_of(model).init == "random"
    training = fit(
        model,
        replace(data, image_size=None),
        **{**used.fit_options(), "epochs": step.epochs},
        initial_head=None if random else "keep" if keep else "solve",
        callbacks=[EpochProgress(str(step.kind))],
        verbose=0,
        checkpoints=checkpoints / step.key,
        checkpoint_every=seconds_of(config.checkpoint_every) or 0.0,
        time_limit=time_limit,
    )
    training = training if before is None else before + training
    return model, solved_candidate(config, data, head, model, training, step.image_size)


def build_network(
    config: TrainConfig,
    data: ImageData,
    head: BestHead,
    case: Case,
    image_size: int,
    devices: Any,
    weights: list[np.ndarray] | None,
) -> tuple[keras.Model, TrainConfig]:
    """Build the network that is fine-tuned, with some weights or the pre-trained ones; also return its options."""
    given = replace(config, case=str(case), image_size=image_size, model=head.network)
    used = given.without_ignored()
    options = used.build_options()
    options["init"] = "pretrained" if config.init == TrainConfig.init else config.init
    # A head on all layers is better than one on the last layer, before and after fine-tuning.
    options["cut"] = ALL_LAYERS
    if config.learning_rate is None and config.optimizer == TrainConfig.optimizer:
        options["learning_rate"] = LEARNING_RATE
    model = builders.build(base=head.base, num_classes=data.num_classes, strategy=devices, **options)
    if weights is not None:
        model.set_weights(weights)
    return model, used


def solved_candidate(
    config: TrainConfig,
    data: ImageData,
    head: BestHead,
    model: keras.Model,
    training: TrainingLog,
    image_size: int,
) -> Candidate:
    """Solve the head of a fine-tuned model again, at an image size."""
    solved = solve_again(
        model,
        replace(data, image_size=None),
        image_size=image_size,
        class_weights=config.class_weights,
        engine=config.engine,
    )
    training = training if training.rolled_back else training + solved.log
    probabilities, labels = solved.val_probabilities, data.val.labels
    correct = (probabilities.argmax(axis=1) == labels)[head.pool.val_positions]
    return Candidate(solved.model, training, head.network, [probabilities], labels, correct)


def averaged_candidate(frozen: Candidate, tuned: Candidate, head: BestHead) -> Candidate:
    """Average the best head on the frozen network and the fine-tuned network."""
    probabilities, labels = tuned.probabilities[0][head.pool.val_positions], head.pool.val.labels
    both = [frozen.probabilities[0][len(frozen.labels) - len(labels) :], probabilities]
    correct = np.mean(both, axis=0).argmax(axis=1) == labels
    model = average([frozen.model, tuned.model])
    return Candidate(model, tuned.training, head.network, both, labels, correct)


class EpochProgress(keras.callbacks.Callback):
    """Show a progress bar of a training, by epoch, that vanishes at its end."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name, self._bar = name, None

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Open the bar."""
        if self._bar is None:
            options = {"total": self.params.get("epochs"), "initial": epoch, "desc": self._name}
            self._bar = progress_bar(disable=None, unit=" epochs", leave=False, **options)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Count an epoch."""
        if self._bar is not None:
            self._bar.update()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.close()


def title_of(step: Step, head: BestHead | None, networks: Sequence[str]) -> str:
    """Return the title of a step in the log; without a head, its network was skipped."""
    if head is None:
        return f"Skipped {step.network}, {step.image_size} px"
    where = f"{head.network}, " if len(networks) > 1 else ""
    size = f"{step.image_size} px"
    if step.kind is Kind.AVERAGE:
        return f"Average of the frozen head and the fine-tuned network, {where}{size}"
    if step.kind in (Kind.FINE_TUNING, Kind.LONGER):
        again = f", head solved again at {size}" if step.training_size != step.image_size else ""
        return f"{step.kind.capitalize()}, {where}{step.training_size} px{again}"
    name = head.best.name
    layers = {"best cut": f"the layer {head.best.cuts[0]}", "all layers": name}.get(name, f"the {name}")
    return f"Head on {layers}, {where}{size}"
