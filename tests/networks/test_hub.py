"""Networks of KerasHub: the same outputs, blocks as layers, all four cases, presets, image sizes."""

import importlib.util
import math
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest

import transfer
from transfer.common.errors import InputError
from transfer.evaluation.explanations import grad_cam, strongest_responses
from transfer.frozen.engines import make_engine
from transfer.networks import hub
from transfer.networks.frozen_boundary import split_at_frozen_boundary
from transfer.networks.graphs import analyze, fingerprint
from transfer.networks.tokens import num_tokens

keras_hub = pytest.importorskip("keras_hub")
models = keras_hub.models

_TOKENS = {"patch_size": 8, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "image_shape": (32, 32, 3)}
_WIDE = {**_TOKENS, "intermediate_dim": 32}

FAMILIES = {
    "CLIPVisionEncoder": (_WIDE, "clip_vision_encoder_encoder_block_1"),
    "CSPNetBackbone": (
        {
            **{"stem_filters": 8, "stem_kernel_size": 3, "stem_strides": 2, "stackwise_depth": [1, 1]},
            **{"stackwise_strides": [1, 2], "stackwise_num_filters": [8, 16], "image_shape": (32, 32, 3)},
            **{"block_type": "dark_block", "stage_type": "dark"},
        },
        "",
    ),
    "DINOV2Backbone": (
        {**_WIDE, "num_register_tokens": 2, "position_embedding_shape": (48, 48, 3)},
        "layers_1",
    ),
    "DINOV3Backbone": ({**_WIDE, "num_register_tokens": 2}, "layers_1"),
    "DeiTBackbone": (_WIDE, "transformer_block_2_output_layer"),
    "DenseNetBackbone": (
        {
            "stackwise_num_repeats": [2, 2],
            "compression_ratio": 0.5,
            "growth_rate": 4,
            "image_shape": (32, 32, 3),
        },
        "stack1_block2_concat",
    ),
    "EfficientNetBackbone": (
        {
            **{"stackwise_width_coefficients": [1.0] * 2, "stackwise_depth_coefficients": [1.0] * 2},
            **{"stackwise_squeeze_and_excite_ratios": [0.25] * 2, "stackwise_expansion_ratios": [1, 6]},
            **{
                "stackwise_kernel_sizes": [3, 3],
                "stackwise_num_repeats": [1, 1],
                "stackwise_strides": [1, 2],
            },
            **{"stackwise_input_filters": [8, 8], "stackwise_output_filters": [8, 16], "dropout": 0.2},
            **{"stackwise_block_types": ["v1", "v1"], "input_shape": (32, 32, 3)},
        },
        "block1a_add",
    ),
    "HGNetV2Backbone": (
        {
            **{"depths": [1, 1], "embedding_size": 8, "hidden_sizes": [8, 16], "stem_channels": [3, 4, 8]},
            **{"hidden_act": "relu", "use_learnable_affine_block": False, "apply_downsample": [False, True]},
            **{"stackwise_stage_filters": [[8, 8, 16, 1, 3, 3], [16, 8, 16, 1, 3, 3]]},
            **{"use_lightweight_conv_block": [False, False], "image_shape": (32, 32, 3)},
        },
        "hg_net_v2_backbone_encoder_stage_0",
    ),
    "MetaCLIP2VisionEncoder": (_WIDE, "meta_clip2_vision_encoder_encoder_block_1"),
    "MiTBackbone": (
        {
            **{"layerwise_depths": [1, 1], "num_layers": 2, "layerwise_num_heads": [1, 2]},
            **{"layerwise_sr_ratios": [2, 1], "max_drop_path_rate": 0.1, "layerwise_patch_sizes": [7, 3]},
            **{"layerwise_strides": [4, 2], "hidden_dims": [8, 16], "image_shape": (32, 32, 3)},
        },
        "",
    ),
    "MobileNetBackbone": (
        {
            **{"stackwise_expansion": [[8, 16], [16, 16]], "stackwise_num_blocks": [2, 2]},
            **{"stackwise_num_filters": [[8, 8], [16, 16]], "stackwise_kernel_size": [[3, 3], [5, 5]]},
            **{"stackwise_num_strides": [[2, 1], [2, 1]], "stackwise_se_ratio": [[None] * 2, [0.25] * 2]},
            **{"stackwise_activation": [["relu"] * 2, ["hard_swish"] * 2], "depthwise_filters": 8},
            **{"stackwise_padding": [[1, 1], [2, 2]], "output_num_filters": None, "depthwise_stride": 1},
            **{"depthwise_residual": False, "last_layer_filter": 32, "squeeze_and_excite": 0.5},
            **{"image_shape": (32, 32, 3)},
        },
        "block_1_0",
    ),
    "MobileNetV5Backbone": (
        {
            **{"stackwise_block_types": [["er"], ["uir", "mqa"]], "stackwise_num_blocks": [1, 2]},
            **{"stackwise_num_filters": [[8], [16, 16]], "stackwise_strides": [[2], [2, 1]]},
            **{"stackwise_act_layers": [["relu"], ["relu"] * 2], "stackwise_exp_ratios": [[4.0], [6.0, 6.0]]},
            **{"stackwise_se_ratios": [[0.0], [0.0] * 2], "stackwise_dw_kernel_sizes": [[0], [5, 5]]},
            **{"stackwise_dw_start_kernel_sizes": [[0], [0, 0]], "stackwise_use_cpe": [[False], [False] * 2]},
            **{"stackwise_dw_end_kernel_sizes": [[0], [0, 0]], "stackwise_exp_kernel_sizes": [[3], [0, 0]]},
            **{"stackwise_pw_kernel_sizes": [[1], [0, 0]], "stackwise_num_heads": [[0], [0, 2]]},
            **{"stackwise_key_dims": [[0], [0, 8]], "stackwise_value_dims": [[0], [0, 8]]},
            **{"stackwise_kv_strides": [[0], [0, 1]], "num_features": 32, "msfa_output_resolution": 4},
            **{"image_shape": (32, 32, 3)},
        },
        "",
    ),
    "ResNetBackbone": (
        {
            **{"input_conv_filters": [64], "input_conv_kernel_sizes": [7], "stackwise_num_filters": [64, 64]},
            **{"stackwise_num_blocks": [1, 1], "stackwise_num_strides": [1, 2], "block_type": "basic_block"},
            **{"image_shape": (32, 32, 3)},
        },
        "stack0_block0_add",
    ),
    "SigLIPVisionEncoder": (_WIDE, "sig_lip_vision_encoder_encoder_block_1"),
    "SwinTransformerBackbone": (
        {
            **{"image_shape": (32, 32, 3), "patch_size": 2, "embed_dim": 8, "depths": (1, 2)},
            **{"num_heads": (1, 2), "window_size": 4},  # 8 x 8 tokens: the last block shifts its windows
        },
        "stage_1_blocks_1_tokens",
    ),
    "VGGBackbone": (
        {"stackwise_num_repeats": [1, 1], "stackwise_num_filters": [8, 8], "image_shape": (32, 32, 3)},
        "block1_pool",
    ),
    "ViTBackbone": ({**_TOKENS, "mlp_dim": 32}, "transformer_block_2"),
    "ViTDetBackbone": (
        {
            **{"hidden_size": 16, "num_layers": 3, "intermediate_dim": 32, "num_heads": 2, "patch_size": 8},
            **{"global_attention_layer_indices": [1], "num_output_channels": 8, "window_size": 2},
            **{"image_shape": (32, 32, 3)},
        },
        "",
    ),
    "XceptionBackbone": (
        {
            **{"stackwise_conv_filters": [[8, 8], [8, 8]], "stackwise_pooling": [True, False]},
            **{"image_shape": (32, 32, 3)},
        },
        "block1_pool",
    ),
}
"""A tiny network of each family, and the name of one of its block ends."""


