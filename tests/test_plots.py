"""Plots say what they should; how they look was looked at."""

import numpy as np
import pytest

from transfer import plots
from transfer.evaluation import Evaluation


def texts(figure):
    """Every text in a figure, joined."""
    from matplotlib.text import Text

    return " | ".join(t.get_text() for t in figure.findobj(Text))


def evaluation(classes=3, pictures=12):
    labels = np.arange(pictures) % classes
    probabilities = np.full((pictures, classes), 0.1 / max(1, classes - 1))
    probabilities[np.arange(pictures), (labels + (np.arange(pictures) == 1)) % classes] = 0.9
    names = tuple(f"class {i}" for i in range(classes))
    return Evaluation(names, labels, probabilities, tuple(map(str, range(pictures))))


def test_learning_curves_show_both_phases_and_cope_with_no_validation():
    rows = [
        {"phase": "head", "loss": 1.0, "accuracy": 0.4},
        {"phase": "fine-tune", "loss": 0.5, "accuracy": 0.7},
    ]
    shown = texts(plots.learning_curves(rows))
    assert "head, then fine-tune" in shown and "validation" not in shown
    assert "validation" in texts(plots.learning_curves([{**row, "val_loss": 1.0} for row in rows]))


def test_confusion_matrix_names_the_classes_and_counts():
    shown = texts(plots.confusion_matrix(evaluation()))
    assert "class 2" in shown and "accuracy 91.7% of 12" in shown


@pytest.mark.parametrize("classes", [2, 120])
def test_confusion_matrix_of_few_and_many_classes_can_be_saved(classes, tmp_path):
    plots.confusion_matrix(evaluation(classes, 240)).savefig(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5000


def test_prediction_sheet_says_what_wrong_pictures_really_are():
    picture = np.zeros((8, 8, 3), "uint8")
    shown = texts(plots.prediction_sheet(evaluation(), {0: picture, 1: picture}))
    assert "class 0 90%" in shown and "class 2 90%\n(is class 1)" in shown


@pytest.mark.parametrize("count", [3, 18, 101])
def test_the_network_is_drawn_with_all_states_whatever_its_depth(count, tmp_path):
    cut = count * 4 // 5
    blocks = [(f"block{i}_add", "frozen" if i < cut else "cut") for i in range(count)]
    blocks = [*blocks[:cut], ("softmax", "new"), *blocks[cut:], ("old classifier", "cut")]
    figure = plots.network_by_blocks("Case 2", blocks, input_text="picture", output_text="4 classes")
    shown = texts(figure)
    for text in ("block0", "softmax", "old classifier", "cut away", "frozen", "4 classes"):
        assert text in shown
    assert "_add" not in shown and "trained further" not in shown
    assert figure.get_size_inches()[0] < 26
    figure.savefig(tmp_path / "network.png")


def test_a_notebook_shows_a_figure_by_itself():
    figure = plots.learning_curves([{"phase": "head", "loss": 1.0, "accuracy": 0.4}])
    assert figure._repr_png_().startswith(b"\x89PNG")
