"""Figures show the right names and numbers, and their labels do not overlap."""

import io
import itertools
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from transfer.adviser import advice_plots
from transfer.adviser.curves import layer_curve
from transfer.adviser.estimates import CaseEstimate
from transfer.cases.policies import SMALL_DATA, Case
from transfer.common.figures import COLORS, DPI, png_of
from transfer.evaluation import evaluation_plots, explanation_plots, prediction_plots
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.metrics import fraction_intervals
from transfer.results import plots
from transfer.training import training_plots
from transfer.training.phases import TrainingLog


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
    assert shown.count("head") == shown.count("fine-tuning") == 2 and "validation" not in shown
    assert "validation" in texts(training_plots.learning_curves([{**row, "val_loss": 1.0} for row in rows]))


def rows_of(phases, **values):
    return [{"phase": phase, "loss": 1 / (i + 1), **values} for i, phase in enumerate(phases)]


def test_learning_curves_are_not_joined_across_phases_and_mark_the_restored_epoch():
    rows = rows_of(["head", "fine-tune", "fine-tune", "from-scratch"])
    (axes,) = training_plots.learning_curves(rows, kept_row=2).axes
    curves = [line.get_xdata() for line in axes.lines if len(line.get_ydata()) and line.get_marker() == "o"]
    assert [list(x) for x in curves] == [[1], [2, 3], [4]]
    (mark,) = (line for line in axes.lines if line.get_label() == "epoch of the final weights")
    assert set(mark.get_xdata()) == {3}
    assert [t.get_text() for t in axes.texts] == ["head", "fine-tuning", "from random weights"]
    for last in (None, 3):
        figure = training_plots.learning_curves(rows, kept_row=last)
        assert "final weights" not in texts(figure), "the last epoch needs no mark"


def test_learning_curves_of_one_epoch_show_its_values():
    row = {"phase": "fine-tune", "loss": 0.51234, "accuracy": 0.85, "val_loss": 0.7, "val_accuracy": 0.8}
    figure = training_plots.learning_curves([row])
    figure.draw_without_rendering()
    for axes in figure.axes:
        low, high = axes.get_xlim()
        assert [x for x in axes.get_xticks() if low <= x <= high] == [1], "there are no parts of epochs"
    shown = texts(figure)
    assert all(value in shown for value in ("0.512", "0.700", "85.0%", "80.0%"))


TRIED = [(10.0, 0.9, 0.7), (31.6227766, 0.5, 0.75), (3162.27766, 0.4, 0.65), (10000.0, 0.6, 0.8)]


@pytest.mark.parametrize(
    ("measured_on", "says"),
    [("validation", "the validation images"), ("cross-validation", "training images, by cross-validation")],
)
def test_the_regularization_path_marks_the_lowest_loss_and_says_so(measured_on, says):
    log = TrainingLog(rows_of(["head"]), regularization=3162.27766, tried=TRIED, tried_on=measured_on)
    figure = log.plot()
    loss, accuracy = figure.axes
    shown = texts(figure)
    assert "chosen by the lowest loss: C = 3,160" in shown and f"measured on {says}" in shown
    assert "e+" not in shown and "held-out" not in shown
    (ring,) = (line for line in loss.lines if line.get_label().startswith("chosen"))
    assert list(ring.get_xdata()) == [3162.27766] and list(ring.get_ydata()) == [0.4]
    assert not [line for line in accuracy.lines if line.get_label().startswith("chosen")]
    ticks = [tick.get_text() for tick in loss.get_xticklabels()]
    assert ticks == ["10", "31.6", "3,160", "10,000"]


def test_confusion_matrix_names_the_classes_and_counts():
    shown = texts(evaluation_plots.confusion_matrix(evaluation()))
    assert "class 2" in shown and "Accuracy 91.7%, 12 images" in shown


