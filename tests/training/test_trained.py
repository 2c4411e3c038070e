"""Wrong arguments of `fit` and `evaluate` are refused with advice; a trained model has class names."""

from dataclasses import replace
from functools import partial

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.adviser.advise import advise
from transfer.adviser.comparison import compare
from transfer.cases.builders import small_similar
from transfer.common.errors import InputError
from transfer.evaluation.class_tree import merge
from transfer.evaluation.evaluate import calibrate, evaluate
from transfer.evaluation.screening import screening
from transfer.exporters.export import export
from transfer.images.datasets import load_data
from transfer.results.finished_runs import load_run
from transfer.results.predict import predict
from transfer.training.fit import fit
from transfer.training.learning_rate_finder import find_learning_rate

CLASSES = ("blue", "green", "red")


@pytest.fixture(scope="module")
def data(color_folder):
    return load_data(color_folder, resize="crop")


@pytest.fixture(scope="module")
def model(data):
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, data, verbose=0)
    return model


@pytest.fixture(scope="module")
def arrays(data):
    images = np.stack([data.test.image(i, (32, 32)) for i in range(len(data.test))])
    return images, data.test.labels


def test_a_trained_model_predicts_the_names_of_its_classes(model, data):
    predicted = predict(model, data.test)
    assert {one.class_names for one in predicted} == {CLASSES}
    accuracy = np.mean(
        [one.label == CLASSES[label] for one, label in zip(predicted, data.test.labels, strict=True)]
    )
    assert accuracy == pytest.approx(evaluate(model, data).accuracy)


def test_labeled_images_of_any_form_are_the_test_set(model, data, arrays, color_folder):
    import tensorflow as tf

    x, y = arrays
    expected = evaluate(model, data)
    for given in (
        arrays,
        (x, np.eye(3)[y]),
        (x, [CLASSES[i] for i in y]),
        tf.data.Dataset.from_tensor_slices(arrays),
    ):
        found = evaluate(model, given)
        assert found.class_names == CLASSES and found.labels.tolist() == y.tolist() and found.seen == 0
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)
    assert evaluate(model, color_folder).class_names == CLASSES


def test_images_of_the_training_are_counted(model, data, color_folder, caplog):
    assert evaluate(model, color_folder).seen == len(data.train) + len(data.val)
    assert "were used for training or validation" in caplog.text


def test_data_of_other_classes_are_refused_and_another_split_is_reported(model, data, color_folder, caplog):
    others = replace(data, class_names=("green", "blue", "red"))
    with pytest.raises(InputError, match=r"of the model: blue, green, red\. Received: green, blue, red"):
        evaluate(model, others)
    other_split = load_data(color_folder, resize="crop", seed=1)
    trained = {*data.train.names, *data.val.names}
    expected = sum(name in trained for name in other_split.test.names)
    assert evaluate(model, data).seen == 0 and not caplog.text
    assert evaluate(model, other_split).seen == expected > 0
    assert "were used for training or validation" in caplog.text


def test_a_model_that_returns_logits_is_refused(data):
    layers = [
        keras.Input((8, 8, 3)),
        keras.layers.Flatten(),
        keras.layers.Dense(3, bias_initializer=lambda *_, **__: [-9.0, -8.0, -7.0]),
    ]
    with pytest.raises(InputError, match=r"returns probabilities, from 0 to 1. .* End it with a softmax"):
        evaluate(keras.Sequential(layers), data)


def test_an_unknown_split_is_refused(model, data):
    with pytest.raises(InputError, match=r"train, val or test\. Received: None"):
        evaluate(model, data, split=None)


def test_labels_are_positions_in_the_output_of_an_unknown_model(arrays):
    unknown = small_similar(make_tiny(), 3, preprocessing="tf")
    assert evaluate(unknown, arrays).class_names == ("0", "1", "2")
    with pytest.raises(InputError, match=r"Unknown class '5'"):
        evaluate(unknown, (arrays[0], np.full(len(arrays[0]), 5)))


def test_labels_that_are_numbers_from_1_keep_their_meaning(arrays):
    x, y = arrays
    data = load_data((x, y + 1), val=0)
    assert data.class_names == ("1", "2", "3")
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, data, epochs=1, verbose=0)
    assert evaluate(model, (x, y + 1)).labels.tolist() == y.tolist()
    with pytest.raises(InputError, match=r"may be class names or positions"):
        evaluate(model, (x, np.where(y, 2, 1)))


def test_data_from_load_data_are_required(model, data, color_folder):
    for given, received in (
        (str(color_folder), repr(str(color_folder))),
        (color_folder, repr(str(color_folder))),
        ("emoji", "'emoji'"),
        (None, "None"),
        (model, "Functional"),
    ):
        calls = [partial(call, model, given) for call in (fit, find_learning_rate, calibrate)]
        calls += [partial(advise, given, model), partial(compare, given, ["DemoCNN"])]
        for call in calls:
            with pytest.raises(InputError, match=r"data = transfer\.load_data") as error:
                call()
            assert f"Received: {received}." in str(error.value)
    for call in (find_learning_rate, calibrate):
        with pytest.raises(InputError, match=r"Received: a split. Pass the data"):
            call(model, data.test)
        with pytest.raises(InputError, match=r"Received: tuple\."):
            call(model, (np.zeros((9, 8, 8, 3)), np.zeros(9)))
    with pytest.raises(InputError, match=r"Expected images that are not loaded yet"):
        load_data(data)


def test_swapped_arguments_and_other_objects_are_refused(model, data, strange_run):
    for given, message in (
        (data, r"as the first argument of fit\(model, data\). Received: ImageData"),
        (str(strange_run), r"Load it first: transfer.load_run\(path\).model"),
        (load_run(strange_run), r"Received: FinishedRun. Pass its model: run.model"),
        (None, "Received: None. Build a model first"),
    ):
        with pytest.raises(InputError, match=message):
            fit(given, data)
        with pytest.raises(InputError, match=message.replace("fit", "evaluate")):
            evaluate(given, data)
    with pytest.raises(InputError, match=r"Expected a keras.Model as base. Received: ImageData"):
        advise(data, data)


def test_models_of_another_form_are_refused(data):
    layers = keras.layers
    image = keras.Input((32, 32, 3))
    flat = layers.Dense(3)(layers.Flatten()(image))
    for model, message in (
        (keras.Sequential([layers.Flatten(), layers.Dense(3)]), "with a known input shape"),
        (keras.Model(image, [flat, flat]), r"Received: .* from \(None, 32, 32, 3\) to \["),
        (keras.Model(image, image), "to probabilities of shape"),
        (keras.Sequential([keras.Input((10,)), layers.Dense(3)]), r"from \(None, 10\)"),
        (
            keras.Sequential([keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(3)]),
            r"from \(None, 8, 8, 1\)",
        ),
    ):
        for call in (fit, evaluate):
            with pytest.raises(InputError, match=message):
                call(model, data)


def test_an_evaluation_is_required(model, data):
    for call in (lambda: screening(data, positive="red"), lambda: merge(model, {})):
        with pytest.raises(InputError, match=r"evaluation = transfer.evaluate\(model, data\)"):
            call()


@pytest.mark.parametrize("call", [load_run, lambda run: export(run, to="saved-model")])
@pytest.mark.parametrize("given", [None, 5, {}])
def test_a_run_is_required(call, given):
    with pytest.raises(
        InputError, match=r"Expected (a run's folder or|the folder of a run,) a \.keras file.* Received: "
    ):
        call(given)
