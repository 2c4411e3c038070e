"""The experiment of Yosinski et al. on tiny data: transferred, frozen and fine-tuned layers, and the results."""

from __future__ import annotations

import importlib
import json

import numpy as np
import pytest
from helpers.networks import assert_bit_equal, make_tiny

from transfer.common.errors import InputError
from transfer.images.datasets import load_data
from transfer.lesson.drawings import transferability_plot, transferability_summary
from transfer.lesson.shapes import SHAPES, make_shapes
from transfer.lesson.transferability import KINDS, Point, Transferability, transferability
from transfer.networks.backbones import load_backbone

module = importlib.import_module("transfer.lesson.transferability")  # the function has the same name

FEW = SHAPES[16:22]


@pytest.fixture(scope="module")
def data():
    images, labels = make_shapes(90, classes=FEW, image_size=48, seed=8)
    return load_data((images, labels), class_names=FEW, near_duplicates=False, val=0, test=0.3)


@pytest.fixture(scope="module")
def trainer():
    return module._Trainer(load_backbone("DemoCNN", weights="none"), 1, 16, 1e-3, None)


@pytest.fixture(scope="module")
def result(data):
    return transferability(data, epochs=1, layers=["conv2", "conv1"], seeds=(0, 1), batch_size=16)


def test_every_kind_is_measured_at_every_layer_and_seed(result):
    assert result.layers == ("conv1", "conv2")
    keys = [(point.kind, point.layer, point.seed) for point in result.points]
    assert len(keys) == len(set(keys)) == 4 * 2 * 2
    assert result.kinds == KINDS
    assert all(0 <= point.accuracy <= 1 for point in result.points)
    assert len(result.base) == 2
    assert result.chance == pytest.approx(1 / 3)


def test_results_are_written_as_json_text_and_figures(result):
    values = json.loads(json.dumps(result.to_dict()))
    assert values["means"]["AnB"] == pytest.approx(result.means("AnB"))
    assert len(values["points"]) == len(result.points)
    lines = result.to_text().splitlines()
    assert lines[1].split() == ["layer", "n", *KINDS]
    assert [line.split()[0] for line in lines[2:]] == ["conv1", "conv2"]
    for figure in (transferability_plot(result), transferability_summary(result)):
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()][1:] == ["conv1", "conv2"]


def test_means_are_over_seeds():
    points = tuple(Point("AnB", "a", seed, accuracy) for seed, accuracy in enumerate((0.2, 0.4)))
    result = Transferability("net", ("a",), 10, 5, 0.5, (0.5, 0.7), points)
    assert result.means("AnB") == [pytest.approx(0.3)]
    assert result.kinds == ("AnB",)
    assert "60.0%" in result.to_text()


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_layers_stay_exactly_equal_and_new_layers_train(frozen, data, trainer):
    ours, _ = module._split_classes(data, 0)
    donor, _ = trainer.train(ours, {}, None, frozen=False, seeds=(0, 0))
    after, _ = trainer.train(ours, donor, "conv2", frozen=frozen, seeds=(1, 0))
    for name in ("conv1", "conv2"):
        same = all(np.array_equal(*pair) for pair in zip(donor[name], after[name], strict=True))
        assert same == frozen, name
    fresh = trainer._new(3, "conv2" if frozen else None, 1)
    for name in ("conv3", "fc1", "fc2", "head"):
        assert not np.array_equal(fresh.get_layer(name).get_weights()[0], after[name][0]), name
        assert not np.array_equal(donor[name][0], after[name][0]), name


def test_a_reused_network_starts_like_a_new_one(data, trainer):
    ours, theirs = module._split_classes(data, 0)
    first, right = trainer.train(ours, {}, None, frozen=False, seeds=(5, 0))
    trainer.train(theirs, {}, None, frozen=False, seeds=(6, 0))
    fresh = trainer._new(3, None, 5)
    assert all(not np.any(np.asarray(v)) for v in fresh.optimizer.variables[2:])
    again = module._Trainer(trainer.base, 1, 16, 1e-3, None).train(ours, {}, None, frozen=False, seeds=(5, 0))
    assert again[1] == right
    for name, weights in first.items():
        for one, other in zip(weights, again[0][name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_halves_are_disjoint_and_drawn_by_the_seed(data):
    ours, theirs = module._split_classes(data, 0)
    assert not set(ours.class_names) & set(theirs.class_names)
    assert set(ours.class_names) | set(theirs.class_names) == set(FEW)
    assert sorted(set(ours.train.labels.tolist())) == [0, 1, 2]
    at = data.train.labels == FEW.index(ours.class_names[1])
    assert list(ours.train.take(np.flatnonzero(ours.train.labels == 1)).names) == [
        name for name, ok in zip(data.train.names, at, strict=True) if ok
    ]
    assert any(module._split_classes(data, seed)[0].class_names != ours.class_names for seed in range(1, 5))


def test_two_tasks_and_your_own_network(data):
    images, labels = make_shapes(40, classes=SHAPES[:2], seed=9)
    other = load_data((images, labels), class_names=SHAPES[:2], near_duplicates=False, val=0)
    tiny = make_tiny(image_size=48)
    before = tiny.get_weights()
    result = transferability(
        data, other, base=tiny, layers=["block2_add"], kinds=["AnB", "AnB+"], epochs=1, preprocessing="tf"
    )
    assert_bit_equal(tiny.get_weights(), before)
    assert [point.kind for point in result.points] == ["AnB", "AnB+"]
    assert result.chance == pytest.approx(1 / 6)


def test_default_layers_are_all_of_a_small_network_and_blocks_of_a_larger_one():
    demo = load_backbone("DemoCNN", weights="none")
    assert module._check_layers(demo, None) == ("conv1", "conv2", "conv3", "fc1", "fc2")
    tiny = make_tiny()
    assert module._check_layers(tiny, None) == ("block1_add", "block2_add", "block3_add", "pool")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kinds": ["CnB"]}, "Unknown kind 'CnB'"),
        ({"kinds": []}, "one kind or more, and one seed"),
        ({"seeds": []}, "one kind or more, and one seed"),
        ({"seeds": [-1]}, "seeds of 0 or more"),
        ({"epochs": 0}, "epochs and batch_size of 1 or more"),
        ({"batch_size": 0}, "epochs and batch_size of 1 or more"),
        ({"layers": ["conv9"]}, "Did you mean"),
        ({"layers": []}, "at least one layer"),
        ({"layers": ["predictions"]}, "before the classifier"),
        ({"learning_rate": 0.0}, "learning rate, a number above 0"),
    ],
)
def test_refuses_options(options, says, data):
    with pytest.raises(InputError, match=says):
        transferability(data, **options)


def test_refuses_bypassed_layers_and_too_few_classes(data):
    with pytest.raises(InputError, match=r"passes through\. Received: 'block2_branch'"):
        transferability(data, base=make_tiny(image_size=48), layers=["block2_branch"])
    images, labels = make_shapes(30, classes=SHAPES[:3])
    three = load_data((images, labels), near_duplicates=False)
    with pytest.raises(InputError, match="4 classes or more"):
        transferability(three)
