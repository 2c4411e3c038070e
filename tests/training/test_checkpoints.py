"""Training that is interrupted ends with the same weights, to the bit, as one that is not."""

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
from transfer.training.checkpoints import KEPT, Checkpoints, Interrupted, State
from transfer.training.fit import fit
from transfer.training.recipes import Recipe

KINDS = {
    "everything": (Case.LARGE_SIMILAR, {}, {}),
    "from scratch, BatchNorm live": (Case.LARGE_DIFFERENT, {"init": "random"}, {}),
    "the tail behind a frozen part": (Case.SMALL_SIMILAR, {"unfreeze_from": "block3_conv"}, {"views": 3}),
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
    """The tiny network with noise in its middle, whose generator has a state."""
    tiny = make_tiny()
    noise = keras.layers.Dropout(0.2, seed=3, name="noise")
    return keras.Model(tiny.inputs, noise(tiny.get_layer("pool").output), name="tiny")


def train(kind, data, folder, cache, **more):
    case, options, given = KINDS[kind]
    model = build(case, base_with_dropout(), data.num_classes, preprocessing="tf", **options)
    done = fit(
        model,
        data,
        epochs=3,
        batch_size=16,
        checkpoints=folder,
        cache=cache,
        **{"verbose": 0, **given, **more},
    )
    return model, done


@pytest.fixture
def stop_at(monkeypatch):
    """Make the process send itself a signal when a state might be written for the n-th time."""

    def plan(number, sent=signal.SIGTERM):
        calls = iter(range(1, 10**6))

        def due(self):
            if next(calls) == number:
                signal.raise_signal(sent)
            return False

        monkeypatch.setattr(Checkpoints, "due", property(due))

    yield plan


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stops", [(2,), (4, 3), (1, 1, 1)], ids=str)  # steps; an epoch has 4
def test_a_training_that_was_stopped_goes_on_to_the_same_weights(
    kind, stops, colors, tmp_path, cache, stop_at
):
    whole, done = train(kind, colors, tmp_path / "whole", cache)
    for number in stops:
        stop_at(number)
        with pytest.raises(Interrupted, match="Stopped after epoch"):
            train(kind, colors, tmp_path / "parts", cache)
    stop_at(0)
    parts, again = train(kind, colors, tmp_path / "parts", cache)
    assert_bit_equal(snapshot(whole), snapshot(parts))
    for one, other in zip(whole.optimizer.variables, parts.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [row["epoch"] for row in again.rows] == [row["epoch"] for row in done.rows]
    assert again.rows[-1]["val_loss"] == pytest.approx(done.rows[-1]["val_loss"], rel=1e-5)


def test_random_weights_that_were_fallen_back_on_are_gone_on_with(
    colors, tmp_path, cache, stop_at, monkeypatch
):
    from transfer.training import fit

    monkeypatch.setattr(fit, "_succeeded", lambda done, data: False)
    monkeypatch.setitem(KINDS, "auto", (Case.LARGE_DIFFERENT, {"init": "auto"}, {}))
    whole, done = train("auto", colors, tmp_path / "whole", cache)
    stop_at(12 + 6)  # in the second training
    with pytest.raises(Interrupted):
        train("auto", colors, tmp_path / "parts", cache)
    assert Checkpoints(
        tmp_path / "parts", json.loads((tmp_path / "parts" / "settings.json").read_text())
    ).latest()
    stop_at(0)
    parts, again = train("auto", colors, tmp_path / "parts", cache)
    assert_bit_equal(snapshot(whole), snapshot(parts))
    assert again.init == done.init
    at_the_end, _ = train("auto", colors, tmp_path / "parts", cache)  # whichever weights were kept
    assert_bit_equal(snapshot(parts), snapshot(at_the_end))
    assert [row["phase"] for row in again.rows] == [row["phase"] for row in done.rows]


@pytest.mark.parametrize("better", [True, False])
def test_a_fallback_that_is_done_is_found_again_whichever_weights_were_kept(
    better, colors, tmp_path, cache, monkeypatch
):
    from transfer.training import fit

    def one_phase(run, done, epochs, phase, **_):
        loss = 2.0 if phase == "fine-tune" else 1.0 if better else 3.0
        done.rows.append({"phase": phase, "epoch": 1, "val_loss": loss, "val_accuracy": 0.1})

    monkeypatch.setattr(fit, "_succeeded", lambda done, data: False)
    monkeypatch.setattr(fit, "train_all", one_phase)
    monkeypatch.setattr(
        fit,
        "train_head",
        lambda run, done, *_, **__: done.rows.append({"phase": "head", "val_loss": 9.0}),
    )
    monkeypatch.setitem(
        KINDS,
        "auto",
        (Case.LARGE_DIFFERENT, {"init": "auto"}, {"recipe": Recipe(ema=0.9, gradual_unfreezing=0.2)}),
    )
    one, done = train("auto", colors, tmp_path / "x", cache)
    other, again = train("auto", colors, tmp_path / "x", cache)
    assert done.init == again.init == ("random" if better else "pretrained")
    assert_bit_equal(snapshot(one), snapshot(other))


def test_the_same_model_goes_on_in_the_same_process(colors, tmp_path, cache, stop_at):
    """As in a notebook: the cell is stopped and run again, and the model has the weights of the middle."""
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


def test_what_is_done_is_not_done_again(colors, tmp_path, cache):
    one, _ = train("everything", colors, tmp_path / "x", cache)
    other, done = train("everything", colors, tmp_path / "x", cache)
    assert_bit_equal(snapshot(one), snapshot(other))
    assert len(done.rows) == 4


def test_a_head_that_is_done_is_not_done_again_whatever_the_recipe_says(colors, tmp_path, cache):
    models = []
    for _ in range(2):
        model = build(Case.SMALL_SIMILAR, base_with_dropout(), colors.num_classes, preprocessing="tf")
        recipe = Recipe(ema=0.9, layer_decay=0.1)
        fit(model, colors, recipe=recipe, checkpoints=tmp_path / "x", cache=cache, verbose=0)
        models.append(model)
    assert_bit_equal(snapshot(models[0]), snapshot(models[1]))


def test_another_training_is_refused_and_what_differs_is_shown(colors, tmp_path, cache, stop_at):
    stop_at(2)
    with pytest.raises(Interrupted):
        train("everything", colors, tmp_path / "x", cache)
    for more, shown in (
        ({"seed": 5}, "seed was 0, now 5"),
        ({"augment": "none"}, "augment was 'light', now 'none'"),
        ({"recipe": Recipe(gradual_unfreezing=0.1)}, "gradual_unfreezing was 0.0, now 0.1"),
    ):
        with pytest.raises(InputError, match=shown):
            train("everything", colors, tmp_path / "x", cache, **more)
    for other, shown in (
        (colors.train.take(range(30)), "images was"),
        (dataclasses.replace(colors.train, resize="crop"), "resize was 'stretch', now 'crop'"),
    ):
        with pytest.raises(InputError, match=shown):
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
        InputError, match=r"training of another kind: optimizer learning_rate was 0\.\d+, now 0\.5\. "
    ):
        begin(learning_rate=0.5)
    with pytest.raises(InputError, match="optimizer was 'Adam', now 'RMSprop'"):
        begin(optimizer="rmsprop")
    with pytest.raises(InputError, match=r"another kind: loss was 'sparse_.*', now \{.*'ignore_class': 7"):
        begin(keras.losses.SparseCategoricalCrossentropy(ignore_class=7))
    with pytest.raises(InputError, match=r"now \[.*'ignore_class': 7"):
        begin([keras.losses.SparseCategoricalCrossentropy(ignore_class=7)])
    with pytest.raises(InputError, match="now 'own_loss'"):
        begin(own_loss)
    begin()


def own_loss(labels, scores):
    return keras.losses.sparse_categorical_crossentropy(labels, scores)


def test_a_rate_that_callbacks_change_does_not_make_it_another_training(colors, tmp_path, cache, stop_at):
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


def test_ctrl_c_ends_after_a_step_and_signals_are_given_back(colors, tmp_path, cache, stop_at):
    before = signal.getsignal(signal.SIGINT)
    stop_at(3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as stopped:
        train("everything", colors, tmp_path / "x", cache)
    assert stopped.value.signal == signal.SIGINT and "after epoch 1" in str(stopped.value)
    assert signal.getsignal(signal.SIGINT) is before


def kept(folder, **options):
    return Checkpoints(folder, {"a": 1}, **options)


def test_the_last_two_states_are_kept_and_a_damaged_one_is_passed_over(tmp_path, caplog):
    for number in range(5):
        assert kept(tmp_path).save(State("x", step=number, arrays={"w": np.full(3, number)}))
    paths = sorted(tmp_path.glob("state-*"))
    assert len(paths) == KEPT and kept(tmp_path).latest().step == 4
    paths[-1].write_bytes(paths[-1].read_bytes()[:-200])
    assert kept(tmp_path).latest().step == 3 and "damaged" in caplog.text
    paths[0].write_bytes(b"")
    assert kept(tmp_path).latest() is None
    assert kept(tmp_path).save(State("x", step=9)) and kept(tmp_path).latest().step == 9


def test_a_full_disk_is_said_and_loses_nothing(tmp_path, caplog, monkeypatch):
    states = kept(tmp_path)
    assert states.save(State("x", step=1))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with caplog.at_level(logging.WARNING):
        assert not states.save(State("x", step=2)) and not states.save(State("x", step=3))
    assert caplog.text.count("No space left on device") == 1
    assert states.latest().step == 1 and not list(tmp_path.glob("*.partial"))
    monkeypatch.undo()
    assert states.save(State("x", step=4)) and states.latest().step == 4


def test_a_folder_that_cannot_be_one_and_damaged_settings_are_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="a file"):
        kept(tmp_path / "file")
    kept(tmp_path / "x").save(State("x"))
    for text in ('{"a": ', "[1]"):
        (tmp_path / "x" / "settings.json").write_text(text)
        with pytest.raises(InputError, match="Remove"):
            kept(tmp_path / "x")


def test_a_state_that_is_being_written_is_not_read(tmp_path):
    kept(tmp_path).save(State("x", step=1))
    (tmp_path / "state-00000009.partial").write_bytes(b"half")
    assert kept(tmp_path).latest().step == 1


def test_states_are_written_by_the_clock(tmp_path):
    assert not kept(tmp_path, every=1000).due and kept(tmp_path, every=0).due


@pytest.mark.slow
def test_a_few_kills_lose_nothing(tmp_path):
    from scripts.kill_training import KINDS, kill_often

    some = {kind: KINDS[kind] for kind in ("everything", "the tail")}
    assert kill_often(tmp_path, 3, seed=1, kinds=some)["lost"] == 0
