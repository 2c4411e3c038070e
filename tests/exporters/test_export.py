"""Exported files agree with Keras, each in its own runtime; a file that disagrees is discarded."""

import importlib
import io
import json
import subprocess
import sys
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from helpers.images import png16
from helpers.networks import make_tiny
from PIL import Image

from transfer.common.errors import InputError
from transfer.exporters.verification import Exported, compare
from transfer.images.decoding import RESIZES, decode, to_rgb_array
from transfer.images.pixel_range import BEFORE_0_3, PixelRange

exporting = importlib.import_module("transfer.exporters.export")
command = importlib.import_module("transfer.export")
FORMATS = [(kind, quantize) for kind, ways in exporting.KINDS.items() for quantize in ways]
PACKAGES = {"onnx": ("tf2onnx", "onnx", "onnxruntime"), "openvino": ("openvino",)}


def needs(kind, quantize=None):
    for name in PACKAGES.get(kind, ()) + (
        PACKAGES["onnx"] if quantize == "int8" and kind == "openvino" else ()
    ):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def place(color_folder, tmp_path_factory):
    """The folder of a run: a tiny network, fine-tuned as a whole, so that it learns the classes."""
    from transfer import train

    folder = tmp_path_factory.mktemp("runs")
    make_tiny().save(folder / "tiny.keras")
    flags = [
        "--data",
        color_folder,
        "--model",
        folder / "tiny.keras",
        "--preprocessing",
        "tf",
        "--epochs",
        "2",
    ]
    assert train.main([*map(str, flags), "--case", "large-similar", "--output", str(folder / "colors")]) == 0
    return folder / "colors"


@pytest.fixture(scope="module")
def run(place):
    from transfer.results.finished_runs import load_run

    return load_run(place)


@pytest.fixture(scope="module")
def images(run):
    test = run.data().test
    return np.stack([test.image(i, run.image_size) for i in range(len(test))])


@pytest.fixture(scope="module")
def served(run, tmp_path_factory):
    """A SavedModel, loaded."""
    import tensorflow as tf

    exported = exporting.export(run, to="saved-model", output=tmp_path_factory.mktemp("served") / "1")
    return tf.saved_model.load(str(exported.path))


def hidden(folder):
    return [path.name for path in folder.rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize(("kind", "quantize"), FORMATS)
def test_every_format_agrees_with_keras(run, images, kind, quantize, tmp_path, capfd):
    needs(kind, quantize)
    exported = exporting.export(run, to=kind, quantize=quantize, output=tmp_path / "out")
    assert (exported.kind, exported.quantize, exported.num_images) == (kind, quantize, len(images))
    assert exported.agreement >= (0.9 if quantize == "int8" else 0.99)
    assert exported.largest_difference < {None: 1e-5, "float16": 1e-2, "int8": 0.2}[quantize]
    assert exported.keras_accuracy > 0.9  # agreement means nothing for a model that has learned nothing
    assert exported.path.exists() and exported.size > 1000 and exported.images_per_second > 0
    notes = json.loads((tmp_path / "out" / "model.json").read_text())
    assert (
        notes["class_names"] == ["blue", "green", "red"] and notes["check"]["agreement"] == exported.agreement
    )
    assert (tmp_path / "out" / "labels.txt").read_text().split() == ["blue", "green", "red"]
    assert not hidden(tmp_path) and {path.name for path in tmp_path.iterdir()} == {"out"}
    # The file in its final place is the one that was verified: run it once more.
    from transfer.exporters.runtimes import open_exported, run_all

    call, batch = open_exported(kind, exported.path)
    found = run_all(call, images, batch)[0]
    expected = np.asarray(run.model(images, training=False))
    assert np.abs(found - expected).max() == pytest.approx(exported.largest_difference, abs=1e-6)
    assert capfd.readouterr().out == ""


def test_networks_with_gelu_are_written_to_onnx(tmp_path):
    needs("onnx")
    import keras
    import onnxruntime

    from transfer.exporters.formats import Graph, write_onnx

    layers = [keras.layers.Conv2D(4, 3, activation="gelu"), keras.layers.GlobalAveragePooling2D()]
    model = keras.Sequential([keras.Input((8, 8, 3)), *layers])
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3), scale=4).astype("float32")
    write_onnx(Graph(model, (8, 8)), tmp_path / "gelu.onnx", notes={}, quantize=None, calibration=None)
    session = onnxruntime.InferenceSession(str(tmp_path / "gelu.onnx"))
    found = session.run(None, {session.get_inputs()[0].name: images})[0]
    np.testing.assert_allclose(found, model.predict(images, verbose=0), atol=1e-5)


