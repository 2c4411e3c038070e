"""What is wrong with labels and images, said before anything is trained on them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from scipy.special import softmax

from transfer.adviser.curves import LayerCurve
from transfer.adviser.probes import RidgeProbe
from transfer.adviser.sample_features import SampleFeatures
from transfer.common.errors import InputError
from transfer.images.datasets import ImageData

EVIDENCE = 2.7
"""Nats by which wrong labels must explain the left-out scores better than none. Twice that is a chi-square of one
degree of freedom, halved since a share is not below 0: one clean set in a hundred comes so far by chance."""

NOTABLE_NOISE = 0.02
"""Share of wrong labels from which on a warning is due. CIFAR-10, Fashion-MNIST, ants and bees, emoji and hand signs,
as they are, gave at most 0.006 with evidence (EfficientNet-Lite0 at 96 px, 120 to 1,000 images), but for one draw of
120 signs (0.024); with 5% of the labels flipped, 0.036 to 0.065."""

WRONG = 0.5
"""Probability of a wrong label from which on an image is suspected."""

COMPARABLE = 4
"""Other images that a class must have for one of its own to be judged: one alone always contradicts its label."""

APART = 0.75
"""Accuracy within a pair of classes, 0.5 for guessing, below which a network can hardly tell them apart. Cats and dogs
of CIFAR-10 have 0.83, shirts and T-shirts of Fashion-MNIST 0.78."""

FEWEST_TO_CONFUSE = 8
"""Images of each of two classes to call them confusable; as many as `looks` takes of each of many classes."""

MOST_PAIRS = 10
"""Confusable pairs that are named."""

MOST_NAMED = 24
"""Images that a warning names."""

LEAST_SIDE = 64
"""Pixels below which a network's last maps, a 32nd of the image, are a single place."""

LEAST_SHARE = 0.5
"""Of the network's image size: smaller images are enlarged, and the network sees blur where it looks for detail."""

FEWEST_OF_A_CLASS = 10
"""Training images of a class: of fewer, its accuracy is not even known to within 30 points."""

_SCALES = np.exp(np.linspace(np.log(0.5), np.log(64), 29))
_SHARES = np.concatenate([[0.0], np.geomspace(0.002, 0.4, 36)])  # with more, two classes would change names


class LeftOut(Protocol):
    """What `ridge_leave_one_out` gives, or anything else that judged images without having learnt from
    them."""

    @property
    def scores(self) -> np.ndarray:
        """Of each image and class."""


@dataclass(frozen=True, eq=False)
class LabelNoise:
    """How many labels seem wrong, and which."""

    share: float
    evidence: float
    # Probability that each label is wrong, shape (N,).
    wrong: np.ndarray
    # The most probable class other than the label, shape (N,).
    likely: np.ndarray

    @property
    def notable(self) -> bool:
        """Whether it is worth a warning."""
        return self.evidence >= EVIDENCE and self.share >= NOTABLE_NOISE


class LabelIssue(NamedTuple):
    """An image whose label contradicts what all others say of it."""

    name: str
    label: str
    likely: str
    probability: float


class Confusable(NamedTuple):
    """Two classes that a network can hardly tell apart."""

    first: str
    second: str
    # Within the two, each counting the same.
    accuracy: float
    standard_error: float


class DataWarning(NamedTuple):
    """Something to mend before days are spent on training."""

    kind: str
    text: str
    # Names of images concerned, at most `MOST_NAMED`.
    images: tuple[str, ...] = ()


def label_noise(probe: LeftOut, labels: np.ndarray, *, groups: Sequence[Any] = ()) -> LabelNoise:
    """Estimate how many labels are wrong, from what each image looks like to all others."""
    labels = _checked(probe, labels, groups)
    count, classes = probe.scores.shape
    others = np.where(np.arange(classes) == labels[:, None], -np.inf, probe.scores)
    likely = others.argmax(axis=1)
    judged = _others_of_class(labels, groups) >= COMPARABLE
    scores, told = probe.scores[judged], labels[judged]
    classes = len(np.unique(told))
    if classes < 2:
        return LabelNoise(0.0, 0.0, np.zeros(count), likely)
    # By scale: how probable each label is, and how likely all are under each share.
    own = np.stack([softmax(scale * scores, axis=1)[np.arange(len(told)), told] for scale in _SCALES])
    total = np.stack([_log_likelihood(row, classes) for row in own])
    scale, number = np.unravel_index(total.argmax(), total.shape)
    share, right = float(_SHARES[number]), own[scale]
    spread = share * (1 - right) / (classes - 1)
    wrong = np.zeros(count)
    wrong[judged] = spread / np.maximum((1 - share) * right + spread, 1e-300)
    return LabelNoise(share, float(total.max() - total[:, 0].max()), wrong, likely)


