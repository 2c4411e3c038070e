"""Models from the user's own files: they load, or one sentence says what to do."""

import keras
import numpy as np
import pytest
from helpers.networks import assert_same_function, policy, raw_images

from transfer import InputError, build, load_backbone
from transfer.networks.own_models import DEFAULT_SIZE

layers = keras.layers
IMAGES = raw_images() / 127.5 - 1


def network(shape=(32, 32, 3), **options):
    image = keras.Input(shape)
    x = layers.GlobalAveragePooling2D(name="pool")(layers.Conv2D(8, 3, **options)(image))
    return keras.Model(image, layers.Dense(5, name="classes")(x))


@pytest.mark.parametrize(
    ("shape", "given", "size"),
    [
        ((None, None, 3), None, (DEFAULT_SIZE, DEFAULT_SIZE)),
        ((None, None, 3), 64, (64, 64)),
        ((None, 48, 3), None, (48, 48)),
        ((40, 40, 3), None, (40, 40)),
        ((40, 56, 3), None, (40, 56)),
    ],
)
def test_a_network_of_any_size_gets_one(shape, given, size, tmp_path, caplog):
    model = network(shape)
    model.save(tmp_path / "m.keras")
    with caplog.at_level("INFO", logger="transfer"):
        loaded = load_backbone(tmp_path / "m.keras", image_size=given)
    assert loaded.input_shape == (None, *size, 3)
    assert ("takes images of any size" in caplog.text) == (None in shape and given is None)
    if None in shape[:2]:
        images = np.resize(IMAGES, (2, *size, 3))
        assert_same_function(model, loaded, images)


@pytest.mark.parametrize("name", ["m.h5", "m.keras", "m.hdf5", "M.KERAS", "my model.keras", "módel.h5"])
def test_every_file_of_keras_is_a_network(name, tiny, tmp_path):
    tiny.save(tmp_path / f"saved.{'h5' if 'h' in name[-4:].lower() else 'keras'}")
    next(tmp_path.iterdir()).rename(tmp_path / name)
    model = build("small-similar", load_backbone(tmp_path / name), 3, preprocessing="tf", strategy="default")
    assert model.output_shape == (None, 3)


def test_the_folder_of_a_run_and_an_unpacked_file_are_networks(tiny, tmp_path):
    import zipfile

    tiny.save(tmp_path / "model.keras")
    assert_same_function(tiny, load_backbone(tmp_path), IMAGES)
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extractall(tmp_path / "unpacked")
    assert_same_function(tiny, load_backbone(str(tmp_path / "unpacked")), IMAGES)


@pytest.mark.parametrize(
    "name",
    [
        "mobilenet_v2",
        "MobileNet-V2",
        "keras.applications.MobileNetV2",
        "tf.keras.applications.mobilenet_v2.MobileNetV2",
    ],
)
def test_other_spellings_of_a_network_are_understood(name):
    assert load_backbone(name, weights="none", image_size=32, include_top=False).name.startswith(
        "mobilenetv2"
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: network((32, 32, 1)), r"takes \(32, 32, 1\). It takes gray images"),
        (lambda: network((32, 32, 4)), r"takes \(32, 32, 4\). It takes 4 channels"),
        (lambda: network((32, 32, 12)), "Choose a network for color images"),
        (lambda: network((3, 32, 40)), "Its channels come first"),
        (lambda: keras.Sequential([keras.Input((10,)), layers.Dense(3)]), r"takes \(10,\)"),
        (lambda: keras.Sequential([layers.Conv2D(3, 3)]), "has no graph of layers to slice"),
        (lambda: two_outputs(), "Expected one input and one output"),
        (lambda: quantized(), r"is quantized \(int8\) and cannot be trained"),
    ],
)
def test_a_network_that_cannot_be_used_is_one_sentence(make, message, tmp_path):
    make().save(tmp_path / "m.keras")
    with pytest.raises(InputError, match=message):
        load_backbone(tmp_path / "m.keras")


def two_outputs():
    model = network()
    return keras.Model(model.inputs, [model.output, model.get_layer("pool").output])


def quantized():
    model = network()
    model.quantize("int8")
    return model


def test_a_model_trained_in_mixed_precision_becomes_a_backbone(tmp_path):
    with policy("mixed_bfloat16"):
        network().save(tmp_path / "m.keras")
    base = load_backbone(tmp_path / "m.keras")
    model = build("large-similar", base, 3, preprocessing="none", strategy="default", precision="float32")
    assert {layer.compute_dtype for layer in model.layers} == {"float32"}


FORMS = {
    "m.tflite": "a TensorFlow Lite model",
    "m.onnx": "an ONNX model",
    "m.pt": "a file of another library, such as PyTorch",
    "m.pth.tar": "a file of another library, such as PyTorch",
    "m.safetensors": "a file of another library",
    "frozen.pb": "a graph of TensorFlow",
    "M.Weights.H5": "a file of weights without their network. Pass it as --weights",
    "m.npz": "a file of weights",
    "m.ckpt.index": "a file of weights",
    "m.json": "a text file, which has no weights",
    "m.zip": "an archive. Unpack it",
    "m.tar.gz": "a file of another library",
    "m.pkl": "a pickle, which runs code",
    "m.mlmodel": "a model for another runtime",
    "m.py": "a program. Run it",
    "mine": "is not a model of Keras. Expected a .keras or .h5 file",
}


@pytest.mark.parametrize("name", FORMS)
def test_a_file_of_another_kind_is_reported_with_its_kind(name, tmp_path):
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(InputError) as raised:
        load_backbone(tmp_path / name)
    assert FORMS[name] in str(raised.value)
    assert str(tmp_path / name) in str(raised.value)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["saved_model.pb", "variables"], "is a SavedModel, which has no layers to slice"),
        (["config.json", "model.safetensors"], "is a model of Hugging Face Transformers"),
        (["checkpoint", "cp.ckpt.index"], "holds checkpoints of TensorFlow"),
        (["best.keras", "labels.txt"], "Did you mean '.*best.keras'"),
        ([], "Received: the folder"),
    ],
)
def test_a_folder_of_another_kind_is_reported_with_its_kind(files, message, tmp_path):
    for name in files:
        (tmp_path / name).write_text("{}")
    with pytest.raises(InputError, match=message):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm/resnet50.a1_in1k", "If it is a model of timm, Hugging Face or Kaggle"),
        ("google/vit-base-patch16-224", "If it is a model of timm, Hugging Face or Kaggle"),
        ("https://tfhub.dev/google/imagenet/1", "Received the address 'https://tfhub.dev"),
        ("hf://me/model", "Received the address"),
        ("best.keras", "which does not exist. Did you mean 'bests.keras'"),
        ("model.onnx", "which does not exist"),
        ("ResNet51", "Unknown model 'ResNet51'. Did you mean"),
        ("efficientnet_b0_lite", "Unknown model"),
        ("", "Unknown model ''"),
    ],
)
def test_names_and_addresses_of_other_models_are_refused_with_advice(name, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bests.keras").touch()
    with pytest.raises(InputError, match=message):
        load_backbone(name)