def test_files_are_smaller_when_quantized(run, tmp_path):
    sizes = {
        way: exporting.export(run, to="litert", quantize=way, output=tmp_path / str(way)).size
        for way in (None, "float16", "int8")
    }
    assert sizes["int8"] < sizes[None]


def test_class_names_are_inside(run, tmp_path):
    names = ["blue", "green", "red"]
    lite = exporting.export(run, to="litert", output=tmp_path / "lite")
    assert zipfile.ZipFile(lite.path).read("labels.txt").decode().split() == names
    needs("onnx")
    import onnxruntime

    exported = exporting.export(run, to="onnx", output=tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(exported.path))
    inside = session.get_modelmeta().custom_metadata_map
    assert json.loads(inside["class_names"]) == names and "0 to 255" in inside["inputs"]
    assert session.get_inputs()[0].shape == ["batch", 32, 32, 3]
    needs("openvino")
    from transfer.frozen.openvino_engine import import_openvino

    exported = exporting.export(run, to="openvino", output=tmp_path / "openvino")
    network = import_openvino().Core().read_model(str(exported.path))
    assert json.loads(network.get_rt_info(["transfer", "class_names"]).astype(str)) == names


def test_any_number_of_images_at_once(run, images, tmp_path):
    from transfer.exporters.runtimes import open_exported

    for kind in ("litert", "onnx", "openvino", "saved-model"):
        try:
            needs(kind)
        except pytest.skip.Exception:
            continue
        exported = exporting.export(run, to=kind, output=tmp_path / kind)
        call, _ = open_exported(kind, exported.path)
        assert call(images[:1]).shape == (1, 3) and call(images[:5]).shape == (5, 3)