@pytest.mark.parametrize("classes", [2, 40, 120])
@pytest.mark.parametrize("name", ["class {}", "a_very_long_$x^{{_name_{}_of_a_class_with_a_long_end"])
def test_names_and_counts_of_few_and_many_classes_can_be_read(classes, name):
    many = replace(evaluation(classes, 240), class_names=tuple(name.format(i) for i in range(classes)))
    figure = evaluation_plots.confusion_matrix(many)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        boxes = [label.get_window_extent() for label in labels]
        assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))
        assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes)
        assert len({label.get_text() for label in labels}) == len(labels), "shortened names stay different"
    assert len(axes.texts) == (0 if classes > 40 else np.count_nonzero(many.confusion))


@pytest.mark.parametrize("classes", [1, 2, 40, 70])
def test_the_rows_of_the_class_plot_have_margins_and_show_the_lowest_f1_first(classes):
    many = evaluation(max(2, classes), 240)
    if classes == 1:  # the other class has no test images
        many = replace(many, labels=np.zeros(240, int))
    figure = evaluation_plots.class_plot(many)
    (axes,) = figure.axes
    bottom, top = axes.get_ylim()
    ticks = axes.get_yticks()
    assert top < ticks[0] - 0.5 and bottom > ticks[-1] + 0.5 and len(ticks) == min(classes, 60)
    scores = [
        next(one.f1 for one in many.by_class if t.get_text().startswith(f"{one.name} ("))
        for t in axes.get_yticklabels()
    ]
    assert scores == sorted(scores)
    assert ("the 60 lowest of 70 classes" in texts(figure)) == (classes == 70)


def test_the_class_plot_shows_intervals_and_no_precision_of_a_class_that_was_never_predicted():
    rows = np.array([[0.9, 0.1, 0.0]] * 4 + [[0.2, 0.8, 0.0]] * 4)
    three = Evaluation(("a", "b", "c"), np.array([0, 0, 0, 1, 1, 1, 2, 2]), rows, tuple("abcdefgh"))
    recall, precision = evaluation_plots.class_plot(three).axes[0].containers
    np.testing.assert_allclose(recall.lines[0].get_xdata(), [0, 2 / 3, 1])  # c, b, a: by F1
    np.testing.assert_allclose(precision.lines[0].get_xdata(), [0.5, 0.75])  # b, a
    (low, _), (high, _) = recall.lines[2][0].get_segments()[1]
    np.testing.assert_allclose([[low], [high]], fraction_intervals([2], [3]))


def test_the_reliability_diagram_shows_equal_bins_with_intervals_and_its_legend_covers_nothing():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 130)
    labels = (rng.uniform(size=130) > confidence).astype(int)
    found = Evaluation(
        ("a", "b"), labels, np.stack([confidence, 1 - confidence], 1), ("x",) * 130
    ).calibration
    figure = evaluation_plots.calibration_plot(found)
    figure.draw_without_rendering()
    (axes,) = figure.axes
    assert "6 bins of 21 to 22 images" in axes.get_xlabel()
    (bars,) = axes.containers
    np.testing.assert_allclose(
        np.array([*bars.lines[0].get_data()], float), [found.confidence, found.accuracy]
    )
    assert len(bars.lines[2][0].get_segments()) == 6
    assert not axes.get_window_extent().overlaps(figure.legends[0].get_window_extent())
    assert f"{found.error:.1%}" in texts(figure)


def test_the_prediction_sheet_shows_the_true_class_of_wrong_predictions():
    image = np.zeros((8, 8, 3), "uint8")
    shown = texts(prediction_plots.prediction_sheet(evaluation(), {0: image, 1: image}))
    assert "class 0 90%" in shown and "class 2 90%\n(is class 1)" in shown