def find_label_issues(
    probe: LeftOut,
    labels: np.ndarray,
    names: Sequence[str],
    class_names: Sequence[str],
    *,
    groups: Sequence[Any] = (),
) -> tuple[LabelIssue, ...]:
    """Name the images whose label is more probably wrong than right."""
    noise = label_noise(probe, labels, groups=groups)
    _check_names(probe, names, class_names)
    return _label_issues(noise, labels, names, class_names)


def _label_issues(
    noise: LabelNoise, labels: np.ndarray, names: Sequence[str], class_names: Sequence[str]
) -> tuple[LabelIssue, ...]:
    if noise.evidence < EVIDENCE:
        return ()
    order = np.argsort(-noise.wrong, kind="stable")
    return tuple(
        LabelIssue(str(names[i]), class_names[labels[i]], class_names[noise.likely[i]], float(noise.wrong[i]))
        for i in order[noise.wrong[order] > WRONG]
    )


def _log_likelihood(own: np.ndarray, classes: int) -> np.ndarray:
    """Of all labels, by share of wrong ones, given how probable each would be if none were wrong."""
    shares = _SHARES[:, None]
    mixed = (1 - shares) * own + shares * (1 - own) / (classes - 1)
    return np.log(np.maximum(mixed, 1e-300)).sum(axis=1)


