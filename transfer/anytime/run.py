"""The anytime run: a head first, then steps that improve it while the time budget lasts."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.adviser.advice import Advice
from transfer.adviser.advise import advise_on, probe_sample
from transfer.adviser.estimates import Gain, prediction_interval
from transfer.anytime.candidates import (
    Candidate,
    averaged_candidate,
    build_network,
    fine_tuned_candidate,
    head_candidate,
    solved_candidate,
    title_of,
)
from transfer.anytime.clock import Clock
from transfer.anytime.decisions import ONE_IMAGE, posterior_gain, typical_gain
from transfer.anytime.heads import BestHead, Pool, best_head, extract_pool, pool_of
from transfer.anytime.plan import SECONDS, Kind, Planner, Situation, Step
from transfer.anytime.records import History, StepRecord, budget_text, describe_budget
from transfer.anytime.speeds import Speeds
from transfer.anytime.summary import with_results
from transfer.common.errors import InputError
from transfer.common.streams import quiet
from transfer.config import TrainConfig
from transfer.images.datasets import ImageData
from transfer.networks.backbones import default_size, load_backbone
from transfer.networks.graphs import analyze
from transfer.networks.hub import PREFIX
from transfer.networks.tokens import num_tokens
from transfer.training.phases import TrainingLog

log = logging.getLogger(__name__)

LARGER_BUDGET = 5
"""The last line of the log describes a budget that is at most this many times as large."""

MIN_TIME = 0.3
"""Fraction of a step's nominal time that must be left when it begins."""

Write = Callable[[Candidate, History, Advice], None]
"""Writes the run of a model that is kept, before its record is logged."""