@pytest.mark.parametrize("name", ["class {}", "a_very_long_$x^{{_name_{}_of_a_class_with_a_long_end"])
def test_captions_of_sheets_cover_nothing(name):
    many = evaluation(20, 40)
    many = replace(many, class_names=tuple(name.format(i) for i in range(20)))
    images, maps = np.zeros((14, 20, 30, 3), "uint8"), np.zeros((14, 20, 30))
    captions = [prediction_plots.prediction_caption(many, i) for i in range(14)]
    note = "a note on all of them\nthat has two lines"
    for figure in (
        prediction_plots.prediction_sheet(many, dict(enumerate(images))),
        explanation_plots.heat_sheet(images, maps, captions, note=note),
    ):
        figure.draw_without_rendering()
        (axes,) = figure.axes
        (drawn,) = axes.images
        titles = [figure._suptitle] if figure.get_suptitle() else []
        boxes = [text.get_window_extent() for text in [*axes.texts, *titles]]
        assert not any(one.overlaps(two) for one, two in itertools.combinations(boxes, 2))
        assert all(figure.bbox.contains(*box.min) and figure.bbox.contains(*box.max) for box in boxes)
        pixels = np.asarray(drawn.get_array())
        scale = pixels.shape[0] / figure.bbox.height
        for box in boxes:
            under = pixels[
                int(scale * (figure.bbox.height - box.y1)) : int(scale * (figure.bbox.height - box.y0))
            ]
            assert (under[:, int(scale * box.x0) : int(scale * box.x1)] == 255).all(), "a text is on an image"


def test_a_png_shows_what_matplotlib_would_save():
    one, other = (evaluation_plots.confusion_matrix(evaluation()) for _ in range(2))
    stream = io.BytesIO()
    one.savefig(stream, format="png", dpi=DPI)
    content = Image.open(io.BytesIO(png_of(other)))
    assert content.mode == "RGB" and round(content.info["dpi"][0]) == DPI and other.dpi == one.dpi
    np.testing.assert_array_equal(content, Image.open(stream).convert("RGB"))


@pytest.mark.parametrize("count", [3, 18, 101])
def test_the_network_is_drawn_with_all_states_whatever_its_depth(count, tmp_path):
    cut = count * 4 // 5
    blocks = [(f"block{i}_add", "frozen" if i < cut else "cut") for i in range(count)]
    blocks = [*blocks[:cut], ("softmax", "new"), *blocks[cut:], ("source classifier", "cut")]
    network = plots.DrawnNetwork("Case 2", blocks)
    figure = plots.networks_by_blocks([network], input_text="image", output_text="4 classes")
    shown = texts(figure)
    for text in ("block0", "softmax", "source classifier", "cut away", "frozen", "4 classes"):
        assert text in shown
    assert "_add" not in shown and "fine-tuned" not in shown
    assert figure.get_size_inches()[0] < 26
    figure.savefig(tmp_path / "network.png")


@pytest.mark.parametrize("count", [5, 17, 60])
def test_several_tapped_blocks_are_joined_to_the_head(count, tmp_path):
    names = [f"block{i}_add" for i in range(count)]
    blocks = [*((name, "frozen") for name in names), ("softmax", "new"), ("source classifier", "cut")]
    for taps in (names, names[::4]):
        network = plots.DrawnNetwork("title", blocks, taps)
        figure = plots.networks_by_blocks([network], input_text="image", output_text="2 classes")
        (axes,) = figure.axes
        lines = [line for line in axes.lines if line.get_gid() == "tap"]
        assert f"the head sees {len(taps)} layers" in texts(figure)
        if count <= 20:
            assert len(lines) == len(taps)
            assert [line.get_xdata()[0] for line in lines] == pytest.approx(
                [2.51 + 0.92 * names.index(tap) for tap in taps]
            )
        else:  # a box stands for several blocks: a number says how many are tapped
            joined = sum(int(t.get_text()) if t.get_text().isdigit() else 0 for t in axes.texts)
            assert len(lines) <= 22 and joined + sum(1 for _ in lines) >= len(taps)
        figure.savefig(tmp_path / "network.png")


