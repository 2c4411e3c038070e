"""Choose the layers that the head of a frozen network sees, for several labels per image and for numbers."""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from transfer.common.bootstrap import Score, score_error
from transfer.common.display import one_line
from transfer.common.errors import InputError, unknown
from transfer.common.label_metrics import mean_average_precision, mean_average_precisions, r2, r2_scores
from transfer.common.tasks import MULTI, REGRESSION, TASK, score_text
from transfer.common.text import plural
from transfer.frozen.head_choice import candidate_cuts, features_of
from transfer.frozen.label_heads import SolvedLabels, positive_weights, solve_labels
from transfer.frozen.ridge import SolvedRidge, solve_ridge

Solved: TypeAlias = SolvedLabels | SolvedRidge


@dataclass(frozen=True, eq=False)
class TaskHeadCandidate:
    """Out-of-fold predictions of a head on some layers."""

    name: str  # such as "last 6 blocks"
    cuts: tuple[str, ...]  # layers that the head sees, in the order of the network
    # Probabilities of shape (images, labels), or numbers of shape (images,).
    predictions: np.ndarray
    score: float  # mean average precision or R2 of the predictions
    standard_error: float  # of the score, by bootstrap over images or groups
    loss: float  # mean binary cross-entropy, or mean squared error over the variance of the values

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: score {self.score:.3f}, loss {self.loss:.3f}")


@dataclass(frozen=True, eq=False)
class TaskHeadChoice:
    """The head with the lowest out-of-fold loss, and all candidates."""

    task: str
    candidates: tuple[TaskHeadCandidate, ...]
    best: TaskHeadCandidate
    solved: Solved  # the best head, solved on all images

    def __repr__(self) -> str:
        task = TASK[self.task]
        score = f"{task.metric_name} {score_text(task.metric, self.best.score)}"
        return one_line(self, f"{plural(len(self.candidates), 'candidate')}; {self.best.name}, {score}")


def choose_task_head(
    taps: Mapping[str, np.ndarray],
    labels: np.ndarray,
    task: str,
    *,
    candidates: Mapping[str, Sequence[str]] | None = None,
    groups: Sequence[Hashable] | np.ndarray = (),
    balanced: bool = False,
    seed: int = 0,
) -> TaskHeadChoice:
    """Solve a head on each candidate's layers, and choose the one with the lowest out-of-fold loss."""
    candidates = candidate_cuts(tuple(taps)) if candidates is None else candidates
    if task not in (MULTI, REGRESSION) or not candidates:
        raise InputError(
            f"Expected the task {MULTI} or {REGRESSION}, and one candidate or more. Received: {task!r} and "
            f"{plural(len(candidates), 'candidate')}. Use choose_head for one class per image."
        )
    for cut in (cut for cuts in candidates.values() for cut in cuts):
        if cut not in taps:
            raise unknown("layer of a candidate", cut, list(taps))
    labels = np.asarray(labels)
    measured: list[TaskHeadCandidate] = []
    for name, cuts in candidates.items():
        features = features_of(taps, cuts)
        solved: Solved = (
            solve_labels(features, labels, balanced=balanced, groups=groups, seed=seed)
            if task == MULTI
            else solve_ridge(features, labels, groups=groups, seed=seed)
        )
        error = score_error(of_task(task, solved.out_of_fold, labels), len(labels), groups=groups, seed=seed)
        measured.append(_measured(name, cuts, solved.out_of_fold, labels, balanced, error))
        if min(measured, key=lambda one: one.loss) is measured[-1]:
            best = solved
    return TaskHeadChoice(task, tuple(measured), min(measured, key=lambda one: one.loss), best)


def of_task(task: str, predicted: np.ndarray, labels: np.ndarray) -> Score:
    """Return the function from weights of the images to the metric of a task."""
    return functools.partial(mean_average_precisions if task == MULTI else r2_scores, predicted, labels)


def _measured(
    name: str, cuts: Sequence[str], predicted: np.ndarray, labels: np.ndarray, balanced: bool, error: float
) -> TaskHeadCandidate:
    """Measure a candidate on its out-of-fold predictions."""
    if labels.ndim == 2:
        score = mean_average_precision(predicted, labels)
        loss = binary_cross_entropy(predicted, labels, positive_weights(labels) if balanced else 1.0)
    else:
        score = r2(predicted, labels)
        loss = float(np.square(predicted - labels).mean() / (labels.var() or 1.0))
    return TaskHeadCandidate(name, tuple(cuts), predicted, score, error, loss)


def binary_cross_entropy(
    probabilities: np.ndarray, labels: np.ndarray, weights: np.ndarray | float = 1.0
) -> float:
    """Return the mean binary cross-entropy in nats; `weights` are those of images with each label."""
    right = np.where(labels > 0, probabilities, 1 - probabilities)
    losses = -np.log(np.maximum(right, np.finfo("float32").tiny))
    return float(np.average(losses, weights=np.where(labels > 0, weights, 1.0)))
