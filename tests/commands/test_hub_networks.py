"""Networks of KerasHub in every command: presets in a folder, and processes that have only the run folder."""

import json
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import transfer
from transfer.__main__ import main
from transfer.common.errors import InputError
from transfer.frozen.engines import make_engine
from transfer.networks.backbones import load_backbone
from transfer.training.checkpoints import Checkpoints

keras_hub = pytest.importorskip("keras_hub")

_SHARED = {"image_shape": (32, 32, 3), "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}

NETWORKS = {
    "vit": ("ViT", {**_SHARED, "mlp_dim": 32}),
    "dino": ("DINOV2", {**_SHARED, "intermediate_dim": 32, "position_embedding_shape": (32, 32, 3)}),
    # The second stage has 8 x 8 tokens, and its second block shifts its windows.
    "swin": (
        "SwinTransformer",
        {
            **{"image_shape": (64, 64, 3), "patch_size": 4, "embed_dim": 8, "depths": (1, 2)},
            **{"num_heads": (1, 2), "window_size": 4},
        },
    ),
}
"""The family and the arguments of a tiny network by the name of its preset."""


@pytest.fixture(scope="module")
def presets(tmp_path_factory):
    """A folder with tiny presets."""
    folder = tmp_path_factory.mktemp("presets")
    for name, (family, arguments) in NETWORKS.items():
        getattr(keras_hub.models, f"{family}Backbone")(**arguments).save_to_preset(str(folder / name))
        converter = getattr(keras_hub.layers, f"{family}ImageConverter")
        size = arguments["image_shape"][:2]
        converter(image_size=size, scale=1 / 64.0, offset=-1.0).save_to_preset(str(folder / name))
    return folder


@pytest.fixture(scope="module")
def colors(color_folder, tmp_path_factory):
    """Ten images of each color."""
    folder = tmp_path_factory.mktemp("few") / "colors"
    for file in color_folder.rglob("0?.png"):
        target = folder / file.parent.name / file.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "cache"))


def trained(data, name, *options, output="run"):
    """Train with these options, and return the options and metrics of the run."""
    arguments = [data, "--model", name, "--output", output, "--batch-size", "8", *options]
    assert main(["train", *map(str, arguments)]) == 0
    run = transfer.load_run(output)
    return run.config, run.metrics


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", "--case 1 --cut all"),
        ("dino", "--case 2 --cut layers_0"),
        ("vit", "--case 1 --unfreeze-from transformer_block_2 --epochs 1"),
        ("vit", "--case 1 --image-size 48"),
        ("dino", "--case 4 --epochs 1 --layer-decay 0.7 --gradual-unfreezing 0.5"),
        ("swin", "--case 3 --epochs 1 --lora 4"),
    ],
)
def test_options_of_training(name, options, presets, colors, capfd):
    config, metrics = trained(colors, f"hub:{presets / name}", *options.split())
    assert config.model == f"hub:{presets / name}"
    assert 0 <= metrics["test_accuracy"] <= 1
    assert "Warning" not in capfd.readouterr().err


