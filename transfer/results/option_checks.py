"""Check options of a training that do not suit each other or the labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, REGRESSION
from transfer.config import TrainConfig
from transfer.distributed import cluster

if TYPE_CHECKING:
    from transfer.images.datasets import ImageData


def check_folds(config: TrainConfig) -> None:
    """Raise for options that cannot be combined with a cross-validation."""
    several = cluster.requests_several_workers(config.strategy)
    others = {"--calibrate": config.calibrate, "--find-learning-rate": config.find_learning_rate}
    for what, given in (others | {"several workers": several}).items():
        if given and config.folds is not None:
            raise InputError(
                f"Expected --folds without {what}. Received both. Leave one out, or use cross-validation first and "
                "a run without --folds afterwards."
            )


def check_task(config: TrainConfig, data: ImageData) -> None:
    """Raise for options that do not suit the labels of the images."""
    several = {
        "--calibrate": config.calibrate,
        "--folds": config.folds is not None,
        "--average": config.average,
    }
    several["--model with several networks"] = len(config.models) > 1 or config.model == "auto"
    options = {MULTI: several, REGRESSION: {**several, "--class-weights": config.class_weights}}
    for what, given in options.get(data.task, {}).items():
        if given:
            raise InputError(
                f"Expected no {what} with the task {data.task}. Received both. Leave {what} out, or use --task single "
                "for images with one class each."
            )
    if config.loss != TrainConfig.loss and data.task != REGRESSION:
        raise InputError(
            f"Expected --loss {config.loss} only with the task regression. Received the task {data.task}. Leave it out."
        )
