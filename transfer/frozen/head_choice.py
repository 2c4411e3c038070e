"""Choose the layers that the head of a frozen network sees, by out-of-fold predictions."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from transfer.common.accuracies import debiased_accuracy, errors_with_all, known_fractions, standard_error
from transfer.common.display import one_line
from transfer.common.errors import InputError, unknown
from transfer.common.text import plural
from transfer.frozen.heads import START, HeadProblem, SolvedHead, assign_folds
from transfer.frozen.held_out import Setting

FOLDS = (5, 3)
"""Number of folds for up to `MANY_IMAGES` images, and for more, where two thirds of the images suffice."""

MANY_IMAGES = 1000
"""Number of images from which on three folds suffice."""

LATE_BLOCKS = (6, 10)
"""Numbers of late blocks that a head may see, together with the last layer."""


@dataclass(frozen=True, eq=False)
class HeadCandidate:
    """Out-of-fold predictions of a head on some layers."""

    name: str  # such as "last 6 blocks"
    cuts: tuple[str, ...]  # layers that the head sees, in the order of the network
    # Shape (images, classes): each image is predicted by a head that was solved without its fold. A class that has no
    # images outside the fold has the probability of a guess.
    probabilities: np.ndarray
    losses: np.ndarray  # cross-entropy of each image in nats, shape (images,)
    correct: np.ndarray  # whether the prediction of each image is correct, shape (images,)
    loss: float  # mean of `losses`, by class weight
    accuracy: float  # mean of `correct`, over the images whose class has images in other folds
    standard_error: float  # of the accuracy, over images or over groups
    setting: Setting  # method and regularization with the lowest loss

    def __repr__(self) -> str:
        return one_line(self, f"{self.name}: accuracy {self.accuracy:.1%}, loss {self.loss:.3f}")


@dataclass(frozen=True, eq=False)
class HeadChoice:
    """The head with the lowest out-of-fold loss, and all candidates."""

    candidates: tuple[HeadCandidate, ...]
    best: HeadCandidate
    solved: SolvedHead  # the best head, solved on all images
    # Expected accuracy of the best candidate: out of fold, corrected for the choice on the same images and for the
    # fewer images; None if no image could be held out, as with one image per class.
    accuracy: float | None
    folds: np.ndarray  # fold of each image; depends on labels, groups and seed alone, not on the features
    errors: float  # expected errors with all images, as a fraction of the out-of-fold errors

    @property
    def estimates(self) -> tuple[float, ...]:
        """Expected accuracy of each candidate, none above that of the best one."""
        # The loss is more precise than the accuracy: a candidate with a higher loss but a higher accuracy was lucky.
        best = self.best.accuracy if self.accuracy is None else self.accuracy
        others = (min(best, 1 - self.errors * (1 - one.accuracy)) for one in self.candidates)
        return tuple(
            best if one is self.best else other for one, other in zip(self.candidates, others, strict=True)
        )

    def spread(self, one: HeadCandidate) -> float:
        """Return the standard deviation of the estimate of a candidate."""
        # How much more images help differs between data sets: by about half of what they help on average.
        return float(np.hypot(one.standard_error, (1 - self.errors) * (1 - one.accuracy) / 2))

    def __repr__(self) -> str:
        accuracy = "not measured" if self.accuracy is None else f"accuracy {self.accuracy:.1%}"
        return one_line(self, f"{plural(len(self.candidates), 'candidate')}; {self.best.name}, {accuracy}")


def choose_head(
    taps: Mapping[str, np.ndarray],
    labels: np.ndarray,
    num_classes: int,
    *,
    candidates: Mapping[str, Sequence[str]] | None = None,
    groups: Sequence[Hashable] | np.ndarray = (),
    class_weights: Mapping[int, float] | None = None,
    seed: int = 0,
) -> HeadChoice:
    """Choose the layers of a head by cross-validation with stratified folds, and solve it on all images."""
    # `taps` holds the pooled features (images, channels) by layer, in the order of the network. `candidates` holds the
    # layers of each candidate; None stands for `candidate_cuts(taps)`. Images of a group stay in one fold. If no image
    # can be held out, the choice is the last 6 blocks with `DEFAULT_C`. 400 images of 12 classes take about 2 s.
    candidates = candidate_cuts(tuple(taps)) if candidates is None else candidates
    if not candidates:
        raise InputError("Expected one candidate or more. Received: none.")
    for cut in (cut for cuts in candidates.values() for cut in cuts):
        if cut not in taps:
            raise unknown("layer of a candidate", cut, list(taps))
    labels = np.asarray(labels)
    folds = assign_folds(labels, groups=groups, count=FOLDS[len(labels) > MANY_IMAGES], seed=seed)
    fractions = known_fractions(labels, folds)
    known = fractions > 0  # an image of a class without images in other folds says nothing
    measured: list[HeadCandidate] = []
    start = START
    for name, cuts in candidates.items():
        problem = HeadProblem(features_of(taps, cuts), labels, num_classes, class_weights=class_weights)
        problem.cross_validate(folds, start=start)
        start = problem.setting.strength if problem.setting.method == "regression" else start
        measured.append(_measure(name, cuts, problem, groups, known))
        if measured[-1] is _best(measured):
            chosen = problem
    accuracy, best = None, _best(measured)
    chance = float(np.bincount(labels).max() / len(labels))
    signal = best.accuracy > chance + 2 * best.standard_error  # guesses do not improve with more images
    errors = errors_with_all(fractions[known]) if signal else 1.0
    if chosen.tried:
        correct, losses = (
            np.stack([getattr(one, key)[known] for one in measured]) for key in ("correct", "losses")
        )
        out_of_fold = debiased_accuracy(correct, losses=losses, groups=_take(groups, known), seed=seed)
        accuracy = 1 - errors * (1 - out_of_fold)
    return HeadChoice(tuple(measured), best, chosen.solve(), accuracy, folds, errors)


def _best(measured: Sequence[HeadCandidate]) -> HeadCandidate:
    """Return the candidate with the lowest loss; if none could be measured, the head that is best for single images."""
    # With one image per class of ten tuning sets, the last 6 blocks had an accuracy of 0.34, the last layer 0.32, and
    # all layers 0.30.
    default = f"last {LATE_BLOCKS[0]} blocks"
    return min(measured, key=lambda one: (one.loss, one.name != default))


def _measure(
    name: str,
    cuts: Sequence[str],
    problem: HeadProblem,
    groups: Sequence[Hashable] | np.ndarray,
    known: np.ndarray,
) -> HeadCandidate:
    """Measure a candidate on its out-of-fold predictions."""
    probabilities, labels = problem.out_of_fold(), problem.labels
    losses = -np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo("float64").tiny))
    correct = probabilities.argmax(axis=1) == labels
    return HeadCandidate(
        name,
        tuple(cuts),
        probabilities,
        losses,
        correct,
        loss=float(np.average(losses, weights=problem.weights[labels])),
        accuracy=float(correct[known].mean()) if known.any() else 0.0,
        standard_error=standard_error(correct[known], _take(groups, known)) if known.any() else 0.0,
        setting=problem.setting,
    )


def _take(groups: Sequence[Hashable] | np.ndarray, wanted: np.ndarray) -> list[Hashable]:
    """Return the groups of some images; empty if images have no groups."""
    return [groups[i] for i in np.flatnonzero(wanted).tolist()] if len(groups) else []


def candidate_cuts(names: Sequence[str], *, best_cut: str | None = None) -> dict[str, tuple[str, ...]]:
    """Return the layers that a head may see, by the name of the candidate."""
    # `names` are the block ends and the last layer of a network, as of `cuts_of(network, "all")`. `best_cut` is the
    # best single layer, such as `LayerCurve.cut`. Candidates with the same layers appear once.
    names = tuple(names)
    cuts = {"last layer": names[-1:]}
    if best_cut not in (None, names[-1]):
        cuts["best cut"] = (best_cut,)
    for count in LATE_BLOCKS:
        if count + 1 < len(names):
            cuts[f"last {count} blocks"] = names[-count - 1 :]
    if len(names) > 1:
        cuts["all layers"] = names
    return cuts


def features_of(taps: Mapping[str, np.ndarray], cuts: Sequence[str]) -> np.ndarray:
    """Return the features of a head on some layers: as they are, or of several layers `concatenate_normalized`."""
    return taps[cuts[0]] if len(cuts) == 1 else concatenate_normalized([taps[cut] for cut in cuts])


def concatenate_normalized(taps: Sequence[np.ndarray]) -> np.ndarray:
    """Scale each layer's features of an image to unit length and concatenate them, as float32."""
    lengths = [np.linalg.norm(x, axis=1, keepdims=True) for x in taps]
    units = [x / np.where(length > 0, length, 1) for x, length in zip(taps, lengths, strict=True)]
    return np.concatenate(units, axis=1).astype("float32")
