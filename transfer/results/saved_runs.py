"""Save a model that `fit` trained as a run folder, with the same files as those of `python -m transfer.train`."""

from __future__ import annotations

import dataclasses
import logging
import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from transfer.adviser.advice import Advice
from transfer.adviser.choice import advised_metrics
from transfer.adviser.label_issues import label_issues_of
from transfer.cases.decisions import CaseDecision, decision_of, find_decision
from transfer.cases.policies import OPTIMIZERS, POLICIES, PRECISIONS, SCRATCH_LEARNING_RATE, Case
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, optional
from transfer.common.files import disk_advice, disk_reason
from transfer.config import TrainConfig
from transfer.distributed.process_group import current_group
from transfer.evaluation.evaluate import decision_options, evaluate
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation, check_any_evaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.reference import Reference, measured, reference_of, with_interval_width
from transfer.frozen.extraction import input_size
from transfer.images.array_source import Dataset
from transfer.images.data_config import IN_MEMORY, DataConfig
from transfer.images.datasets import ImageData
from transfer.images.splitting import Split
from transfer.networks.arguments import check_classifier
from transfer.networks.backbones import constructor_name
from transfer.results import run_folders, run_metrics, run_writer
from transfer.results.finished_runs import FinishedRun, load_run
from transfer.results.run_writer import RunResults
from transfer.training.fit_arguments import training_data
from transfer.training.phases import TrainingLog, joined
from transfer.training.trained import count_seen, trained_model

if TYPE_CHECKING:
    from transfer.common.figures import Draw

logger = logging.getLogger(__name__)

_COMMENT = "Trained in Python. The weights, optimizer, loss and head may differ from these options."
Limits = tuple[Reference | None, Mapping[str, Any]]
"""A reference, and the measurements of its thresholds on the test images."""

_CALL = "save_run(model, data, log, folder)"
_SAME_DATA = (
    "After fit(model, data), pass the same data. After fit(model, images, labels), pass (images, labels). With "
    "validation_data, write data = transfer.load_data({'train': (images, labels), 'val': validation_data}, test=0)."
)


@explain_arguments()
def save_run(
    model: keras.Model,
    data: Any,
    log: TrainingLog | Sequence[TrainingLog],
    folder: str | Path,
    *,
    evaluation: AnyEvaluation | None = None,
    advice: Advice | None = None,
    overwrite: bool = False,
) -> FinishedRun:
    """Save a model that `fit` trained as a run: its class names, options, split, metrics, figures and report.

    The folder has the same files as a run of `python -m transfer.train`, and `load_run`, `predict`, `evaluate`,
    `export` and `report` take it. It appears under its name when it is complete. The options in `config.yaml` are those
    of the builder, of `load_data` and of the last `fit`. If the images were arrays, the run does not contain them: pass
    them again to `run.data`.

    Args:
        model: a model from a builder that `fit` trained in this process.
        data: what `fit` got: images from `load_data`, or `(images, labels)` after `fit(model, images, labels)`. The
            latter have no test images, so that the run has no test accuracy.
        log: the log that `fit` returned. After several calls of `fit`, a list of their logs, the first one first.
        folder: the folder to write. Its parents are created.
        evaluation: evaluation of the test images. None computes it, if there are test images.
        advice: the advice of `advise`, for the report.
        overwrite: replace an earlier run in this folder, with its exported files.

    Returns:
        The run, as `load_run` loads it.

    Raises:
        InputError: `fit` did not train the model on these data, the evaluation is not that of the test images, the
            folder is in use or is not writable, or the model has a part that Keras cannot save.

    Example:
        >>> import tempfile
        >>> import transfer
        >>> data = transfer.load_data(transfer.make_shapes(120))
        >>> model = transfer.small_similar(transfer.DemoCNN(weights=None), data.num_classes)
        >>> log = transfer.fit(model, data, verbose=0)
        >>> run = transfer.save_run(model, data, log, tempfile.mkdtemp())
        >>> len(run.predict(data.test)) == len(data.test)
        True
    """
    logs = [log] if isinstance(log, TrainingLog) else log
    data = _checked_arguments(model, data, logs, evaluation)
    whole = joined(logs)
    final = _checked_folder(folder, data, overwrite=overwrite)
    config = config_of(model, data, whole)
    options = config.evaluate_options()
    decided = _decided(evaluation) if evaluation else decision_options(model, data, **options)
    if evaluation is None and len(data.test):
        evaluation = evaluate(model, data, **options, **decided)
    held_out = None if whole.val_probabilities is None else (whole.val_probabilities, data.val.labels)
    limits = limits_of(model, data, evaluation, engine=config.engine, held_out=held_out)
    metrics = {"saved_by": "save_run", **describe_model(model)}
    results = results_of(
        config, model, data, whole, evaluation,
        metrics={**metrics, **(advised_metrics(advice) if advice else {})},
        seconds=whole.seconds_features + whole.seconds_training, comment=_COMMENT, limits=limits, **decided,
    )  # fmt: skip
    form = (data.train.pixel_range, limits[0], data.task, decided.get("thresholds"))
    run = FinishedRun(final, model, data.class_names, config, dict(results.metrics), *form)
    if not current_group().is_chief:
        return run
    try:
        with run_folders.run_folder(str(final), final.name, overwrite=overwrite) as partial:
            if advice is not None:
                run_writer.write_advice(partial, advice)
            run_writer.write_run(partial, results)
        write_report(final, results)
    except OSError as error:
        advised = disk_advice(error, "Choose a writable folder")
        raise InputError(f"Cannot write the run to {final}: {disk_reason(error)}. {advised}.") from error
    try:
        return load_run(final)
    except InputError as error:  # such as a head with custom layers
        logger.warning("Saved the run in %s. Another program cannot load it as it is: %s", final, error)
        return run