def test_one_tapped_layer_needs_no_lines():
    blocks = [("block1_add", "frozen"), ("softmax", "new")]
    network = plots.DrawnNetwork("t", blocks, ["block1_add"])
    figure = plots.networks_by_blocks([network], input_text="i", output_text="o")
    assert not [line for line in figure.axes[0].lines if line.get_gid() == "tap"]
    assert "the head sees" not in texts(figure)


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


def choice_of(cut, case="small-similar"):
    return CaseEstimate(Case.parse(case), cut, 0.9, (0.8, 1.0), 1.0, "a test")


def test_the_layer_curve_shows_every_layer_the_best_one_all_layers_and_chance():
    curve = curve_of(17)
    figure = advice_plots.layer_curve_plot(curve)
    (axes,) = figure.axes
    line = next(line for line in axes.lines if len(line.get_xdata()) == 17)
    np.testing.assert_allclose(line.get_ydata(), curve.accuracy)
    ring = next(line for line in axes.lines if line.get_label().startswith("best single layer"))
    cut = curve.names.index(curve.cut)
    assert 0 < cut < 16, "a cut at an end would not test the position of the mark"
    assert ring.get_xdata() == [cut] and ring.get_ydata() == [curve.accuracy[cut]]
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert set(dashed.get_ydata()) == {curve.all_layers.accuracy}
    band = axes.patches[0].get_bbox()
    assert band.y0 < curve.chance[0] < band.y1 < curve.all_layers.accuracy
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [f"block{i}" for i in range(17)]
    assert axes.get_title(loc="left") == "Accuracy of a linear head on each single layer"
    assert "recommended" not in texts(figure).lower()


@pytest.mark.parametrize(
    ("cut", "case", "marked", "title"),
    [
        ("all", "small-similar", ["all layers together"], "all frozen layers"),
        ("best", "small-different", ["best single layer"], "frozen block"),
        ("block3_add", "small-different", ["recommended layer"], "frozen block3"),
        (None, "large-similar", [], "fine-tune the whole network"),
        ("random", "large-different", [], "random weights"),
    ],
)
def test_the_layer_curve_marks_what_is_recommended(cut, case, marked, title):
    curve = curve_of(17)
    figure = advice_plots.layer_curve_plot(curve, choice_of(curve.cut if cut == "best" else cut, case))
    (axes,) = figure.axes
    orange = [line.get_label() for line in axes.lines if line.get_color() == COLORS["new"]]
    named = [
        label.partition(":")[0].removesuffix(" (recommended)")
        for label in orange
        if not label.startswith("_")
    ]
    assert named == marked
    assert title in axes.get_title(loc="left").split("Recommended: ")[1]
    for label in (text.get_text() for text in figure.legends[0].get_texts()):
        assert ("recommended" in label) == any(label.startswith(name) for name in marked)


def test_the_layer_curve_without_signal_recommends_nothing():
    shown = texts(advice_plots.layer_curve_plot(curve_of(5, signal=False), choice_of("all")))
    assert "No layer predicts" in shown and "best single layer" not in shown and "ecommended" not in shown


@pytest.mark.parametrize(
    ("count", "name"), [(1, "b{}"), (2, "b{}"), (120, "a_very_long_name_$x^{{_of_layer_{}_with_more_add")]
)
def test_layer_curves_of_few_and_many_layers_and_long_names_can_be_read(count, name, tmp_path):
    curve = curve_of(count, name)
    figure = advice_plots.layer_curve_plot(curve, choice_of(curve.cut, "small-different"))
    figure.savefig(tmp_path / "curve.png")
    labels = figure.axes[0].get_xticklabels()
    boxes = [label.get_window_extent() for label in labels]
    assert not any(one.overlaps(two) for one, two in itertools.pairwise(boxes))
    cut = curve.names.index(curve.cut)
    assert cut in figure.axes[0].get_xticks() and max(len(label.get_text()) for label in labels) <= 30
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
