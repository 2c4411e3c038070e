"""`evaluate` on several labels and on numbers: outputs, thresholds, intervals and checks."""

import keras
import numpy as np
import pytest

import transfer
from transfer.common.errors import InputError
from transfer.common.label_metrics import label_thresholds
from transfer.evaluation.evaluate import calibrate, decision_options, evaluate
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.prediction_sets import conformal_quantile
from transfer.evaluation.reference import held_out_scores, measured, reference_of
from transfer.evaluation.value_evaluation import ValueEvaluation
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.training.trained import find_trained

COLORS = ("red", "green", "blue")


def images_of(labels: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Noise in which each label raises one color, uint8 of shape (N, 32, 32, 3)."""
    rng = np.random.default_rng(seed)
    means = 60 + 45 * labels[:, None, None, :] + rng.normal(0, 14, (len(labels), 1, 1, 3))
    return np.clip(means + rng.normal(0, 25, (len(labels), 32, 32, 3)), 0, 255).astype("uint8")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return FeatureCache(tmp_path_factory.mktemp("features"))


@pytest.fixture(scope="module")
def labeled():
    """Images with several labels, some of them without one."""
    labels = (np.random.default_rng(1).random((240, 3)) < [0.25, 0.4, 0.5]).astype(int)
    options = {"val": 0.25, "test": 0.3, "near_duplicates": False}
    return load_data((images_of(labels), labels), task="multi", class_names=COLORS, **options)


@pytest.fixture(scope="module")
def numbers():
    """Images whose number is their brightness, with an error."""
    rng = np.random.default_rng(2)
    levels = rng.uniform(0, 3, 240)
    images = images_of(np.repeat(levels[:, None], 3, axis=1))
    options = {"val": 0.25, "test": 0.3, "near_duplicates": False}
    return load_data((images, 40 * levels - 60 + rng.normal(0, 5, 240)), task="regression", **options)


@pytest.fixture(scope="module")
def model(labeled, cache):
    """A trained model of several labels."""
    keras.utils.set_random_seed(0)
    built = transfer.small_similar(transfer.DemoCNN(weights=None), 3, task="multi")
    transfer.fit(built, labeled, verbose=0, cache=cache)
    return built


@pytest.fixture(scope="module")
def regression(numbers, cache):
    """A trained model of numbers."""
    keras.utils.set_random_seed(0)
    built = transfer.small_similar(transfer.DemoCNN(weights=None), 1, task="regression")
    transfer.fit(built, numbers, verbose=0, cache=cache)
    return built


def pixels(part) -> np.ndarray:
    return np.stack([part.image(i, (48, 48)) for i in range(len(part))]).astype("float32")


def test_the_evaluation_of_labels_has_the_outputs_and_the_thresholds_of_fit(model, labeled, cache):
    found = evaluate(model, labeled, cache=cache)
    assert isinstance(found, LabelEvaluation) and found.class_names == COLORS
    expected = np.asarray(model(pixels(labeled.test), training=False))
    assert found.probabilities == pytest.approx(expected, abs=1e-4)
    assert (found.labels == labeled.test.labels).all()
    assert found.limits.tolist() == find_trained(model).thresholds.tolist()
    assert found.score > 0.6, "better than the fraction of images with a label"
    assert decision_options(model, labeled)["thresholds"].tolist() == found.limits.tolist()


def test_thresholds_without_those_of_fit_come_from_the_validation_images(model, labeled, cache, monkeypatch):
    from dataclasses import replace

    from transfer.training import trained

    before = find_trained(model)
    try:
        trained.record(replace(before, thresholds=None))
        val = evaluate(model, labeled, split="val", cache=cache)
        assert val.limits.tolist() == label_thresholds(val.probabilities, val.labels).tolist()
        others = evaluate(model, (pixels(labeled.test), labeled.test.labels), cache=cache)
        assert others.limits.tolist() == val.limits.tolist(), "those of the images of fit"
    finally:
        trained.record(before)
    given = evaluate(model, labeled, thresholds=[0.1, 0.2, 0.3], cache=cache)
    assert given.limits.tolist() == [0.1, 0.2, 0.3]


def test_the_evaluation_of_numbers_has_the_outputs_and_the_width_of_the_intervals(regression, numbers, cache):
    found = evaluate(regression, numbers, cache=cache)
    assert isinstance(found, ValueEvaluation) and found.r2 > 0.5
    expected = np.asarray(regression(pixels(numbers.test), training=False))[:, 0]
    assert found.predictions == pytest.approx(expected, rel=1e-3, abs=1e-2)
    val = evaluate(regression, numbers, split="val", cache=cache)
    assert val.interval_width is None
    assert found.interval_width == pytest.approx(2 * conformal_quantile(np.abs(val.errors), 0.9))
    averaged = evaluate(regression, numbers, views=3, augment="light", cache=cache)
    assert averaged.predictions.shape == found.predictions.shape
    assert np.abs(averaged.predictions - found.predictions).max() > 0


def test_other_images_are_read_with_the_task_of_the_model(regression, numbers, model, labeled, cache):
    found = evaluate(regression, (pixels(numbers.test), numbers.test.labels), cache=cache)
    assert found.r2 == pytest.approx(evaluate(regression, numbers, cache=cache).r2, abs=1e-4)
    with pytest.raises(InputError, match="task regression, as in the training"):
        evaluate(regression, labeled)
    with pytest.raises(InputError, match="task multi, as in the training"):
        evaluate(
            model, load_data((pixels(labeled.test), np.arange(len(labeled.test)) % 3), class_names=COLORS)
        )


def test_arguments_and_models_of_other_tasks_are_refused(model, labeled, regression, numbers):
    with pytest.raises(InputError, match="rule with one class per image"):
        evaluate(model, labeled, rule="median")
    with pytest.raises(InputError, match="thresholds with the task multi"):
        evaluate(regression, numbers, thresholds=[0.5])
    for wrong in ([0.5], [0.5, 0.5, 1.5]):
        with pytest.raises(InputError, match="3 thresholds from 0 to 1"):
            evaluate(model, labeled, thresholds=wrong)
    for one, data in ((model, labeled), (regression, numbers)):
        with pytest.raises(InputError, match="one class each to calibrate"):
            calibrate(one, data)


def test_logits_and_missing_numbers_are_refused(labeled, numbers):
    inputs = keras.Input((32, 32, 3))
    features = keras.layers.GlobalAveragePooling2D()(inputs)
    logits = keras.Model(inputs, keras.layers.Dense(3)(features))
    with pytest.raises(InputError, match="a sigmoid"):
        evaluate(logits, labeled)
    broken = keras.Model(inputs, keras.layers.Dense(1)(features))
    broken.set_weights([np.full(w.shape, np.nan) for w in broken.get_weights()])
    with pytest.raises(InputError, match="NaN or infinity"):
        evaluate(broken, numbers)


def test_the_reference_has_absolute_errors_and_no_scores_of_labels(
    model, labeled, regression, numbers, cache
):
    of_labels, of_numbers = reference_of(model, labeled), reference_of(regression, numbers)
    assert not len(of_labels.scores) and len(of_numbers.scores) == len(numbers.val)
    found = evaluate(regression, numbers, cache=cache)
    assert of_numbers.interval_width == pytest.approx(found.interval_width, rel=0.05)
    values = measured(of_numbers, regression, numbers, found)
    assert 0.7 < values["prediction_intervals"]["measured"] <= 1
    others = measured(of_labels, model, labeled, evaluate(model, labeled, cache=cache))
    assert "prediction_sets" not in others and others["unknown"]["num_images"] == len(labeled.test)
    assert held_out_scores("regression", np.array([[3.0], [1.0]]), np.array([1.0, 1.5])).tolist() == [
        0.5,
        2.0,
    ]
