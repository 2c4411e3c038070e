"""Which case is mine? Measured on the images, before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

from transfer.adviser.advice import Advice
from transfer.adviser.curves import LayerCurve, SizePoint, layer_curve, side_by_side, size_curve
from transfer.adviser.estimates import (
    FORWARD_PASSES,
    Choice,
    Evidence,
    HeadEvidence,
    choices_of,
    least_seconds,
    pick,
)
from transfer.adviser.label_issues import warnings_of
from transfer.adviser.probes import one_of_each, ridge_leave_one_out, unselected_accuracy
from transfer.adviser.sample_features import MOST_IMAGES, SampleFeatures, extract_sample, some_of_each
from transfer.adviser.similarity import Similarity, measure_similarity
from transfer.adviser.trials import Trial, time_fine_tuning
from transfer.cases.cuts import ALL_LAYERS
from transfer.cases.policies import POLICIES, early_position, rule_of_thumb
from transfer.common.errors import InputError
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import ImageData
from transfer.networks import graphs
from transfer.networks.backbones import block_ends
from transfer.training.schedules import BATCH_SIZE, epochs_for

FEWEST_IMAGES = 20
"""Images below which leaving out tells nothing: an accuracy is uncertain by more than 20 points then."""

FEWEST_GROUPS = 4
"""Groups below which leaving one out tells nothing."""

FADING = 0.7
"""What the next doubling of the images brings, as a share of the last: curves flatten."""

PIXELS = (16, 16)
"""Size of the bare pixels from which training from scratch is foretold."""

MOST_PIXELS_OF = 500
"""Images whose bare pixels are looked at."""


def advise(
    data: ImageData,
    base: keras.Model,
    *,
    max_images: int = MOST_IMAGES,
    time_budget: float | None = None,
    trial: bool = True,
    frozen: bool = False,
    preprocessing: str | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    sample: SampleFeatures | None = None,
    seed: int = 0,
) -> Advice:
    """Say which of the four cases is best for some images, where to cut, and what to expect.

    One forward pass with taps at every block's end, probes on what they give, and a few steps of fine-tuning: no more
    than a minute or so for 2,000 images on a laptop.

    Args:
        data: of `load_data`; the test images are not looked at.
        base: a pre-trained network, best with its own classifier.
        max_images: images to look at, at most.
        time_budget: seconds that training may take; None is as much as it takes.
        trial: time a few steps of fine-tuning; without, its time is the least that it can be.
        frozen: advise a head on the frozen network, whatever fine-tuning would bring.
        preprocessing: see `builders.build`.
        engine: what runs the network, one of `engines.ENGINES`.
        cache: where features are kept; None is the user's own cache.
        look: of `looks.extract_sample`, where one was taken already.
        seed: of the choice of images, of folds, and of the trial.

    Returns:
        The advice.

    Raises:
        InputError: a number is out of range, or the network gives NaN on these images.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> sum(advise(load_data("emoji"), base, max_images=100, trial=False).images_per_class.values())
        344
    """
    if max_images < 2 or (time_budget is not None and not time_budget > 0):
        raise InputError(
            "Expected max_images of 2 or more and a time_budget in seconds, above 0. Received: "
            f"{max_images}, {time_budget}."
        )
    start = time.perf_counter()
    if sample is None:
        options: dict[str, Any] = {"preprocessing": preprocessing, "engine": engine, "cache": cache}
        sample = extract_sample(data, base, max_images=max_images, seed=seed, **options)
    curve, sizes = curves_of(sample, seed)
    tried = None
    if trial and curve is not None and curve.signal and not _out_of_reach(data, sample, time_budget):
        size = sample.image_size
        tried = time_fine_tuning(sample.images, base, image_size=size, preprocessing=preprocessing, seed=seed)
    similarity = measure_similarity(sample, base.name, base=base)
    evidence = _evidence(data, sample, curve, sizes, similarity, tried)
    choices = choices_of(evidence)
    frozen = frozen or not evidence.signal  # nobody should wait for what there is not
    choice = pick(choices, time_budget=time_budget, frozen=frozen) if choices else _unmeasured(evidence, base)
    return Advice(
        data=data.name,
        model=base.name,
        image_size=sample.image_size,
        choice=choice,
        choices=choices or (choice,),
        time_budget=time_budget,
        similarity=similarity,
        images_per_class=_counts(data),
        curve=curve,
        sizes=sizes,
        trial=tried,
        warnings=() if curve is None else warnings_of(data, sample, curve, image_size=sample.image_size),
        notes=_notes(data, sample, curve, similarity, tried if trial else None),
        evidence=evidence,
        seconds=time.perf_counter() - start,
    )


def _out_of_reach(data: ImageData, sample: SampleFeatures, time_budget: float | None) -> bool:
    """Say whether fine-tuning takes too long for sure, so that nobody need try it."""
    if time_budget is None or sample.seconds_per_image is None:
        return False
    return least_seconds(sample.seconds_per_image, _steps(data, "pretrained")) > time_budget


def _steps(data: ImageData, init: str) -> int:
    """How many `fit` takes to train everything."""
    count = len(data.train)
    return epochs_for(count, BATCH_SIZE, init=init) * -(-count // BATCH_SIZE)


def _counts(data: ImageData) -> dict[str, int]:
    counts = np.bincount(data.train.labels, minlength=data.num_classes).tolist()
    return dict(zip(data.class_names, counts, strict=True))


def curves_of(sample: SampleFeatures, seed: int) -> tuple[LayerCurve | None, tuple[SizePoint, ...]]:
    """Probe the layers, and the number of images."""
    if len(sample.labels) < FEWEST_IMAGES or sample.num_classes < 2 or np.bincount(sample.labels).max() < 2:
        return None, ()
    groups = sample.images.groups
    if groups and len(set(groups)) < FEWEST_GROUPS:
        return None, ()
    curve = layer_curve(sample.taps, sample.labels, sample.num_classes, groups=groups)
    sizes = size_curve(_features(sample, curve), sample.labels, sample.num_classes, groups=groups, seed=seed)
    return curve, tuple(sizes)


def _features(sample: SampleFeatures, curve: LayerCurve) -> np.ndarray:
    """What the most accurate head sees."""
    if curve.best is curve.together:
        return side_by_side(list(sample.taps.values()))
    return sample.taps[curve.names[int(curve.accuracy.argmax())]]


def _evidence(
    data: ImageData,
    sample: SampleFeatures,
    curve: LayerCurve | None,
    sizes: Sequence[SizePoint],
    similarity: Similarity | None,
    tried: Trial | None,
) -> Evidence:
    counts = np.bincount(data.train.labels)
    return Evidence(
        num_train=len(data.train),
        num_looked=len(sample.labels),
        num_test=len(data.test),
        num_classes=data.num_classes,
        heads=() if curve is None else heads_of(curve),
        growth=_growth(sizes),
        chance=float(counts.max() / counts.sum()),
        signal=curve is None or curve.signal,
        pixels=_pixels(sample) if curve is not None else None,
        similar=None if similarity is None else similarity.similar,
        trial=tried,
        seconds_per_image=_per_image(sample, tried),
        steps=_steps(data, "pretrained"),
        steps_scratch=_steps(data, "random"),
    )


def _per_image(sample: SampleFeatures, tried: Trial | None) -> float:
    """Seconds of a forward pass: as measured; where all was kept from before, by the steps of the trial."""
    if sample.seconds_per_image is None and tried is not None:
        return tried.seconds_per_step / BATCH_SIZE / FORWARD_PASSES
    return sample.seconds_per_image or 0.0


def heads_of(curve: LayerCurve) -> tuple[HeadEvidence, ...]:
    """Say how accurate heads would be."""
    wanted = {curve.names[-1]: curve.probes[-1], curve.cut: curve.probes[curve.names.index(curve.cut)]}
    wanted |= {ALL_LAYERS: curve.together} if len(curve.names) > 1 else {}
    return tuple(
        HeadEvidence(name, unselected_accuracy(probe.correct_by_lambda), probe.standard_error)
        for name, probe in wanted.items()
    )


def _growth(sizes: Sequence[SizePoint]) -> float:
    """What twice as many images bring: somewhat less than the last time they were doubled, never a
    loss."""
    if len(sizes) < 2:
        return 0.0
    return max(0.0, FADING * (sizes[-1].accuracy - sizes[-2].accuracy))


def _pixels(sample: SampleFeatures) -> float:
    """Left-out accuracy of a head on the bare pixels of some images."""
    some = some_of_each(sample.labels, MOST_PIXELS_OF, 0)
    pixels = np.stack([sample.images.image(int(i), PIXELS) for i in some]).reshape(len(some), -1)
    own = sample.images.groups
    groups = [own[i] for i in some] if own else one_of_each(sample.labels[some])
    probe = ridge_leave_one_out(pixels / 255.0, sample.labels[some], sample.num_classes, groups=groups)
    return unselected_accuracy(probe.correct_by_lambda)


def _unmeasured(evidence: Evidence, base: keras.Model) -> Choice:
    """What the rule of thumb says, where there are too few images to measure anything."""
    case = rule_of_thumb(evidence.num_train, bool(evidence.similar))
    ends, cut = block_ends(base), None
    if POLICIES[case].frozen:
        early = POLICIES[case].cut == "early" and ends
        cut = ends[early_position(len(ends))] if early else graphs.layer_before_classifier(base)
    return Choice(
        case, cut, evidence.chance, (0.0, 1.0), None, "the rule of thumb; nothing could be measured"
    )


def _notes(
    data: ImageData,
    sample: SampleFeatures,
    curve: LayerCurve | None,
    similarity: Similarity | None,
    tried: Trial | None,
) -> tuple[str, ...]:
    """Say what could not be measured."""
    notes = []
    if curve is None:
        notes.append(
            f"No accuracy: {len(sample.labels)} images of {sample.num_classes} classes are too few to leave some out. "
            "The case is that of the rule of thumb."
        )
    if sample.num_classes < data.num_classes:
        notes.append(
            f"{data.num_classes - sample.num_classes:,} of {data.num_classes:,} classes are not in the sample, so all "
            "estimates are too high. Use more images (--max-images)."
        )
    if similarity is None:
        notes.append("No similarity: the network has no classifier and no BatchNormalization.")
    else:
        notes += [f"No {name.replace('_', ' ')}: {why}." for name, why in similarity.missing.items()]
    if curve is not None and curve.signal and tried is None:
        notes.append("No trial of fine-tuning: its time is the least that it can be.")
    return tuple(notes)
