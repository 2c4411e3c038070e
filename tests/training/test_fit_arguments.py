"""`fit` and `evaluate` take arrays, data sets and splits; wrong arguments are explained."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.images import COLORS
from helpers.networks import make_tiny

from transfer.cases.builders import large_similar, small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import calibrate, evaluate
from transfer.images.datasets import load_data
from transfer.images.pipeline import make_dataset
from transfer.training.fit import fit
from transfer.training.fit_arguments import training_data
from transfer.training.learning_rate_finder import find_learning_rate

NAMES = ("red", "green", "blue")
Y = np.repeat([0, 1, 2], 20)
X = np.clip(
    np.array([*COLORS.values()])[Y][:, None, None] + np.random.default_rng(0).normal(0, 30, (60, 32, 32, 3)),
    0,
    255,
).astype("uint8")
ONE_HOT = np.eye(3)[Y]


def built(builder=small_similar):
    return builder(make_tiny(), 3, preprocessing="tf")


def data_set(labels=Y, batch=None):
    tensorflow = pytest.importorskip("tensorflow")
    data = tensorflow.data.Dataset.from_tensor_slices((X, labels))
    return data.batch(batch) if batch else data


@pytest.fixture(scope="module")
def data():
    return load_data((X, Y), class_names=NAMES)


@pytest.fixture(scope="module")
def untrained():
    return built()


@pytest.mark.parametrize(
    ("given", "labels"),
    [
        (lambda: (X, Y), None),
        (lambda: X, Y),
        (lambda: X, ONE_HOT),
        (lambda: [*X], Y.tolist()),
        (data_set, None),
        (lambda: data_set(ONE_HOT, batch=8), None),
    ],
    ids=["pair", "two", "one-hot", "lists", "data set", "batches"],
)
def test_images_in_memory_get_validation_images_and_no_test_images(given, labels, untrained):
    data = training_data(untrained, given(), labels)
    assert len(data.train) + len(data.val) == 60 and len(data.val) == 6 and not len(data.test)
    assert data.num_classes == 3 and not {*data.train.digests} & {*data.val.digests}


def test_arrays_are_trained_on_and_recognized_in_an_evaluation(caplog):
    model = built()
    log = fit(model, x=X[::2], y=ONE_HOT[::2], verbose=0)
    assert log.rows[0]["val_accuracy"] > 0.5
    held_out = evaluate(model, X[1::2], Y[1::2])
    assert held_out.accuracy > 0.9 and not held_out.seen and not caplog.text
    assert evaluate(model, X, ONE_HOT).seen == 30
    assert "30 of the 60 images were used for training or validation" in caplog.text


def test_a_split_keeps_its_class_names(data):
    model = built()
    fit(model, data.train, validation_data=data.val, verbose=0)
    evaluation = evaluate(model, data.test)
    assert evaluation.class_names == NAMES and evaluation.accuracy > 0.9 and not evaluation.seen
    assert evaluate(model, data.train).seen == len(data.train)
    assert training_data(model, X, Y).class_names == NAMES, "labels are positions in the classes of the model"


def test_the_sizes_of_the_validation_set_are_those_that_were_asked_for(data, untrained):
    assert len(training_data(untrained, X, Y, validation_split=0.5).val) == 30
    assert not len(training_data(untrained, X, Y, validation_split=0).val)
    own = training_data(untrained, X[::2], Y[::2], validation_data=(X[1::2], ONE_HOT[1::2]))
    assert (len(own.train), len(own.val), len(own.test)) == (30, 30, 0)
    assert training_data(untrained, X, Y, class_names=NAMES).class_names == NAMES
    assert training_data(untrained, data) is data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m, d: fit(m, X), r"Write fit\(model, images, labels\)"),
        (lambda m, d: fit(m, d, Y), "Expected labels only with arrays"),
        (lambda m, d: fit(m, d, validation_split=0.2), "Expected validation_split only with arrays"),
        (lambda m, d: fit(m, X, Y, validation_split=2), "validation_split from 0 to below 1. Received: 2"),
        (lambda m, d: fit(m, X, Y, validation_split=0.2, validation_data=(X, Y)), "Leave one out"),
        (lambda m, d: fit(m, d.train, validation_data=(X, Y)), "together with: tuple"),
        (lambda m, d: fit(m, X, Y[:9]), "60 images with labels of shape"),
        (lambda m, d: fit(m, X, Y % 2), "The model has 3 classes, but the data have 2"),
        (lambda m, d: evaluate(m, d, Y), "Expected labels only with an array"),
        (lambda m, d: make_dataset(d), "such as data.train. Received: ImageData"),
        (lambda m, d: fit(m, X, Y, class_weight={0: 2}), r"fit: .*'class_weight'. Write class_weights=True"),
        (lambda m, d: fit(m, X, Y, shuffle=True), "'shuffle'. Leave it out"),
        (lambda m, d: fit(m, X, Y, learning_rate=1e-3), r"large_similar\(base, num_classes, learning_rate="),
        (lambda m, d: fit(m, X, Y, epoch=3), "fit: unknown argument 'epoch'. Did you mean epochs"),
        (lambda m, d: fit(m), r"missing a required argument: 'data'. Write fit\(model, data\)"),
        (lambda m, d: evaluate(m, d, batch_size=8), "evaluate: unknown argument 'batch_size'. Leave it out"),
        (
            lambda m, d: calibrate(m, load_data((X, Y), val=30), view=2),
            "calibrate: .*'view'. Did you mean views",
        ),
        (
            lambda m, d: find_learning_rate(built(large_similar), d, flips=1),
            "find_learning_rate: .* mean flip",
        ),
        (lambda m, d: load_data((X, Y), imagesize=8), "load_data: .*'imagesize'. Did you mean image_size"),
        (lambda m, d: make_dataset(d.train, shuffle=True), "make_dataset: .* Write training=True"),
    ],
)
def test_wrong_arguments_say_which_function_was_called_and_what_to_write(call, message, untrained, data):
    with pytest.raises(InputError, match=message):
        call(untrained, data)


def test_batches_need_no_options(data, color_folder):
    assert next(iter(make_dataset(data.train)))[0].shape == (32, 32, 32, 3)
    assert next(iter(make_dataset(data.train, batch_size=4, image_size=24)))[0].shape == (4, 24, 24, 3)
    files = load_data(color_folder, image_size=(20, 24))
    assert next(iter(make_dataset(files.val, batch_size=2)))[0].shape == (2, 20, 24, 3)
    assert next(iter(make_dataset(load_data(color_folder).val, batch_size=2)))[0].shape == (2, 224, 224, 3)


def test_signatures_stay_visible():
    import inspect

    names = [*inspect.signature(fit).parameters]
    assert names[:3] == ["model", "data", "labels"] and "callbacks" in names and "kwargs" not in names
    assert fit.__doc__.startswith("Train a model from a builder.")