def make(family):
    """Build a tiny network and perturb its weights."""
    keras.utils.set_random_seed(0)
    model = getattr(models, family)(**FAMILIES[family][0])
    draw = np.random.default_rng(1)
    for weight in model.weights:
        if "float" in weight.dtype and "variance" not in weight.name:
            weight.assign(np.asarray(weight) + draw.normal(size=weight.shape, scale=0.05))
    return model


images = np.random.default_rng(0).uniform(0, 255, (4, 32, 32, 3)).astype("float32")
families = pytest.mark.parametrize("family", FAMILIES)


def output(backbone, images):
    """The output that KerasHub computes."""
    inputs = {name: images for name in backbone.input} if isinstance(backbone.input, dict) else images
    found = backbone(inputs, training=False)
    return np.asarray([*found.values()][-1] if isinstance(found, dict) else found)


@families
def test_the_graph_has_the_outputs_of_kerashub_and_lists_its_block_ends(family):
    backbone = make(family)
    model = hub.plain_network(backbone)
    np.testing.assert_allclose(model(images / 255), output(backbone, images / 255), atol=1e-5)
    ends = analyze(model).block_ends
    assert len(ends) > 1 and FAMILIES[family][1] in ("", *ends)
    assert hub.plain_network(model) is model, "it is plain already"
    assert fingerprint(model) == fingerprint(hub.plain_network(backbone))


