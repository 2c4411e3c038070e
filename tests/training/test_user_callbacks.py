"""The user's callbacks work in every phase, see the whole model, and never switch the solver."""

from __future__ import annotations

import csv
import logging

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import build
from transfer.common.errors import InputError
from transfer.images.datasets import load_data
from transfer.training import head_training, user_callbacks
from transfer.training.fit import fit


@pytest.fixture(scope="module")
def colors(color_folder):
    return load_data(color_folder)


def built(case="small-similar", **options):
    return build(case, make_tiny(), 3, preprocessing="tf", **options)


class Recorder(keras.callbacks.Callback):
    """Note each event with the phase, the epoch, and whether the head of the whole model has weights."""

    def __init__(self):
        super().__init__()
        self.events, self.logs, self.models, self.heads = [], [], set(), []

    def on_train_begin(self, logs=None):
        self.events.append(("begin", self.params["phase"]))
        self.models.add(self.model)

    def on_epoch_end(self, epoch, logs=None):
        self.events.append((epoch, self.params["phase"]))
        self.logs.append(dict(logs))
        self.heads.append(self.model.layers[-1].get_weights())

    def on_train_end(self, logs=None):
        self.events.append(("end", self.params["phase"]))


METRICS = {"loss", "accuracy", "val_loss", "val_accuracy"}


def test_a_solved_head_counts_as_one_epoch(colors):
    model, plain, watch = built(), built(), Recorder()
    log = fit(model, colors, callbacks=[watch], verbose=0)
    assert log.regularization is not None, "callbacks switched the solver"
    assert watch.events == [("begin", "head"), (0, "head"), ("end", "head")]
    assert watch.models == {model} and set(watch.logs[0]) == METRICS
    np.testing.assert_array_equal(watch.heads[0][0], model.layers[-1].kernel)
    fit(plain, colors, verbose=0)
    np.testing.assert_array_equal(plain.layers[-1].kernel, model.layers[-1].kernel)


@pytest.mark.parametrize("options", [{"unfreeze_from": "block3"}, {"case": "large-similar"}])
def test_epochs_count_over_the_phases(options, colors):
    model, watch = built(**options), Recorder()
    fit(model, colors, epochs=2, callbacks=[watch], verbose=0)
    head, tuned = "head", "fine-tune"
    expected = [("begin", head), (0, head), ("end", head)]
    assert watch.events == [*expected, ("begin", tuned), (1, tuned), (2, tuned), ("end", tuned)]
    assert watch.models == {model} and all(set(logs) == METRICS for logs in watch.logs)
    np.testing.assert_array_equal(watch.heads[-1][0], model.layers[-1].kernel)


def test_one_csv_file_holds_all_phases(colors, tmp_path):
    rate = keras.callbacks.ReduceLROnPlateau(patience=1)
    logger = keras.callbacks.CSVLogger(tmp_path / "log.csv")
    log = fit(built("large-similar"), colors, epochs=2, callbacks=[logger, rate], verbose=0)
    rows = list(csv.DictReader((tmp_path / "log.csv").open()))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    assert [float(row["val_loss"]) for row in rows] == pytest.approx([row["val_loss"] for row in log.rows])
    assert all(float(row["learning_rate"]) > 0 for row in rows)


def test_tensorboard_gets_a_step_per_epoch_of_all_phases(colors, tmp_path):
    pytest.importorskip("tensorboard")
    tensorflow = pytest.importorskip("tensorflow")
    board = keras.callbacks.TensorBoard(tmp_path)
    fit(built("large-similar"), colors, epochs=2, callbacks=[board], verbose=0)
    for part in ("train", "validation"):
        steps = [
            event.step
            for file in (tmp_path / part).glob("events*")
            for event in tensorflow.compat.v1.train.summary_iterator(str(file))
            for value in event.summary.value
            if value.tag == "epoch_loss"
        ]
        assert steps == [0, 1, 2]


def test_tensorboard_without_its_package_is_an_error_before_the_training(colors, tmp_path, monkeypatch):
    monkeypatch.setattr(user_callbacks, "find_spec", lambda name: None)
    watch = Recorder()
    with pytest.raises(
        InputError, match=r'needs the package tensorboard.*pip install "transfer-cases\[notebooks\]"'
    ):
        fit(built(), colors, callbacks=[watch, keras.callbacks.TensorBoard(tmp_path)], verbose=0)
    assert not watch.events


def test_a_head_in_epochs_works_with_callbacks(colors, tmp_path, monkeypatch):
    model, watch = built(learning_rate=1e-3), Recorder()
    stop = keras.callbacks.EarlyStopping("val_accuracy", patience=0, restore_best_weights=True)
    keep = keras.callbacks.ModelCheckpoint(tmp_path / "best.keras")
    falling = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    log = fit(model, colors, epochs=6, callbacks=[watch, stop, keep, falling], verbose=0)
    assert {phase for _, phase in watch.events} == {"head"} and len(watch.logs) == len(log.rows)
    np.testing.assert_allclose(watch.heads[stop.best_epoch][0], model.layers[-1].kernel, rtol=1e-3, atol=1e-6)
    assert log.kept_row == stop.best_epoch
    assert float(model.optimizer.learning_rate) == pytest.approx(1e-3), "the rate of fine-tuning changed"
    saved = keras.models.load_model(tmp_path / "best.keras")
    np.testing.assert_array_equal(saved.layers[-1].get_weights()[0], watch.heads[-1][0])


def test_early_stopping_never_restores_weights_of_another_phase(colors, monkeypatch, caplog):
    monkeypatch.setattr(head_training, "MAX_EXACT_BYTES", 0)
    caplog.set_level(logging.INFO)
    model, watch = built("large-similar", learning_rate=1e-6), Recorder()
    before = model.get_layer("block1_conv").get_weights()[0]
    stop = keras.callbacks.EarlyStopping("val_loss", min_delta=10.0, patience=1, restore_best_weights=True)
    log = fit(model, colors, epochs=5, callbacks=[watch, stop], verbose=0)
    phases = [row["phase"] for row in log.rows]
    assert phases.count("head") == 2 and phases.count("fine-tune") == 2
    assert "Stopped after epoch 2 of 100: a callback stopped the training." in caplog.text
    assert "Stopped after epoch 2 of 5: a callback stopped the training." in caplog.text
    assert not np.array_equal(before, model.get_layer("block1_conv").get_weights()[0])
    np.testing.assert_array_equal(watch.heads[log.kept_row][0], model.layers[-1].kernel)


def test_early_stopping_of_a_head_is_announced(colors, monkeypatch, caplog):
    monkeypatch.setattr(head_training, "PATIENCE", 1)
    monkeypatch.setattr(head_training, "MIN_DELTA", 10.0)
    caplog.set_level(logging.INFO)
    log = fit(built(), colors, epochs=30, verbose=0)
    assert len(log.rows) < 30 and log.kept_row == 0
    assert f"Stopped after epoch {len(log.rows)} of 30: the validation loss no longer falls." in caplog.text
    assert "the exact solver does not support epochs" in caplog.text
