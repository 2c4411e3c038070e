"""Average several models: one model that returns the mean of their predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from transfer.cases.compiling import compile_like, new_optimizer
from transfer.cases.decisions import CaseDecision, find_decision, record_decision, task_of_model
from transfer.cases.policies import POLICIES
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.tasks import TASK
from transfer.distributed.strategies import scope_of, share_devices
from transfer.networks import surgery
from transfer.networks.arguments import check_classifier
from transfer.training.trained import TrainedModel, find_trained, record

_CALL = "average([model, other])"

PREFIX = "model_{}_"
"""Prefix of the names of the layers of each averaged model, with its number from 1."""


@explain_arguments()
def average(models: Sequence[keras.Model]) -> keras.Model:
    """Average models: return one model whose predictions are the mean of theirs.

    Models that make different mistakes are together more accurate than each. A frozen network with a new head and a
    fine-tuned network are such a pair: on five data sets, their average was 1.4 points more accurate than the
    fine-tuned network. A prediction takes as long as those of all models together.

    The result is a model like any other: it can be evaluated, calibrated, explained, saved and exported. It cannot be
    trained further.

    Args:
        models: two models or more, from builders or from `load_run`, with the same classes. They do not change. If they
            take images of different sizes, the result takes the largest size and resizes the images for the others.

    Returns:
        The average. If the models are compiled, it is compiled like the first one.

    Raises:
        InputError: there are fewer than two models, they were trained on other classes or with images in another form,
            or a model has no graph from one input of images to probabilities.

    Example:
        >>> import transfer
        >>> base = transfer.DemoCNN(weights=None)
        >>> models = [transfer.small_similar(base, 4), transfer.large_similar(base, 4)]
        >>> transfer.average(models).output_shape
        (None, 4)
    """
    trained = _checked(models)
    sizes = [model.input_shape[1:3] for model in models]
    size: Any = max((one for one in sizes if None not in one), key=math.prod, default=(None, None))
    with scope_of(models[0]):
        image = keras.Input((*size, 3), dtype="float32", name="image")
        outputs = [_output(model, image, PREFIX.format(i)) for i, model in enumerate(models, start=1)]
        mean = keras.layers.Average(name="average", dtype="float32")(outputs)
        result = share_devices(keras.Model(image, mean, name=models[0].name), models[0])
        # An average is not trained: without trainable weights, its optimizer has no state to save.
        surgery.set_trainable(result, False)
        if all(model.compiled for model in models):
            optimizer = getattr(models[0].optimizer, "inner_optimizer", models[0].optimizer)
            compile_like(result, models[0], new_optimizer(optimizer, None, 0.0))
            result.optimizer.build([])
    decisions = [decision for model in models if (decision := find_decision(model)) is not None]
    if len(decisions) == len(models):
        record_decision(result, _joint(decisions))
    if trained and None not in size:
        readers = [one.read_digests for one in trained]
        # The thresholds of labels are those of a single model.
        whole = replace(trained[0], model=result, image_size=size, thresholds=None)
        record(replace(whole, read_digests=lambda: frozenset().union(*(read() for read in readers))))
    return result


def _checked(models: Any) -> list[TrainedModel]:
    """Return the training data of the models that have any; raise unless the models can be averaged."""
    if not isinstance(models, list | tuple) or len(models) < 2:
        received = f"{len(models)}" if isinstance(models, list | tuple) else type(models).__name__
        raise InputError(f"Expected a list of two models or more in {_CALL}. Received: {received}.")
    for model in models:
        check_classifier(model, _CALL)
    counts = [model.output_shape[-1] for model in models]
    if len(set(counts)) > 1:
        raise InputError(
            f"Expected models with the same classes. Received models with {', '.join(map(str, counts))} classes."
        )
    tasks = {TASK[task_of_model(model)].activation for model in models}
    if len(tasks) > 1:
        raise InputError(
            f"Expected models of one task. Received models that end in a {' and in a '.join(sorted(tasks))}."
        )
    trained = [one for model in models if (one := find_trained(model)) is not None]
    forms = {
        "task": "task",
        "class names": "class_names",
        "resizing": "resize",
        "range of pixels": "pixel_range",
    }
    for what, name in forms.items():
        values = list(dict.fromkeys(getattr(one, name) for one in trained))
        if len(values) > 1:
            raise InputError(
                f"Expected models that were trained with the same {what}. Received: {values[0]!s:.300} and "
                f"{values[1]!s:.300}. Train them on data from one call of load_data."
            )
    return trained


def _output(model: keras.Model, image: keras.KerasTensor, prefix: str) -> keras.KerasTensor:
    """Return the probabilities of a copy of a model, for images of the size of the average."""
    height, width = model.input_shape[1:3]
    resize = None
    if (height, width) not in ((None, None), tuple(image.shape[1:3])):
        resize = keras.layers.Resizing(height, width, dtype="float32", name=f"{prefix}resize")
    return surgery.clone(model, image=image, preprocess=resize, prefix=prefix).outputs[0]


def _joint(decisions: Sequence[CaseDecision]) -> CaseDecision:
    """Return the decision about an average: that of its first model that trains the network, or of its first."""
    whole = [decision for decision in decisions if not POLICIES[decision.case].frozen]
    return replace((whole or list(decisions))[0], averaged=tuple(decisions))