def test_layer_names_do_not_depend_on_other_networks_of_the_process():
    names = [[layer.name for layer in hub.plain_network(make("MiTBackbone")).layers] for _ in range(2)]
    assert names[0] == names[1]


@families
def test_all_cases_are_built_and_the_backbone_does_not_change(family):
    backbone = make(family)
    before, config = backbone.get_weights(), backbone.get_config()
    for case in transfer.Case:
        model = transfer.build(case, backbone, 3)
        assert np.asarray(model(images)).shape == (4, 3)
    ends = transfer.small_similar(backbone, 3, cut="all")
    assert [layer for layer in ends.layers if "joined" in layer.name]
    assert backbone.get_config() == config
    for old, new in zip(before, backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


TRANSFORMERS = ["DINOV2Backbone", "DeiTBackbone", "SwinTransformerBackbone", "ViTBackbone", "MiTBackbone"]


def some(*quick, of=tuple(FAMILIES)):
    """Parametrize a test with families; all but the quick ones run only with the slow tests."""
    return pytest.mark.parametrize(
        "family", [pytest.param(f, marks=() if f in quick else pytest.mark.slow) for f in of]
    )


@pytest.fixture(scope="module")
def colors():
    draw = np.random.default_rng(0)
    labels = np.arange(24) % 3
    photos = draw.uniform(0, 60, (24, 32, 32, 3))
    photos[np.arange(24), :, :, labels] += 180
    return transfer.load_data((photos.astype("uint8"), labels), val=6, test=6)


@some(*TRANSFORMERS)
def test_frozen_weights_stay_and_the_saved_model_needs_only_keras_and_kerashub(family, colors, tmp_path):
    model = transfer.small_similar(make(family), 3)
    frozen = [np.asarray(w) for layer in model.layers[:-1] for w in layer.weights]
    transfer.fit(model, colors, verbose=0)
    for old, new in zip(frozen, [w for layer in model.layers[:-1] for w in layer.weights], strict=True):
        np.testing.assert_array_equal(old, new)
    assert transfer.evaluate(model, colors).accuracy > 0.6
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-5)
    if family == "SwinTransformerBackbone":  # without this package
        code = "import keras, keras_hub, numpy; m = keras.models.load_model('model.keras', compile=False); "
        code += "numpy.save('found.npy', m.predict(numpy.load('images.npy'), verbose=0))"
        np.save(tmp_path / "images.npy", images)
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        found = np.load(tmp_path / "found.npy")
        np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-5)


_POSITIONS = ["CLIPVisionEncoder", "SigLIPVisionEncoder", "ViTDetBackbone"]  # kept in variables or tables


def splits_at_boundary(model):
    """Whether layers with weights are below the boundary, so that their output is stored."""
    extractor, _ = split_at_frozen_boundary(model, ignore_noise=True)
    return any(layer.weights for layer in extractor.layers if layer.name != "preprocess_scale")


@some(*TRANSFORMERS, "DINOV3Backbone", of=(*TRANSFORMERS, "DINOV3Backbone", *_POSITIONS))
def test_upper_layers_are_unfrozen_and_the_features_below_are_stored(family, colors):
    backbone = make(family)
    ends = transfer.block_ends(hub.plain_network(backbone))
    model = transfer.small_similar(backbone, 3, unfreeze_from=ends[-1])
    below = [w for layer in model.layers if not layer.trainable_weights for w in layer.weights]
    assert any(len(w.shape) > 1 for w in below)
    assert family == "SigLIPVisionEncoder" or splits_at_boundary(model), "the layers below run once"
    before, upper = [np.asarray(w) for w in below], [np.asarray(w) for w in model.trainable_weights]
    transfer.fit(model, colors, epochs=1, verbose=0)
    for old, new in zip(before, below, strict=True):
        np.testing.assert_array_equal(old, new)
    assert any(not np.array_equal(a, b) for a, b in zip(upper, model.trainable_weights, strict=True))


@pytest.mark.parametrize("family", TRANSFORMERS)
def test_fine_tuning_changes_blocks_and_the_saved_model_is_the_trained_one(family, colors, tmp_path):
    model = transfer.large_similar(make(family), 3)
    before = model.get_weights()
    log = transfer.fit(model, colors, epochs=1, verbose=0, recipe=transfer.Recipe(layer_decay=0.8))
    changed = any(
        not np.array_equal(a, b) for a, b in zip(before[:-2], model.get_weights()[:-2], strict=True)
    )
    assert changed or log.rolled_back, "earlier weights are restored only if they were better"
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    np.testing.assert_allclose(again.predict(images, verbose=0), model.predict(images, verbose=0), atol=1e-6)


