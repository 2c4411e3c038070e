"""`python -m transfer.train`: images in, a trained classifier, its figures and its plots out."""

from __future__ import annotations

import contextlib
import logging
import math
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfer.cases.policies import POLICIES, Case
from transfer.common.errors import InputError
from transfer.config import TrainConfig, parse_arguments, seconds_of
from transfer.distributed import cluster, process_group
from transfer.results import run_folders

log = logging.getLogger("transfer")

FROZEN_ONLY = ("cut", "unfreeze_from", "solver", "dropout")
"""Options that ask for a head on a frozen network, whatever else might be better."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    log.handlers[:] = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they name no file; what matters is in the report
    try:
        with _terminated():
            folder = run(parse_arguments(arguments))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as stopped:  # `Interrupted` is one
        sys.stderr.write(f"{str(stopped) or 'Stopped.'} The same command goes on from there.\n")
        return 128 + getattr(stopped, "signal", signal.SIGINT)
    except Exception as error:
        gone = process_group.describe_lost_workers(error)
        if gone is None:
            raise
        sys.stderr.write(f"{gone} This one starts again, waits for it, and goes on from the last state.\n")
        return process_group.restart_process()
    log.info("Everything is in %s", folder)
    return 0


@contextlib.contextmanager
def _terminated() -> Iterator[None]:
    """Let the system's wish to end the process be like Ctrl-C, so that what is half-written is removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        error = KeyboardInterrupt()
        error.signal = number  # type: ignore[attr-defined]
        raise error

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(config: TrainConfig) -> Path:
    """Load data, advise, build, fit, evaluate, report."""
    start = time.perf_counter()
    if config.case != "auto":
        Case.parse(config.case)  # before anything slow
    from transfer.distributed import strategies

    several = cluster.requests_several_workers(config.strategy)
    place = None if several else _place(config)
    strategies.start_quietly(repeatable=True)
    devices = strategies.get_strategy(config.strategy)  # several workers must meet before any work
    import keras

    from transfer.evaluation.evaluate import calibrate
    from transfer.images import datasets
    from transfer.networks.backbones import load_backbone
    from transfer.results import plots, run_writer

    if several:
        _meet(config)
        place = process_group.current_group().broadcast(lambda: _place(config))
    keras.utils.set_random_seed(config.seed)  # for dropout, whose layers draw their seeds when they are made
    going_on = Path(place) if place else None
    data = datasets.load_data(config.data, **config.load_options())
    base = load_backbone(config.model, weights=config.weights, image_size=config.image_size)
    log.info("%s: %s", data.name, _sizes(data))
    _check(config, base, data)  # before the look
    decision, sample, advice = _decide(config, data, base, going_on)
    asked, case = config.asked, Case.parse(decision["case"])
    config = replace(config, **decision["options"])
    model = _build(config, case, base, data, devices)
    if config.find_learning_rate:
        return _find_learning_rate(config, model, data)
    _hand_on(sample, model, config)
    name = f"{data.name}-{case}"
    with _folder(config.output, name, options=asked, resume_from=going_on) as folder:
        run_folders.save_decision(folder, decision)
        if advice is not None:
            run_writer.write_advice(folder, advice, plots.advice_figures(advice))
        done = _fit(config, model, data, folder)
        temperature = calibrate(model, data, **_test_options(config)) if config.calibrate else None
        found = _evaluate(config, model, data) if len(data.test) else None
        if process_group.current_group().is_chief:
            written = replace(config, case=str(case), output=None, resume=False)
            _write(folder, written, model, data, done, found)
            metrics = _metrics(model, config, data, done, found, decision["advised"], start)
            run_writer.write_metrics(folder, {**metrics, "temperature": temperature})
            run_writer.write_pages(folder, thumbnail=data.thumbnail)
    if found is not None:
        log.info("Test accuracy %.1f%% on %d images.", 100 * found.accuracy, len(found.labels))
    process_group.current_group().leave_together()
    return run_folders.final_folder(folder)


def _hand_on(sample: Any, model: Any, config: TrainConfig) -> None:
    """Let training use the features that the advice computed."""
    from transfer.adviser import sample_features

    if sample is not None:
        sample_features.keep_for_training(sample, model, engine=config.engine)


def _write(folder: Path, config: TrainConfig, model: Any, data: Any, done: Any, found: Any) -> None:
    """Write all but the figures and the pages, which come last."""
    from transfer.cases.decisions import decision_of
    from transfer.results import run_figures, run_writer

    title = _title(decision_of(model), config.unfreeze_from)
    run_writer.write_run(
        folder,
        model=model,
        config=config,
        data=data,
        training=done,
        evaluation=found,
        figures=run_figures.draw_figures(model, data, found, training=done, title=title),
        label_issues=run_figures.label_issues_of(found) if found else (),
    )


