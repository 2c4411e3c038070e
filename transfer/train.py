"""`python -m transfer.train`: train a classifier, and write its model, metrics and report."""

from __future__ import annotations

import contextlib
import logging
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transfer.anytime.clock import Clock
from transfer.common import streams
from transfer.common.allocator import kept_memory
from transfer.common.commands import signals_as_interrupts
from transfer.common.errors import InputError, interrupt_behind
from transfer.common.tasks import MULTI, REGRESSION
from transfer.common.text import seconds_of
from transfer.config import TrainConfig
from transfer.distributed import cluster, process_group
from transfer.parsing import parse_arguments
from transfer.results import run_folders
from transfer.results.file_names import SPLIT, STEPS
from transfer.results.option_checks import check_folds, check_task

if TYPE_CHECKING:  # heavy libraries load when a run starts, so that --help answers at once
    import keras

    from transfer.adviser.advice import Advice
    from transfer.adviser.choice import Choice
    from transfer.adviser.sample_features import SampleFeatures
    from transfer.adviser.task_advice import TaskAdvice
    from transfer.cases.policies import Case
    from transfer.evaluation.kinds import AnyEvaluation
    from transfer.images.datasets import ImageData
    from transfer.results.run_writer import RunResults

log = logging.getLogger("transfer")