def test_a_saved_model_takes_any_size(run, served):
    rng = np.random.default_rng(0)
    serve = served.signatures["serving_default"]
    for height, width in ((32, 32), (90, 50), (17, 40), (300, 200)):
        blocks = rng.integers(0, 256, (height // 10 + 1, width // 10 + 1, 3), "uint8")
        image = np.asarray(Image.fromarray(blocks).resize((width, height)))
        answer = serve(images=image[None])
        small = to_rgb_array(image, (32, 32))
        expected = np.asarray(run.model(small[None].astype("float32"), training=False))
        assert np.abs(answer["probabilities"].numpy() - expected).max() < (1e-5 if height == 32 else 0.02)
        assert answer["classes"].numpy().astype(str).tolist() == [["blue", "green", "red"]]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("shape", [(90, 50), (17, 40), (301, 200), (32, 32), (64, 48), (3, 500)])
def test_resizing_inside_is_resizing_outside(resize, shape):
    from transfer.exporters.saved_model import resized

    rng = np.random.default_rng(1)
    image = rng.integers(0, 256, (*shape, 3), "uint8")
    inside = resized(image[None], (48, 40), resize=resize).numpy()[0]
    outside = to_rgb_array(image, (48, 40), resize=resize).astype("float32")
    assert np.abs(inside - outside).max() <= 2  # Pillow rounds in between


def encoded(image, form, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, form, **options)
    return stream.getvalue()


def test_the_notes_contain_the_range_of_images_with_more_than_8_bits(run):
    from transfer.exporters.output_folder import file_notes

    assert "pixel_range" not in file_notes(run, "onnx", None)
    assert (
        "0 to 4,095 become 0 to 255"
        in file_notes(replace(run, pixel_range=PixelRange(0, 4095)), "onnx", None)["pixel_range"]
    )


def test_a_saved_model_takes_encoded_images_of_several_sizes_and_formats(run, served):
    rng = np.random.default_rng(2)
    images = [
        np.asarray(
            Image.fromarray(rng.integers(0, 256, (5, 4, 3), "uint8")).resize(size, Image.Resampling.BICUBIC)
        )
        for size in ((80, 60), (32, 32), (50, 70), (40, 40))
    ]
    clear = np.dstack([images[1], np.linspace(0, 255, 32 * 32).reshape(32, 32).astype("uint8")])
    files = [
        encoded(images[0], "JPEG", quality=90),
        encoded(images[2], "PNG"),
        encoded(clear, "PNG"),
        encoded(images[3], "BMP"),
        encoded(images[0][..., 0], "JPEG"),
    ]
    answer = served.signatures["encoded"](encoded=np.array(files, object))
    outside = np.stack([decode(file, run.image_size) for file in files]).astype("float32")
    expected = np.asarray(run.model(outside, training=False))
    assert np.abs(answer["probabilities"].numpy() - expected).max() < 0.03
    assert answer["classes"].shape == (len(files), 3)


@pytest.mark.parametrize("used", [None, PixelRange(0, 4095), PixelRange(100, 900), BEFORE_0_3], ids=str)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_saved_model_scales_png_of_16_bits_as_the_run_did(used, channels):
    from transfer.exporters.saved_model import decoded

    for top in (200, 1023, 4000, 65535):
        values = np.random.default_rng(top).integers(0, top + 1, (24, 32, channels)).astype("uint16")
        if channels in (2, 4):
            values[..., -1] = np.linspace(0, 65535, 24 * 32).reshape(24, 32)
        file = png16(values)
        inside = decoded(file, used).numpy().astype(int)
        assert np.abs(inside - decode(file, (24, 32), pixel_range=used)).max() <= 2, top


@pytest.mark.parametrize("resize", ["crop", "pad"])
def test_a_saved_model_resizes_as_the_run_did(run, resize, tmp_path):
    import tensorflow as tf

    from transfer.exporters.saved_model import write_saved_model

    write_saved_model(
        run.model, tmp_path / "1", image_size=(32, 32), class_names=run.class_names, resize=resize
    )
    image = np.full((40, 200, 3), (40, 60, 220), "uint8")
    image[:, :60] = image[:, -60:] = (220, 50, 40)
    found = tf.saved_model.load(str(tmp_path / "1")).signatures["serving_default"](images=image[None])
    small = to_rgb_array(image, (32, 32), resize=resize)[None].astype("float32")
    assert np.abs(found["probabilities"].numpy() - np.asarray(run.model(small))).max() < 0.02


def test_a_file_that_disagrees_is_discarded_and_the_earlier_one_stays(place, tmp_path, monkeypatch, capsys):
    from transfer.exporters import formats

    out = tmp_path / "out"
    flags = [str(place), "--to", "litert", "--output", str(out)]
    assert command.main(flags) == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert "disagree" not in capsys.readouterr().err
    real = formats.Graph

    class Scaled(real):  # images scaled twice, a common mistake
        def __init__(self, model, image_size, output):
            import keras

            inputs = keras.Input((*image_size, 3))
            super().__init__(keras.Model(inputs, model(inputs / 255.0)), image_size, output)

    monkeypatch.setattr(formats, "Graph", Scaled)
    assert command.main(flags) == 2
    output = capsys.readouterr()
    assert "disagrees with Keras" in output.err and "earlier file stays" in output.err and output.out == ""
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    with pytest.raises(InputError, match="Nothing was written to"):
        exporting.export(place, to="litert", output=tmp_path / "other" / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_tolerance_decides(run, tmp_path, monkeypatch):
    from transfer.exporters import verification

    monkeypatch.setitem(verification.MAX_DIFFERENCE, "float16", 1e-9)
    with pytest.raises(InputError, match=r"a probability differs by .*without --quantize"):
        exporting.export(run, to="litert", quantize="float16", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_failed_conversion_leaves_nothing(run, tmp_path, monkeypatch):
    from transfer.exporters import formats

    def broken(graph, file, **options):
        file.write_bytes(b"half")
        raise RuntimeError("converter: cannot\nmore")

    monkeypatch.setattr(formats, "write_litert", broken)
    with pytest.raises(InputError, match=r"network to litert: converter: cannot\. Nothing was written"):
        exporting.export(run, to="litert", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())

    def stopped(graph, file, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(formats, "write_litert", stopped)
    with pytest.raises(KeyboardInterrupt):
        exporting.export(run, to="litert", output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_an_earlier_export_is_replaced_and_nothing_else(run, tmp_path):
    out = tmp_path / "out"
    first = exporting.export(run, to="litert", output=out)
    stamp = first.path.stat().st_ino
    assert exporting.export(run, to="litert", output=out).path.stat().st_ino != stamp
    with pytest.raises(InputError, match="in use, and not by an earlier export to litert int8"):
        exporting.export(run, to="litert", quantize="int8", output=out)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="in use"):
        exporting.export(run, to="litert", output=tmp_path / "mine")
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(InputError, match="in use"):
        exporting.export(run, to="litert", output=tmp_path / "link")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_the_default_output_is_in_the_run(place, capsys):
    assert command.main([str(place), "--to", "saved-model", "--max-images", "5"]) == 0
    assert (place / "exported" / "saved-model" / "saved_model.pb").is_file()
    output = capsys.readouterr()
    assert output.out.count("\n") == 1 and "on 5 held-out images" in output.out.lower()
    assert "Converting colors to saved-model" in output.err


def test_a_link_in_the_run_is_not_followed(place, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("exported"))
    (tmp_path / "elsewhere").mkdir()
    (copy / "exported").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="Received a link"):
        exporting.export(copy, to="litert")
    assert not list((tmp_path / "elsewhere").iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"to": "lite"}, "Did you mean 'litert'"),
        ({"to": "tflite"}, "Unknown format 'tflite'"),
        ({"to": "onnx", "quantize": "int4"}, "Unknown quantization 'int4'. Did you mean 'int8'"),
        ({"to": "saved-model", "quantize": "int8"}, "with one of litert, onnx, openvino"),
        ({"to": "litert", "max_images": 0}, "max_images of 1 or more"),
        ({"to": "litert", "output": "there/model.tflite"}, "Expected a folder as output.*there/model"),
    ],
)
def test_bad_arguments_are_refused_before_any_work(options, message):
    with pytest.raises(InputError, match=message):
        exporting.export("no such run", **options)


def test_bad_arguments_are_reported_before_a_missing_run(tmp_path, capsys):
    assert command.main([str(tmp_path / "none"), "--to", "onnx", "--quantize", "int9"]) == 2
    assert "Did you mean 'int8'" in capsys.readouterr().err
    assert command.main([str(tmp_path / "none"), "--to", "litert"]) == 2
    assert "Expected a run's folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "quantize", "package"), [("onnx", None, "tf2onnx"), ("openvino", "int8", "onnx")]
)
def test_a_missing_package_is_reported(run, kind, quantize, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=r'needs .*pip install "transfer-cases\[export\]"'):
        exporting.export(run, to=kind, quantize=quantize, output=tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_other_images_verify_a_run_whose_own_are_missing(place, color_folder, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(place, copy, ignore=shutil.ignore_patterns("exported"))
    text = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(text.replace(str(color_folder), str(tmp_path / "gone")))
    with pytest.raises(InputError, match="--data DIR"):
        exporting.export(copy, to="litert")
    exported = exporting.export(copy, to="litert", quantize="int8", data=color_folder, max_images=30)
    assert exported.num_images == 30 and exported.accuracy > 0.9


def test_a_run_in_bfloat16_is_exported_in_float32(run, tmp_path):
    from transfer.networks import surgery

    low = replace(run, model=surgery.clone(run.model, precision="mixed_bfloat16"))
    for kind in ("saved-model", "litert"):
        exported = exporting.export(low, to=kind, output=tmp_path / kind)
        assert exported.largest_difference < 1e-5


def test_normalization_layers_are_converted(run, tmp_path):
    """The constants of a Normalization layer are not variables, so converters easily lose them."""
    import keras

    inputs = keras.Input((32, 32, 3))
    x = keras.layers.Normalization(mean=[120.0, 110.0, 100.0], variance=[3000.0, 4000.0, 5000.0])(inputs)
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(4, 3, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(3, activation="softmax")(x))
    for kind in exporting.KINDS:
        try:
            needs(kind)
        except pytest.skip.Exception:
            continue
        exported = exporting.export(replace(run, model=model), to=kind, output=tmp_path / kind)
        assert exported.largest_difference < 1e-5


@pytest.mark.parametrize(
    ("lost", "gained", "count", "good"),
    [
        (1, 0, 100, True),
        (2, 0, 100, True),
        (6, 0, 100, False),
        (5, 5, 100, True),
        (20, 0, 500, False),
        (8, 3, 500, True),
    ],
)
def test_int8_may_lose_one_percent_and_chance(lost, gained, count, good):
    labels = np.zeros(count, "int64")
    rows = np.array([[0.9, 0.1], [0.1, 0.9]])
    expected, found = rows[np.zeros(count, int)], rows[np.zeros(count, int)]
    expected[:gained], found[gained : gained + lost] = rows[1], rows[1]
    speed = {"images_per_second": 1.0, "keras_images_per_second": 1.0}
    exported = Exported(
        path=None, kind="onnx", quantize="int8", size=1, **speed, **compare(found, expected, labels)
    )
    assert (exported.num_lost, exported.num_gained) == (lost, gained) and (not exported.problem) == good


def test_nan_is_always_a_problem():
    expected = np.array([[0.9, 0.1]])
    found = compare(expected * np.nan, expected, np.array([0]))
    for quantize in (None, "float16", "int8"):
        exported = Exported(
            path=None,
            kind="onnx",
            quantize=quantize,
            size=1,
            images_per_second=1,
            keras_images_per_second=1,
            **found,
        )
        assert "NaN" in exported.problem


def test_the_keras_file_loads_without_this_package(place, run, images, tmp_path):
    np.save(tmp_path / "images.npy", images)
    code = (
        "import sys; sys.modules['transfer'] = None\n"
        "import keras, numpy as np\n"
        f"model = keras.saving.load_model({str(place / 'model.keras')!r}, safe_mode=True)\n"
        f"found = model.predict(np.load({str(tmp_path / 'images.npy')!r}), verbose=0)\n"
        f"np.save({str(tmp_path / 'found.npy')!r}, found)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    expected = run.model.predict(images, verbose=0)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)


def test_help_needs_no_tensorflow():
    code = (
        "import sys, transfer.export; print(sorted({'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert process.stdout.strip() == "[]"


def test_to_dict_returns_json_values_and_to_text_one_line(run, tmp_path):
    exported = exporting.export(run, to="litert", output=tmp_path / "out", max_images=4)
    assert json.loads(json.dumps(exported.to_dict()))["num_images"] == 4
    assert exported.to_text().startswith("litert: ") and "\n" not in exported.to_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "MobileNetV2",
        "MobileNetV3Small",
        "EfficientNetB0",
    ],  # ResNet50 and DenseNet121 went through too, in minutes
)
def test_network_families_convert_to_every_format(run, name, tmp_path):
    """Random weights test the converters' operations; BatchNormalization is calibrated so that outputs vary."""
    import keras
    from helpers.networks import calibrate

    import transfer

    base = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(64, 64, 3))
    low, high = (0, 255) if name.startswith(("Eff", "MobileNetV3")) else (-1, 1)  # these scale images inside
    calibrate(base, np.random.default_rng(0).uniform(low, high, (16, 64, 64, 3)).astype("float32"))
    model = transfer.small_similar(base, 3)
    for kind in exporting.KINDS:
        needs(kind)
        exported = exporting.export(replace(run, model=model), to=kind, output=tmp_path / kind)
        assert exported.agreement >= 0.99
