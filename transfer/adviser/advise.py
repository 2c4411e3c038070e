"""Measure which of the four cases suits some images, before training."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import keras
import numpy as np

from transfer.adviser.advice import Advice
from transfer.adviser.curves import LayerCurve, SizePoint, layer_curve, size_curve
from transfer.adviser.estimates import (
    FORWARD_PASSES,
    CaseEstimate,
    Evidence,
    HeadEvidence,
    estimate_choices,
    minimum_seconds,
    pick,
)
from transfer.adviser.label_issues import find_warnings
from transfer.adviser.probes import ridge_leave_one_out, stratified_folds
from transfer.adviser.sample_features import MAX_IMAGES, SampleFeatures, extract_sample, stratified_sample
from transfer.adviser.similarity import Similarity, measure_similarity
from transfer.adviser.task_advice import TaskAdvice, advise_task
from transfer.adviser.trials import Trial, time_fine_tuning
from transfer.cases.cuts import ALL_LAYERS, cuts_of, keeps_whole
from transfer.cases.policies import POLICIES, early_position
from transfer.common.accuracies import debiased_accuracy
from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError
from transfer.common.tasks import MULTI, REGRESSION
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.head_choice import HeadChoice, candidate_cuts, choose_head, concatenate_normalized
from transfer.images.datasets import ImageData, check_data
from transfer.images.pipeline import class_weights
from transfer.networks.arguments import check_network
from transfer.networks.graphs import NetworkInfo, analyze
from transfer.networks.hub import plain_network
from transfer.networks.tokens import num_tokens
from transfer.training.schedules import BATCH_SIZE, epochs_for

MIN_IMAGES = 20
"""Minimum number of images for cross-validation. With fewer, the accuracy is uncertain by more than 20 points."""

MIN_GROUPS = 4
"""Minimum number of groups for cross-validation by group."""

GROWTH_DECAY = 0.7
"""Gain of the next doubling of the images, as a fraction of the gain of the last one. Learning curves flatten."""

PIXELS = (16, 16)
"""Image size of the linear classifier on pixels, which estimates training from random weights."""

MAX_PIXEL_IMAGES = 500
"""Maximum number of images for the linear classifier on pixels."""


@explain_arguments()
def advise(
    data: ImageData,
    base: keras.Model,
    *,
    max_images: int = MAX_IMAGES,
    time_budget: float | None = None,
    trial: bool = True,
    frozen: bool = False,
    preprocessing: str | None = None,
    engine: str = "auto",
    cache: FeatureCache | None = None,
    sample: SampleFeatures | None = None,
    seed: int = 0,
) -> Advice | TaskAdvice:
    """Recommend one of the four cases for some images, a cut, and estimate the accuracy.

    The advice rests on one forward pass that extracts the features of every block, on linear probes of these features,
    and on a few timed steps of fine-tuning. It takes about a minute for 2,000 images on a laptop.

    For images with several labels or with a number, the advice is the best head on the frozen network, its mean average
    precision or R2 on out-of-fold predictions, and the time of fine-tuning.

    Args:
        data: images from `load_data`. Test images are not used.
        base: a pre-trained network, preferably with its own classifier.
        max_images: largest number of training images to use, 2 or more.
        time_budget: limit of the training time in seconds, above 0. None is no limit.
        trial: whether to time a few steps of fine-tuning. Without a trial, its estimated time is a lower bound.
        frozen: whether to recommend only heads on the frozen network.
        preprocessing: preprocessing of the network, as for `build`.
        engine: engine that runs the network, one of `ENGINES`.
        cache: feature cache. None is the user's default cache.
        sample: features from `extract_sample`, if they were computed before.
        seed: random seed of the sample, of the folds, and of the trial.

    Returns:
        The advice; for the tasks `"multi"` and `"regression"`, a `TaskAdvice`.

    Raises:
        InputError: the arguments are not `ImageData` and a network, a number is out of range, or the network returns
            NaN for these images.

    Example:
        >>> from transfer.images.datasets import load_data
        >>> base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
        >>> sum(advise(load_data("emoji"), base, max_images=100, trial=False).images_per_class.values())
        343
    """
    check_data(data, "advise(data, base)")
    base = plain_network(base)
    check_network(base)
    if max_images < 2 or (time_budget is not None and not time_budget > 0):
        raise InputError(
            "Expected max_images of 2 or more and a time_budget in seconds, above 0. Received: "
            f"{max_images}, {time_budget}."
        )
    start = time.perf_counter()
    if sample is None:
        sample = extract_sample(
            data,
            base,
            max_images=max_images,
            preprocessing=preprocessing,
            engine=engine,
            cache=cache,
            seed=seed,
        )
    if data.task in (MULTI, REGRESSION):
        task = advise_task(data, base, sample, trial=trial, preprocessing=preprocessing, seed=seed)
        return replace(task, seconds=time.perf_counter() - start)
    advice = advise_on(
        data,
        base,
        sample,
        probe_sample(sample, seed),
        time_budget=time_budget,
        trial=trial,
        frozen=frozen,
        preprocessing=preprocessing,
        seed=seed,
    )
    return replace(advice, seconds=time.perf_counter() - start)


def advise_on(
    data: ImageData,
    base: keras.Model,
    sample: SampleFeatures,
    probes: Probes,
    heads: HeadChoice | None = None,
    *,
    time_budget: float | None = None,
    trial: bool = True,
    frozen: bool = False,
    preprocessing: str | None = None,
    seed: int = 0,
) -> Advice:
    """Return the advice that follows from features, probes and heads; without heads, they are compared here."""
    start, size, (curve, sizes) = time.perf_counter(), sample.image_size, probes
    timing = None
    if trial and curve is not None and curve.signal and not _exceeds_budget(data, sample, time_budget):
        timing = time_fine_tuning(
            sample.images, base, image_size=size, preprocessing=preprocessing, seed=seed
        )
    similarity = measure_similarity(sample, base.name, base=base)
    network = analyze(base)
    if heads is None and curve is not None:
        heads = choose_heads(sample, network, curve.cut, seed)
    known = () if curve is None or heads is None else head_evidence(heads, network)
    evidence = _evidence(data, sample, curve, known, sizes, similarity, timing)
    choices = estimate_choices(evidence)
    frozen = frozen or not evidence.signal  # without a signal, fine-tuning wastes time
    choice = (
        pick(choices, time_budget=time_budget, frozen=frozen)
        if choices
        else _rule_of_thumb(evidence, network)
    )
    counts = np.bincount(data.train.labels, minlength=data.num_classes).tolist()
    return Advice(
        data=data.name,
        model=base.name,
        image_size=size,
        choice=choice,
        choices=choices or (choice,),
        time_budget=time_budget,
        similarity=similarity,
        images_per_class=dict(zip(data.class_names, counts, strict=True)),
        curve=curve,
        sizes=sizes,
        trial=timing,
        warnings=()
        if curve is None
        else find_warnings(data, sample, curve, image_size=size, num_tokens=num_tokens(network)),
        notes=_notes(data, sample, curve, similarity, timing),
        evidence=evidence,
        seconds=time.perf_counter() - start,
    )


def _exceeds_budget(data: ImageData, sample: SampleFeatures, time_budget: float | None) -> bool:
    """Return whether even the lower bound of the fine-tuning time exceeds the budget."""
    if time_budget is None or sample.seconds_per_image is None:
        return False
    return minimum_seconds(sample.seconds_per_image, _steps(data, "pretrained")) > time_budget


def _steps(data: ImageData, init: str) -> int:
    """Return the number of steps that `fit` takes to train the whole network."""
    count = len(data.train)
    return epochs_for(count, BATCH_SIZE, init=init) * -(-count // BATCH_SIZE)


class Probes(NamedTuple):
    """Cross-validated accuracies of linear probes; None and () if there are too few images."""

    curve: LayerCurve | None = None
    sizes: tuple[SizePoint, ...] = ()


def probe_sample(sample: SampleFeatures, seed: int) -> Probes:
    """Measure the accuracy by layer and by number of images."""
    labels, groups = sample.labels, sample.images.groups
    too_few = len(labels) < MIN_IMAGES or sample.num_classes < 2 or np.bincount(labels).max() < 2
    if too_few or (groups and len(set(groups)) < MIN_GROUPS):
        return Probes()
    curve = layer_curve(sample.taps, labels, sample.num_classes, groups=groups)
    if curve.best is curve.all_layers:
        features = concatenate_normalized(list(sample.taps.values()))
    else:
        features = sample.taps[curve.names[int(curve.accuracy.argmax())]]
    return Probes(curve, tuple(size_curve(features, labels, sample.num_classes, groups=groups, seed=seed)))


def choose_heads(
    sample: SampleFeatures, network: NetworkInfo, cut: str | None, seed: int, *, weighted: bool = False
) -> HeadChoice:
    """Compare heads on the last layer, on the best single layer `cut`, on late blocks, and on all layers."""
    # At another image size, a network may lack layers that depend on the size.
    names, count = cuts_of(network, ALL_LAYERS), sample.num_classes
    return choose_head(
        sample.taps,
        sample.labels,
        count,
        candidates=candidate_cuts(names, best_cut=cut if cut in names else None),
        groups=sample.images.groups,
        class_weights=class_weights(sample.labels, count) if weighted else None,
        seed=seed,
    )


def head_evidence(heads: HeadChoice, network: NetworkInfo) -> tuple[HeadEvidence, ...]:
    """Return the evidence on each head, the best one first."""
    every = cuts_of(network, ALL_LAYERS)
    found = {}
    for one, accuracy in zip(heads.candidates, heads.estimates, strict=True):
        cut = ALL_LAYERS if len(one.cuts) > 1 and one.cuts == every else ",".join(one.cuts)
        whole = keeps_whole(network, one.cuts)
        found[one.name] = HeadEvidence(cut, accuracy, heads.spread(one), whole)
    best = found.pop(heads.best.name)
    return best, *sorted(found.values(), key=lambda one: -one.accuracy)


def growth_of(sizes: Sequence[SizePoint]) -> float:
    """Return the expected gain of accuracy from twice as many images, to an accuracy of 1 at most."""
    if len(sizes) < 2:
        return 0.0
    growth = GROWTH_DECAY * (sizes[-1].accuracy - sizes[-2].accuracy)
    return min(max(0.0, growth), 1 - sizes[-1].accuracy)


def _evidence(
    data: ImageData,
    sample: SampleFeatures,
    curve: LayerCurve | None,
    heads: tuple[HeadEvidence, ...],
    sizes: Sequence[SizePoint],
    similarity: Similarity | None,
    timing: Trial | None,
) -> Evidence:
    counts = np.bincount(data.train.labels)
    seconds_per_image = sample.seconds_per_image or 0.0
    if sample.seconds_per_image is None and timing is not None:  # the features were cached
        seconds_per_image = timing.seconds_per_step / BATCH_SIZE / FORWARD_PASSES
    return Evidence(
        num_train=len(data.train),
        num_sampled=len(sample.labels),
        num_test=len(data.test),
        num_classes=data.num_classes,
        heads=heads,
        growth=growth_of(sizes),
        chance=float(counts.max() / counts.sum()),
        signal=curve is None or curve.signal,
        pixel_accuracy=None if curve is None else _pixel_accuracy(sample),
        similar=None if similarity is None else similarity.similar,
        trial=timing,
        seconds_per_image=seconds_per_image,
        steps=_steps(data, "pretrained"),
        steps_scratch=_steps(data, "random"),
    )


def _pixel_accuracy(sample: SampleFeatures) -> float:
    """Return the cross-validated accuracy of a linear classifier on small images."""
    chosen = stratified_sample(sample.labels, MAX_PIXEL_IMAGES, 0)
    pixels = np.stack([sample.images.image(int(i), PIXELS) for i in chosen]).reshape(len(chosen), -1)
    labels, groups = sample.labels[chosen], sample.images.groups
    folds = [groups[i] for i in chosen] if groups else stratified_folds(labels)
    probe = ridge_leave_one_out(pixels / 255.0, labels, sample.num_classes, groups=folds)
    return debiased_accuracy(probe.correct_by_lambda)


def _rule_of_thumb(evidence: Evidence, network: NetworkInfo) -> CaseEstimate:
    """Return the choice of the rule of thumb, for too few images to measure anything."""
    case = evidence.data_case
    cut = None
    if POLICIES[case].frozen:
        ends = network.block_ends
        early = POLICIES[case].cut == "early" and ends
        cut = ends[early_position(len(ends))] if early else network.last_layer
    return CaseEstimate(case, cut, evidence.chance, (0.0, 1.0), None, "the rule of thumb")


def _notes(
    data: ImageData,
    sample: SampleFeatures,
    curve: LayerCurve | None,
    similarity: Similarity | None,
    timing: Trial | None,
) -> tuple[str, ...]:
    """Return a sentence for each measurement that could not be made."""
    notes = []
    if curve is None:
        notes.append(
            f"Accuracy: {len(sample.labels)} images of {sample.num_classes} classes are too few for cross-validation. "
            "The recommendation is the rule of thumb."
        )
    if sample.num_classes < data.num_classes:
        notes.append(
            f"Accuracy on all classes: the sample lacks {data.num_classes - sample.num_classes:,} of "
            f"{data.num_classes:,} classes, so the estimates are too high. Use more images (--max-images)."
        )
    if similarity is None:
        notes.append("Similarity: the network has no classifier and no BatchNormalization.")
    else:
        notes += [f"Similarity by {name}: {why}." for name, why in similarity.missing.items()]
    if curve is not None and curve.signal and timing is None:
        notes.append("Time of fine-tuning: there was no trial, so the time is a lower bound.")
    return tuple(notes)