def _check(config: TrainConfig, base: Any, data: Any) -> None:
    """Refuse now what would be refused after the training."""
    from transfer.cases import cuts
    from transfer.evaluation import evaluate
    from transfer.networks import graphs

    if config.calibrate:
        evaluate.check_calibration(data)
    if config.cut is not None:
        cuts.cuts_of(base, config.cut)
    if config.unfreeze_from is not None:
        graphs.find_first(base, config.unfreeze_from)


def _place(config: TrainConfig) -> str | None:
    """Say where an interrupted run with these options is; refuse an output that is in use."""
    run_folders.check_unused(config.output)
    found = run_folders.find_interrupted(config.output, config.asked, required=config.resume)
    return str(found) if found is not None else None


def _meet(config: TrainConfig) -> None:
    """Refuse to work with others that were started in another way; leave talking to the chief."""
    group = process_group.current_group()
    group.require_equal({**process_group.versions(), **config.asked})
    if config.find_learning_rate:
        raise InputError("Expected one device with --find-learning-rate. Received: several workers.")
    log.info("%d workers: %s", group.count, ", ".join(group.addresses))
    if not group.is_chief:
        log.setLevel(logging.ERROR)


@contextlib.contextmanager
def _folder(output: str | None, name: str, **options: Any) -> Iterator[Path]:
    """The run's folder; for a worker that is not the chief, one that nobody keeps."""
    if process_group.current_group().is_chief:
        with run_folders.run_folder(output, name, **options) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="transfer-worker-") as folder:
            yield Path(folder)


def _find_learning_rate(config: TrainConfig, model: Any, data: Any) -> Path:
    """Draw how the loss goes while the learning rate rises, and say which to begin with."""
    from transfer.results import run_writer
    from transfer.training import learning_rate_finder

    options: dict[str, Any] = {"augment": config.augment, "flip": config.flips, "recipe": config.recipe}
    options |= {
        "batch_size": config.batch_size,
        "label_smoothing": config.label_smoothing,
        "seed": config.seed,
    }
    curve = learning_rate_finder.find_learning_rate(model, data, **options)
    with run_folders.run_folder(config.output, f"{data.name}-learning-rate") as folder:
        curve.plot().savefig(folder / "learning_rate.png", dpi=110)
        rows = {"rates": curve.rates, "losses": curve.losses, "suggestion": curve.suggestion}
        run_writer.write_metrics(folder, rows)
    log.info(
        "Begin with a learning rate of %.1e; the case's own is %.1e.",
        curve.suggestion,
        model.optimizer.learning_rate,
    )
    return run_folders.final_folder(folder)


def _decide(
    config: TrainConfig, data: Any, base: Any, going_on: Path | None
) -> tuple[dict[str, Any], Any, Any]:
    """Take the case that was asked for, or that of an interrupted run; or measure which is best, say so,
    and give what was looked at too, and the advice."""
    group = process_group.current_group()
    decided = group.broadcast(lambda: run_folders.read_decision(going_on) if going_on is not None else None)
    if decided is not None:
        return decided, None, None
    if config.case != "auto":
        return {"case": str(Case.parse(config.case)), "options": {}, "advised": {}}, None, None
    if config.unfreeze_from is not None and config.cut is None:  # no cut may take away what is to train
        return {"case": str(Case.SMALL_SIMILAR), "options": {}, "advised": {}}, None, None
    from transfer.adviser import sample_features

    options: dict[str, Any] = {
        "preprocessing": config.preprocessing,
        "engine": config.engine,
        "seed": config.seed,
    }
    sample = sample_features.extract_sample(data, base, **options)
    given: list[Any] = []  # the chief alone advises; of several workers, the others are told what came of it

    def decision() -> dict[str, Any]:
        given.append(_advised(config, data, base, sample=sample, **options))
        return _chosen(config, given[0])

    return group.broadcast(decision), sample, given[0] if given else None


def _advised(config: TrainConfig, data: Any, base: Any, **options: Any) -> Any:
    """Measure which case is best, and say so."""
    from transfer.adviser import advise

    advice = advise.advise(
        data,
        base,
        time_budget=None if config.time_budget == "none" else seconds_of(config.time_budget),
        frozen=any(getattr(config, name) != getattr(TrainConfig, name) for name in FROZEN_ONLY),
        **options,
    )
    log.info("Case %d, %s: %s", POLICIES[advice.case].number, advice.case, advice.reason)
    for warning in advice.warnings:
        log.warning("%s", warning.text)
    return advice


def _chosen(config: TrainConfig, advice: Any) -> dict[str, Any]:
    """Give the advised case with the options that it sets."""
    advised = {
        "similarity": advice.similarity.score if advice.similarity else None,
        "expected_accuracy": advice.choice.expected_accuracy,
        "expected_interval": list(advice.choice.interval),
    }
    return {"case": str(advice.case), "options": advised_options(config, advice), "advised": advised}