class AnytimeRun:
    """A run whose model is replaced when a step improves it."""

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        base: keras.Model,
        clock: Clock,
        *,
        networks: Sequence[str],
        devices: Any,
        history: History | None,
        load_kept: Callable[[], list[np.ndarray]],
    ) -> None:
        self.config, self.data, self.base, self.clock, self.devices = config, data, base, clock, devices
        self.history = replace(history or History(), budget=clock.budget, stopped=False)
        self.kept: Candidate | None = None
        self.advice: Advice
        self._networks, self._load_kept = tuple(networks), load_kept
        self._planner = Planner(Speeds())
        self._head: BestHead
        # The model as it was fine-tuned last, and its log.
        self._fine_tuned: tuple[keras.Model, TrainingLog] | None = None
        self._tuned: Candidate | None = None
        # Nominal seconds of all steps, and how much longer the first step of this command took than its nominal time.
        self._nominal, self._slowness = 0.0, 1.0

    @cached_property
    def pool(self) -> Pool:
        """The images from which heads are chosen."""
        return pool_of(self.data, self.config.seed)

    def start(self, write: Write) -> None:
        """Choose the first head and write its run; or, to continue a run, the head that was kept."""
        self._head = self._first_head()
        sample = self._head.sample
        self._planner.speeds.measured(
            sample.seconds_per_image, "forward", self._head.network, self._head.image_size
        )
        self._nominal = self._planner.head_seconds(self._situation())
        self._slowness = max(1.0, self.clock.seconds / self._nominal)
        if self.history.steps:  # the earlier commands took their part of the budget
            self._nominal = self.history.nominal
            return
        step = Step(Kind.HEAD, self._head.network, self._head.image_size, self._nominal)
        candidate = head_candidate(self.config, self.data, self._head, self.devices)
        self._keep(step, candidate, self._accuracy_of(self._head), write, started=0.0)

    def _first_head(self) -> BestHead:
        """Return the best head, chosen with the help of the advice."""
        kept = self.history.kept_head
        base = self.base
        if kept is not None and (kept.network, kept.image_size) != (self._networks[0], base.input_shape[1]):
            base = self._load(kept.network, kept.image_size)
        network = kept.network if kept is not None else self._networks[0]
        sample = extract_pool(self.config, base, self.pool)
        known, seed = sample.first(self.pool.num_train), self.config.seed
        probes = probe_sample(known, seed)
        cut = None if probes.curve is None else probes.curve.cut
        head = best_head(self.config, network, base, self.pool, sample, cut)
        self.advice = advise_on(self.data, base, known, probes, head.choice, trial=False, seed=seed)
        if not self.history.steps:
            log.info("%s", self.advice.data_sentence if self.advice.signal else self.advice.reason)
            for warning in self.advice.warnings:
                log.warning("%s", warning.text)
        return head

    def _best_cut(self, network: str) -> str | None:
        """Return the best single layer of the first network."""
        curve = self.advice.curve
        return curve.cut if curve is not None and network == self._networks[0] else None

    def summary(self) -> Advice:
        """Return the advice with the results of the steps."""
        steps = self._planner.steps(replace(self._situation(), improvable=True))
        fine_tuning = next((step for step in steps if step.kind is Kind.FINE_TUNING), None)
        return with_results(self.advice, self.history, self._head, fine_tuning, len(self.data.test))

    def stop(self, written: History | None) -> None:
        """Note that a signal or an error stopped the run, perhaps just after the last model was written."""
        late = written is not None and len(written.steps) > len(self.history.steps)
        self.history = replace(written if written is not None and late else self.history, stopped=True)

    def outlook(self) -> str:
        """Return what a larger budget is expected to bring, and the command for it."""
        kept = (
            self.history.kept
        )  # another command can continue from the model that is kept, and from no other
        now = replace(self._situation(), fine_tuned=kept is not None and kept.fine_tuned)
        enough = LARGER_BUDGET * (self.clock.budget or math.inf) - self._nominal - SECONDS["report"]
        step = next(self._planner.steps(now, enough), None)
        needed = self._nominal + (step.nominal if step else 0.0) + SECONDS["report"]
        command = replace(self.config, time_budget=budget_text(needed), resume=False).command
        return describe_budget(step, self._accuracy().mean, command)

    def improve(self, write: Write, checkpoints: Path) -> None:
        """Take the steps that fit into the budget."""
        while (step := self._planner.next_step(self._situation(), self._nominal_left())) is not None:
            if self.clock.left - self._slowness * SECONDS["report"] < MIN_TIME * step.nominal:
                log.info("The time is up earlier than planned: this machine is slower, or busy.")
                break
            self._nominal += step.nominal
            self._take(step, write, checkpoints)
        self._planner.speeds.save()

    def _nominal_left(self) -> float:
        """Return the nominal seconds that are left for steps."""
        budget = self.clock.budget
        return float("inf") if budget is None else budget - self._nominal - SECONDS["report"]

    def _situation(self) -> Situation:
        """Return what decides on the next step."""
        head, kept, config = self._head, self.history.kept, self.config
        height, width = self.base.input_shape[1:3]
        own = height if head.network == self._networks[0] else default_size(head.network)
        fine_tuned = kept is not None and kept.fine_tuned
        others = () if fine_tuned else tuple(name for name in self._networks if name != head.network)
        last = self.history.steps[-1] if self.history.steps else None
        return Situation(
            num_train=len(self.data.train),
            num_chosen=len(self.data.train) + len(self.data.val),
            num_test=len(self.data.test),
            network=head.network,
            image_size=head.image_size,
            own_size=own or head.image_size,
            taken=self.history.steps,
            networks=tuple((name, config.image_size or default_size(name) or height) for name in others),
            free_size=config.image_size is None and height is not None and height == width,
            fixed_size=head.network.startswith(PREFIX) or num_tokens(analyze(head.base)) > 0,
            improvable=self._improvable(),
            average=config.average,
            fine_tuned=self._fine_tuned is not None or fine_tuned,
            improving=last is not None and last.fine_tuned and last.kept,
            epochs=config.epochs,
            batch_size=config.batch_size,
        )

    def _improvable(self) -> bool:
        """Return whether held-out images show that the images predict the labels, and some of them wrongly."""
        # With one image per class, fine-tuning lowered the test accuracy from 0.40 to 0.35.
        kept, measured = self.history.kept, self._head.choice.accuracy is not None
        return measured and self.advice.signal and (kept is None or kept.accuracy < 1)

    def _take(self, step: Step, write: Write, checkpoints: Path) -> None:
        """Take a step, and keep its model if it is better."""
        started = self.clock.seconds
        if step.kind in (Kind.LARGER, Kind.NETWORK):
            self._try_head(step, write, started)
            return
        if step.kind is Kind.AVERAGE:
            frozen = head_candidate(self.config, self.data, self._head, self.devices)
            tuned = self._tuned or self._solved_again(step.image_size)
            self._decide(step, averaged_candidate(frozen, tuned, self._head), write, started)
            return
        left = self.clock.left - self._slowness * (SECONDS["report"] + step.seconds_after)
        if any((checkpoints / step.key).glob("*.npz")):
            log.info("Resuming from a checkpoint: %s.", step.kind)
        longer = step.kind is Kind.LONGER
        before = self._fine_tuned[1] if self._fine_tuned and longer else None
        with quiet("transfer.training"):
            model, candidate = fine_tuned_candidate(
                self.config,
                self.data,
                self._head,
                step,
                case=self.advice.evidence.fine_tuning_case,
                devices=self.devices,
                start=self._weights() if longer else None,
                before=before,
                checkpoints=checkpoints,
                time_limit=None if left == float("inf") else max(1.0, left),
            )
        seconds = candidate.training.seconds_training - SECONDS["start"] / 2
        complete = _epochs(candidate.training) == step.epochs  # otherwise the time limit stopped it
        if before is None and complete:
            self._planner.measured_training(seconds, step, step.epochs * len(self.data.train))
        self._fine_tuned, self._tuned = (model, candidate.training), candidate
        done = _epochs(candidate.training) - (_epochs(before) if before else 0)
        self._decide(replace(step, epochs=max(1, done)), candidate, write, started)

    def _solved_again(self, image_size: int) -> Candidate:
        """Return the fine-tuned network with its head solved again at an image size."""
        config, data, head, weights = self.config, self.data, self._head, self._weights()
        size = self.history.steps[-1].image_size
        model, _ = build_network(
            config, data, head, self.advice.evidence.fine_tuning_case, size, self.devices, weights
        )
        return solved_candidate(config, data, head, model, TrainingLog(), image_size)

    def _weights(self) -> list[np.ndarray]:
        """Return the weights of the last fine-tuning, or of the model that an earlier command kept."""
        return self._fine_tuned[0].get_weights() if self._fine_tuned else self._load_kept()

    def _try_head(self, step: Step, write: Write, started: float) -> None:
        """Choose a head at another image size or on another network; it is better if its out-of-fold loss is lower."""
        try:
            base = self._load(step.network, step.image_size)
        except InputError as error:
            log.info("Skipped %s at %d px: %s", step.network, step.image_size, error)
            self._record(step, None, self._accuracy(), kept=False, seconds=0.0)
            return
        sample, cut = extract_pool(self.config, base, self.pool), self._best_cut(step.network)
        head = best_head(self.config, step.network, base, self.pool, sample, cut)
        self._planner.speeds.measured(head.sample.seconds_per_image, "forward", head.network, head.image_size)
        better = head.best.loss < self._head.best.loss
        kept = self.history.kept
        if not better:
            self._record(
                step, head, self._accuracy_of(head), kept=False, seconds=self.clock.seconds - started
            )
            return
        self._head = head
        if kept is None or not kept.fine_tuned:
            candidate = head_candidate(self.config, self.data, head, self.devices)
            self._keep(step, candidate, self._accuracy_of(self._head), write, started=started)
        else:
            self._decide(step, self._solved_again(step.image_size), write, started)

    def _load(self, network: str, image_size: int) -> keras.Model:
        options = {**self.config.network_options(), "image_size": image_size}
        return load_backbone(network, **options)

    def _accuracy_of(self, head: BestHead) -> Gain:
        """Return the expected accuracy of a head, with its standard error."""
        accuracy = head.choice.accuracy
        if accuracy is None:  # no image could be held out
            return Gain(max(ONE_IMAGE.mean, 1 / self.data.num_classes), ONE_IMAGE.sd)
        return Gain(accuracy, head.choice.spread(head.best))

    def _accuracy(self) -> Gain:
        """Return the accuracy of the model that is kept."""
        kept = self.history.kept
        return self._accuracy_of(self._head) if kept is None else Gain(kept.accuracy, kept.sd)

    def _decide(self, step: Step, candidate: Candidate, write: Write, started: float) -> None:
        """Keep a model if the typical gain and the validation images together say that it is better."""
        before = self._accuracy()
        prior = typical_gain(step.kind, before.mean)
        gain = posterior_gain(candidate.correct, np.array(self.history.correct, bool), prior)
        if candidate.training.rolled_back:  # the validation images were against it
            gain = Gain(min(0.0, gain.mean), gain.sd)
        after = before + gain
        after = Gain(min(1.0, max(0.0, after.mean)), after.sd)
        if gain.mean > 0:
            self._keep(step, candidate, after, write, started=started)
        else:
            seconds = self.clock.seconds - started
            self._record(step, self._head, after, kept=False, seconds=seconds, candidate=candidate)

    def _keep(
        self, step: Step, candidate: Candidate, accuracy: Gain, write: Write, *, started: float
    ) -> None:
        """Write the run of a better model, and record its step."""
        self.kept = candidate
        before = self.history
        seconds = self.clock.seconds - started
        self._record(step, self._head, accuracy, kept=True, seconds=seconds, candidate=candidate, quiet=True)
        try:
            write(candidate, self.history, self.advice)
        except BaseException:
            self.history = before
            raise
        log.info("%s", self.history.steps[-1].line())

    def _record(
        self,
        step: Step,
        head: BestHead | None,
        accuracy: Gain,
        *,
        kept: bool,
        seconds: float,
        candidate: Candidate | None = None,
        quiet: bool = False,
    ) -> None:
        """Add a step to the history, and log it."""
        count = len(self._head.labels)
        case = candidate.case if candidate is not None else ""
        record = StepRecord(
            **{**asdict(step), "nominal": round(step.nominal, 2)},
            title=title_of(step, head, self._networks),
            case=str(case),
            seconds=round(seconds, 2),
            accuracy=accuracy.mean,
            sd=accuracy.sd,
            interval=prediction_interval(accuracy.mean, [accuracy.sd], num_test=len(self.data.test)),
            kept=kept,
            basis=self._basis(step, count),
        )
        self.history = self.history.with_step(record, candidate.correct if kept and candidate else None)
        if not quiet:
            log.info("%s", record.line())

    def _basis(self, step: Step, count: int) -> str:
        """Return what the accuracy of a step rests on."""
        if step.training_size or step.kind is Kind.AVERAGE:
            return f"{len(self.pool.val)} validation images, and the typical gain on other data sets"
        if self._head.choice.accuracy is None:
            return "accuracy with one image per class on other data sets"
        return f"out-of-fold predictions of {count} images"


def _epochs(training: TrainingLog) -> int:
    """Return the number of epochs of fine-tuning."""
    return sum(row["phase"] != "head" for row in training.rows)