def _others_of_class(labels: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    """How many images of its class each image was judged by: none of its own group was."""
    of_class = np.bincount(labels)[labels]
    if not len(groups):
        return of_class - 1
    pairs = np.stack([labels, np.unique(np.asarray(groups), return_inverse=True)[1]])
    _, number, counts = np.unique(pairs, axis=1, return_inverse=True, return_counts=True)
    return of_class - counts[number.reshape(-1)]


def confusable_classes(
    probe: RidgeProbe, labels: np.ndarray, class_names: Sequence[str]
) -> tuple[Confusable, ...]:
    """Name pairs of classes that a network can hardly tell apart."""
    labels = _checked(probe, labels, ())
    _check_names(probe, range(len(labels)), class_names)
    counts = np.bincount(labels, minlength=probe.scores.shape[1])
    enough = np.flatnonzero(counts >= FEWEST_TO_CONFUSE)
    if len(enough) < 2:
        return ()
    of_class = [probe.scores[labels == k][:, enough] for k in enough]
    means = np.stack([scores.mean(axis=0) for scores in of_class])
    ahead = np.diag(means)[:, None] - means  # of its own score over another's, by class
    middle = (ahead - ahead.T) / 2
    # The share of a class that is told from another.
    right = np.stack([np.mean(s[:, [a]] - s > middle[a], axis=0) for a, s in enumerate(of_class)])
    variance = right * (1 - right) / counts[enough][:, None]
    accuracy, error = (right + right.T) / 2, np.sqrt(variance + variance.T) / 2
    first, second = np.triu_indices(len(enough), 1)
    named = accuracy[first, second] + 2 * error[first, second] < APART
    first, second = first[named], second[named]
    return tuple(
        Confusable(class_names[enough[a]], class_names[enough[b]], float(accuracy[a, b]), float(error[a, b]))
        for a, b in sorted(zip(first, second, strict=True), key=lambda pair: accuracy[pair])[:MOST_PAIRS]
    )


def warnings_of(
    data: ImageData, sample: SampleFeatures, curve: LayerCurve, *, image_size: int | tuple[int, int]
) -> tuple[DataWarning, ...]:
    """Say what should be mended before anything is trained."""
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    told = _of_labels(data, sample, curve) if curve.signal else _no_signal(curve)
    found = [*told, *_duplicates(data), *_low_resolution(data, height, width), *_few_images(data)]
    order = ("no-signal", "duplicates", "label-noise", "confusable", "low-resolution", "few-images")
    return tuple(sorted(found, key=lambda warning: order.index(warning.kind)))


def _no_signal(curve: LayerCurve) -> Iterable[DataWarning]:
    yield DataWarning(
        "no-signal",
        f"The labels look shuffled: the network tells {curve.together.accuracy:.0%} of the images, and "
        f"{curve.chance[0]:.0%} when the labels are shuffled on purpose. Check how images got their labels; if they "
        "are right, this needs more images or another network.",
    )


def _of_labels(data: ImageData, sample: SampleFeatures, curve: LayerCurve) -> Iterable[DataWarning]:
    probe, names = curve.best, [data.class_names[k] for k in np.unique(sample.images.labels)]
    noise = label_noise(probe, sample.labels, groups=sample.images.groups)
    label_issues = _label_issues(noise, sample.labels, sample.images.names, names)
    if noise.notable and label_issues:
        first = label_issues[0]
        yield DataWarning(
            "label-noise",
            f"About {noise.share:.0%} of the labels seem wrong. {_images(label_issues, 'contradicts', 'contradict')} "
            f"the label with confidence, such as {first.name}: labelled {first.label}, looks like {first.likely}. "
            "Look at these before training.",
            tuple(label_issue.name for label_issue in label_issues[:MOST_NAMED]),
        )
    pairs = confusable_classes(probe, sample.labels, names)
    if pairs:
        worst = pairs[0]
        more = (
            f", and {len(pairs) - 1} more pairs"
            if len(pairs) > 2
            else ", and another pair" * (len(pairs) - 1)
        )
        yield DataWarning(
            "confusable",
            f"The network can hardly tell {worst.first} from {worst.second} ({worst.accuracy:.0%} of the two, where "
            f"guessing gives 50%){more}. Merge what is one class, or add images that show the difference.",
        )


def _duplicates(data: ImageData) -> Iterable[DataWarning]:
    shared = [same for same in data.report.same if len(set(same.splits)) > 1]
    if shared:
        yield DataWarning(
            "duplicates",
            f"{_images(shared, 'is', 'are')} in two or more of the splits that the data came with, so what is "
            "measured flatters. Take them out of the training images, or let the split be drawn.",
            tuple(str(name) for same in shared for name in same.names)[:MOST_NAMED],
        )


def _low_resolution(data: ImageData, height: int, width: int) -> Iterable[DataWarning]:
    tall, wide = data.report.heights[1], data.report.widths[1]
    if min(height, width) < LEAST_SIDE:
        yield DataWarning(
            "low-resolution",
            f"At {width} x {height} pixels the network's last layers see hardly more than one place of an image. Take "
            f"an image size of {LEAST_SIDE} or more, better 96, even if images have to be enlarged.",
        )
    elif 0 < min(tall / height, wide / width) < LEAST_SHARE:
        yield DataWarning(
            "low-resolution",
            f"Images of {wide} x {tall} pixels (median) are enlarged to {width} x {height}: the network sees blur "
            "where it looks for detail. Take larger originals, if there are any.",
        )


def _few_images(data: ImageData) -> Iterable[DataWarning]:
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    few = [int(k) for k in np.argsort(counts, kind="stable") if counts[k] < FEWEST_OF_A_CLASS]
    if few:
        listed = ", ".join(f"{data.class_names[k]} {counts[k]}" for k in few[:3]) + ", ..." * (len(few) > 3)
        yield DataWarning(
            "few-images",
            f"{len(few)} of {data.num_classes} classes have fewer than {FEWEST_OF_A_CLASS} images to train on "
            f"({listed}): what is expected of them is a guess. Add some.",
        )


def _images(items: Sequence[Any], one: str, many: str) -> str:
    return f"1 image {one}" if len(items) == 1 else f"{len(items):,} images {many}"


def _checked(probe: LeftOut, labels: np.ndarray, groups: Sequence[Any]) -> np.ndarray:
    labels = np.asarray(labels)
    count, classes = probe.scores.shape
    fits = labels.shape == (count,) and labels.dtype.kind in "iu"
    if not fits or (count and not 0 <= labels.min() <= labels.max() < classes):
        raise InputError(
            f"Expected the {count} labels that the probe was given, from 0 to {classes - 1}. Received: shape "
            f"{labels.shape} of {labels.dtype}. Take both from the same look."
        )
    if len(groups) not in (0, count):
        raise InputError(f"Expected a group for each of {count} images, or none. Received: {len(groups)}.")
    return labels


def _check_names(probe: LeftOut, names: Sequence[Any], class_names: Sequence[str]) -> None:
    count, classes = probe.scores.shape
    if len(names) != count or len(class_names) != classes:
        raise InputError(
            f"Expected names of {count} images and {classes} classes. Received: {len(names)} and "
            f"{len(class_names)}. Take them from the look that the probe is of."
        )