_NOT_IN_LITERT = ["SwinTransformerBackbone"]  # its shifted windows


@pytest.mark.slow
@families
def test_openvino_computes_the_features_of_all_blocks(family):
    model = transfer.small_similar(make(family), 3, cut="all")
    features = keras.Model(model.inputs[0], model.layers[-1].input)
    engine = make_engine(features, engine="openvino")
    expected = make_engine(features, engine="keras")(images)
    np.testing.assert_allclose(engine(images), expected, atol=0.02 if "bfloat16" in engine.name else 1e-4)
    assert engine.name.startswith("openvino")


@pytest.mark.slow
@families
def test_files_of_other_runtimes_compute_the_same(family, colors, tmp_path):
    model = transfer.small_similar(make(family), 3)
    for to in ("onnx", "litert"):
        options = {"output": tmp_path / to, "data": colors, "class_names": list("012")}
        if to == "onnx" and importlib.util.find_spec("tf2onnx") is None:
            continue
        if to == "litert" and family in _NOT_IN_LITERT:
            with pytest.raises(InputError, match="Roll"):
                transfer.export(model, to, **options)
        else:
            assert transfer.export(model, to, **options).agreement == 1


ATTENTION = [
    f for f in FAMILIES if any(word in f for word in ("ViT", "DINO", "CLIP", "DeiT", "SigLIP", "Swin", "MiT"))
]


@some(*TRANSFORMERS, of=tuple(ATTENTION))
def test_lora_trains_small_matrices_and_is_merged_in_copies_and_files(family, colors, tmp_path):
    model = transfer.large_similar(make(family), 3, lora=2)
    base = {w.path: np.asarray(w) for w in model.weights if "lora" not in w.path and "head" not in w.path}
    names = {w.path.split("/")[-1] for w in model.trainable_weights if "head" not in w.path}
    assert names == {"lora_kernel_a", "lora_kernel_b"}
    transfer.fit(model, colors, epochs=2, verbose=0)
    for weight in model.weights:
        if weight.path in base:
            np.testing.assert_array_equal(weight, base[weight.path])
    expected = model.predict(images, verbose=0)
    from transfer.networks import surgery

    np.testing.assert_allclose(surgery.clone(model).predict(images, verbose=0), expected, atol=1e-5)
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras", compile=False)
    assert not any("lora" in weight.path for weight in again.weights)
    np.testing.assert_allclose(again.predict(images, verbose=0), expected, atol=1e-5)


def test_tokens_after_the_last_block_are_counted():
    counted = {f: num_tokens(analyze(hub.plain_network(make(f)))) for f in ("ViTBackbone", "ResNetBackbone")}
    assert counted == {"ViTBackbone": 17, "ResNetBackbone": 0}


def test_lora_needs_matrices_and_a_case_that_trains_all_layers():
    base = keras.applications.MobileNetV2(weights=None, alpha=0.35, input_shape=(32, 32, 3))
    with pytest.raises(InputError, match="no attention or Dense layers"):
        transfer.large_similar(base, 3, lora=4)
    with pytest.raises(InputError, match="trains all layers"):
        transfer.build("small-similar", base, 3, lora=4)
    with pytest.raises(InputError, match="at least 1"):
        transfer.large_similar(base, 3, lora=0)


def test_the_command_refuses_lora_for_a_network_without_matrices(capsys, tmp_path):
    from transfer.train import main

    assert main(["emoji", "--model", "DemoCNN", "--lora", "4", "--output", str(tmp_path / "run")]) == 2
    assert "no attention or Dense layers" in capsys.readouterr().err


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("presets") / "tiny_vit"
    make("ViTBackbone").save_to_preset(str(folder))
    converter = keras_hub.layers.ViTImageConverter(
        image_size=(32, 32), scale=[1 / 64.0] * 3, offset=[-1.5, -1.0, -2.0]
    )
    converter.save_to_preset(str(folder))
    return folder, converter


def test_a_preset_takes_raw_images(preset):
    folder, converter = preset
    model = transfer.load_backbone(f"hub:{folder}")
    expected = output(make("ViTBackbone"), np.asarray(converter(images)))
    np.testing.assert_allclose(model(images), expected, atol=1e-5)
    random = transfer.load_backbone(f"hub:{folder}", weights="none")
    assert fingerprint(random) != fingerprint(model)


