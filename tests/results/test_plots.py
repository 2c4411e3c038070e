"""Figures show the right names and numbers, and their labels do not overlap."""

import itertools

import numpy as np
import pytest

from transfer.adviser import advice_plots
from transfer.adviser.curves import layer_curve
from transfer.cases.policies import SMALL_DATA
from transfer.evaluation import evaluation_plots
from transfer.evaluation.evaluate import Evaluation
from transfer.results import plots
from transfer.training import training_plots


def texts(figure):
    """Every text in a figure, joined."""
    from matplotlib.text import Text

    return " | ".join(t.get_text() for t in figure.findobj(Text))


def evaluation(classes=3, images=12):
    labels = np.arange(images) % classes
    probabilities = np.full((images, classes), 0.1 / max(1, classes - 1))
    probabilities[np.arange(images), (labels + (np.arange(images) == 1)) % classes] = 0.9
    names = tuple(f"class {i}" for i in range(classes))
    return Evaluation(names, labels, probabilities, tuple(map(str, range(images))))


def test_learning_curves_show_both_phases_and_cope_with_no_validation():
    rows = [
        {"phase": "head", "loss": 1.0, "accuracy": 0.4},
        {"phase": "fine-tune", "loss": 0.5, "accuracy": 0.7},
    ]
    shown = texts(training_plots.learning_curves(rows))
    assert "head, then fine-tune" in shown and "validation" not in shown
    assert "validation" in texts(training_plots.learning_curves([{**row, "val_loss": 1.0} for row in rows]))


def test_confusion_matrix_names_the_classes_and_counts():
    shown = texts(evaluation_plots.confusion_matrix(evaluation()))
    assert "class 2" in shown and "accuracy 91.7%, 12 images" in shown


@pytest.mark.parametrize("classes", [2, 120])
def test_confusion_matrix_of_few_and_many_classes_can_be_saved(classes, tmp_path):
    evaluation_plots.confusion_matrix(evaluation(classes, 240)).savefig(tmp_path / "matrix.png")
    assert (tmp_path / "matrix.png").stat().st_size > 5000


def test_the_prediction_sheet_shows_the_true_class_of_wrong_predictions():
    image = np.zeros((8, 8, 3), "uint8")
    shown = texts(evaluation_plots.prediction_sheet(evaluation(), {0: image, 1: image}))
    assert "class 0 90%" in shown and "class 2 90%\n(is class 1)" in shown


@pytest.mark.parametrize("count", [3, 18, 101])
def test_the_network_is_drawn_with_all_states_whatever_its_depth(count, tmp_path):
    cut = count * 4 // 5
    blocks = [(f"block{i}_add", "frozen" if i < cut else "cut") for i in range(count)]
    blocks = [*blocks[:cut], ("softmax", "new"), *blocks[cut:], ("source classifier", "cut")]
    figure = plots.network_by_blocks("Case 2", blocks, input_text="image", output_text="4 classes")
    shown = texts(figure)
    for text in ("block0", "softmax", "source classifier", "cut away", "frozen", "4 classes"):
        assert text in shown
    assert "_add" not in shown and "fine-tuned" not in shown
    assert figure.get_size_inches()[0] < 26
    figure.savefig(tmp_path / "network.png")


def test_a_notebook_shows_a_figure_by_itself():
    figure = training_plots.learning_curves([{"phase": "head", "loss": 1.0, "accuracy": 0.4}])
    assert figure._repr_png_().startswith(b"\x89PNG")


def curve_of(count, name="block{}_add", *, signal=True):
    """Return a layer curve that rises and then falls a little."""
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 3
    strengths = signal * (1.5 * np.minimum(1, 2 * np.arange(1, count + 1) / count))
    if count > 2:
        strengths[-count // 4 :] *= 0.3
    centers = rng.normal(size=(3, 6))
    taps = {
        name.format(i): rng.normal(size=(120, 6)) + strength * centers[labels]
        for i, strength in enumerate(strengths)
    }
    return layer_curve(taps, labels, 3)


def test_the_layer_curve_shows_every_layer_the_cut_all_layers_and_chance():
    curve = curve_of(17)
    figure = advice_plots.layer_curve_plot(curve)
    (axes,) = figure.axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 17)
    np.testing.assert_allclose(line.get_ydata(), curve.accuracy)
    ring = next(line for line in axes.lines if line.get_label().startswith("best layer"))
    cut = curve.names.index(curve.cut)
    assert 0 < cut < 16, "a cut at an end would not test the position of the mark"
    assert ring.get_xdata() == [cut] and ring.get_ydata() == [curve.accuracy[cut]]
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert set(dashed.get_ydata()) == {curve.all_layers.accuracy}
    band = axes.patches[0].get_bbox()
    assert band.y0 < curve.chance[0] < band.y1 < curve.all_layers.accuracy
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"block{i}" for i in range(17)]
    assert f"keep the layers up to {names[cut]}" in axes.get_title(loc="left")


