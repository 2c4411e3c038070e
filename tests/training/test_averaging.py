"""An average of models returns the mean of their probabilities, and is a model like any other."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import large_similar, small_similar
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import calibrate, evaluate
from transfer.evaluation.explanations import grad_cam, map_note, occlusion
from transfer.exporters.export import export
from transfer.images.datasets import load_data
from transfer.results.finished_runs import load_run
from transfer.results.saved_runs import save_run
from transfer.training.averaging import average
from transfer.training.fit import fit


@pytest.fixture(scope="module")
def data(shuffled_folder):
    """Images whose labels cannot be learned, so that probabilities are far from 0 and 1."""
    return load_data(shuffled_folder, val=30, test=0.1)


@pytest.fixture(scope="module")
def trained(data):
    """A head on several layers of a frozen network, and a fine-tuned network, with their logs."""
    head = small_similar(make_tiny(), data.num_classes, cut="all", preprocessing="tf")
    tuned = large_similar(make_tiny(), data.num_classes, preprocessing="tf")
    return [head, tuned], [fit(head, data, verbose=0), fit(tuned, data, epochs=1, verbose=0)]


@pytest.fixture(scope="module")
def images(data):
    return np.stack([data.test.image(i, (32, 32)) for i in range(len(data.test))]).astype("float32")


def test_probabilities_are_the_mean_and_the_given_models_are_unchanged(trained, images):
    models, _ = trained
    before = [model.get_weights() for model in models]
    flags = [[layer.trainable for layer in model.layers] for model in models]
    result = average(models)
    expected = np.mean([model.predict(images, verbose=0) for model in models], axis=0)
    np.testing.assert_allclose(result.predict(images, verbose=0), expected, atol=1e-6)
    for model, weights in zip(models, before, strict=True):
        assert all(map(np.array_equal, model.get_weights(), weights))
    assert [[layer.trainable for layer in model.layers] for model in models] == flags
    assert result.compiled and not result.trainable_weights
    assert [decision.case for decision in decision_of(result).averaged] == ["small-similar", "large-similar"]


def test_images_are_resized_for_a_model_of_another_size(images):
    small, large = (
        small_similar(make_tiny(), 3, preprocessing="tf", image_size=size, seed=size) for size in (32, 48)
    )
    result = average([small, large])
    assert result.input_shape == (None, 48, 48, 3)
    big = keras.ops.image.resize(images, (48, 48))
    few = keras.ops.image.resize(big, (32, 32))
    expected = (small.predict(few, verbose=0) + large.predict(big, verbose=0)) / 2
    np.testing.assert_allclose(result.predict(big, verbose=0), expected, atol=1e-6)


def test_calibration_finds_the_temperature_of_the_average(trained, data):
    result = average(trained[0])
    before = evaluate(result, data, split="val")
    temperature = calibrate(result, data)
    after = evaluate(result, data, split="val")
    assert temperature != pytest.approx(1, abs=0.01) and after.loss < before.loss
    assert calibrate(result, data) == pytest.approx(1, abs=0.01)


def test_explanations_of_an_average(trained, images):
    result = average(trained[0])
    heat, hidden = grad_cam(result, images[:2]), occlusion(result, images[:2])
    assert heat.shape == hidden.shape == (2, 32, 32) and heat.max() == pytest.approx(1)
    assert "of one of 2 averaged models" in map_note(result, (32, 32))


def test_a_saved_average_says_what_it_is_and_predicts_the_same_elsewhere(trained, data, tmp_path):
    models, logs = trained
    result = average(models)
    evaluation = evaluate(result, data)
    run = save_run(result, data, logs, tmp_path / "run")
    weights = {weight.path: np.asarray(weight) for weight in result.weights}
    assert all(np.array_equal(np.asarray(w), weights[w.path]) for w in run.model.weights)
    assert len(run.model.weights) == sum(len(model.weights) for model in models)
    described = "the average of 2 models: a new head on 3 layers of the frozen network; and a new head after"
    assert (run.folder / "network.png").is_file()
    for name in ("report.html", "README.md"):
        assert described in (run.folder / name).read_text()
    code = (
        "import sys, numpy, transfer; folder = sys.argv[1]; run = transfer.load_run(folder);"
        "numpy.save(folder + '/p.npy', transfer.evaluate(run.model, run.data()).probabilities)"
    )
    subprocess.run([sys.executable, "-c", code, str(run.folder)], check=True)
    np.testing.assert_allclose(np.load(run.folder / "p.npy"), evaluation.probabilities, atol=1e-6)
    assert load_run(run.folder).metrics["test_accuracy"] == pytest.approx(evaluation.accuracy)


@pytest.mark.parametrize("kind", ["saved-model", "litert", "onnx", "openvino"])
def test_an_average_is_exported(kind, trained, data, tmp_path):
    package = {"onnx": "tf2onnx", "openvino": "openvino", "litert": "ai_edge_litert"}.get(kind)
    if package and find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    exported = export(average(trained[0]), kind, output=tmp_path / kind, data=data)
    assert exported.agreement == 1


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (lambda model: [model], "two models or more"),
        (lambda model: model, "two models or more"),
        (lambda model: [model, small_similar(make_tiny(), 4, preprocessing="tf")], "3, 4 classes"),
    ],
)
def test_models_that_cannot_be_averaged_are_refused(others, message, trained):
    with pytest.raises(InputError, match=message):
        average(others(trained[0][0]))


def test_models_of_other_classes_and_training_of_an_average_are_refused(trained, data, color_folder):
    other = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, other, verbose=0)
    with pytest.raises(InputError, match="trained with the same class names"):
        average([*trained[0], model])
    with pytest.raises(InputError, match="Received an average of models"):
        fit(average(trained[0]), data)
