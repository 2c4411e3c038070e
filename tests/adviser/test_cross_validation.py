"""Cross-validation predicts each image without it, as separate trainings do, and resumes after an interruption."""

import dataclasses
import importlib.util
import logging

import numpy as np
import pytest
from helpers.networks import make_tiny

from transfer.adviser import fold_training
from transfer.adviser.cross_validation import cross_validate
from transfer.cases.builders import build
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.images.datasets import load_data
from transfer.images.folds import fold_data
from transfer.networks.demo_cnn import DemoCNN
from transfer.training.fit import fit

SHORT = {"case": "small-similar", "preprocessing": "tf", "solver": "sgd", "epochs": 1}


@pytest.fixture(scope="module")
def shuffled(shuffled_folder):
    return load_data(shuffled_folder)


@pytest.mark.parametrize(
    "options", [{"case": "auto"}, {"case": "small-similar"}, {"case": "auto", "epochs": 2}]
)
def test_labels_without_a_signal_have_the_accuracy_of_a_guess(options, shuffled, tiny):
    """A leak of the tested images into the choice or the training of a head would raise it."""
    result = cross_validate(shuffled, tiny, folds=5, preprocessing="tf", **options)
    assert len(result.folds) == 90 and result.accuracy < 0.5
    assert set(result.evaluation.names) == {n for part in shuffled.splits.values() for n in part.names}


@pytest.mark.parametrize("options", [
    {"case": "small-similar"}, {"case": "small-similar", "solver": "sgd", "epochs": 2},
    {"case": "small-similar", "class_weights": True}, {"case": "small-different", "views": 2},
])  # fmt: skip
def test_the_predictions_are_those_of_separate_trainings(options, colors, tiny):
    result = cross_validate(colors, tiny, folds=3, preprocessing="tf", **options)
    folded = fold_data(colors, 3, seed=0)
    exact = "solver" not in options and "views" not in options
    data = folded.fold(1, 0 if exact else 0.1)
    model = build(options["case"], tiny, 3, preprocessing="tf")
    given = {name: value for name, value in options.items() if name != "case"}
    fit(model, data, verbose=0, **given)
    expected = evaluate(model, data, views=options.get("views", 1), augment="light").probabilities
    np.testing.assert_allclose(result.evaluation.probabilities[result.folds == 1], expected, atol=2e-3)


def test_the_result_describes_folds_and_images(colors, tiny):
    result = cross_validate(colors, tiny, folds=4, case="small-similar", preprocessing="tf")
    sizes = np.bincount(result.folds).tolist()
    assert result.fold_sizes == tuple(sizes) and sum(sizes) == 90
    correct = result.evaluation.labels == result.evaluation.predictions
    assert result.accuracy == np.mean(correct)
    assert result.fold_accuracies == tuple(np.mean(correct[result.folds == k]) for k in range(4))
    values = result.to_dict()
    assert values["num_folds"] == 4 and values["accuracy"] == result.accuracy and values["macro"]
    assert result.interval[0] <= result.accuracy <= result.interval[1]
    assert f"{result.accuracy:.1%}" in repr(result) and "standard deviation" in result.to_text()
    if importlib.util.find_spec("pandas") is None:
        return
    table = result.to_dataframe()
    assert table["fold"].tolist() == (result.folds + 1).tolist() and len(table) == 90


def test_a_wrong_label_is_reported(colors, tiny):
    train = dataclasses.replace(colors.train, labels=colors.train.labels.copy())
    train.labels[0] = (train.labels[0] + 1) % 3
    result = cross_validate(
        dataclasses.replace(colors, train=train), tiny, folds=3, case="small-similar", preprocessing="tf"
    )
    assert [issue.name for issue in result.label_issues] == [train.names[0]]
    assert result.label_issues[0].likely == colors.class_names[colors.train.labels[0]]


def test_groups_of_arrays_and_lists_stay_together(tiny, tmp_path, color_folder):
    files = sorted(color_folder.rglob("*.png"))
    rows = [f"{file},{file.parent.name},{file.parent.name}{i % 6}" for i, file in enumerate(files)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,patient", *rows]))
    result = cross_validate(load_data(tmp_path / "list.csv"), tiny, folds=3, case="1", preprocessing="tf")
    groups = result.evaluation.groups
    assert len(set(groups)) == 18
    assert all(
        len({f for f, g in zip(result.folds, groups, strict=True) if g == one}) == 1 for one in set(groups)
    )
    images = np.random.default_rng(0).integers(0, 255, (30, 32, 32, 3)).astype("uint8")
    data = load_data((images, np.arange(30) % 3), near_duplicates=False)
    assert len(cross_validate(data, tiny, folds=3, case="1", preprocessing="tf").folds) == 30


def test_given_validation_and_test_images_are_in_no_fold(colors, tiny):
    given = dataclasses.replace(colors, drawn_val=False, drawn_test=False)
    result = cross_validate(given, tiny, folds=3, case="auto", preprocessing="tf")
    assert set(result.evaluation.names) == set(colors.train.names)


def test_an_interrupted_cross_validation_resumes(colors, tmp_path, monkeypatch, caplog):
    keep, trained = tmp_path / "folds", []
    whole = cross_validate(colors, make_tiny(), folds=3, **SHORT)

    def fit_or_stop(model, data, **options):
        trained.append(set(data.test.names))
        if len(trained) == 2:
            raise KeyboardInterrupt
        return fit(model, data, **options)

    monkeypatch.setattr(fold_training, "fit", fit_or_stop)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(colors, make_tiny(), folds=3, checkpoints=keep, **SHORT)
    with caplog.at_level(logging.INFO, "transfer"):
        again = cross_validate(colors, make_tiny(), folds=3, checkpoints=keep, **SHORT)
    assert len(trained) == 4 and trained[1] == trained[2]  # the second fold starts again, the first does not
    assert caplog.text.count("Fold ") == 3
    np.testing.assert_allclose(again.evaluation.probabilities, whole.evaluation.probabilities, atol=1e-5)
    with pytest.raises(InputError, match="seed was 0, now 1"):
        cross_validate(colors, make_tiny(), folds=3, checkpoints=keep, seed=1, **SHORT)


def test_wrong_arguments_are_explained(colors, tiny):
    with pytest.raises(InputError, match=r"load_data"):
        cross_validate("photos", tiny)
    with pytest.raises(InputError, match=r"Unknown option 'epoch'\. Did you mean 'epochs'"):
        cross_validate(colors, tiny, epoch=3)
    with pytest.raises(InputError, match="Expected 2 folds or more"):
        cross_validate(colors, tiny, folds=1)
    with pytest.raises(InputError, match="Expected 2 to 30 folds"):
        cross_validate(colors, DemoCNN(weights=None), folds=31)
