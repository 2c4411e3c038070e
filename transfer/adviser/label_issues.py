"""Label issues and other problems of the data, found before training."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from scipy.special import softmax

from transfer.adviser.curves import LayerCurve
from transfer.adviser.sample_features import SampleFeatures
from transfer.common.errors import InputError, optional
from transfer.common.text import plural
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.images.datasets import ImageData

MIN_EVIDENCE = 2.7
"""Smallest log likelihood ratio (nats) at which the noise rate counts as above 0. Twice the ratio is a chi-square with
one degree of freedom, halved since a rate is not negative. One clean data set in a hundred exceeds it by chance."""

MIN_NOISE_RATE = 0.02
"""Smallest noise rate that causes a warning. CIFAR-10, Fashion-MNIST, hymenoptera, emoji and hand signs gave at most
0.006 with evidence (EfficientNet-Lite0 at 96 px, 120 to 1,000 images), except for one sample of 120 signs (0.024). With
5% of the labels flipped, they gave 0.036 to 0.065."""

MIN_PROBABILITY = 0.5
"""Smallest probability of a wrong label at which an image is a label issue."""

MIN_OTHERS = 4
"""Minimum number of other images in the class of a label issue. A single image always contradicts its label."""

MAX_PAIR_ACCURACY = 0.75
"""Accuracy within a pair of classes, 0.5 by chance, below which a pair counts as confusable. Cats and dogs of CIFAR-10
have 0.83, shirts and T-shirts of Fashion-MNIST 0.78."""

MIN_IMAGES_TO_CONFUSE = 8
"""Minimum number of images of each class in a confusable pair. With many classes, the sample has only that many."""

MAX_PAIRS = 10
"""Maximum number of confusable pairs to report."""

MAX_NAMES = 24
"""Maximum number of image names in a warning."""

MIN_SIDE = 64
"""Image size in pixels below which a network's last feature maps, a 32nd of the image, have a single position."""

MIN_TOKENS = 4
"""Number of tokens from which images may be smaller: as many as feature maps have positions at `MIN_SIDE`."""

MIN_SCALE = 0.5
"""Original size as a fraction of the network's image size, below which enlarged images count as low resolution."""

MIN_IMAGES_PER_CLASS = 10
"""Minimum number of training images per class. With fewer, its accuracy is uncertain by more than 30 points."""

_SCALES = np.exp(np.linspace(np.log(0.5), np.log(64), 29))
_RATES = np.concatenate([[0.0], np.geomspace(0.002, 0.4, 36)])  # with higher rates, two classes could swap


class LeftOutScores(Protocol):
    """Scores of images by models that did not train on them, such as a `RidgeProbe`."""

    @property
    def scores(self) -> np.ndarray:
        """Score of each image and class, shape (N, classes)."""


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """Estimated rate of wrong labels, and the probability that each label is wrong."""

    rate: float
    evidence: float  # log likelihood ratio to a rate of 0, in nats
    wrong: np.ndarray  # shape (N,); 0 for images with too few others of their class
    likely: np.ndarray  # most probable class other than the label, shape (N,)

    @property
    def notable(self) -> bool:
        """Whether the noise is worth a warning."""
        return self.evidence >= MIN_EVIDENCE and self.rate >= MIN_NOISE_RATE

    def issues(
        self, labels: np.ndarray, names: Sequence[str], class_names: Sequence[str]
    ) -> tuple[LabelIssue, ...]:
        """Return the images whose label is probably wrong; none without evidence."""
        if self.evidence < MIN_EVIDENCE:
            return ()
        return tuple(
            LabelIssue(
                str(names[i]), class_names[labels[i]], class_names[self.likely[i]], float(self.wrong[i])
            )
            for i in np.argsort(-self.wrong, kind="stable")
            if self.wrong[i] > MIN_PROBABILITY
        )


class LabelIssue(NamedTuple):
    """An image whose label is probably wrong."""

    name: str
    label: str
    likely: str
    probability: float  # probability that the label is wrong


class ConfusablePair(NamedTuple):
    """Two classes that the network can hardly separate."""

    first: str
    second: str
    accuracy: float  # accuracy within the pair, with both classes weighted equally
    standard_error: float


class DataWarning(NamedTuple):
    """A possible problem of the data."""

    kind: str
    text: str
    images: tuple[str, ...] = ()  # at most `MAX_NAMES`


