"""Check the arguments of `fit`, and turn arrays, data sets and splits into `ImageData`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import keras
import numpy as np

from transfer.cases.decisions import find_decision, task_of_model
from transfer.cases.shaped_labels import SHAPED, ValueScale, training_loss
from transfer.common.errors import InputError, unknown
from transfer.common.tasks import MULTI, REGRESSION, TASK
from transfer.common.whole_numbers import at_least
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.label_heads import positive_weights
from transfer.images import pipeline
from transfer.images.array_source import Dataset, rank_of
from transfer.images.data_config import DataConfig
from transfer.images.datasets import ImageData, as_text, check_data, load_data
from transfer.images.splitting import Split
from transfer.networks.arguments import check_classifier
from transfer.training.option_table import SOLVERS, SWITCHES
from transfer.training.phases import TrainingSettings
from transfer.training.recipes import Recipe
from transfer.training.trained import find_trained

logger = logging.getLogger(__name__)

INITIAL_HEADS = ("solve", "keep")
"""What fine-tuning starts from: a head that is trained first, or the present head of the model."""

_BUILT_IN = "Set it when you build the model, such as transfer.large_similar(base, num_classes, {}=...)."

KERAS_NAMES = {
    "class_weight": "Write class_weights=True: all classes then have the same weight.",
    "sample_weight": "Images have no weights of their own. class_weights=True weights the classes.",
    "shuffle": "Leave it out: the training images are shuffled in each epoch; seed= sets the order.",
    "initial_epoch": "Leave it out: fit on a trained model continues, and checkpoints='folder' resumes.",
    "steps_per_epoch": "Leave it out: an epoch is all training images. For fewer, use load_data(few_shot=...).",
    "validation_steps": "Leave it out: all validation images are used.",
    "validation_batch_size": "Leave it out: it does not change the result.",
    "validation_freq": "Leave it out: each epoch is validated.",
    "lr": _BUILT_IN.format("learning_rate"),
    **{name: _BUILT_IN.format(name) for name in ("learning_rate", "optimizer", "loss", "metrics")},
    **{field.name: f"Write recipe=transfer.Recipe({field.name}=...)." for field in fields(Recipe)},
    "val": "Write validation_split=..., or load_data(images, val=...).",
    "image_size": "Write load_data(images, image_size=...).",
    "workers": "Leave it out: `fit` reads images in parallel.",
}
"""Advice for arguments of Keras' `fit`, and for options that belong elsewhere."""


def training_data(
    model: keras.Model,
    data: Any,
    labels: Any = None,
    *,
    validation_data: Any = None,
    validation_split: float | None = None,
    class_names: Sequence[str] | None = None,
    seed: int = 0,
) -> ImageData:
    """Return the images for `fit`; arrays, data sets and splits get no test images."""
    options = {"labels": labels, "validation_data": validation_data, "validation_split": validation_split}
    options["class_names"] = class_names
    if isinstance(data, ImageData) or data is None or as_text(data) is not None or not _is_source(data):
        check_data(data, "fit(model, data)")
        if given := [name for name, value in options.items() if value is not None]:
            raise InputError(
                f"Expected {given[0]} only with arrays, a tf.data.Dataset or a split. Received it with data from "
                "load_data, which have their own. Leave it out."
            )
        loaded: ImageData = data
        return loaded
    if labels is None and not isinstance(data, Dataset | Split | tuple | list | dict):
        raise InputError(
            "Expected images with labels. Received images alone. Write fit(model, images, labels)."
        )
    if validation_data is not None and validation_split:
        raise InputError("Expected validation_data or validation_split. Received both. Leave one out.")
    if validation_split is not None and not (
        isinstance(validation_split, int | float) and 0 <= validation_split < 1
    ):
        raise InputError(f"Expected validation_split from 0 to below 1. Received: {validation_split!r}.")
    source = data if labels is None else (data, labels)
    names, task = class_names or _known_names(model, source), task_of_model(model)
    loading: dict[str, Any] = {"class_names": names, "seed": seed}
    if task in SHAPED and not isinstance(data, Split):
        loading["task"] = task
    if isinstance(data, Split):
        loading["resize"] = data.resize
    if validation_data is None:
        val = DataConfig.val if validation_split is None else float(validation_split)
        return load_data(source, val=val, test=0, **loading)
    return load_data({"train": source, "val": validation_data}, test=0, **loading)


def _is_source(data: Any) -> bool:
    """Return whether a value may hold images in memory."""
    return isinstance(data, Dataset | Split | tuple | list | dict) or rank_of(data) > 0


def _known_names(model: keras.Model, source: Any) -> Sequence[str] | None:
    """Return the class names of a trained model for labels that are positions."""
    trained = find_trained(model)
    if trained is None or isinstance(source, Split) or getattr(source, "class_names", None):
        return None
    return None if all(name.isdecimal() for name in trained.class_names) else trained.class_names


def check_arguments(model: keras.Model, epochs: int | None, batch_size: int) -> None:
    """Raise unless a model is compiled for labels that are numbers, and the numbers are in their ranges."""
    check_classifier(model, "fit(model, data)")
    if isinstance(model.layers[-1], keras.layers.Average):
        raise InputError(
            "Expected a single model. Received an average of models. Train each of them, then average them again."
        )
    if not model.compiled:
        if find_trained(model) is not None:
            raise InputError(
                "Expected a compiled model. Received a loaded one, which is not compiled. To train all its layers "
                "further: transfer.unfreeze(model), then fit(model, data). For the last layers alone: "
                "transfer.unfreeze(model, from_layer=...)."
            )
        raise InputError(
            "Expected a compiled model. Received one that is not compiled. Use a builder, or call model.compile first."
        )
    if not ((epochs is None or at_least(1, epochs)) and at_least(1, batch_size)):
        raise InputError(
            f"Expected epochs and batch_size as whole numbers of 1 or more. Received: {epochs!r}, {batch_size!r}."
        )


