"""An interrupted training resumes and ends with exactly the weights of an uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import signal

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny, snapshot

from transfer.cases.builders import build
from transfer.cases.policies import Case
from transfer.common.errors import InputError
from transfer.training.checkpoints import NUM_KEPT, Checkpoint, Checkpoints, Interrupted
from transfer.training.fit import fit
from transfer.training.phases import TrainingLog
from transfer.training.recipes import Recipe

KINDS = {
    "everything": (Case.LARGE_SIMILAR, {}, {}),
    "from scratch, BatchNorm live": (Case.LARGE_DIFFERENT, {"init": "random"}, {}),
    "upper layers": (Case.SMALL_SIMILAR, {"unfreeze_from": "block3_conv"}, {"views": 3}),
    "all ingredients": (
        Case.LARGE_SIMILAR,
        {},
        {
            "recipe": Recipe(
                layer_decay=0.3,
                gradual_unfreezing=0.5,
                weight_decay=0.01,
                clip_norm=1.0,
                ema=0.9,
                mix="mixup",
                batchnorm="adapted",
            ),
            "label_smoothing": 0.1,
            "class_weights": True,
        },
    ),
}


def base_with_dropout():
    """Return the tiny network with dropout in its middle: the state of its random generator must be restored."""
    tiny = make_tiny()
    noise = keras.layers.Dropout(0.2, seed=3, name="noise")
    return keras.Model(tiny.inputs, noise(tiny.get_layer("pool").output), name="tiny")


def train(kind, data, folder, cache, **options):
    case, build_options, fit_options = KINDS[kind]
    model = build(case, base_with_dropout(), data.num_classes, preprocessing="tf", **build_options)
    log = fit(
        model,
        data,
        epochs=3,
        batch_size=16,
        checkpoints=folder,
        cache=cache,
        **{"verbose": 0, **fit_options, **options},
    )
    return model, log


@pytest.fixture
def stop_at(monkeypatch):
    """Send this process a signal when a checkpoint could be written for the n-th time."""

    def stop(number, sent=signal.SIGTERM):
        calls = iter(range(1, 10**6))

        def due(self):
            if next(calls) == number:
                signal.raise_signal(sent)
            return False

        monkeypatch.setattr(Checkpoints, "due", property(due))

    yield stop


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [(2,), (4, 3), (1, 1, 1)], ids=str)  # steps; an epoch has 4
def test_a_stopped_training_resumes_to_the_same_weights(kind, stops, colors, tmp_path, cache, stop_at):
    whole, log = train(kind, colors, tmp_path / "whole", cache)
    for number in stops:
        stop_at(number)
        with pytest.raises(Interrupted, match="Stopped after epoch"):
            train(kind, colors, tmp_path / "parts", cache)
    stop_at(0)
    parts, again = train(kind, colors, tmp_path / "parts", cache)
    assert_bit_equal(snapshot(whole), snapshot(parts))
    for one, other in zip(whole.optimizer.variables, parts.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["epoch"] for row in again.rows] == [row["epoch"] for row in log.rows]
    assert again.rows[-1]["val_loss"] == pytest.approx(log.rows[-1]["val_loss"], rel=1e-5)


def test_an_interrupted_fallback_to_random_weights_resumes(colors, tmp_path, cache, stop_at, monkeypatch):
    from transfer.training import fit

    def only_from_scratch(log, data):
        return any(row["phase"] == "from-scratch" for row in log.rows)

    monkeypatch.setattr(fit, "_succeeded", only_from_scratch)
    monkeypatch.setitem(KINDS, "auto", (Case.LARGE_DIFFERENT, {"init": "auto"}, {}))
    whole, log = train("auto", colors, tmp_path / "whole", cache)
    stop_at(12 + 6)  # in the second training
    with pytest.raises(Interrupted):
        train("auto", colors, tmp_path / "parts", cache)
    assert Checkpoints(
        tmp_path / "parts", json.loads((tmp_path / "parts" / "settings.json").read_text())
    ).latest()
    stop_at(0)
    parts, again = train("auto", colors, tmp_path / "parts", cache)
    assert_bit_equal(snapshot(whole), snapshot(parts))
    assert again.init == log.init
    at_the_end, _ = train("auto", colors, tmp_path / "parts", cache)  # whichever weights were kept
    assert_bit_equal(snapshot(parts), snapshot(at_the_end))
    assert [row["phase"] for row in again.rows] == [row["phase"] for row in log.rows]


@pytest.mark.parametrize("better", [True, False])
def test_a_complete_fallback_is_restored_whichever_weights_were_kept(
    better, colors, tmp_path, cache, monkeypatch
):
    from transfer.training import fit

    def one_phase(settings, before, phase, **_):
        loss = 2.0 if phase == "fine-tune" else 1.0 if better else 3.0
        return TrainingLog([{"phase": phase, "epoch": 1, "val_loss": loss, "val_accuracy": 0.1}])

    monkeypatch.setattr(fit, "_succeeded", lambda log, data: False)
    monkeypatch.setattr(fit, "fine_tune", one_phase)
    monkeypatch.setattr(fit, "train_head", lambda settings: TrainingLog([{"phase": "head", "val_loss": 9.0}]))
    monkeypatch.setitem(
        KINDS,
        "auto",
        (Case.LARGE_DIFFERENT, {"init": "auto"}, {"recipe": Recipe(ema=0.9, gradual_unfreezing=0.2)}),
    )
    one, log = train("auto", colors, tmp_path / "x", cache)
    other, again = train("auto", colors, tmp_path / "x", cache)
    assert log.init == again.init == ("random" if better else "pretrained")
    assert_bit_equal(snapshot(one), snapshot(other))


def test_the_same_model_resumes_in_the_same_process(colors, tmp_path, cache, stop_at):
    """As in a notebook: a cell is stopped and run again with the model as the stop left it."""
    whole, _ = train("everything", colors, tmp_path / "whole", cache)
    model = build(Case.LARGE_SIMILAR, base_with_dropout(), colors.num_classes, preprocessing="tf")
    options = {"epochs": 3, "batch_size": 16, "checkpoints": tmp_path / "parts", "cache": cache, "verbose": 0}
    rate = float(model.optimizer.learning_rate)
    stop_at(3)
    with pytest.raises(Interrupted):
        fit(model, colors, **options)
    assert float(model.optimizer.learning_rate) == rate
    stop_at(0)
    fit(model, colors, **options)
    assert_bit_equal(snapshot(whole), snapshot(model))


def test_a_complete_training_is_restored_instead_of_repeated(colors, tmp_path, cache):
    one, _ = train("everything", colors, tmp_path / "x", cache)
    other, log = train("everything", colors, tmp_path / "x", cache)
    assert_bit_equal(snapshot(one), snapshot(other))
    assert len(log.rows) == 4


def test_a_complete_head_is_restored_whatever_the_recipe_is(colors, tmp_path, cache):
    models = []
    for _ in range(2):
        model = build(Case.SMALL_SIMILAR, base_with_dropout(), colors.num_classes, preprocessing="tf")
        recipe = Recipe(ema=0.9, layer_decay=0.1)
        fit(model, colors, recipe=recipe, checkpoints=tmp_path / "x", cache=cache, verbose=0)
        models.append(model)
    assert_bit_equal(snapshot(models[0]), snapshot(models[1]))


def test_another_training_is_refused_with_the_differences(colors, tmp_path, cache, stop_at):
    stop_at(2)
    with pytest.raises(Interrupted):
        train("everything", colors, tmp_path / "x", cache)
    for options, message in (
        ({"seed": 5}, "seed was 0, now 5"),
        ({"augment": "none"}, "augment was 'light', now 'none'"),
        ({"recipe": Recipe(gradual_unfreezing=0.1)}, "gradual_unfreezing was 0.0, now 0.1"),
    ):
        with pytest.raises(InputError, match=message):
            train("everything", colors, tmp_path / "x", cache, **options)
    for other, message in (
        (colors.train.take(range(30)), "images was"),
        (dataclasses.replace(colors.train, resize="crop"), "resize was 'stretch', now 'crop'"),
    ):
        with pytest.raises(InputError, match=message):
            train("everything", dataclasses.replace(colors, train=other), tmp_path / "x", cache)


def test_another_compilation_is_another_training(colors, tmp_path, cache, stop_at):
    def begin(loss=None, **options):
        model = build(Case.LARGE_SIMILAR, make_tiny(), colors.num_classes, preprocessing="tf", **options)
        if loss:
            model.compile(model.optimizer, loss)
        fit(model, colors, epochs=2, checkpoints=tmp_path / "x", cache=cache, verbose=0)

    stop_at(2)
    with pytest.raises(Interrupted):
        begin()
    with pytest.raises(
        InputError, match=r"training with other settings: optimizer learning_rate was 0\.\d+, now 0\.5\. "
    ):
        begin(learning_rate=0.5)
    with pytest.raises(InputError, match="optimizer was 'Adam', now 'RMSprop'"):
        begin(optimizer="rmsprop")
    with pytest.raises(InputError, match=r"other settings: loss was 'sparse_.*', now \{.*'ignore_class': 7"):
        begin(keras.losses.SparseCategoricalCrossentropy(ignore_class=7))
    with pytest.raises(InputError, match=r"now .*'ignore_class': 7"):
        begin([keras.losses.SparseCategoricalCrossentropy(ignore_class=7)])
    with pytest.raises(InputError, match="now 'own_loss'"):
        begin(own_loss)
    begin()


def own_loss(labels, scores):
    return keras.losses.sparse_categorical_crossentropy(labels, scores)


def test_a_learning_rate_that_callbacks_change_is_no_other_training(colors, tmp_path, cache, stop_at):
    model = build(Case.LARGE_SIMILAR, make_tiny(), colors.num_classes, preprocessing="tf")
    falling = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    options = {
        "epochs": 3,
        "checkpoints": tmp_path / "x",
        "cache": cache,
        "callbacks": [falling],
        "verbose": 0,
    }
    stop_at(5)
    with pytest.raises(Interrupted):
        fit(model, colors, **options)
    fit(model, colors, **options)


def test_ctrl_c_stops_after_a_step_and_restores_the_signal_handlers(colors, tmp_path, cache, stop_at):
    before = signal.getsignal(signal.SIGINT)
    stop_at(3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train("everything", colors, tmp_path / "x", cache)
    assert stopped.value.signal == signal.SIGINT and "after epoch 1" in str(stopped.value)
    assert signal.getsignal(signal.SIGINT) is before


def checkpoints_in(folder, **options):
    return Checkpoints(folder, {"a": 1}, **options)


def test_the_last_two_checkpoints_are_kept_and_a_damaged_one_is_skipped(tmp_path, caplog):
    for number in range(5):
        assert checkpoints_in(tmp_path).save(Checkpoint("x", step=number, arrays={"w": np.full(3, number)}))
    paths = sorted(tmp_path.glob("state-*"))
    assert len(paths) == NUM_KEPT and checkpoints_in(tmp_path).latest().step == 4
    paths[-1].write_bytes(paths[-1].read_bytes()[:-200])
    assert checkpoints_in(tmp_path).latest().step == 3 and "damaged" in caplog.text
    paths[0].write_bytes(b"")
    assert checkpoints_in(tmp_path).latest() is None
    assert (
        checkpoints_in(tmp_path).save(Checkpoint("x", step=9)) and checkpoints_in(tmp_path).latest().step == 9
    )


def test_a_full_disk_is_warned_of_once_and_loses_nothing(tmp_path, caplog, monkeypatch):
    checkpoints = checkpoints_in(tmp_path)
    assert checkpoints.save(Checkpoint("x", step=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert not checkpoints.save(Checkpoint("x", step=2)) and not checkpoints.save(Checkpoint("x", step=3))
    assert caplog.text.count("No space left on device") == 1
    assert checkpoints.latest().step == 1 and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    assert checkpoints.save(Checkpoint("x", step=4)) and checkpoints.latest().step == 4


def test_a_file_as_folder_and_damaged_settings_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="Received a file"):
        checkpoints_in(tmp_path / "file")
    checkpoints_in(tmp_path / "x").save(Checkpoint("x"))
    for text in ('{"a": ', "[1]"):
        (tmp_path / "x" / "settings.json").write_text(text)
        with pytest.raises(InputError, match="Remove"):
            checkpoints_in(tmp_path / "x")


def test_a_partly_written_checkpoint_is_not_read(tmp_path):
    checkpoints_in(tmp_path).save(Checkpoint("x", step=1))
    (tmp_path / "state-00000009.partial").write_bytes(b"half")
    assert checkpoints_in(tmp_path).latest().step == 1


def test_checkpoints_are_due_by_the_clock(tmp_path):
    assert (
        not checkpoints_in(tmp_path, seconds_between=1000).due
        and checkpoints_in(tmp_path, seconds_between=0).due
    )


@pytest.mark.slow
def test_a_few_kills_lose_nothing(tmp_path):
    from scripts.kill_training import KINDS, kill_often

    some = {kind: KINDS[kind] for kind in ("all layers", "upper layers")}
    assert kill_often(tmp_path, 3, seed=1, kinds=some)["different"] == 0