def test_config_yaml_repeats_the_run(presets, colors):
    trained(colors, f"hub:{presets / 'vit'}", "--case", "3", "--epochs", "1", "--lora", "2")
    assert main(["train", "--config", "run/config.yaml", "--output", "again"]) == 0
    weights = [transfer.load_run(folder).model.get_weights() for folder in ("run", "again")]
    for one, other in zip(*weights, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_interrupted_run_resumes(presets, colors, monkeypatch, capsys):
    options = (colors, "--model", f"hub:{presets / 'vit'}", "--case", "3", "--epochs", "3")
    arguments = [str(part) for part in (*options, "--output", "run", "--batch-size", "8", "--lora", "2")]
    calls = iter(range(10**6))

    def due(self):
        if next(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return False

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "due", property(due))
        assert main(["train", *arguments]) == 128 + signal.SIGTERM
    assert main(["train", *arguments]) == 0
    assert "Resuming" in capsys.readouterr().out


def test_case_auto_compares_several_networks(presets, colors, capsys):
    names = f"hub:{presets / 'vit'},DemoCNN,hub:{presets / 'dino'}"
    assert main(["train", str(colors), "--model", names, "--time-budget", "20s", "--output", "run"]) == 0
    assert transfer.load_run("run").model.name in ("ViTBackbone", "DINOV2Backbone", "DemoCNN")
    names = [f"hub:{presets / name}" for name in ("vit", "swin")]
    assert main(["advice", "--data", str(colors), "--compare", *names, "--json", "ranking.json"]) == 0
    with open("ranking.json", encoding="utf-8") as file:
        assert {candidate["model"] for candidate in json.load(file)} == set(names)


def test_a_run_folder_is_accepted_as_model(presets, colors):
    trained(colors, f"hub:{presets / 'vit'}", "--case", "3", "--epochs", "1", "--lora", "2")
    trained(colors, "run", "--case", "1", "--cut", "transformer_block_1", output="second")
    assert "transformer_block_2" not in {layer.name for layer in transfer.load_run("second").model.layers}


def run(*arguments, **environment):
    """Run a command in a process of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    words = [sys.executable, "-m", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": path, **environment}
    return subprocess.run(words, capture_output=True, text=True, env=environment)


def test_another_process_needs_only_the_run(presets, colors, tmp_path):
    trained(colors, f"hub:{presets / 'swin'}", "--case", "1")
    image = next(colors.rglob("*.png"))
    done = run("transfer.predict", "run", image, "--gradcam", "maps")
    assert (done.returncode, "Warning" in done.stderr) == (0, False)
    assert Image.open(next((tmp_path / "maps").glob("*.png"))).size[0] > 0
    (tmp_path / "broken" / "keras_hub").mkdir(parents=True)
    (tmp_path / "broken" / "keras_hub" / "__init__.py").write_text(
        "raise ModuleNotFoundError('not installed')"
    )
    path = os.pathsep.join([str(tmp_path / "broken"), *filter(None, sys.path)])
    done = run("transfer.evaluate", "run", PYTHONPATH=path)
    assert done.returncode == 2
    assert re.fullmatch(r"run.model\.keras has layers of KerasHub, .*\[hub\]\"\.\n", done.stderr)
    done = run("transfer.train", colors, "--model", f"hub:{presets / 'vit'}", PYTHONPATH=path)
    assert done.returncode == 2
    assert "need the extra hub" in done.stderr and done.stderr.count("\n") == 1


def test_other_commands_take_the_run(presets, colors, capsys):
    trained(colors, f"hub:{presets / 'dino'}", "--case", "1")
    assert main(["evaluate", "run"]) == 0
    assert main(["predict", "run", str(next(colors.rglob("*.png")))]) == 0
    assert main(["report", "run"]) == 0
    capsys.readouterr()
    for kind in ("saved-model", "openvino"):
        assert main(["export", "run", "--to", kind, "--output", kind]) == 0
        assert "same class for 100.0%" in capsys.readouterr().out


def test_onnx_computes_gelu(presets, colors, capsys):
    pytest.importorskip("tf2onnx")
    trained(colors, f"hub:{presets / 'swin'}", "--case", "1")
    assert main(["export", "run", "--to", "onnx", "--output", "onnx"]) == 0
    assert "same class for 100.0%" in capsys.readouterr().out


@pytest.mark.parametrize("name", NETWORKS)
def test_openvino_computes_the_features_of_all_blocks(name, presets, caplog):
    base = load_backbone(f"hub:{presets / name}")
    model = transfer.small_similar(base, 3, cut="all")
    features = type(model)(model.inputs[0], model.layers[-1].input)
    images = np.random.default_rng(0).uniform(0, 255, (4, *base.input_shape[1:])).astype("float32")
    expected = make_engine(features, engine="keras")(images)
    engine = make_engine(features, engine="openvino")
    np.testing.assert_allclose(engine(images), expected, atol=1e-5)
    assert engine.name.startswith("openvino") and not caplog.text


def test_features_are_read_from_the_cache(presets, colors):
    data = transfer.load_data(str(colors))
    computed = []
    for _ in range(2):
        model = transfer.small_similar(load_backbone(f"hub:{presets / 'vit'}"), data.num_classes)
        computed.append(transfer.fit(model, data, verbose=0).computed)
    assert computed[0] and not computed[1]


def test_lora_augments_images_and_keeps_the_frozen_weights(presets, colors, caplog):
    data = transfer.load_data(str(colors))
    model = transfer.large_similar(load_backbone(f"hub:{presets / 'vit'}"), data.num_classes, lora=2)
    before = {w.path: np.asarray(w) for w in model.weights if not re.search("lora|head", w.path)}
    recipe = transfer.Recipe(gradual_unfreezing=0.5, layer_decay=0.7)
    with caplog.at_level("INFO"):
        transfer.fit(model, data, epochs=2, recipe=recipe, verbose=0)
    assert "without augmentation" not in caplog.text
    for weight in model.weights:
        if weight.path in before:
            np.testing.assert_array_equal(weight, before[weight.path])


def test_other_networks_do_not_import_kerashub():
    code = (
        "import sys, transfer; transfer.small_similar(transfer.load_backbone('DemoCNN', weights=None), 3); "
    )
    done = subprocess.run(
        [sys.executable, "-c", code + "print('keras_hub' in sys.modules)"], capture_output=True
    )
    assert done.stdout.split() == [b"False"]


def test_presets_of_texts_are_refused_before_the_download(tmp_path):
    with pytest.raises(InputError, match=r"image network.*another kind"):
        load_backbone("hub:bert_tiny_en_uncased")
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "intermediate_dim": 8}
    keras_hub.models.BertBackbone(vocabulary_size=9, **sizes).save_to_preset(str(tmp_path / "bert"))
    with pytest.raises(InputError, match=r"image network.*BertBackbone"):
        load_backbone(f"hub:{tmp_path / 'bert'}")


def test_a_missing_folder_raises_an_error_with_advice(tmp_path):
    with pytest.raises(InputError, match=r"cannot be loaded: no preset was found there\. Without"):
        load_backbone(f"hub:{tmp_path / 'nothing'}")