STARTED = time.perf_counter()
"""The start of a command that imports this module first."""


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    log.handlers[:] = [streams.LogHandler(sys.stdout)]
    log.setLevel(logging.INFO)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they lack the file name; the data report has it
    try:
        with streams.lasting_streams(), signals_as_interrupts(), kept_memory():
            started = STARTED if arguments is None else time.perf_counter()
            folder = run(parse_arguments(arguments), started)
    except InputError as error:
        streams.print_text(f"{error}\n", sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:  # or its subclass `Interrupted`
        return _report_interrupt(stopped)
    except Exception as error:
        interrupt = interrupt_behind(error)
        if interrupt is not None:
            return _report_interrupt(interrupt)
        lost = process_group.describe_lost_workers(error)
        if lost is None:
            raise
        streams.print_text(
            f"{lost} This worker restarts, waits for all workers, and resumes from the last checkpoint.\n",
            sys.stderr,
        )
        return process_group.restart_process()
    log.info("Results: %s", folder)
    return 0


def _report_interrupt(stopped: KeyboardInterrupt) -> int:
    streams.print_text(
        f"{str(stopped) or 'Stopped.'} The same command resumes from the last checkpoint, if any.\n",
        sys.stderr,
    )
    return 128 + int(getattr(stopped, "signal", signal.SIGINT))


def run(config: TrainConfig, started: float) -> Path:
    """Load data, advise, build, fit, evaluate, report; return the folder of the results."""
    clock = Clock(config.budget, started)
    check_folds(config)
    finished = run_folders.find_finished(config)
    if finished is not None and not (config.improves and _is_improvable(config, finished)):
        improvable = config.improves and (finished / STEPS).is_file()
        log.info(run_folders.IMPROVED if improvable else run_folders.COMPLETE)
        return finished
    devices, resume_from = _start(config, finished)
    from transfer.images.datasets import load_data
    from transfer.images.folder_source import find_source
    from transfer.networks.backbones import load_backbone

    if config.case != "auto" or config.folds is not None:
        _log_ignored(config)
    if not config.data.startswith("tfds:"):
        find_source(config.data)  # raises for a wrong path before the network is loaded
    networks = _networks(config)
    base = load_backbone(networks[0], **config.network_options())
    _check(config, base)  # before the images are checked, which may take long
    data = load_data(config.data, **config.load_options())
    if config.folds is None:
        log.info("%s: %s", data.name, _describe_splits(data))
    _hint_at_order(config, data)
    _check_data(config, data, resume_from)
    if config.folds is not None:
        from transfer.results.cross_validated_runs import cross_validated_run

        return cross_validated_run(config, data, base, devices, clock, resume_from)
    if config.improves and data.task in (MULTI, REGRESSION):
        from transfer.results.auto_task_runs import auto_task_run

        return auto_task_run(config, data, base, devices, clock, resume_from)
    if config.improves and resume_from is None:
        return _improve(config, data, base, devices, clock, finished, networks)
    return _train_once(config, data, base, devices, clock, resume_from)


def _train_once(
    config: TrainConfig,
    data: ImageData,
    base: keras.Model,
    devices: Any,
    clock: Clock,
    resume_from: Path | None,
) -> Path:
    """Train the model of one case, from the options or the advice, and write its run."""
    from transfer.cases.builders import build
    from transfer.evaluation.evaluate import calibrate, decision_options, evaluate
    from transfer.results import rescue, run_writer
    from transfer.results.saved_runs import limits_of, results_of, write_report
    from transfer.training.fit import fit

    choice, advice, sample = _choose(config, data, base, resume_from)
    chosen = replace(config, case=choice.case, **choice.options)
    if config.case == "auto":
        _log_ignored(replace(chosen, time_budget=TrainConfig.time_budget))
    used = chosen.without_ignored()
    form: dict[str, Any] = {"num_classes": data.num_classes, "task": data.task}
    model = build(base=base, **form, strategy=devices, **used.build_options())
    if config.find_learning_rate:
        return _find_learning_rate(chosen, model, data)
    name = f"{data.name}-{_method(model, choice)}"
    with _folder(config.output, name, options=config.result_options, resume_from=resume_from) as folder:
        _write_start(folder, data, model, choice, advice)
        training = fit(
            model,
            data,
            **used.fit_options(),
            known_features=_known_features(sample, model),
            checkpoints=folder / run_folders.CHECKPOINTS,
            checkpoint_every=seconds_of(config.checkpoint_every) or 0.0,
        )
        temperature = calibrate(model, data, **chosen.evaluate_options()) if config.calibrate else None
        decided = decision_options(model, data, **chosen.evaluate_options())
        options = {**chosen.evaluate_options(), **decided}
        evaluation = evaluate(model, data, **options) if len(data.test) else None
        limits = limits_of(model, data, evaluation, engine=config.engine)
        results = None
        if process_group.current_group().is_chief:
            results = results_of(
                replace(chosen, output=None, resume=False), model, data, training, evaluation,
                metrics={"model": config.model, **choice.advised, "temperature": temperature},
                seconds=clock.seconds, limits=limits, **decided,
            )  # fmt: skip
            rescue.write_somewhere(folder, partial(run_writer.write_run, results=results))
    # From here on, the run is complete: an interrupt or a crash loses only its figures and pages.
    final = run_folders.final_folder(folder)
    _log_accuracy(evaluation, model, data, options)
    if results is not None:
        write_report(final, results)
    process_group.current_group().leave_together()
    return final


def _hint_at_order(config: TrainConfig, data: ImageData) -> None:
    """Log that classes may have an order, if their names are numbers or ranges of numbers."""
    from transfer.images.class_order import looks_ordered

    if config.task == "auto" and looks_ordered(data.class_names):
        log.info(
            "The class names are numbers. If the classes have an order, such as grades, use --task ordinal."
        )


def _networks(config: TrainConfig) -> Sequence[str]:
    """Return the names of the networks to try."""
    from transfer.networks import backbones, efficientnet_lite

    if config.model != "auto":
        if "auto" in config.models:
            raise InputError(f"Expected --model auto alone, or names of networks. Received: {config.model}.")
        for name in config.models:
            backbones.check_name(name)
        return config.models
    # Without weights, loading the default network raises.
    return efficientnet_lite.installed() or [TrainConfig.model]


def _is_improvable(config: TrainConfig, finished: Path) -> bool:
    """Return whether a finished run may be improved; without an output, that depends on its images too."""
    from transfer.distributed import strategies

    strategies.start_quietly(repeatable=True)
    from transfer.anytime.records import read_history

    history = read_history(finished / STEPS)
    return history is not None and (config.output is None or not history.covers(config.budget))


def _improve(config: TrainConfig, data: ImageData, *args: Any) -> Path:
    """Train a head and improve it within the time budget; log the accuracy and the expected gain of a larger one."""
    from transfer.results.improved_runs import improve_run

    def log_results(results: RunResults) -> None:
        _log_accuracy(results.evaluation, results.model, data, config.evaluate_options())

    folder, outlook = improve_run(config, data, *args, log_results=log_results)
    log.info("%s", outlook)
    return folder


def _log_accuracy(
    evaluation: AnyEvaluation | None, model: keras.Model, data: ImageData, options: dict[str, Any]
) -> None:
    """Log the accuracy on the test images, or on the validation images if there are no test images."""
    from transfer.evaluation.evaluate import evaluate
    from transfer.evaluation.evaluation import Evaluation, ordinal_text

    if evaluation is not None:
        log.info("Test %s on %d held-out images.", evaluation.headline, len(data.test))
    elif len(data.val):
        evaluation = evaluate(model, data, split="val", **options)
        text = "No test images, so the report has no test results. Validation %s on %d images."
        log.info(text, evaluation.headline, len(data.val))
    else:
        log.info("No test images and no validation images, so the accuracy is unknown.")
    if isinstance(evaluation, Evaluation) and (text := ordinal_text(evaluation)):
        log.info("%s", text.strip())


def _start(config: TrainConfig, finished: Path | None) -> tuple[Any, Path | None]:
    """Start the devices, connect the workers, and find an interrupted run to resume."""
    several = cluster.requests_several_workers(config.strategy)
    interrupted = None if several or finished is not None else _find_interrupted(config)
    from transfer.distributed import strategies

    strategies.start_quietly(repeatable=True)
    devices = strategies.get_strategy(config.strategy)  # several workers must connect before any other work
    import keras

    if several:
        _meet(config)
        interrupted = process_group.current_group().broadcast(lambda: _find_interrupted(config))
    keras.utils.set_random_seed(config.seed)  # dropout layers draw their seeds when they are made
    return devices, Path(interrupted) if interrupted else None


def _log_ignored(config: TrainConfig) -> None:
    """Log the options that have no effect in the case, and raise for those that `fit` would refuse later."""
    from transfer.training.option_table import describe_ignored, refused_options, situations_text

    for name in refused_options(config.given, config.situations):
        why = "--solver exact" if config.solver == "exact" else f"--case {config.case}"
        flag = "--" + name.replace("_", "-")
        raise InputError(f"Expected no {flag} with {why}. It a{situations_text()[name][1:]}")
    ignored = {
        name: reason for name, reason in config.ignored.items() if name != "views"
    }  # evaluation has views
    for line in describe_ignored(ignored, case=config.case, flags=True):
        log.warning("%s", line)


def _find_interrupted(config: TrainConfig) -> str | None:
    """Return the folder of an interrupted run with the same options; raise if the output is in use."""
    run_folders.check_unused(config.output)
    run_folders.check_outside(config.output, config.data)
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


def _check(config: TrainConfig, base: keras.Model) -> None:
    """Raise if the network lacks a layer, or if the engine cannot run here."""
    from transfer.cases import cuts
    from transfer.frozen.engines import check_engine
    from transfer.networks import low_rank
    from transfer.networks.graphs import analyze

    check_engine(config.engine)
    network = analyze(base)
    if config.cut is not None:
        cuts.cuts_of(network, config.cut)
    if config.unfreeze_from is not None:
        network.block_start(config.unfreeze_from)
    if config.without_ignored().lora is not None:
        kept = network.nodes[: network.position(network.last_layer) + 1]
        low_rank.matrices_of(base.name, [node.op for node in kept])


def _check_data(config: TrainConfig, data: ImageData, resume_from: Path | None) -> None:
    """Raise for data that would fail only after the training, or that are not those of the run to resume."""
    from transfer.evaluation import evaluate
    from transfer.images.split_file import describe_changes

    check_task(config, data)
    if config.calibrate:
        evaluate.check_calibration(data)
    changes = process_group.current_group().broadcast(
        lambda: describe_changes(resume_from / SPLIT, data.splits) if resume_from else ""
    )
    if changes and resume_from is not None and run_folders.has_checkpoint(resume_from):
        raise InputError(
            f"Expected the images of the interrupted run in {resume_from}. {changes}. Restore them and run the same "
            "command, or delete that folder to start again."
        )
    if changes:
        log.warning("Since the same command stopped, %s. This run uses the current images.", changes)


def _choose(
    config: TrainConfig, data: ImageData, base: keras.Model, resume_from: Path | None
) -> tuple[Choice, Advice | TaskAdvice | None, SampleFeatures | None]:
    """Choose the case, or read the choice of the run that is resumed."""
    from transfer.adviser.choice import Choice, choose_case

    group = process_group.current_group()
    earlier = group.broadcast(lambda: run_folders.read_decision(resume_from) if resume_from else None)
    return (Choice(**earlier), None, None) if earlier else choose_case(config, data, base)


def _method(model: keras.Model, choice: Choice) -> Case:
    """Return the case of the method; log if it is not the chosen one, because of the cut."""
    from transfer.cases.decisions import decision_of
    from transfer.cases.policies import POLICIES

    case = decision_of(model).case
    if case != choice.case:
        log.info("With this cut, the method is case %d, %s.", POLICIES[case].number, case)
    return case


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


def _write_start(
    folder: Path, data: ImageData, model: keras.Model, choice: Choice, advice: Advice | TaskAdvice | None
) -> None:
    """Write which case was chosen, and why, and the images; warn if the disk is too small for the rest."""
    from transfer.images.split_file import write_split
    from transfer.results import file_names, rescue, run_writer

    rescue.warn_if_full(folder, model)
    run_folders.save_decision(folder, choice.decision)
    write_split(folder / file_names.SPLIT, data.splits, data.class_names)
    if advice is not None:
        run_writer.write_advice(folder, advice)


def _find_learning_rate(config: TrainConfig, model: keras.Model, data: ImageData) -> Path:
    """Run a learning-rate range test, write its curve, and log the suggested rate."""
    from transfer.cases.compiling import learning_rate_of
    from transfer.results import run_writer
    from transfer.training import learning_rate_finder

    names = ("augment", "flip", "recipe", "batch_size", "label_smoothing", "seed")
    options = {name: value for name, value in config.fit_options().items() if name in names}
    curve = learning_rate_finder.find_learning_rate(model, data, **options)
    with run_folders.run_folder(config.output, f"{data.name}-learning-rate") as folder:
        run_writer.write_figures(folder, {"learning_rate": curve.plot})
        rows = {"rates": curve.rates, "losses": curve.losses, "suggestion": curve.suggestion}
        run_writer.write_metrics(folder, rows)
    default = learning_rate_of(model.optimizer)
    log.info("Suggested learning rate: %.1e. The default of this case: %.1e.", curve.suggestion, default)
    return run_folders.final_folder(folder)


def _describe_splits(data: ImageData) -> str:
    skipped = f", {len(data.skipped)} skipped" if data.skipped else ""
    kinds = {MULTI: f"{data.num_classes} labels", REGRESSION: f"numbers of {data.class_names[0]!r}"}
    return (
        f"{kinds.get(data.task, f'{data.num_classes} classes')}; {len(data.train)} training, {len(data.val)} "
        f"validation and {len(data.test)} test images{skipped}"
    )


if __name__ == "__main__":
    sys.exit(main())