def results_of(
    config: TrainConfig,
    model: keras.Model,
    data: ImageData,
    training: TrainingLog,
    evaluation: AnyEvaluation | None,
    *,
    metrics: Mapping[str, Any],
    seconds: float,
    comment: str = "",
    limits: Limits = (None, {}),
    rule: str | None = None,
    thresholds: Sequence[float] | np.ndarray | None = None,
) -> RunResults:
    """Return the contents of a run folder; `metrics` adds to those that follow from the other arguments."""
    decided: dict[str, Any] = {"decision_rule": rule} if rule is not None else {}
    if thresholds is not None:
        decided["thresholds"] = [round(float(threshold), 6) for threshold in thresholds]
    if evaluation is not None:
        evaluation = with_interval_width(evaluation, limits[0])
    collected = run_metrics.collect_metrics(model, data, training, evaluation)
    return RunResults(
        model=model,
        config=config,
        data=data,
        training=training,
        evaluation=evaluation,
        metrics={**collected, "model": config.model, "temperature": None, **decided, **metrics},
        label_issues=label_issues_of(evaluation),
        seconds=seconds,
        comment=comment,
        reference=limits[0],
        limits=limits[1],
    )


def _decided(evaluation: AnyEvaluation) -> dict[str, Any]:
    """Return the rule or the thresholds of an evaluation, as arguments of `results_of`."""
    if isinstance(evaluation, LabelEvaluation):
        return {"thresholds": evaluation.limits}
    return {"rule": evaluation.rule} if isinstance(evaluation, Evaluation) else {}


def limits_of(
    model: keras.Model, data: ImageData, evaluation: AnyEvaluation | None, *, engine: str, **options: Any
) -> Limits:
    """Return the reference of a model, and the measurements of its thresholds; all workers must call it."""
    with optional("the reference of --abstain and --coverage"):
        reference = reference_of(model, data, engine=engine, **options)
        return reference, measured(reference, model, data, evaluation, engine=engine)
    return None, {}


def write_report(folder: Path, results: RunResults, advice: Mapping[str, Draw] | None = None) -> None:
    """Write the figures of a complete run and its advice, then its pages; Ctrl-C skips the remaining ones."""
    try:
        from transfer.results import run_figures  # imports matplotlib, so only when the run is complete

        drawings = {**(advice or {}), **run_figures.run_drawings(results)}
        run_writer.write_report(folder, drawings, thumbnail=results.data.thumbnail)
    except KeyboardInterrupt:
        logger.warning(
            "Stopped before all figures and pages were written. The run is complete. To write its pages: "
            "python -m transfer.report %s",
            shlex.quote(str(folder)),
        )