def advised_options(config: TrainConfig, advice: Any) -> dict[str, Any]:
    """Give the options that advice sets, where they were not set by hand."""
    from transfer.adviser.estimates import RANDOM

    if advice.cut == RANDOM:
        return {"init": "random"} if config.init == TrainConfig.init else {}
    return {} if config.cut or advice.cut is None else {"cut": advice.cut}


def _build(config: TrainConfig, case: Case, base: Any, data: Any, devices: Any) -> Any:
    """Hand the options that concern the model to the builders."""
    from transfer.cases import builders

    unasked = config.init == TrainConfig.init and case is not Case.LARGE_DIFFERENT

    return builders.build(
        case,
        base,
        data.num_classes,
        cut=config.cut,
        unfreeze_from=config.unfreeze_from,
        init="pretrained" if unasked else config.init,
        image_size=config.image_size,
        preprocessing=config.preprocessing,
        strategy=devices,
        optimizer=config.optimizer,
        learning_rate=config.learning_rate,
        pin_batchnorm=False if config.batchnorm == "live" else None,
        precision=config.precision,
        steps_per_execution=config.steps_per_execution,
        seed=config.seed,
    )


def _fit(config: TrainConfig, model: Any, data: Any, folder: Path) -> Any:
    """Hand the options that concern training to `fit`."""
    from transfer.training import fit

    return fit.fit(
        model,
        data,
        epochs=config.epochs,
        batch_size=config.batch_size,
        augment=config.augment,
        flip=config.flips,
        class_weights=config.class_weights,
        solver=config.solver,
        dropout=config.dropout,
        label_smoothing=config.label_smoothing,
        views=config.views,
        engine=config.engine,
        seed=config.seed,
        recipe=config.recipe,
        checkpoints=folder / run_folders.CHECKPOINTS,
        checkpoint_every=seconds_of(config.checkpoint_every) or 0.0,
    )


def _evaluate(config: TrainConfig, model: Any, data: Any) -> Any:
    """Hand the options that concern the test to `evaluate`."""
    from transfer.evaluation import evaluate

    return evaluate.evaluate(model, data, **_test_options(config))


def _test_options(config: TrainConfig) -> dict[str, Any]:
    """How images are looked at that are not trained on: what is calibrated is what is tested."""
    return {
        "views": config.views or 1,
        "augment": config.augment,
        "flip": config.flips,
        "engine": config.engine,
        "seed": config.seed,
    }


def _title(plan: Any, unfreeze_from: str | None) -> str:
    policy = POLICIES[plan.case]
    seen = f", which sees {len(plan.cuts)} layers" if len(plan.cuts) > 1 else ""
    more = f"; then {unfreeze_from} and what is behind it too" if unfreeze_from else ""
    return f"Case {policy.number}, {plan.case}: {policy.idea}{seen}{more}"


def _sizes(data: Any) -> str:
    skipped = f", {len(data.skipped)} skipped" if data.skipped else ""
    return (
        f"{data.num_classes} classes; {len(data.train)} images to train on, {len(data.val)} for validation, "
        f"{len(data.test)} for the test{skipped}"
    )


def _metrics(
    model: Any,
    config: TrainConfig,
    data: Any,
    done: Any,
    found: Any,
    advised: dict[str, Any],
    start: float,
) -> dict[str, Any]:
    from transfer.cases.decisions import decision_of

    decision = decision_of(model)
    return {
        "case": str(decision.case),
        "cut": decision.cut,
        "cuts": list(decision.cuts),
        "init": done.init,
        "engine": done.engine,
        "num_computed": done.computed,
        "views": done.views,
        "regularization": done.regularization,
        "model": config.model,
        "image_size": list(model.input_shape[1:3]),
        "num_classes": data.num_classes,
        "num_train": len(data.train),
        "num_val": len(data.val),
        "num_test": len(data.test),
        "num_skipped": len(data.skipped),
        "test_accuracy": found.accuracy if found else None,
        "test_loss": found.loss if found else None,
        **dict.fromkeys(("similarity", "expected_accuracy", "expected_interval")),
        **advised,
        "seconds_features": round(done.seconds_features, 3),
        "seconds_training": round(done.seconds_training, 3),
        "seconds_total": round(time.perf_counter() - start, 3),
        "peak_memory_mb": round(_peak_bytes() / 2**20),
        "trainable_parameters": sum(math.prod(w.shape) for w in model.trainable_weights),
        "versions": process_group.versions(),
    }


def _peak_bytes() -> int:
    """The most memory that this process has had; macOS counts bytes, Linux kilobytes."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


if __name__ == "__main__":
    sys.exit(main())
