"""The builders: cuts, trainable layers, unchanged weights, seeds, image sizes, replicas, errors."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.networks import (
    assert_bit_equal,
    assert_same_function,
    flags,
    infer,
    make_tiny,
    raw_images,
    snapshot,
    two_replicas,
)

from transfer.cases.builders import (
    build,
    large_different,
    large_similar,
    small_different,
    small_similar,
    start_over,
    unfreeze,
)
from transfer.cases.cuts import cuts_of
from transfer.cases.decisions import decision_of
from transfer.cases.policies import POLICIES, SCRATCH_LEARNING_RATE, Case
from transfer.common.errors import InputError
from transfer.networks import surgery
from transfer.networks.backbones import block_ends, load_backbone
from transfer.networks.graphs import analyze
from transfer.parsing import parse_arguments

IMAGES, LABELS = raw_images(8), np.arange(8) % 3
OWN = {"preprocessing": "tf"}
CASES = [case.value for case in Case]
SMALL, LARGE = CASES[:2], CASES[2:]


def mobilenet(**arguments) -> keras.Model:
    return keras.applications.MobileNetV2(**{"weights": None, "input_shape": (32, 32, 3), **arguments})


def train(model, epochs: int = 1):
    return model.fit(IMAGES, LABELS, batch_size=4, epochs=epochs, verbose=0)


def by_layer(model) -> dict[str, list[np.ndarray]]:
    return {layer.name: snapshot(layer) for layer in model.layers if layer.variables}


def changed(before: dict, after: dict) -> set[str]:
    """Return the names of the layers with any changed variable."""
    differ = {k for k in before if any((a != b).any() for a, b in zip(before[k], after[k], strict=True))}
    return differ


def learning_rate(model) -> float:
    return float(model.optimizer.learning_rate.numpy())


# The four cases


def test_small_similar_on_mobilenet_trains_a_head_of_1280_times_4_and_4():
    model = small_similar(mobilenet(), 4)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == 1280 * 4 + 4
    assert decision_of(model).cut == "global_average_pooling2d" or decision_of(model).cut.startswith(
        "global_average_pooling2d"
    )
    assert decision_of(model).had_classifier


@pytest.mark.parametrize("case", CASES)
def test_every_case_takes_raw_images_and_ends_in_a_softmax(case, tiny):
    model = build(case, tiny, 3, **OWN)
    head = model.layers[-1]
    assert isinstance(head, keras.layers.Dense)
    assert head.activation is keras.activations.softmax
    assert model.output_shape == (None, 3)
    assert model.compiled
    assert not model.jit_compile, "XLA is forced on the CPU"
    preprocessed = surgery.slice_at(tiny, decision_of(model).cut)(IMAGES / 127.5 - 1)
    pooled = np.asarray(preprocessed)
    pooled = pooled.mean(axis=(1, 2)) if pooled.ndim == 4 else pooled
    ours = infer(surgery.feature_extractor_of(model), IMAGES)
    np.testing.assert_allclose(ours, pooled, rtol=1e-4, atol=1e-5)


def test_the_cases_differ_in_cut_trainable_layers_and_learning_rate(tiny):
    everything = {f"block{n}_{part}" for n in (1, 2, 3) for part in ("conv", "branch")} | {"head"}
    expected = {
        "small-similar": ("pool", {"head"}),
        "small-different": ("block2_add", {"head"}),
        "large-similar": ("pool", everything),
        "large-different": ("pool", everything),
    }
    for case, (cut, names) in expected.items():
        model = build(case, tiny, 3, **OWN)
        assert decision_of(model).cut == cut
        assert {layer.name for layer in model.layers if layer.trainable_weights} == names
        assert learning_rate(model) == pytest.approx(POLICIES[Case(case)].learning_rate)
        assert decision_of(model).init == "pretrained"
        assert decision_of(model).pin_batchnorm


@pytest.mark.parametrize(
    ("cut", "case"),
    [
        ("all", "small-similar"),
        ("pool", "small-similar"),
        ("block3_add", "small-similar"),  # the last layer only averages it
        (("block1_add", "pool"), "small-similar"),
        ("block2_add", "small-different"),
        (("block1_add", "block2_add"), "small-different"),
    ],
    ids=str,
)
@pytest.mark.parametrize("function", [small_similar, small_different])
def test_the_cut_of_a_frozen_network_decides_the_case(tiny, function, cut, case):
    """Case 1 keeps the whole network, case 2 only its early layers."""
    assert decision_of(function(tiny, 3, cut=cut, **OWN)).case == case


def test_a_cut_does_not_change_the_case_of_fine_tuning(tiny):
    assert decision_of(large_similar(tiny, 3, cut="block2_add", **OWN)).case == "large-similar"


def test_the_four_functions_equal_build_with_their_case(tiny):
    for case, function in zip(
        CASES, (small_similar, small_different, large_similar, large_different), strict=True
    ):
        one, other = (
            function(tiny, 3, seed=3, **OWN),
            build(case.replace("-", "_").upper(), tiny, 3, seed=3, **OWN),
        )
        assert decision_of(one) == decision_of(other)
        assert_bit_equal(snapshot(one), snapshot(other))


def test_the_decision_lists_the_blocks_from_input_to_output(tiny):
    assert decision_of(small_different(tiny, 3, **OWN)).blocks == [
        ("block1_add", "frozen"),
        ("block2_add", "frozen"),
        ("softmax", "new"),
        ("block3_add", "cut"),
        ("source classifier", "cut"),
    ]
    states = {state for _, state in decision_of(large_different(tiny, 3, init="random", **OWN)).blocks}
    assert states == {"new", "cut"}
    assert ("block3_add", "trained") in decision_of(large_similar(make_tiny(top=False), 3, **OWN)).blocks


def test_case_1_keeps_the_hidden_layers_of_a_vgg():
    base = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5)
    model = small_similar(base, 3)
    assert [layer.name for layer in model.layers[-4:]] == ["flatten", "fc1", "fc2", "head"]
    assert len(model.trainable_weights) == 2
    assert decision_of(small_different(base, 3)).cut == "block4_pool"


def test_a_base_without_its_top_is_kept_whole():
    base = make_tiny(top=False)
    model = small_similar(base, 3, **OWN)
    assert decision_of(model).cut == base.layers[-1].name == "block3_add"
    assert not decision_of(model).had_classifier


# Cuts


@pytest.mark.parametrize(
    "cut, expected",
    [
        ("block1_add", "block1_add"),
        ("block2_branch", "block2_branch"),  # inside a block: legal when named
        ("pool", "pool"),
        (0, "block1_add"),
        (-1, "block3_add"),
        (np.int64(1), "block2_add"),
        ("-2", "block2_add"),  # from the command line
    ],
)
def test_a_cut_is_a_name_or_a_position_among_block_ends(tiny, cut, expected):
    for case in ("small-similar", "large-similar"):
        model = build(case, tiny, 3, cut=cut, **OWN)
        assert decision_of(model).cut == expected
        names = [layer.name for layer in model.layers]
        assert names[-1] == "head"
        assert expected in names[-3:]


def test_layers_behind_the_cut_are_removed(tiny):
    model = small_similar(tiny, 3, cut="block1_add", **OWN)
    assert not [layer.name for layer in model.layers if layer.name.startswith("block2")]
    assert decision_of(model).kept == ("block1_add",)
    assert decision_of(model).cut_away == ("block2_add", "block3_add")


def test_wrong_cuts_are_refused_with_valid_ones(tiny):
    with pytest.raises(InputError, match=r"'block4_add'\. Did you mean 'block"):
        small_similar(tiny, 3, cut="block4_add", **OWN)
    for cut in (3, -4):
        with pytest.raises(InputError, match=rf"the 3 block ends of 'tiny', -3 to 2\. Received: {cut}"):
            small_similar(tiny, 3, cut=cut, **OWN)


def test_default_cuts_are_never_inside_a_block():
    base = mobilenet(alpha=0.35)
    assert decision_of(small_different(base, 3)).cut == "block_13_project_BN"
    assert "pooling" in decision_of(large_different(base, 3)).cut


# Several cuts at once


TWO = ["block1_add", "block3_add"]


@pytest.mark.parametrize("case", CASES)
def test_one_head_sees_the_features_of_several_cuts(case, tiny):
    model = build(case, tiny, 3, cut=TWO[::-1], **OWN)
    assert decision_of(model).cuts == tuple(TWO)
    assert decision_of(model).cut == "block3_add"
    assert decision_of(model).kept == ("block1_add", "block2_add", "block3_add")
    assert model.layers[-1].kernel.shape == (8 + 16, 3)
    parts = [np.asarray(surgery.slice_at(tiny, cut)(IMAGES / 127.5 - 1)).mean(axis=(1, 2)) for cut in TWO]
    expected = np.concatenate([x / np.linalg.norm(x, axis=1, keepdims=True) for x in parts], axis=1)
    np.testing.assert_allclose(
        infer(surgery.feature_extractor_of(model), IMAGES), expected, rtol=1e-4, atol=1e-5
    )
    before = by_layer(model)
    train(model, epochs=2)
    convolutions = {f"block{n}_{part}" for n in (1, 2, 3) for part in ("conv", "branch")}
    assert changed(before, by_layer(model)) == {"head"} | (convolutions if case in LARGE else set())


def test_a_list_of_one_cut_equals_that_cut(tiny):
    for cut in ("block2_add", ["block2_add"], ["block2_add", 1], "block2_add, block2_add", [1]):
        model = small_similar(tiny, 3, cut=cut, **OWN)
        assert (decision_of(model).cut, decision_of(model).cuts) == ("block2_add", ("block2_add",))
        assert [layer.name for layer in model.layers[-3:]] == ["block2_add", "head_pool", "head"]
    assert decision_of(small_similar(tiny, 3, **OWN)).cuts == ("pool",)


@pytest.mark.parametrize(
    "cut", ["block1_add,block3_add", " block3_add , block1_add", (-1, "block1_add"), [np.int64(0), 2]]
)
def test_cuts_are_names_positions_or_a_text_with_commas(tiny, cut):
    assert cuts_of(analyze(tiny), cut) == tuple(TWO)


def test_cuts_come_from_the_command_line_as_text(tiny):
    for text, cuts in (("block1_add,block3_add", tuple(TWO)), ("all", ("block1_add", "block2_add", "pool"))):
        model = small_similar(tiny, 3, cut=parse_arguments(["--cut", text]).cut, **OWN)
        assert decision_of(model).cuts == cuts


def test_all_cuts_are_the_block_ends_and_the_last_layer_without_duplicates():
    assert cuts_of(analyze(make_tiny()), "all") == ("block1_add", "block2_add", "pool")
    assert cuts_of(analyze(make_tiny(top=False)), "all") == ("block1_add", "block2_add", "block3_add")
    base = load_backbone("MobileNetV2", weights="none", image_size=32)
    assert cuts_of(analyze(base), "all") == (*block_ends(base), "global_average_pooling2d")  # of another map
    base = load_backbone("MobileNet", weights="none", image_size=32)
    assert cuts_of(analyze(base), "all") == (
        *block_ends(base)[:-1],
        "dropout",
    )  # of an average, of the last block
    base = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5)
    assert cuts_of(analyze(base), "all") == (*block_ends(base), "fc2")


def test_all_cuts_of_a_real_network_train_and_list_their_blocks():
    base = mobilenet(alpha=0.35)
    model = large_similar(base, 3, cut="all")
    assert len(decision_of(model).cuts) == len(block_ends(base)) + 1
    assert decision_of(model).cut_away == ()
    assert [name for name, _ in decision_of(model).blocks] == [
        *block_ends(base),
        "softmax",
        "source classifier",
    ]
    before = by_layer(model)
    train(model)
    assert {"Conv1", "block_8_depthwise", "Conv_1", "head"} <= changed(before, by_layer(model))


def test_cuts_that_do_not_feed_each_other_are_all_kept():
    image = keras.Input((32, 32, 3))
    sides = [keras.layers.Conv2D(n, 3, name=f"side{n}")(image) for n in (2, 3, 4)]
    base = keras.Model(image, keras.layers.Concatenate()(sides), name="sides")
    model = small_similar(base, 3, cut="side2,side3", **OWN)
    assert model.layers[-1].kernel.shape == (5, 3)
    assert "side4" not in [layer.name for layer in model.layers]


def test_several_cuts_allow_an_image_size_that_only_the_removed_layers_refuse():
    base = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5)
    model = small_similar(base, 3, cut=[1, 2], image_size=64)
    assert model.output_shape == (None, 3)


def test_a_model_with_several_cuts_can_be_the_base_of_the_next_one(tiny):
    first = small_similar(tiny, 5, cut=TWO, **OWN)
    second = small_similar(first, 3)
    assert decision_of(second).cut == "joined"
    assert_same_function(surgery.feature_extractor_of(first), surgery.feature_extractor_of(second), IMAGES)
    third = small_similar(first, 3, cut=["block2_add", "joined"])
    assert third.layers[-1].kernel.shape == (12 + 24, 3)
    names = [layer.name for layer in third.layers]
    assert len(set(names)) == len(names)


def test_wrong_cuts_among_several_are_refused_with_valid_ones(tiny):
    for cut, message in (
        ("block1_add,block4_add", r"'block4_add'\. Did you mean 'block"),
        (["block1_add", "block4_add"], r"'block4_add'\. Did you mean 'block"),
        ("block1_add,", "Unknown layer of 'tiny' ''"),
        ([0, 3], r"the 3 block ends of 'tiny', -3 to 2\. Received: 3"),
        ([], "at least one layer to cut at"),
    ):
        with pytest.raises(InputError, match=message):
            small_similar(tiny, 3, cut=cut, **OWN)


def test_several_cuts_unfreeze_and_start_over(tiny):
    model = unfreeze(small_similar(tiny, 3, cut=TWO, **OWN), from_layer="block3_conv")
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == {"block3_conv", "block3_branch", "head"}
    start_over(model)
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == set(before)


def test_several_cuts_train_on_two_replicas(tiny):
    model = large_similar(tiny, 3, cut="all", strategy=two_replicas(), **OWN)
    train(model)
    assert_replicas_agree(model)


# Unchanged weights


@pytest.mark.parametrize("case", CASES)
def test_building_and_training_do_not_change_the_base(case, tiny):
    tiny.get_layer("block2_conv").trainable = False
    before, flags_before = snapshot(tiny), flags(tiny)
    model = build(case, tiny, 3, **OWN)
    train(model)
    unfreeze(model)
    train(model)
    assert_bit_equal(snapshot(tiny), before)
    assert flags(tiny) == flags_before
    assert not tiny.compiled


def test_a_network_that_was_frozen_by_hand_still_trains(tiny):
    tiny.trainable = False
    assert len(large_similar(tiny, 3, **OWN).trainable_weights) == 3 + 2 * 3 + 2


@pytest.mark.parametrize("case", SMALL)
def test_frozen_layers_are_bit_equal_after_fit(case, tiny):
    model = build(case, tiny, 3, **OWN)
    before = by_layer(model)
    train(model, epochs=2)
    assert changed(before, by_layer(model)) == {"head"}


@pytest.mark.parametrize("build_it", [large_similar, large_different])
def test_batchnorm_is_pinned_with_pretrained_weights(build_it, tiny):
    model = build_it(tiny, 3, **OWN)
    before = by_layer(model)
    train(model, epochs=2)
    pinned = {name for name in before if name.endswith("_bn")}
    assert len(pinned) == 3
    assert changed(before, by_layer(model)) == set(before) - pinned


def test_batchnorm_trains_with_random_weights(tiny):
    model = large_different(tiny, 3, init="random", **OWN)
    before = by_layer(model)
    train(model, epochs=2)
    assert changed(before, by_layer(model)) == set(before)
    assert learning_rate(model) == pytest.approx(SCRATCH_LEARNING_RATE)
    assert not decision_of(model).pin_batchnorm
    for number in (1, 2, 3):
        old, new = before[f"block{number}_bn"], snapshot(model.get_layer(f"block{number}_bn"))
        assert all((a != b).all() for a, b in zip(old[2:], new[2:], strict=True))


# Seeds and initial weights


def test_the_same_seed_gives_the_same_head_and_another_seed_another(tiny):
    heads = [small_similar(tiny, 3, seed=s, **OWN).layers[-1].get_weights()[0] for s in (1, 1, 2)]
    np.testing.assert_array_equal(heads[0], heads[1])
    assert (heads[0] != heads[2]).all()


def test_random_weights_follow_the_seed_and_nothing_else(tiny):
    keras.utils.set_random_seed(1)
    one = large_different(tiny, 3, init="random", seed=1, **OWN).get_weights()
    keras.utils.set_random_seed(2)
    same = large_different(tiny, 3, init="random", seed=1, **OWN).get_weights()
    other = large_different(tiny, 3, init="random", seed=2, **OWN).get_weights()
    pretrained = large_different(tiny, 3, seed=1, **OWN).get_weights()
    assert_bit_equal(one, same)
    kernels = [i for i, w in enumerate(one) if w.ndim == 4]
    assert len(kernels) == 6
    assert all((one[i] != other[i]).any() and (one[i] != pretrained[i]).any() for i in kernels)


def test_auto_starts_from_the_pretrained_weights(tiny):
    auto, pretrained = (large_different(tiny, 3, init=init, **OWN) for init in ("auto", "pretrained"))
    assert decision_of(auto).init == "auto"
    assert_bit_equal(snapshot(auto), snapshot(pretrained))


def test_starting_over_gives_random_weights_trainable_batchnorm_and_a_new_optimizer(tiny):
    model = large_different(tiny, 3, init="auto", **OWN)
    train(model)
    before, optimizer = by_layer(model), model.optimizer
    assert start_over(model, seed=1) is model
    kernels = {name for name in before if "conv" in name or "branch" in name}
    assert kernels <= changed(before, by_layer(model))
    assert decision_of(model).init == "random"
    assert model.optimizer is not optimizer
    assert learning_rate(model) == pytest.approx(SCRATCH_LEARNING_RATE)
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == set(before)


# Unfreezing


def test_unfreezing_has_an_effect_at_once_and_pins_batchnorm(tiny):
    model = small_similar(tiny, 3, **OWN)
    train(model)
    optimizer = model.optimizer
    assert unfreeze(model, learning_rate=1e-2) is model
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == {name for name in before if not name.endswith("_bn")}
    assert learning_rate(model) == pytest.approx(1e-2)
    assert model.optimizer is not optimizer


def test_unfreezing_from_a_layer_keeps_the_layers_before_it_frozen(tiny):
    model = unfreeze(small_similar(tiny, 3, **OWN), from_layer="block3_conv")
    assert learning_rate(model) == pytest.approx(POLICIES[Case.LARGE_SIMILAR].learning_rate)
    before = by_layer(model)
    train(model, epochs=2)
    assert changed(before, by_layer(model)) == {"block3_conv", "block3_branch", "head"}


def test_unfreezing_batchnorm_too_is_possible(tiny):
    model = unfreeze(small_similar(tiny, 3, **OWN), pin_batchnorm=False)
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == set(before)
    assert not decision_of(model).pin_batchnorm


def test_unfreezing_from_the_head_freezes_the_rest_again(tiny):
    model = unfreeze(large_similar(tiny, 3, **OWN), from_layer="head")
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == {"head"}


def test_unfreezing_refuses_unknown_layers_and_bad_rates(tiny):
    model = small_similar(tiny, 3, **OWN)
    with pytest.raises(InputError, match="Did you mean 'block3_conv'"):
        unfreeze(model, from_layer="block3_con")
    with pytest.raises(InputError, match="a number above 0"):
        unfreeze(model, learning_rate=-1.0)
    assert len(model.trainable_weights) == 2


# Image sizes


def test_another_image_size_changes_the_input_only(tiny):
    model = small_similar(tiny, 3, image_size=(48, 64), **OWN)
    assert model.input_shape == (None, 48, 64, 3)
    assert small_similar(tiny, 3, image_size=np.int64(48), **OWN).input_shape == (None, 48, 48, 3)
    same = small_similar(tiny, 3, **OWN)
    assert_bit_equal(snapshot(model), snapshot(same))


@pytest.mark.parametrize("size", [0, -8, (32,), (32, 0), "32", 32.5, (32, 32, 3)])
def test_invalid_image_sizes_are_refused(tiny, size):
    with pytest.raises(InputError, match="Expected an image size"):
        small_similar(tiny, 3, image_size=size, **OWN)


def test_an_image_size_that_the_network_cannot_take_is_refused():
    base = keras.applications.VGG16(weights=None, input_shape=(32, 32, 3), classes=5)
    with pytest.raises(InputError, match=r"'vgg16' cannot take images of shape \(64, 64, 3\): .*'fc1'"):
        small_similar(base, 3, image_size=64)
    assert small_different(base, 3, image_size=64).input_shape == (None, 64, 64, 3)


# Replicas


def test_a_network_made_outside_the_scope_trains_on_two_replicas(tiny):
    before = snapshot(tiny)
    model = large_similar(tiny, 3, strategy=two_replicas(), **OWN)
    assert model.distribute_strategy is two_replicas()
    assert_replicas_agree(model)
    start = by_layer(model)
    train(model)
    pinned = {name for name in start if name.endswith("_bn")}
    assert changed(start, by_layer(model)) == set(start) - pinned
    assert_replicas_agree(model)
    assert_bit_equal(snapshot(tiny), before)
    unfreeze(model, from_layer="block3_conv")
    train(model)
    assert_replicas_agree(model)


def test_two_replicas_train_as_one_does(tiny):
    one, two = (
        large_similar(tiny, 3, strategy=s, learning_rate=1e-3, **OWN) for s in ("default", two_replicas())
    )
    before = one.get_weights()
    train(one, epochs=2), train(two, epochs=2)
    moved = max(np.abs(a - b).max() for a, b in zip(before, one.get_weights(), strict=True))
    apart = max(np.abs(a - b).max() for a, b in zip(one.get_weights(), two.get_weights(), strict=True))
    assert moved > 1e-3
    assert apart < 0.1 * moved


def test_trainable_batchnorm_is_the_same_on_both_replicas(tiny):
    model = large_different(tiny, 3, init="random", strategy=two_replicas(), **OWN)
    before = by_layer(model)
    train(model)
    assert changed(before, by_layer(model)) == set(before)
    assert_replicas_agree(model, tolerance=1e-6)


def assert_replicas_agree(model, tolerance: float = 0.0) -> None:
    for variable in model.weights:
        first, second = (np.asarray(v) for v in two_replicas().experimental_local_results(variable.value))
        assert np.abs(first - second).max() <= tolerance * max(1.0, np.abs(first).max()), variable.path


# Invalid arguments


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_classes": 1}, "at least 2 classes"),
        ({"num_classes": "three"}, "at least 2 classes"),
        ({"learning_rate": 0}, "a number above 0"),
        ({"learning_rate": -1e-3}, "a number above 0"),
        ({"learning_rate": float("nan")}, "a number above 0"),
        ({"learning_rate": float("inf")}, "a number above 0"),
        ({"learning_rate": "fast"}, "a number above 0"),
        ({"init": "random"}, "needs large-different"),
        ({"init": "auto"}, "needs large-different"),
        ({"init": "randm"}, "Did you mean 'random'"),
        ({"case": "small-similer"}, "Did you mean 'small-similar'"),
        ({"case": None}, "Unknown case None"),
        ({"base": "MobileNetV2"}, r"Expected a keras\.Model as base\. Received: str"),
        ({"base": None}, "Received: NoneType"),
        ({"strategy": "miror"}, "Did you mean 'mirrored'"),
        ({"preprocessing": "torch "}, "Did you mean 'torch'"),
    ],
)
def test_invalid_arguments_are_refused_with_valid_ones(tiny, options, message):
    arguments = {"case": "small-similar", "base": tiny, "num_classes": 3, **OWN, **options}
    with pytest.raises(InputError, match=message):
        build(**arguments)


def test_networks_that_cannot_be_sliced_are_refused():
    class Subclassed(keras.Model):
        def call(self, x):
            return x

    one, two = keras.Input((32, 32, 3)), keras.Input((32, 32, 3))
    both = keras.Model([one, two], keras.layers.Add()([one, two]), name="both")
    vector = keras.Sequential([keras.Input((8,)), keras.layers.Dense(2)])
    for base, message in (
        (Subclassed(), "no graph of layers"),
        (both, "'both' with 2 and 1"),
        (vector, "network for color images"),
        (
            surgery.clone(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Conv2D(2, 3)])),
            "color images",
        ),
    ):
        with pytest.raises(InputError, match=message):
            small_similar(base, 3, **OWN)


def test_a_built_model_can_be_the_base_of_the_next_one(tiny):
    first = large_similar(tiny, 5, **OWN)
    second = small_similar(first, 3)
    assert decision_of(second).cut == "pool"
    assert_same_function(surgery.feature_extractor_of(first), surgery.feature_extractor_of(second), IMAGES)
    assert [layer.name for layer in second.layers[-2:]] == ["pool", "head"]


# The optimizer


@pytest.mark.parametrize("case", CASES)
def test_rmsprop_has_the_settings_of_the_paper_also_after_unfreezing(case, tiny):
    model = build(case, tiny, 3, optimizer="rmsprop", **OWN)
    for again in (model, unfreeze(model), start_over(model)):
        assert isinstance(again.optimizer, keras.optimizers.RMSprop)
        found = again.optimizer.get_config()
        assert (found["rho"], found["momentum"], found["epsilon"]) == (0.9, 0.9, 0.1)
        assert learning_rate(again) == pytest.approx(0.001)
    assert decision_of(model).optimizer == "rmsprop"
    assert learning_rate(
        build(case, tiny, 3, optimizer="rmsprop", learning_rate=0.01, **OWN)
    ) == pytest.approx(0.01)
    train(model)


def test_an_unknown_optimizer_lists_the_nearest(tiny):
    with pytest.raises(InputError, match="Did you mean 'rmsprop'"):
        build("large-similar", tiny, 3, optimizer="rmspop", **OWN)


@pytest.mark.parametrize(
    ("case", "more"), [("large-similar", {}), ("small-similar", {"unfreeze_from": "block2_conv"})]
)
def test_batchnorm_can_train_from_pretrained_weights(case, more, tiny):
    model = build(case, tiny, 3, pin_batchnorm=False, **more, **OWN)
    layers = [x for x in model.layers if isinstance(x, keras.layers.BatchNormalization)]
    assert [x.trainable for x in layers] == [case == "large-similar", True, True]
    assert not decision_of(model).pin_batchnorm
    assert decision_of(
        build("large-different", tiny, 3, init="random", pin_batchnorm=True, **OWN)
    ).pin_batchnorm