def test_a_converter_without_a_scale_passes_raw_images_on(tmp_path):
    make("ResNetBackbone").save_to_preset(str(tmp_path / "raw"))
    keras_hub.layers.ResNetImageConverter(image_size=(32, 32)).save_to_preset(str(tmp_path / "raw"))
    model = transfer.small_similar(transfer.load_backbone(f"hub:{tmp_path / 'raw'}"), 3)
    scaled = keras.Model(model.inputs[0], model.get_layer("preprocess_scale").output)
    np.testing.assert_allclose(scaled(images), images)


def test_block_ends_of_a_backbone_are_its_blocks():
    assert transfer.block_ends(make("ViTBackbone"))[-1] == "transformer_block_3"


def test_a_preset_of_another_image_size(preset):
    model = transfer.load_backbone(f"hub:{preset[0]}", image_size=64)
    assert model.input_shape == (None, 64, 64, 3)
    assert np.isfinite(model(np.zeros((1, 64, 64, 3)))).all()


@families
def test_builders_take_a_backbone_at_another_image_size(family):
    model = transfer.small_similar(make(family), 3, image_size=64)
    assert model.input_shape == (None, 64, 64, 3)
    positions = [w for w in model.weights if "position_ids" in w.path]
    assert all(np.array_equal(np.ravel(w), np.arange(np.size(w))) for w in positions), "CLIP makes zeros"
    assert np.isfinite(model(np.zeros((1, 64, 64, 3)))).all()


def test_vitdet_interpolates_its_relative_positions():
    backbone = make("ViTDetBackbone")
    for weight in backbone.weights:
        if "rel_pos_" in weight.path:
            weight.assign(np.linspace(0, 1, weight.shape[0])[:, None] * np.ones(weight.shape))
    large = [w for w in hub.with_image_size(backbone, 64).weights if "rel_pos_" in w.path]
    # Windows keep their size, and so their distances. Only the block with global attention sees more of them.
    assert sorted({w.shape[0] for w in large}) == [3, 15]
    for weight in large:
        values = np.asarray(weight)[:, 0]
        assert (np.diff(values) > 0).all() and values[0] < 0.05 and values[-1] > 0.95


def test_dinov2_interpolates_its_positions_itself(tmp_path):
    make("DINOV2Backbone").save_to_preset(str(tmp_path / "dino"))
    own = models.Backbone.from_preset(str(tmp_path / "dino"), image_shape=(64, 64, 3))
    model = hub.as_graph(hub.with_image_size(models.Backbone.from_preset(str(tmp_path / "dino")), 64))
    large = np.random.default_rng(0).uniform(0, 1, (2, 64, 64, 3)).astype("float32")
    np.testing.assert_allclose(model(large), output(own, large), atol=1e-5)


def test_a_preset_without_a_converter_is_scaled_as_its_family(tmp_path, caplog):
    make("ViTBackbone").save_to_preset(str(tmp_path / "vit"))
    model = transfer.small_similar(transfer.load_backbone(f"hub:{tmp_path / 'vit'}"), 3)
    assert "how its images are scaled" in caplog.text
    assert model.get_layer("preprocess_scale").offset == -1.0


def test_an_own_model_with_a_vision_encoder_stays_as_it_is():
    model = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Flatten()])
    model.vision_encoder = make("ViTBackbone")
    assert hub.plain_network(model) is model


def test_wrong_presets_raise_errors_with_advice(tmp_path):
    with pytest.raises(InputError, match="dinov2_small"):
        transfer.load_backbone("hub:dinov2_smal")
    with pytest.raises(InputError, match="another machine"):
        transfer.load_backbone(f"hub:{tmp_path}/nothing")


@pytest.mark.parametrize("family", [*TRANSFORMERS, "SigLIPVisionEncoder", "CLIPVisionEncoder"])
def test_explanations_show_the_grid_of_patches(family):
    model = transfer.small_similar(make(family), 3)
    dark = np.zeros((2, 32, 32, 3), "float32")
    dark[:, :16, :16] = images[:2, :16, :16]
    heat = grad_cam(model, dark)
    assert heat.shape == (2, 32, 32) and heat.max() == 1, "the head depends on the patches of the map"
    for response in strongest_responses(model, images, filters=2):
        assert response.layer in [layer.name for layer in model.layers]
        assert math.isinf(response.field) or "patch" in response.layer or family == "MiTBackbone"


def test_presets_in_the_documentation_exist():
    text = "".join(path.read_text() for path in (Path(__file__).parents[2] / "docs").glob("*.md"))
    named = set(re.findall(r"hub:([a-z0-9]+_[a-z0-9_]+)", text))
    assert len(named) >= 10 and named <= set(hub.preset_names())
