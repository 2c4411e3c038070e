"""The table of options is true: an option that applies changes the trained weights, and one that does not is logged."""

import dataclasses
import functools
import logging

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.cases.builders import build
from transfer.training.fit import fit
from transfer.training.option_table import (
    APPLIES,
    Situation,
    ignored_options,
)
from transfer.training.recipes import Recipe

EXACT, EPOCHS, FINE_TUNING, FROM_SCRATCH = Situation
BUILDS = {
    EXACT: {"case": "small-similar"},
    EPOCHS: {"case": "small-similar"},
    FINE_TUNING: {"case": "large-similar"},
    FROM_SCRATCH: {"case": "large-different", "init": "random"},
}
FITS = {
    EXACT: {},
    EPOCHS: {"solver": "sgd", "epochs": 2},
    FINE_TUNING: {"epochs": 2},
    FROM_SCRATCH: {"epochs": 2},
}
TRIED = {
    "epochs": {"epochs": 3},
    "batch_size": {"batch_size": 16},
    "optimizer": {"optimizer": "rmsprop"},
    "learning_rate": {"learning_rate": 0.02},
    "label_smoothing": {"label_smoothing": 0.1},
    "dropout": {"dropout": 0.5},
    "class_weights": {"class_weights": True},
    "solver": {"solver": "sgd"},
    "views": {"views": 3},
    "augment": {"augment": "strong"},
    "flip": {"flip": False},
    "batchnorm": {"batchnorm": "adapted"},
    "layer_decay": {"layer_decay": 0.3},
    "gradual_unfreezing": {"gradual_unfreezing": 0.5},
    "weight_decay": {"weight_decay": 0.1},
    "clip_norm": {"clip_norm": 1e-6},
    "ema": {"ema": 0.9},
    "mix": {"mix": "mixup"},
    "schedule": {"schedule": "steps"},
    "decay_factor": {"schedule": "steps", "decay_every": 1, "decay_factor": 4.0},
    "decay_every": {"schedule": "steps", "decay_every": 1},
}
"""A value of each option, with the options that it needs; the last one is the option itself."""

RECIPE = {field.name for field in dataclasses.fields(Recipe)} - {"label_smoothing"}
BUILDER = ("optimizer", "learning_rate")


@pytest.fixture(scope="module")
def uneven(colors):
    """Images of three classes; the third class has fewer."""
    rows = [i for i, label in enumerate(colors.train.labels) if label < 2 or i % 4 == 0]
    return dataclasses.replace(colors, train=colors.train.take(rows), val=colors.val.take([]))


def trained(situation, options, data):
    """Train a tiny model with these options; return its weights."""
    given = {**FITS[situation], **options}
    recipe = Recipe(**{name: given.pop(name) for name in RECIPE & set(given)})
    built = {name: given.pop(name) for name in BUILDER if name in given}
    keras.utils.set_random_seed(1)
    model = build(base=make_tiny(), num_classes=3, preprocessing="tf", **BUILDS[situation], **built)
    fit(model, data, recipe=recipe, verbose=0, **given)
    return np.concatenate([np.ravel(weight) for weight in model.get_weights()])


@pytest.fixture(scope="module")
def baseline(uneven):
    """Return the weights without the option; each situation is trained once."""

    @functools.cache
    def train(situation, needed):
        return trained(situation, dict(needed), uneven)

    return train


def check(name, situation, data, baseline, caplog):
    *needed, _ = TRIED[name].items()
    before = baseline(situation, tuple(needed))
    with caplog.at_level(logging.WARNING):
        caplog.clear()
        after = trained(situation, TRIED[name], data)
    given = {**TRIED[name], **({"solver": "exact"} if situation is EXACT else {})}
    applies = name not in ignored_options(given, [situation])
    assert np.abs(after - before).max() > 1e-5 if applies else np.abs(after - before).max() < 1e-6
    logged = [line for line in caplog.messages if line.startswith("Ignored") and name in line.split(":")[0]]
    assert len(logged) == (not applies)


def test_every_option_is_tried():
    # `test_hub.py` tries LoRA, since these tiny networks have no matrices that it adapts.
    assert set(TRIED) | {"steps_per_execution", "lora"} == set(APPLIES)


@pytest.mark.parametrize(
    "name", [n for n in TRIED if n not in ("epochs", "label_smoothing", "dropout", "solver")]
)
def test_a_head_that_is_solved_exactly_follows_the_table(name, uneven, baseline, caplog):
    check(name, EXACT, uneven, baseline, caplog)


@pytest.mark.parametrize("situation", [EPOCHS, FINE_TUNING, FROM_SCRATCH], ids=lambda one: one.name.lower())
@pytest.mark.parametrize("name", TRIED)
@pytest.mark.slow
def test_training_in_epochs_follows_the_table(name, situation, uneven, baseline, caplog):
    if APPLIES[name].get(situation) == "error" or (name, situation) == ("solver", EPOCHS):
        pytest.skip("`fit` refuses it, or it is what makes the situation")
    check(name, situation, uneven, baseline, caplog)