def check_classes(model: keras.Model, data: ImageData) -> None:
    """Raise unless a model has the task and the classes of the data."""
    classes, task = model.output_shape[-1], task_of_model(model)
    if TASK[task].activation != TASK[data.task].activation:
        raise InputError(
            f"Expected a model for the task of the data, {data.task}. Received one for the task {task}. Build it with "
            f"task=data.task and num_classes={data.num_classes}."
        )
    if classes != data.num_classes:
        raise InputError(
            f"The model has {classes} classes, but the data have {data.num_classes}. Build the model with num_classes="
            f"{data.num_classes}."
        )


def options_of_labels(model: keras.Model, data: ImageData, class_weights: bool) -> dict[str, Any]:
    """Return the weights of classes or labels in the loss, and the scale of values, for `TrainingSettings`."""
    if class_weights and data.task == REGRESSION:
        raise InputError(
            "Expected class_weights=False for the task regression, which has no classes. Received: True. Leave it out."
        )
    labels, weights = data.train.labels, None
    if class_weights and data.task == MULTI:
        positive = positive_weights(labels)
        # With a mean weight of 1, the learning rate need not change.
        weights = np.stack([positive, np.ones_like(positive)])
        weights /= np.where(labels > 0, positive, 1.0).mean(axis=0)
        training_loss(model.loss, data.task, weights=weights)  # raises for a loss without such weights
    single = class_weights and data.task not in SHAPED
    return {
        "class_weights": pipeline.class_weights(labels, data.num_classes) if single else None,
        "label_weights": weights,
        "value_scale": ValueScale.of(labels) if data.task == REGRESSION else None,
    }


def check_types(**options: Any) -> None:
    """Raise for options of a wrong type, before they cause an error or a wrong result in the training."""
    expected = {
        "flip": ("True, False or None", options["flip"] in (True, False, None)),
        "class_weights": (
            "True or False: the weights follow from the data",
            options["class_weights"] in (True, False),
        ),
        "recipe": ("a transfer.Recipe or None", isinstance(options["recipe"], Recipe | None)),
        "cache": ("a FeatureCache or None", isinstance(options["cache"], FeatureCache | None)),
        "callbacks": (
            "a list of keras.callbacks.Callback",
            isinstance(options["callbacks"], Sequence)
            and all(isinstance(one, keras.callbacks.Callback) for one in options["callbacks"]),
        ),
        "seed": ("a whole number of 0 or more", at_least(0, options["seed"])),
    }
    for name, (form, fits) in expected.items():
        if not fits:
            raise InputError(f"Expected {name} as {form}. Received: {options[name]!r}.")


def check_head_options(
    solver: str, epochs: int | None, dropout: float, label_smoothing: float, *, head_only: bool
) -> None:
    """Raise if options of the head contradict each other or the model."""
    if solver not in SOLVERS:
        raise unknown("solver", solver, SOLVERS)
    if not 0 <= dropout < 1:
        raise InputError(f"Expected dropout from 0 to below 1. Received: {dropout!r}.")
    for name, value in (("epochs", epochs), ("dropout", dropout), ("label_smoothing", label_smoothing)):
        if value and head_only and solver == "exact":
            raise InputError(
                f"Expected no {name} with solver='exact', which does not train in epochs. Leave it out, or use "
                "solver='sgd'."
            )
    if dropout and not head_only:
        raise InputError(
            f"Expected dropout=0 for fine-tuning. Received: {dropout!r}. Leave it out, or build "
            "the model with small_similar or small_different."
        )


def choose_solver(
    solver: str, epochs: int | None, dropout: float, label_smoothing: float, *, head_only: bool
) -> str:
    """Return the solver of the head; log which options exclude the exact one."""
    switches = dict(zip(SWITCHES, (epochs, dropout, label_smoothing), strict=True))
    named = [name for name, value in switches.items() if value]
    if solver != "auto" or not head_only or not named:
        return solver
    logger.info("Training the head in epochs: the exact solver does not support %s.", ", ".join(named))
    return "sgd"


def choose_initial_head(settings: TrainingSettings) -> str:
    """Return whether fine-tuning starts from the present head; None keeps the head of a trained model."""
    initial_head, head_only = settings.initial_head, settings.head_only
    decision, trained = find_decision(settings.model), find_trained(settings.model)
    if initial_head is not None and initial_head not in INITIAL_HEADS:
        raise unknown("initial_head", initial_head, INITIAL_HEADS)
    if initial_head == "keep" and head_only:
        raise InputError(
            "Expected trainable layers besides the head, for initial_head='keep'. Received a frozen network. "
            "Leave it out, or call transfer.unfreeze(model) first."
        )
    if initial_head == "solve" and decision is not None and decision.init == "random":
        raise InputError(
            "Expected initial_head='solve' only with pre-trained weights. Received it for random weights. Leave it out."
        )
    if initial_head is not None or head_only:
        return initial_head or "solve"
    known = trained is not None and trained.class_names == settings.data.class_names
    # The head of a model that no builder made is the user's own.
    return "keep" if known or decision is None else "solve"
