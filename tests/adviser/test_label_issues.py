"""Label issues, confusable classes and data warnings; no warnings for good data."""

import dataclasses

import numpy as np
import pytest
from helpers.data_reports import duplicates, report

from transfer.adviser import label_issues
from transfer.adviser.curves import layer_curve
from transfer.adviser.label_issues import confusable_classes, find_label_issues, find_warnings, label_noise
from transfer.adviser.probes import ridge_leave_one_out
from transfer.adviser.sample_features import SampleFeatures
from transfer.common.errors import InputError
from transfer.images.datasets import ImageData
from transfer.images.splitting import Split


def features_of(truth, *, strength=2.0, width=20, seed=0):
    """Return features that separate most images of the classes."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(int(truth.max()) + 1, width)) * strength / np.sqrt(width / 5)
    return rng.normal(size=(len(truth), width)) + centers[truth]


def flipped(truth, fraction, seed=0):
    """Return labels with a fraction of wrong ones, and the indices of these."""
    rng, classes = np.random.default_rng(seed), int(truth.max()) + 1
    wrong = rng.permutation(len(truth))[: round(fraction * len(truth))]
    labels = truth.copy()
    labels[wrong] = (truth[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return labels, set(wrong.tolist())


def label_issues_of(features, labels, classes, **options):
    probe = ridge_leave_one_out(features, labels, classes, groups=options.get("groups"))
    names, class_names = [str(i) for i in range(len(labels))], [f"class {k}" for k in range(classes)]
    return find_label_issues(probe, labels, names, class_names, **options)


@pytest.mark.parametrize(("classes", "fraction"), [(2, 0.05), (3, 0.05), (3, 0.2), (12, 0.05), (12, 0.2)])
def test_flipped_labels_are_reported_and_counted(classes, fraction):
    truth = np.arange(600) % classes
    features = features_of(truth, strength=3.0)
    labels, wrong = flipped(truth, fraction)
    noise = label_noise(ridge_leave_one_out(features, labels, classes), labels)
    assert noise.rate == pytest.approx(fraction, rel=0.35) and noise.notable
    issues = label_issues_of(features, labels, classes)
    correct = [int(issue.name) in wrong for issue in issues]
    assert np.mean(correct) > 0.85 and sum(correct) > 0.7 * len(wrong)
    assert np.mean([s.likely == f"class {truth[int(s.name)]}" for s in issues if int(s.name) in wrong]) > 0.9
    assert all(s.label == f"class {labels[int(s.name)]}" != s.likely for s in issues)
    assert [s.probability for s in issues] == sorted((s.probability for s in issues), reverse=True)
    assert all(label_issues.MIN_PROBABILITY < s.probability <= 1 for s in issues)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0, 4.0])
def test_usual_errors_of_a_network_are_not_label_issues(strength):
    """At any accuracy, misclassified images are hard, not mislabeled."""
    reported = 0
    for seed in range(5):
        truth = np.arange(400) % 4
        features = features_of(truth, strength=strength, seed=seed)
        probe = ridge_leave_one_out(features, truth, 4)
        assert not label_noise(probe, truth).notable
        reported += len(label_issues_of(features, truth, 4))
    assert reported <= 2


def test_small_classes_have_no_label_issues():
    truth = np.repeat([0, 1, 2], [300, 30, 15])
    assert len(label_issues_of(features_of(truth), truth, 3)) <= 1


def test_single_images_of_a_class_are_not_judged():
    truth = np.append(np.arange(300) % 3, 3)
    labels, wrong = flipped(truth[:-1], 0.1)
    labels = np.append(labels, 3)
    noise = label_noise(ridge_leave_one_out(features_of(truth, strength=4.0), labels, 4), labels)
    assert noise.wrong[-1] == 0 and noise.rate == pytest.approx(0.1, abs=0.03)
    assert set(np.flatnonzero(noise.wrong > 0.5).tolist()) == wrong


def test_classes_of_one_group_are_not_judged():
    """The whole class is left out at once, so every image contradicts its label."""
    truth = np.repeat([0, 1, 2], 40)
    groups = [*range(80), *["only one"] * 40]
    features = features_of(truth, strength=4.0)
    probe = ridge_leave_one_out(features, truth, 3, groups=groups)
    assert not probe.correct[80:].any(), "the test needs contradictions"
    assert len(find_label_issues(probe, truth, list(map(str, range(120))), "abc", groups=groups)) == 0
    assert label_noise(probe, truth).rate > 0.2


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 1], [0, 1, 2]])
def test_very_few_images_have_no_label_issues_and_no_error(labels):
    labels = np.array(labels)
    features = np.random.default_rng(0).normal(size=(len(labels), 4))
    assert label_issues_of(features, labels, 3) == ()
    assert confusable_classes(ridge_leave_one_out(features, labels, 3), labels, "abc") == ()


def test_a_class_under_two_names_is_confusable_and_others_are_not():
    truth = np.arange(400) % 4
    labels = truth.copy()
    halves = np.flatnonzero(truth == 3)
    labels[halves[1::2]] = 4
    probe = ridge_leave_one_out(features_of(truth, strength=3.0), labels, 5)
    (pair,) = confusable_classes(probe, labels, ["a", "b", "c", "left", "right"])
    assert (pair.first, pair.second) == ("left", "right")
    assert abs(pair.accuracy - 0.5) < 3 * pair.standard_error and 0.03 < pair.standard_error < 0.1


def test_classes_of_a_pair_have_equal_weight():
    labels = np.repeat([0, 1], [300, 30])
    noise = np.random.default_rng(0).normal(size=(330, 5))
    assert len(confusable_classes(ridge_leave_one_out(noise, labels, 2), labels, "ab")) == 1
    separated = noise + 3 * labels[:, None]
    assert confusable_classes(ridge_leave_one_out(separated, labels, 2), labels, "ab") == ()


def test_the_accuracy_of_a_pair_depends_on_its_two_scores_only():
    labels = np.repeat([0, 1, 2], 20)
    scores = np.where(np.arange(3) == labels[:, None], 0.0, -1.0)
    for mistaken in (range(9), range(20, 29)):  # of 20 each of the first two
        scores[mistaken, :2] = scores[mistaken, 1::-1]
    scores[40:, 2] = scores[:5, 2] = 9.0
    probe = dataclasses.replace(ridge_leave_one_out(np.eye(60), labels, 3), scores=scores)
    ((first, second, accuracy, error),) = confusable_classes(probe, labels, "abc")
    assert (first, second) == ("a", "b")
    assert accuracy == pytest.approx(11 / 20)
    assert error == pytest.approx(np.sqrt(11 * 9 / 20**2 / 40))


def test_a_limited_number_of_pairs_is_sorted_by_accuracy():
    labels = np.arange(600) % 8
    probe = ridge_leave_one_out(np.random.default_rng(0).normal(size=(600, 4)), labels, 8)
    found = confusable_classes(probe, labels, "abcdefgh")
    assert len(found) == label_issues.MAX_PAIRS
    assert [pair.accuracy for pair in found] == sorted(pair.accuracy for pair in found)


@pytest.mark.parametrize(
    ("labels", "names", "class_names", "groups", "message"),
    [
        ([0, 1], "abcd", "xy", (), "4 labels"),
        ([0, 1, 2, 0], "abcd", "xy", (), "from 0 to 1"),
        ([0.0, 1, 0, 1], "abcd", "xy", (), "float64"),
        ([0, 1, 0, 1], "abc", "xy", (), "4 images and 2 classes"),
        ([0, 1, 0, 1], "abcd", "x", (), "4 images and 2 classes"),
        ([0, 1, 0, 1], "abcd", "xy", ("p",), "a group for each of 4"),
    ],
)
def test_arguments_that_do_not_fit_the_scores_are_rejected(labels, names, class_names, groups, message):
    probe = ridge_leave_one_out(np.eye(4), np.array([0, 1, 0, 1]), 2)
    with pytest.raises(InputError, match=message):
        find_label_issues(probe, np.array(labels), names, class_names, groups=groups)


def probed(truth, labels, *, strength=3.0, groups=(), chosen=None, **found):
    """Return data, sample features and their layer curve."""
    names = [f"{i}.png" for i in range(len(labels))]
    train = Split(np.zeros((len(labels), 1)), labels, names, groups=groups)
    empty = Split(np.zeros((0, 1)), np.zeros(0, "int64"), [])
    class_names = tuple(f"kind {k}" for k in range(int(labels.max()) + 1))
    sizes = {"widths": (200, 256, 300), "heights": (200, 224, 300)}
    data = ImageData("set", class_names, train, empty, empty, report(**{**sizes, **found}))
    chosen = np.arange(len(labels)) if chosen is None else chosen
    features = features_of(truth, strength=strength)[chosen]
    classes, numbers = np.unique(labels[chosen], return_inverse=True)
    sample = SampleFeatures(train.take(chosen), numbers, len(classes), {"last": features}, None, {})
    curve = layer_curve(
        sample.taps, numbers, len(classes), groups=[groups[i] for i in chosen] if groups else ()
    )
    return data, sample, curve


def warned(*of, image_size=(224, 224), **options):
    return {warning.kind: warning for warning in find_warnings(*of, image_size=image_size, **options)}


def test_good_data_have_no_warnings():
    truth = np.arange(300) % 3
    assert warned(*probed(truth, truth)) == {}


def test_shuffled_labels_give_no_warnings_on_single_labels():
    truth = np.arange(300) % 3
    assert warned(*probed(truth, np.random.default_rng(0).permutation(truth))) == {}


def test_wrong_labels_give_a_warning_with_the_images():
    truth = np.arange(400) % 4
    labels, wrong = flipped(truth, 0.1)
    found = warned(*probed(truth, labels))
    assert list(found) == ["label-noise"]
    warning = found["label-noise"]
    assert (
        "About 9% of the labels" in warning.text
        and f"such as {warning.images[0]}: labeled kind" in warning.text
    )
    assert len(warning.images) == label_issues.MAX_NAMES
    assert np.mean([int(name.split(".")[0]) in wrong for name in warning.images]) > 0.9


def test_class_names_are_correct_if_the_sample_lacks_some_classes():
    truth = np.arange(600) % 6
    labels = truth.copy()
    labels[truth == 4] = np.where(np.arange(100) % 2, 4, 5)
    labels[truth == 5] = np.where(np.arange(100) % 2, 4, 5)
    found = warned(*probed(truth, labels, chosen=np.flatnonzero(truth >= 2)))
    assert (
        "separate kind 4 from kind 5 (" in found["confusable"].text and "more" not in found["confusable"].text
    )


def test_duplicates_across_given_splits_give_a_warning():
    truth = np.arange(300) % 3
    twice = (
        duplicates("a.png", "b.png"),
        duplicates("c.png", "d.png", splits=["train", "test"], exact=False),
    )
    warning = warned(*probed(truth, truth, duplicates=twice))["duplicates"]
    assert warning.text.startswith("Found 1 image in more than one") and warning.images == ("c.png", "d.png")
    many = tuple(duplicates(f"{i}", f"{i}'", splits=["train", "val"]) for i in range(40))
    warning = warned(*probed(truth, truth, duplicates=many))["duplicates"]
    assert warning.text.startswith("Found 40 images in") and len(warning.images) == label_issues.MAX_NAMES


@pytest.mark.parametrize(
    ("width", "height", "image_size", "text"),
    [
        (32, 32, (96, 96), "32 x 32 pixels (median) are enlarged to 96 x 96"),
        (400, 60, (224, 448), "400 x 60 pixels (median) are enlarged to 448 x 224"),
        (112, 112, (224, 224), None),
        (32, 32, (48, 48), "At 48 x 48 pixels"),
        (900, 900, (32, 320), "At 320 x 32 pixels"),
        (64, 64, (64, 64), None),
        (0, 0, (224, 224), None),
    ],
)
def test_low_resolution_gives_a_warning(width, height, image_size, text):
    truth = np.arange(300) % 3
    sizes = {"widths": (1, width, 9999), "heights": (1, height, 9999)}
    found = warned(*probed(truth, truth, **sizes), image_size=image_size)
    assert list(found) == (["low-resolution"] if text else [])
    assert not text or text in found["low-resolution"].text


def test_small_images_suffice_for_networks_with_many_tokens():
    data = probed(np.arange(300) % 3, np.arange(300) % 3, widths=(48,) * 3, heights=(48,) * 3)
    assert list(warned(*data, image_size=(48, 48), num_tokens=1)) == ["low-resolution"]
    assert warned(*data, image_size=(48, 48), num_tokens=36) == {}


def test_classes_with_few_images_are_counted():
    truth = np.repeat(np.arange(6), [60, 60, 9, 10, 3, 1])
    text = warned(*probed(truth, truth))["few-images"].text
    assert text.startswith("3 of 6 classes have fewer than 10")
    assert "(kind 5 1, kind 4 3, kind 2 9)" in text


@pytest.mark.parametrize("labels", [[0, 1], [0, 0, 0, 1], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]])
def test_very_small_classes_give_no_false_warnings(labels):
    labels = np.array(labels)
    found = warned(*probed(labels, labels))
    assert "few-images" in found and not {"label-noise", "confusable"} & set(found)


def test_warnings_are_sorted_by_importance():
    truth = np.arange(300) % 3
    labels = np.random.default_rng(0).permutation(truth)
    fractiond = (duplicates("a", "b", splits=["train", "test"]),)
    small = {"widths": (9, 9, 9), "heights": (9, 9, 9)}
    found = list(warned(*probed(truth, labels, duplicates=fractiond, **small)))
    assert found == ["duplicates", "low-resolution"]


def test_a_class_of_one_patient_gives_no_label_noise_warning():
    """Its images are left out together, so all of them contradict their label."""
    truth = np.repeat([0, 1, 2], 60)
    groups = [*map(str, range(120)), *["one"] * 60]
    data, sample, curve = probed(truth, truth, groups=groups)
    assert not curve.best.correct[120:].any()
    assert "label-noise" not in warned(data, sample, curve)
