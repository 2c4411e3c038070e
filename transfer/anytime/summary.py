"""The table of the four cases after an anytime run: what was measured, and estimates of the rest."""

from __future__ import annotations

from dataclasses import replace

from transfer.adviser.advice import Advice
from transfer.adviser.advise import head_evidence
from transfer.adviser.estimates import RANDOM, CaseEstimate, Gain, prediction_interval
from transfer.anytime.decisions import typical_gain
from transfer.anytime.heads import BestHead
from transfer.anytime.plan import Kind, Step
from transfer.anytime.records import History, StepRecord
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
    chosen = heads[0]
    if kept is not None and kept.fine_tuned:
        chosen = [_result(step) for step in history.steps if step.kept][-1]
        tuned = [chosen if one == chosen else one for one in tuned]
    notes = tuple(note for note in advice.notes if not note.startswith("Time of fine-tuning"))
    choices = sorted((*heads, *tuned, *random), key=lambda one: (-one.expected_accuracy, one is not chosen))
    return replace(advice, choice=chosen, choices=tuple(choices), time_budget=history.budget, notes=notes)


def _heads(history: History, head: BestHead, num_test: int) -> list[CaseEstimate]:
    """Return the heads that were compared, with their out-of-fold accuracies, the best one first."""
    basis = f"out-of-fold predictions of {len(head.labels)} images"
    record = history.kept_head
    found = []
    for one in head_evidence(head.choice, analyze(head.base)):
        interval = prediction_interval(one.accuracy, [one.standard_error], num_test=num_test)
        seconds, case = record.seconds if record is not None else None, frozen_case(whole=one.whole)
        found.append(CaseEstimate(case, one.cut, one.accuracy, interval, seconds, basis))
    if record is not None:
        found[0] = replace(found[0], expected_accuracy=record.accuracy, interval=record.interval)
    return found


def _result(step: StepRecord) -> CaseEstimate:
    return CaseEstimate(Case.parse(step.case), None, step.accuracy, step.interval, step.seconds, step.basis)


def _estimate(advice: Advice, kept: StepRecord, step: Step, num_test: int) -> CaseEstimate:
    """Return what fine-tuning is expected to give."""
    after = Gain(kept.accuracy, kept.sd) + typical_gain(Kind.FINE_TUNING, kept.accuracy)
    accuracy = min(1.0, after.mean)
    interval = prediction_interval(accuracy, [after.sd], num_test=num_test)
    case = advice.evidence.fine_tuning_case
    return CaseEstimate(case, None, accuracy, interval, step.nominal, "typical gain on other data sets")
