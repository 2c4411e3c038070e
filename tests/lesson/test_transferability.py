"""The experiment of Yosinski et al. on tiny data: what is copied, what is frozen, what trains, what comes out."""

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

room = importlib.import_module("transfer.lesson.transferability")  # the function has the same name

FEW = SHAPES[16:22]


@pytest.fixture(scope="module")
def data():
    images, labels = make_shapes(90, classes=FEW, image_size=48, seed=8)
    return load_data((images, labels), class_names=FEW, near_duplicates=False, val=0, test=0.3)


@pytest.fixture(scope="module")
def lab():
    return room._Lab(load_backbone("DemoCNN", weights="none"), 1, 16, 1e-3, None)


@pytest.fixture(scope="module")
def found(data):
    return transferability(data, epochs=1, layers=["conv2", "conv1"], seeds=(0, 1), batch_size=16)


def test_every_kind_is_measured_at_every_layer_and_seed(found):
    assert found.layers == ("conv1", "conv2")
    keys = [(point.kind, point.layer, point.seed) for point in found.points]
    assert len(keys) == len(set(keys)) == 4 * 2 * 2
    assert found.kinds == KINDS
    assert all(0 <= point.accuracy <= 1 for point in found.points)
    assert len(found.base) == 2
    assert found.chance == pytest.approx(1 / 3)


def test_it_is_told_as_json_as_text_and_in_images(found):
    told = json.loads(json.dumps(found.to_dict()))
    assert told["means"]["AnB"] == pytest.approx(found.means("AnB"))
    assert len(told["points"]) == len(found.points)
    lines = found.to_text().splitlines()
    assert lines[1].split() == ["layer", "n", *KINDS]
    assert [line.split()[0] for line in lines[2:]] == ["conv1", "conv2"]
    for figure in (transferability_plot(found), transferability_summary(found)):
        assert [t.get_text() for t in figure.axes[0].get_xticklabels()][1:] == ["conv1", "conv2"]


def test_means_are_over_seeds():
    points = tuple(Point("AnB", "a", seed, accuracy) for seed, accuracy in enumerate((0.2, 0.4)))
    found = Transferability("net", ("a",), 10, 5, 0.5, (0.5, 0.7), points)
    assert found.means("AnB") == [pytest.approx(0.3)]
    assert found.kinds == ("AnB",)
    assert "60.0%" in found.to_text()


@pytest.mark.parametrize("frozen", [True, False])
def test_what_is_frozen_stays_bit_by_bit_and_what_is_fresh_trains(frozen, data, lab):
    ours, _ = room._halves(data, 0)
    donor, _ = lab.train(ours, {}, None, frozen=False, seeds=(0, 0))
    after, _ = lab.train(ours, donor, "conv2", frozen=frozen, seeds=(1, 0))
    for name in ("conv1", "conv2"):
        same = all(np.array_equal(*pair) for pair in zip(donor[name], after[name], strict=True))
        assert same == frozen, name
    fresh = lab._fresh(3, "conv2" if frozen else None, 1)
    for name in ("conv3", "fc1", "fc2", "head"):
        assert not np.array_equal(fresh.get_layer(name).get_weights()[0], after[name][0]), name
        assert not np.array_equal(donor[name][0], after[name][0]), name


def test_a_network_is_as_fresh_the_second_time_as_the_first(data, lab):
    ours, theirs = room._halves(data, 0)
    first, right = lab.train(ours, {}, None, frozen=False, seeds=(5, 0))
    lab.train(theirs, {}, None, frozen=False, seeds=(6, 0))
    fresh = lab._fresh(3, None, 5)
    assert all(not np.any(np.asarray(v)) for v in fresh.optimizer.variables[2:])
    again = room._Lab(lab.base, 1, 16, 1e-3, None).train(ours, {}, None, frozen=False, seeds=(5, 0))
    assert again[1] == right
    for name, weights in first.items():
        for one, other in zip(weights, again[0][name], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_halves_are_disjoint_and_drawn_by_the_seed(data):
    ours, theirs = room._halves(data, 0)
    assert not set(ours.class_names) & set(theirs.class_names)
    assert set(ours.class_names) | set(theirs.class_names) == set(FEW)
    assert sorted(set(ours.train.labels.tolist())) == [0, 1, 2]
    at = data.train.labels == FEW.index(ours.class_names[1])
    assert list(ours.train.take(np.flatnonzero(ours.train.labels == 1)).names) == [
        name for name, ok in zip(data.train.names, at, strict=True) if ok
    ]
    assert any(room._halves(data, seed)[0].class_names != ours.class_names for seed in range(1, 5))


def test_two_tasks_and_a_network_of_ones_own(data):
    images, labels = make_shapes(40, classes=SHAPES[:2], seed=9)
    other = load_data((images, labels), class_names=SHAPES[:2], near_duplicates=False, val=0)
    tiny = make_tiny(image_size=48)
    before = tiny.get_weights()
    found = transferability(
        data, other, base=tiny, layers=["block2_add"], kinds=["AnB", "AnB+"], epochs=1, preprocessing="tf"
    )
    assert_bit_equal(tiny.get_weights(), before)
    assert [point.kind for point in found.points] == ["AnB", "AnB+"]
    assert found.chance == pytest.approx(1 / 6)


def test_layers_are_each_of_a_small_network_and_blocks_of_a_larger():
    demo = load_backbone("DemoCNN", weights="none")
    assert room._checked_layers(demo, None) == ("conv1", "conv2", "conv3", "fc1", "fc2")
    tiny = make_tiny()
    assert room._checked_layers(tiny, None) == ("block1_add", "block2_add", "block3_add", "pool")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"kinds": ["CnB"]}, "Unknown kind 'CnB'"),
        ({"kinds": []}, "one kind and one seed"),
        ({"seeds": []}, "one kind and one seed"),
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


def test_refuses_what_something_runs_past_and_too_few_classes(data):
    with pytest.raises(InputError, match=r"runs through\. Received: 'block2_branch'"):
        transferability(data, base=make_tiny(image_size=48), layers=["block2_branch"])
    images, labels = make_shapes(30, classes=SHAPES[:3])
    three = load_data((images, labels), near_duplicates=False)
    with pytest.raises(InputError, match="4 classes or more"):
        transferability(three)