def test_the_layer_curve_without_signal_recommends_no_cut():
    shown = texts(advice_plots.layer_curve_plot(curve_of(5, signal=False)))
    assert "No layer predicts" in shown and "best layer" not in shown and "keep" not in shown


@pytest.mark.parametrize(
    ("count", "name"), [(1, "b{}"), (2, "b{}"), (120, "a_very_long_name_$x^{{_of_layer_{}_with_more_add")]
)
def test_layer_curves_of_few_and_many_layers_and_long_names_can_be_read(count, name, tmp_path):
    curve = curve_of(count, name)
    figure = advice_plots.layer_curve_plot(curve)
    figure.savefig(tmp_path / "curve.png")
    labels = figure.axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))
    cut = curve.names.index(curve.cut)
    assert cut in figure.axes[0].get_xticks() and max(len(label.get_text()) for label in labels) <= 24
    assert all(box.y0 > 0 and box.x0 > 0 for box in boxes)


REFERENCES = [
    ("CIFAR-10", 50_000, 0.66), ("CIFAR-10, blurred", 50_000, 0.5), ("Fashion-MNIST", 60_000, 0.35),
    ("MNIST", 60_000, 0.05), ("SVHN", 73_257, 0.22), ("mixed", 20_000, 0.52), ("hymenoptera", 244, 0.85),
    ("emoji", 344, 0.6), ("ImageNet", 1_281_167, 1.0), ("Pets", 3_680, 0.95), ("flowers", 2_040, 0.7),
]  # fmt: skip


def test_the_four_cases_chart_places_data_by_size_and_similarity():
    figure = advice_plots.four_cases_chart(("mine", 1000, 0.25), [("other", 100_000, 0.75)])
    (axes,) = figure.axes
    dot, star = (line for line in axes.lines if line.get_marker() in ("o", "*"))
    assert np.ravel(star.get_data()).tolist() == [0.25, 3.0]
    assert np.ravel(dot.get_data()).tolist() == [0.75, 5.0]
    assert [tick.get_text() for tick in axes.get_yticklabels()][::3] == ["10", "10,000", "10,000,000"]
    borders = [line for line in axes.lines if line.get_marker() == "None"]
    assert {tuple(line.get_xdata()) for line in borders} == {(0.5, 0.5), (0, 1)}
    assert np.log10(SMALL_DATA) in {line.get_ydata()[0] for line in borders}
    corners = {text.get_text().split("\n")[0]: text.get_position() for text in axes.texts[:4]}
    assert [corner[0] for corner in sorted(corners)] == ["1", "2", "3", "4"]
    for title, (x, y) in corners.items():
        assert ("similar" in title) == (x > 0.5) and ("large" in title) == (y > 0.5)


@pytest.mark.parametrize("references", [[], REFERENCES, [(f"set {i}", 1000, 0.5) for i in range(12)]])
@pytest.mark.parametrize(
    "here", [("flowers", 344, 0.62), ("a $ name^{ of any length" * 3, 2, 1.3), ("huge", 3e9, -1)]
)
def test_names_on_the_four_cases_chart_cover_nothing(here, references, tmp_path):
    figure = advice_plots.four_cases_chart(here, references)
    figure.savefig(tmp_path / "chart.png")
    (axes,) = figure.axes
    boxes = [text.get_window_extent() for text in axes.texts]
    assert len(boxes) == 4 + 1 + len(references)
    assert [(i, j) for j in range(len(boxes)) for i in range(j) if boxes[i].overlaps(boxes[j])] == []
    inside = axes.get_window_extent()
    assert all(inside.contains(*box.min) and inside.contains(*box.max) for box in boxes)
    assert inside.width > 0.75 * figure.bbox.width, "the chart fills the figure"