def _checked_arguments(model: Any, data: Any, logs: Any, evaluation: AnyEvaluation | None) -> ImageData:
    """Return the data as `fit` split them; raise unless a model, its data, logs and evaluation belong together."""
    check_classifier(model, _CALL)
    if (
        not isinstance(logs, list | tuple)
        or not logs
        or not all(isinstance(one, TrainingLog) for one in logs)
    ):
        raise InputError(
            f"Expected the log that fit returned in {_CALL}, or a list of logs. Received: {type(logs).__name__}. Keep "
            "it: log = transfer.fit(model, data)."
        )
    if find_decision(model) is None:
        raise InputError(
            f"Expected a model that a builder made in this process in {_CALL}. Received: {model.name!r}, of a loaded "
            "run or of another program. Save it with model.save('mine.keras'), and load it with "
            "transfer.load_run('mine.keras', class_names=[...])."
        )
    digests = trained_model(model).read_digests()
    loaded = _as_in_fit(model, data, logs[-1])
    count_seen(model, loaded)  # raises for other classes
    if digests != {*loaded.train.digests, *loaded.val.digests}:
        raise InputError(
            f"Expected the data that fit got in {_CALL}. Received other training images. {_SAME_DATA}"
        )
    if evaluation is not None:
        _check_test_images(evaluation, loaded)
    return loaded


def _as_in_fit(model: keras.Model, data: Any, log: TrainingLog) -> ImageData:
    """Return images in memory in the splits that `fit` drew from them."""
    if isinstance(data, ImageData):
        return data
    if not isinstance(data, Dataset | Split | tuple | list | dict):
        raise InputError(
            f"Expected the data that fit got in {_CALL}. Received: {type(data).__name__}. {_SAME_DATA}"
        )
    val, seed = log.options.get("val"), log.options.get("seed", DataConfig.seed)
    return training_data(model, data, validation_split=val, seed=seed)


def _check_test_images(evaluation: AnyEvaluation, data: ImageData) -> None:
    """Raise unless an evaluation is that of the test images."""
    check_any_evaluation(evaluation, "save_run(..., evaluation=evaluation)")
    if evaluation.class_names != data.class_names or evaluation.names != tuple(data.test.names):
        raise InputError(
            f"Expected the evaluation of the {len(data.test):,} test images. Received one of "
            f"{len(evaluation.labels):,} other images. Leave it out: save_run evaluates the model."
        )


def _checked_folder(folder: str | Path, data: ImageData, *, overwrite: bool) -> Path:
    """Return the folder to write; raise if it is in use."""
    if not isinstance(folder, str | Path) or not str(folder):
        raise InputError(f"Expected a folder in {_CALL}. Received: {folder!r}.")
    final = Path(folder).expanduser()
    if data.options is not None:
        run_folders.check_outside(str(final), data.options.data)
    run_folders.check_free(final, overwrite=overwrite)
    return final


def config_of(model: keras.Model, data: ImageData, training: TrainingLog) -> TrainConfig:
    """Return the options of a training in Python, as far as the command has them."""
    decision = decision_of(model)
    height, width = input_size(model, data)
    options = {
        **dataclasses.asdict(data.options or DataConfig(IN_MEMORY)),
        **training.options,
        "resize": data.train.resize,
        "model": constructor_name(decision.base),
        "image_size": height if height == width else None,
        "case": str(decision.case),
        "cut": ",".join(decision.cuts),
        "steps_per_execution": model.steps_per_execution,
    }
    if decision.trained and POLICIES[decision.case].frozen and not decision.averaged:
        options["unfreeze_from"] = next(layer.name for layer in model.layers if layer.trainable_weights)
    if decision.case is Case.LARGE_DIFFERENT:
        options["init"] = decision.init
    if not decision.pin_batchnorm and decision.init != "random":
        options["batchnorm"] = "live"
    if decision.optimizer in OPTIMIZERS:
        options["optimizer"] = decision.optimizer
    policies = {layer.dtype_policy.name for layer in model.layers}
    options["precision"] = next((name for name in PRECISIONS[1:] if name in policies), PRECISIONS[0])
    if math.isclose(options.get("learning_rate") or 0.0, _default_rate(decision), rel_tol=1e-5):
        options["learning_rate"] = None
    known = {field.name for field in dataclasses.fields(TrainConfig)}
    return TrainConfig(**{name: value for name, value in options.items() if name in known})


def _default_rate(decision: CaseDecision) -> float:
    """Return the learning rate that a builder chooses."""
    case = POLICIES[decision.case].learning_rate if decision.init != "random" else SCRATCH_LEARNING_RATE
    return OPTIMIZERS.get(decision.optimizer, {}).get("learning_rate", case)


def describe_model(model: keras.Model) -> dict[str, Any]:
    """Return the parts of a model that may be the user's own: the head, the optimizer and the loss."""
    loss = model.loss if isinstance(model.loss, str) else getattr(model.loss, "name", None)
    return {
        "optimizer": type(model.optimizer).__name__,
        "loss": loss or getattr(model.loss, "__name__", type(model.loss).__name__),
    }