def label_noise(probe: LeftOutScores, labels: np.ndarray, *, groups: Sequence[Hashable] = ()) -> LabelNoise:
    """Estimate the rate of wrong labels by maximum likelihood, from left-out scores."""
    # Symmetric noise (Patrini et al., 2017, arXiv:1609.03683): a label is correct with probability 1 - e, otherwise any
    # other class. Left-out scores s give the correct class with probabilities softmax(c s). The rate e and the scale c
    # maximize the likelihood of the labels; Bayes' rule gives the probability that each label is wrong. Without e, the
    # scale must shrink for each contradiction, so e grows only if contradictions are more certain than the network's
    # usual errors. Thresholds by class (Northcutt et al., 2021, arXiv:1911.00068) mistake usual errors for wrong
    # labels: they reported 1 to 9% of clean images, and for the same number of images found 6 to 14 points fewer
    # flipped labels. Classes that are swapped systematically look like hard classes, and are not found.
    labels = _check_labels(probe, labels, groups)
    count, classes = probe.scores.shape
    likely = np.where(np.arange(classes) == labels[:, None], -np.inf, probe.scores).argmax(axis=1)
    judged = _count_others(labels, groups) >= MIN_OTHERS
    scores, given = probe.scores[judged], labels[judged]
    classes = len(np.unique(given))
    if classes < 2:
        return LabelNoise(0.0, 0.0, np.zeros(count), likely)
    # Probability of each label by scale, and likelihood of all labels by scale and rate.
    own = np.stack([softmax(scale * scores, axis=1)[np.arange(len(given)), given] for scale in _SCALES])
    likelihood = np.stack([_log_likelihood(row, classes) for row in own])
    scale, index = np.unravel_index(likelihood.argmax(), likelihood.shape)
    rate, correct = float(_RATES[index]), own[scale]
    spread = rate * (1 - correct) / (classes - 1)
    wrong = np.zeros(count)
    wrong[judged] = spread / np.maximum((1 - rate) * correct + spread, 1e-300)
    return LabelNoise(rate, float(likelihood.max() - likelihood[:, 0].max()), wrong, likely)


def _log_likelihood(own: np.ndarray, classes: int) -> np.ndarray:
    """Return the log likelihood of all labels at each rate of `_RATES`."""
    rates = _RATES[:, None]
    mixed = (1 - rates) * own + rates * (1 - own) / (classes - 1)
    return np.log(np.maximum(mixed, 1e-300)).sum(axis=1)


