"""The table of the four cases after an anytime run: what was measured, and estimates of the rest."""

from __future__ import annotations

from dataclasses import replace

from transfer.adviser.advice import Advice
from transfer.adviser.estimates import RANDOM, CaseEstimate, prediction_interval
from transfer.anytime.decisions import Gain, typical_gain
from transfer.anytime.heads import BestHead
from transfer.anytime.plan import Kind, Step
from transfer.anytime.records import History, StepRecord
from transfer.cases.cuts import ALL_LAYERS, keeps_whole
from transfer.cases.policies import Case, frozen_case
from transfer.networks.graphs import analyze


def with_results(
    advice: Advice, history: History, head: BestHead, fine_tuning: Step | None, num_test: int
) -> Advice:
    """Return the advice with the results of the steps in place of its estimates, and with the case that was kept."""
    kept = history.kept
    heads = _heads(history, head, num_test)
    tuned = [_result(step) for step in history.steps if step.fine_tuned]
    if not tuned and kept is not None and fine_tuning is not None:
        tuned = [_estimate(advice, kept, fine_tuning, num_test)]
    random = [one for one in advice.choices if one.cut == RANDOM]
    chosen = heads[head.choice.candidates.index(head.best)]
    if kept is not None and kept.fine_tuned:
        chosen = [_result(step) for step in history.steps if step.kept][-1]
        tuned = [chosen if one == chosen else one for one in tuned]
    notes = tuple(note for note in advice.notes if not note.startswith("Time of fine-tuning"))
    choices = sorted((*heads, *tuned, *random), key=lambda one: (-one.expected_accuracy, one is not chosen))
    return replace(advice, choice=chosen, choices=tuple(choices), time_budget=history.budget, notes=notes)


def _heads(history: History, head: BestHead, num_test: int) -> list[CaseEstimate]:
    """Return the heads that were compared, with their out-of-fold accuracies."""
    network, basis = analyze(head.base), f"out-of-fold predictions of {len(head.labels)} images"
    record = history.kept_head
    found = []
    for one, accuracy in zip(head.choice.candidates, head.choice.estimates, strict=True):
        interval = prediction_interval(accuracy, [one.standard_error], num_test=num_test)
        if one is head.best and record is not None:
            accuracy, interval = record.accuracy, record.interval
        case = frozen_case(whole=keeps_whole(network, one.cuts))
        cut = ALL_LAYERS if one.name == "all layers" else ",".join(one.cuts)
        seconds = record.seconds if record is not None else None
        found.append(CaseEstimate(case, cut, accuracy, interval, seconds, basis))
    return found


def _result(step: StepRecord) -> CaseEstimate:
    return CaseEstimate(Case.parse(step.case), None, step.accuracy, step.interval, step.seconds, step.basis)


def _estimate(advice: Advice, kept: StepRecord, step: Step, num_test: int) -> CaseEstimate:
    """Return what fine-tuning is expected to give."""
    after = Gain(kept.accuracy, kept.sd) + typical_gain(Kind.FINE_TUNING, kept.accuracy)
    accuracy = min(1.0, after.mean)
    interval = prediction_interval(accuracy, [after.sd], num_test=num_test)
    case = Case.LARGE_SIMILAR if advice.evidence.similar else Case.LARGE_DIFFERENT
    return CaseEstimate(case, None, accuracy, interval, step.nominal, "typical gain on other data sets")
