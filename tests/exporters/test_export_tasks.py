"""Verification of exported files of several labels and of numbers."""

import json
import zipfile

import numpy as np
import pytest

import transfer
from transfer.common.errors import InputError
from transfer.exporters.verification import Exported, compare

KINDS = {"saved-model": None, "litert": None, "onnx": "onnxruntime", "openvino": "openvino"}


def exported(quantize=None, **found) -> Exported:
    return Exported(
        "file", "onnx", quantize, 1000, images_per_second=1.0, keras_images_per_second=1.0, **found
    )


def several(count: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and probabilities that fit them well."""
    rng = np.random.default_rng(0)
    labels = (rng.random((count, 4)) < 0.3).astype("int8")
    return labels, np.clip(0.6 * labels + 0.4 * rng.random((count, 4)), 0, 1)


def test_labels_are_compared_at_their_thresholds():
    labels, expected = several()
    limits = np.array([0.3, 0.5, 0.5, 0.5])
    changed = expected.copy()
    changed[:6, 0] = np.where(expected[:6, 0] > 0.3, 0.1, 0.9)
    one = exported(**compare(changed, expected, labels, task="multi", thresholds=limits))
    assert one.agreement == pytest.approx(1 - 6 / 300) and "same labels for 98.0%" in one.problem
    tied, near = expected.copy(), expected.copy()
    near[:, 1] = 0.5 + 4e-4
    tied[:, 1] = 0.5 - 4e-4
    assert exported(**compare(tied, near, labels, task="multi", thresholds=limits)).problem == ""
    wrong = exported(
        **compare(np.clip(expected + 0.002, 0, 1), expected, labels, task="multi", thresholds=limits)
    )
    assert "a probability differs by" in wrong.problem


def test_numbers_are_compared_in_standard_deviations():
    rng = np.random.default_rng(0)
    labels = rng.normal(1000, 50, 200)
    expected = (labels + rng.normal(0, 10, 200))[:, None]
    fine = exported(**compare(expected + 0.01, expected, labels, task="regression"))
    assert fine.problem == "" and fine.largest_difference == pytest.approx(0.01 / expected.std(), rel=1e-3)
    far = exported(**compare(expected + 2, expected, labels, task="regression"))
    assert "same number for 0.0%" in far.problem
    assert "standard deviations at most; R2" in fine.to_text()


@pytest.mark.parametrize("task", ["multi", "regression"])
def test_an_int8_file_may_not_lose_much_of_its_score(task):
    rng = np.random.default_rng(1)
    labels, expected = several()
    noise = rng.normal(0, 1, expected.shape)
    if task == "regression":
        labels, noise = rng.normal(0, 1, 300), noise[:, :1]
        expected = (labels + rng.normal(0, 0.2, 300))[:, None]
    small, large = (
        exported("int8", **compare(expected + scale * noise, expected, labels, task=task))
        for scale in (0.02, 0.5)
    )
    assert small.problem == ""
    assert "a loss of more than" in large.problem and "not due to chance" in large.problem
    broken = exported("int8", **compare(expected * np.nan, expected, labels, task=task))
    assert broken.problem == "it returns NaN or infinity"


@pytest.fixture(scope="module")
def model():
    """A trained model of several labels with its data."""
    rng = np.random.default_rng(3)
    labels = (rng.random((120, 2)) < 0.5).astype(int)
    means = 60 + 60 * np.concatenate([labels, labels[:, :1]], axis=1)
    images = np.clip(means[:, None, None] + rng.normal(0, 20, (120, 48, 48, 3)), 0, 255).astype("uint8")
    options = {"val": 0.2, "test": 0.3, "near_duplicates": False}
    data = transfer.load_data((images, labels), task="multi", class_names=["a", "b"], **options)
    built = transfer.small_similar(transfer.DemoCNN(weights=None), 2, task="multi")
    transfer.fit(built, data, verbose=0)
    return built, data


@pytest.mark.parametrize("kind", KINDS)
def test_thresholds_travel_with_the_file(model, kind, tmp_path):
    if KINDS[kind]:
        pytest.importorskip(KINDS[kind])
    if kind == "onnx":
        pytest.importorskip("tf2onnx")
    built, data = model
    found = transfer.export(built, kind, output=tmp_path / "out", data=data)
    thresholds = transfer.evaluate(built, data).limits
    assert found.task == "multi" and found.score == pytest.approx(found.keras_score, abs=1e-4)
    notes = json.loads((tmp_path / "out" / "model.json").read_text())
    assert notes["thresholds"] == pytest.approx(thresholds.tolist())
    if kind == "litert":
        with zipfile.ZipFile(found.path) as archive:
            assert json.loads(archive.read("task.json"))["thresholds"] == notes["thresholds"]
    elif kind == "onnx":
        import onnx

        stored = {one.key: json.loads(one.value) for one in onnx.load(found.path).metadata_props}
        assert (stored["task"], stored["thresholds"]) == ("multi", notes["thresholds"])
    elif kind == "openvino":
        import openvino

        network = openvino.Core().read_model(found.path)
        assert json.loads(network.get_rt_info(["transfer", "thresholds"]).value) == notes["thresholds"]
    else:
        import tensorflow as tf

        serve = tf.saved_model.load(str(found.path)).signatures["serving_default"]
        outputs = serve(images=tf.zeros((2, 50, 60, 3), tf.uint8))
        assert outputs["thresholds"].numpy() == pytest.approx(np.tile(thresholds, (2, 1)), abs=1e-6)
        assert outputs["classes"].numpy()[0].tolist() == [b"a", b"b"]


def test_data_of_another_task_are_refused(model, tmp_path):
    built, data = model
    images = np.stack([data.test.image(i, (48, 48)) for i in range(len(data.test))])
    other = transfer.load_data(
        (images, np.arange(len(images)) % 2), class_names=["a", "b"], near_duplicates=False
    )
    with pytest.raises(InputError, match="the task multi"):
        transfer.export(built, "litert", output=tmp_path / "out", data=other)