def _count_others(labels: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return the number of other images of each image's class, outside its own group."""
    of_class = np.bincount(labels)[labels]
    if not len(groups):
        return of_class - 1
    pairs = np.stack([labels, np.unique(np.asarray(groups), return_inverse=True)[1]])
    _, index, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    return of_class - counts[index.reshape(-1)]


def find_label_issues(
    probe: LeftOutScores,
    labels: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    groups: Sequence[Hashable] = (),
) -> tuple[LabelIssue, ...]:
    """Return the images whose label is more probably wrong than correct, the most probable first."""
    _check_names(probe, names, class_names)
    return label_noise(probe, labels, groups=groups).issues(labels, names, class_names)


@dataclass(frozen=True)
class _HeldOutScores:
    scores: np.ndarray  # log probabilities of images that the model was not trained on, shape (N, classes)


def label_issues_of(evaluation: AnyEvaluation | None) -> tuple[LabelIssue, ...]:
    """Return the images of an evaluation whose label is more likely wrong than right; none for other tasks."""
    if not isinstance(evaluation, Evaluation):
        return ()
    with optional("the label issues"):
        scores = _HeldOutScores(np.log(np.maximum(evaluation.probabilities, 1e-12)))
        names, classes = evaluation.names, evaluation.class_names
        return find_label_issues(scores, evaluation.labels, names, classes, groups=evaluation.groups)
    return ()


def confusable_classes(
    probe: LeftOutScores, labels: np.ndarray, class_names: Sequence[str]
) -> tuple[ConfusablePair, ...]:
    """Return pairs of classes that the network can hardly separate, the worst first."""
    # Within a pair, an image is classified by the difference of its two left-out scores. The border is halfway between
    # the means of the two classes, so that small classes count as much as large ones. A pair is reported if its
    # accuracy is below `MAX_PAIR_ACCURACY` by two standard errors.
    labels = _check_labels(probe, labels, ())
    _check_names(probe, range(len(labels)), class_names)
    counts = np.bincount(labels, minlength=probe.scores.shape[1])
    enough = np.flatnonzero(counts >= MIN_IMAGES_TO_CONFUSE)
    if len(enough) < 2:
        return ()
    of_class = [probe.scores[labels == k][:, enough] for k in enough]
    means = np.stack([scores.mean(axis=0) for scores in of_class])
    margin = np.diag(means)[:, None] - means  # mean of its own score minus that of another class
    border = (margin - margin.T) / 2
    # Fraction of each class that is separated from each other class.
    correct = np.stack([np.mean(s[:, [a]] - s > border[a], axis=0) for a, s in enumerate(of_class)])
    variance = correct * (1 - correct) / counts[enough][:, None]
    accuracy, error = (correct + correct.T) / 2, np.sqrt(variance + variance.T) / 2
    first, second = np.nonzero(np.triu(accuracy + 2 * error < MAX_PAIR_ACCURACY, 1))
    pairs = sorted(zip(first, second, strict=True), key=lambda pair: accuracy[pair])[:MAX_PAIRS]
    return tuple(
        ConfusablePair(
            class_names[enough[a]], class_names[enough[b]], float(accuracy[a, b]), float(error[a, b])
        )
        for a, b in pairs
    )


def find_warnings(
    data: ImageData,
    sample: SampleFeatures,
    curve: LayerCurve,
    *,
    image_size: tuple[int, int],
    num_tokens: int = 0,
) -> tuple[DataWarning, ...]:
    """Return possible problems of the data, the most important first."""
    return (
        *_duplicates(data),
        *(_label_warnings(data, sample, curve) if curve.signal else ()),
        *_low_resolution(data, *image_size, num_tokens),
        *_few_images(data),
    )


def _label_warnings(data: ImageData, sample: SampleFeatures, curve: LayerCurve) -> Iterable[DataWarning]:
    probe, names = curve.best, [data.class_names[k] for k in np.unique(sample.images.labels)]
    noise = label_noise(probe, sample.labels, groups=sample.images.groups)
    issues = noise.issues(sample.labels, sample.images.names, names)
    if noise.notable and issues:
        first = issues[0]
        yield DataWarning(
            "label-noise",
            f"About {noise.rate:.0%} of the labels are probably wrong. There are {plural(len(issues), 'label issue')}, "
            f"such as {first.name}: labeled {first.label}, looks like {first.likely}. Check them before training.",
            tuple(issue.name for issue in issues[:MAX_NAMES]),
        )
    pairs = confusable_classes(probe, sample.labels, names)
    if pairs:
        worst = pairs[0]
        more = f", and {plural(len(pairs[1:]), 'more pair')}" if len(pairs) > 1 else ""
        yield DataWarning(
            "confusable",
            f"The network can hardly separate {worst.first} from {worst.second} (accuracy {worst.accuracy:.0%} within "
            f"the pair, chance is 50%){more}. Merge classes that are the same, or add images that show the difference.",
        )


def _duplicates(data: ImageData) -> Iterable[DataWarning]:
    shared = [same for same in data.report.duplicates if len(set(same.splits)) > 1]
    if shared:
        yield DataWarning(
            "duplicates",
            f"Found {plural(len(shared), 'image')} in more than one of the given splits, so test results are "
            "too optimistic. Remove duplicates from the training images, or let the package draw the split.",
            tuple(str(name) for same in shared for name in same.names)[:MAX_NAMES],
        )


def _low_resolution(data: ImageData, height: int, width: int, num_tokens: int) -> Iterable[DataWarning]:
    tall, wide = data.report.heights[1], data.report.widths[1]
    if min(height, width) < MIN_SIDE and num_tokens < MIN_TOKENS:
        yield DataWarning(
            "low-resolution",
            f"At {width} x {height} pixels, the last feature maps of the network have hardly more than one position. "
            f"Use an image size of {MIN_SIDE} or more, preferably 96, even if images have to be enlarged.",
        )
    elif 0 < min(tall / height, wide / width) < MIN_SCALE:
        yield DataWarning(
            "low-resolution",
            f"Images of {wide} x {tall} pixels (median) are enlarged to {width} x {height}, which blurs them. Use "
            "larger originals if there are any.",
        )


def _few_images(data: ImageData) -> Iterable[DataWarning]:
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    few = [int(k) for k in np.argsort(counts, kind="stable") if counts[k] < MIN_IMAGES_PER_CLASS]
    if few:
        listed = ", ".join(f"{data.class_names[k]} {counts[k]}" for k in few[:3]) + ", ..." * (len(few) > 3)
        yield DataWarning(
            "few-images",
            f"{len(few)} of {data.num_classes} classes have fewer than {MIN_IMAGES_PER_CLASS} training images "
            f"({listed}). Their accuracy is very uncertain. Add images.",
        )


def _check_labels(probe: LeftOutScores, labels: np.ndarray, groups: Sequence[Hashable]) -> np.ndarray:
    """Return the labels as an array; raise `InputError` if labels or groups do not fit the scores."""
    labels = np.asarray(labels)
    count, classes = probe.scores.shape
    fits = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not fits or (count and not 0 <= labels.min() <= labels.max() < classes):
        raise InputError(
            f"Expected {count} labels from 0 to {classes - 1}, as for the scores. Received: shape {labels.shape} of "
            f"{labels.dtype}. Use the labels that the scores were computed with."
        )
    if len(groups) not in (0, count):
        raise InputError(f"Expected a group for each of {count} images, or none. Received: {len(groups)}.")
    return labels


def _check_names(probe: LeftOutScores, names: Sequence[Hashable], class_names: Sequence[str]) -> None:
    count, classes = probe.scores.shape
    if len(names) != count or len(class_names) != classes:
        raise InputError(
            f"Expected names of {count} images and {classes} classes, as for the scores. Received: {len(names)} and "
            f"{len(class_names)}."
        )
