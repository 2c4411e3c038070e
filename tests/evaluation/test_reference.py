"""The reference of a model: its training images tell known images from others, for each kind of model."""

import functools

import numpy as np
import pytest
from helpers.images import COLORS
from helpers.networks import make_tiny

from transfer.cases.builders import large_similar, small_similar
from transfer.evaluation import reference as references
from transfer.evaluation.evaluate import evaluate
from transfer.evaluation.reference import compared_width, limit_notes, measured, reference_of, with_features
from transfer.images.datasets import load_data
from transfer.training.averaging import average


def images_of(colors, count, seed):
    """Return noisy images of some colors, and their labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(colors)
    pixels = np.array(colors)[labels][:, None, None] + rng.integers(-30, 31, (count, 32, 32, 3))
    return np.clip(pixels, 0, 255).astype("uint8"), labels


@pytest.fixture(scope="module")
def data():
    return load_data(
        images_of([*COLORS.values()], 240, 0), class_names=[*COLORS], val=60, near_duplicates=False
    )


@functools.cache
def model_of(kind):
    """Return a model with a head on one layer or on all, one whose network trains, or the average of two."""
    if kind == "average":
        return average([model_of("all"), model_of("fine-tuned")])
    if kind == "fine-tuned":
        return large_similar(make_tiny(), 3, preprocessing="tf")
    return small_similar(make_tiny(), 3, preprocessing="tf", **({"cut": "all"} if kind == "all" else {}))


@pytest.mark.parametrize("kind", ["head", "all", "fine-tuned", "average"])
def test_images_of_other_colors_are_far(kind, data):
    model = model_of(kind)
    reference = reference_of(model, data, engine="keras")
    outputs = with_features(model)
    new, other = (
        reference.distances_of(np.asarray(outputs.predict(one.astype("float32"), verbose=0)[0]))
        for one in (images_of([*COLORS.values()], 60, 1)[0], images_of([(255, 255, 255)], 20, 2)[0])
    )
    assert np.median(other) > np.quantile(new, 0.95)
    assert (new > reference.threshold).mean() <= 0.2
    assert reference.directions.nbytes <= references.MAX_BYTES
    assert reference.held_out == ("validation" if kind in ("fine-tuned", "average") else "training")
    assert len(reference.scores) == len(data.val)


def test_of_a_head_on_several_layers_the_last_one_is_compared(data):
    model = model_of("all")
    last, parts = compared_width(model), [layer for layer in model.layers if "unit" in layer.name]
    assert len(parts) > 1 and last == parts[-1].output.shape[-1] < model.layers[-1].input.shape[-1]
    assert reference_of(model, data, engine="keras").directions.shape[1] == last
    assert compared_width(model_of("head")) == model_of("head").layers[-1].input.shape[-1]


def test_a_reference_is_small(data, monkeypatch):
    model = model_of("head")
    monkeypatch.setattr(references, "MAX_BYTES", 10 * compared_width(model))
    reference = reference_of(model, data, engine="keras")
    assert len(reference.directions) == 10
    monkeypatch.setattr(references.unknown, "MAX_IMAGES", 9)
    assert len(reference_of(model, data, engine="keras").directions) == 9


def test_a_part_of_a_split_has_the_classes_in_their_proportions(data, monkeypatch):
    monkeypatch.setattr(references.unknown, "MAX_IMAGES", 50)
    chosen = (
        np.flatnonzero(data.train.labels == 0).tolist() + np.flatnonzero(data.train.labels == 1)[:6].tolist()
    )
    part = references.sample(data.train.take(np.tile(chosen, 20)))
    assert len(part) == 50 and np.bincount(part.labels)[1] < 15
    assert len(references.sample(data.val.take(range(9)))) == 9


def test_held_out_predictions_replace_those_of_the_model(data):
    model = model_of("head")
    probabilities = np.tile([0.5, 0.3, 0.2], (40, 1))
    reference = reference_of(model, data, held_out=(probabilities, np.arange(40) % 3), engine="keras")
    assert sorted(set(reference.scores.round(3).tolist())) == [0.5, 0.7, 0.8]


def test_the_thresholds_are_measured_on_the_test_images(data):
    model = model_of("head")
    reference, evaluation = reference_of(model, data, engine="keras"), evaluate(model, data, engine="keras")
    values = measured(reference, model, data, evaluation, others=np.ones(5), engine="keras")
    assert values["unknown"]["num_images"] == len(data.test) and values["unknown"]["num_detected"] == 5
    assert values["prediction_sets"]["num_calibration"] == len(data.val)
    assert len(limit_notes(values)) == 2 and limit_notes({}) == []
    few = references.Reference(reference.directions, reference.distances, "training", np.zeros(3))
    assert "prediction_sets" not in measured(few, model, data, evaluation, engine="keras")
    assert measured(few, model, data, None) == {}
