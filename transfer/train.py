"""`python -m transfer.train`: train a classifier, and write its model, metrics and report."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.cases.policies import POLICIES, Case
from transfer.common.allocator import kept_memory
from transfer.common.errors import InputError
from transfer.config import TrainConfig, parse_arguments, seconds_of
from transfer.distributed import cluster, process_group
from transfer.results import run_folders

if TYPE_CHECKING:  # heavy libraries load when a run starts, so that --help answers at once
    import keras

    from transfer.adviser.advice import Advice
    from transfer.adviser.choice import Choice
    from transfer.adviser.sample_features import SampleFeatures
    from transfer.cases.decisions import CaseDecision
    from transfer.evaluation.evaluate import Evaluation
    from transfer.images.datasets import ImageData
    from transfer.training.phases import TrainingLog

log = logging.getLogger("transfer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    log.handlers[:] = [logging.StreamHandler(sys.stdout)]
    log.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they lack the file name; the data report has it
    try:
        with _sigterm_as_interrupt(), kept_memory():
            folder = run(parse_arguments(arguments))
    except InputError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt as stopped:  # or its subclass `Interrupted`
        return _report_interrupt(stopped)
    except Exception as error:
        interrupt = _interrupt_behind(error)
        if interrupt is not None:
            return _report_interrupt(interrupt)
        lost = process_group.describe_lost_workers(error)
        if lost is None:
            raise
        sys.stderr.write(
            f"{lost} This worker restarts, waits for all workers, and resumes from the last checkpoint.\n"
        )
        return process_group.restart_process()
    log.info("Results: %s", folder)
    return 0


def _interrupt_behind(error: BaseException) -> KeyboardInterrupt | None:
    """Return the interrupt that led to an error: TensorFlow raises its own errors if Ctrl-C stops its tracing."""
    context = error.__context__
    while context is not None and not isinstance(context, KeyboardInterrupt):
        context = context.__context__
    return context


def _report_interrupt(stopped: KeyboardInterrupt) -> int:
    sys.stderr.write(
        f"{str(stopped) or 'Stopped.'} The same command continues from the last checkpoint, if any.\n"
    )
    return 128 + int(getattr(stopped, "signal", signal.SIGINT))


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, so that half-written files are removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: object) -> None:
        error = KeyboardInterrupt()
        error.signal = number  # type: ignore[attr-defined]
        raise error

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def run(config: TrainConfig) -> Path:
    """Load data, advise, build, fit, evaluate, report; return the folder of the results."""
    start = time.perf_counter()
    if config.case != "auto":
        config = replace(config, case=str(Case.parse(config.case)))  # raises before any slow work
    devices, resume_from = _start(config)
    from transfer.cases.builders import build
    from transfer.evaluation.evaluate import calibrate, evaluate
    from transfer.images.datasets import load_data
    from transfer.networks.backbones import load_backbone
    from transfer.training.fit import fit

    data = load_data(config.data, **config.load_options())
    base = load_backbone(config.model, weights=config.weights, image_size=config.image_size)
    log.info("%s: %s", data.name, _describe_splits(data))
    _check(config, base, data)
    choice, advice, sample = _choose(config, data, base, resume_from)
    chosen = replace(config, case=choice.case, **choice.options)
    model = build(base=base, num_classes=data.num_classes, strategy=devices, **chosen.build_options())
    if config.find_learning_rate:
        return _find_learning_rate(chosen, model, data)
    name = f"{data.name}-{choice.case}"
    with _folder(config.output, name, options=config.result_options, resume_from=resume_from) as folder:
        _write_choice(folder, choice, advice)
        training = fit(
            model,
            data,
            **chosen.fit_options(),
            known_features=_known_features(sample, model),
            checkpoints=folder / run_folders.CHECKPOINTS,
            checkpoint_every=seconds_of(config.checkpoint_every) or 0.0,
        )
        temperature = calibrate(model, data, **chosen.evaluate_options()) if config.calibrate else None
        evaluation = evaluate(model, data, **chosen.evaluate_options()) if len(data.test) else None
        if process_group.current_group().is_chief:
            metrics = {"model": config.model, **choice.advised, "temperature": temperature}
            _write(folder, chosen, model, data, training, evaluation, metrics, start)
    if evaluation is not None:
        log.info("Test accuracy: %.1f%% on %d held-out images.", 100 * evaluation.accuracy, len(data.test))
    process_group.current_group().leave_together()
    return run_folders.final_folder(folder)


def _start(config: TrainConfig) -> tuple[Any, Path | None]:
    """Start the devices, connect the workers, and find an interrupted run to resume."""
    several = cluster.requests_several_workers(config.strategy)
    interrupted = None if several else _find_interrupted(config)
    from transfer.distributed import strategies

    strategies.start_quietly(repeatable=True)
    devices = strategies.get_strategy(config.strategy)  # several workers must connect before any other work
    import keras

    if several:
        _meet(config)
        interrupted = process_group.current_group().broadcast(lambda: _find_interrupted(config))
    keras.utils.set_random_seed(config.seed)  # dropout layers draw their seeds when they are made
    return devices, Path(interrupted) if interrupted else None


def _find_interrupted(config: TrainConfig) -> str | None:
    """Return the folder of an interrupted run with the same options; raise if the output is in use."""
    run_folders.check_unused(config.output)
    found = run_folders.find_interrupted(config.output, config.result_options, required=config.resume)
    return str(found) if found is not None else None


def _meet(config: TrainConfig) -> None:
    """Raise if workers were started with different options; let the chief alone write to the log."""
    group = process_group.current_group()
    group.require_equal({**process_group.versions(), **config.result_options})
    if config.find_learning_rate:
        raise InputError("Expected one worker with --find-learning-rate. Received: several workers.")
    log.info("%d workers: %s", group.count, ", ".join(group.addresses))
    if not group.is_chief:
        log.setLevel(logging.ERROR)


def _check(config: TrainConfig, base: keras.Model, data: ImageData) -> None:
    """Raise at the start for options that would fail only after the training."""
    from transfer.cases import cuts
    from transfer.evaluation import evaluate
    from transfer.networks.graphs import analyze

    if config.calibrate:
        evaluate.check_calibration(data)
    network = analyze(base)
    if config.cut is not None:
        cuts.cuts_of(network, config.cut)
    if config.unfreeze_from is not None:
        network.block_start(config.unfreeze_from)


def _choose(
    config: TrainConfig, data: ImageData, base: keras.Model, resume_from: Path | None
) -> tuple[Choice, Advice | None, SampleFeatures | None]:
    """Choose the case, or read the choice of the run that is resumed."""
    from transfer.adviser.choice import Choice, choose_case

    group = process_group.current_group()
    earlier = group.broadcast(lambda: run_folders.read_decision(resume_from) if resume_from else None)
    return (Choice(**earlier), None, None) if earlier else choose_case(config, data, base)


def _known_features(sample: SampleFeatures | None, model: keras.Model) -> Any:
    """Return the features that the advice computed, if the head of the model needs the same."""
    from transfer.adviser.sample_features import known_features

    return known_features(sample, model) if sample is not None else None


@contextlib.contextmanager
def _folder(output: str | None, name: str, **options: Any) -> Iterator[Path]:
    """Yield the folder of the run; workers other than the chief get a temporary folder."""
    if process_group.current_group().is_chief:
        with run_folders.run_folder(output, name, **options) as folder:
            yield folder
    else:
        with tempfile.TemporaryDirectory(prefix="transfer-worker-") as temporary:
            yield Path(temporary)


def _write_choice(folder: Path, choice: Choice, advice: Advice | None) -> None:
    """Write which case was chosen, and why."""
    from transfer.results import plots, run_writer

    run_folders.save_decision(folder, choice.decision)
    if advice is not None:
        run_writer.write_advice(folder, advice, plots.advice_figures(advice))


def _write(
    folder: Path,
    config: TrainConfig,
    model: keras.Model,
    data: ImageData,
    training: TrainingLog,
    evaluation: Evaluation | None,
    metrics: dict[str, Any],
    start: float,
) -> None:
    """Write all files of the run; metrics and pages come last, so that the total time is known."""
    from transfer.cases.decisions import decision_of
    from transfer.results import run_figures, run_writer
    from transfer.results.run_metrics import collect_metrics

    title = _title(decision_of(model), config.unfreeze_from)
    run_writer.write_run(
        folder,
        model=model,
        config=replace(config, output=None, resume=False),
        data=data,
        training=training,
        evaluation=evaluation,
        figures=run_figures.draw_figures(model, data, evaluation, training=training, title=title),
        label_issues=run_figures.label_issues_of(evaluation) if evaluation else (),
    )
    collected = collect_metrics(model, data, training, evaluation)
    total = round(time.perf_counter() - start, 3)
    run_writer.write_metrics(folder, {**collected, **metrics, "seconds_total": total})
    run_writer.write_pages(folder, thumbnail=data.thumbnail)


def _find_learning_rate(config: TrainConfig, model: keras.Model, data: ImageData) -> Path:
    """Run a learning-rate range test, write its curve, and log the suggested rate."""
    from transfer.results import run_writer
    from transfer.training import learning_rate_finder

    names = ("augment", "flip", "recipe", "batch_size", "label_smoothing", "seed")
    options = {name: value for name, value in config.fit_options().items() if name in names}
    curve = learning_rate_finder.find_learning_rate(model, data, **options)
    with run_folders.run_folder(config.output, f"{data.name}-learning-rate") as folder:
        curve.plot().savefig(folder / "learning_rate.png", dpi=110)
        rows = {"rates": curve.rates, "losses": curve.losses, "suggestion": curve.suggestion}
        run_writer.write_metrics(folder, rows)
    default = float(model.optimizer.learning_rate)
    log.info("Suggested learning rate: %.1e. The default of this case: %.1e.", curve.suggestion, default)
    return run_folders.final_folder(folder)


def _title(decision: CaseDecision, unfreeze_from: str | None) -> str:
    policy, several = POLICIES[decision.case], len(decision.cuts)
    idea = f"freeze the network, train a new head on {several} layers" if several > 1 else policy.idea
    more = f"; train {unfreeze_from} and the layers after it" if unfreeze_from else ""
    return f"Case {policy.number}, {decision.case}: {idea}{more}"


def _describe_splits(data: ImageData) -> str:
    skipped = f", {len(data.skipped)} skipped" if data.skipped else ""
    return (
        f"{data.num_classes} classes; {len(data.train)} training, {len(data.val)} validation and {len(data.test)} "
        f"test images{skipped}"
    )


if __name__ == "__main__":
    sys.exit(main())
