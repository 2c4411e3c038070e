"""Choose images and draw the figures of a run: training, test results, mistakes and explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import keras
import numpy as np

from transfer.cases.decisions import decision_of
from transfer.cases.policies import POLICIES
from transfer.common.errors import InputError
from transfer.common.figures import Draw, png_of
from transfer.common.files import replacing
from transfer.common.streams import progress_bar
from transfer.common.tasks import MULTI, REGRESSION, SINGLE, outputs_text
from transfer.common.text import number
from transfer.evaluation import explanation_plots, explanations, prediction_plots
from transfer.evaluation.evaluation import Evaluation
from transfer.evaluation.kinds import AnyEvaluation
from transfer.evaluation.label_evaluation import LabelEvaluation
from transfer.evaluation.metrics import MIN_IMAGES_TO_PLOT
from transfer.frozen.extraction import input_size
from transfer.frozen.shared_pass import local_copy
from transfer.images.datasets import ImageData
from transfer.images.decoding import decode
from transfer.networks.folding import fold_batchnorm
from transfer.networks.graphs import analyze
from transfer.results import plots
from transfer.results.evaluation_texts import task_of_evaluation
from transfer.results.finished_runs import FinishedRun
from transfer.results.predict import BATCH
from transfer.results.prediction import Prediction
from transfer.results.run_metrics import describe_training
from transfer.results.run_writer import RunResults
from transfer.training.averaging import PREFIX

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET = 24
"""Number of images in the figure of predictions."""

MAX_MISTAKES = 12
"""Maximum number of mistakes with heat maps, the highest confidence in the wrong class first."""

MAX_SEARCHED = 32
"""Maximum number of test images, mistakes included, that are searched for the strongest responses of filters."""


RAISES = 1
"""The class that Grad-CAM explains for a regression: what raises the number."""


def run_drawings(results: RunResults) -> dict[str, Draw]:
    """Return functions that draw the figures of a run; without an evaluation, only those of the training."""
    model, data, evaluation = results.model, results.data, results.evaluation
    drawings = {
        "learning_curves": results.training.plot,
        "network": lambda: _network(results),
    }
    if evaluation is not None:
        return drawings | evaluation_drawings(model, data, evaluation)
    result = results.cross_validation
    return drawings if result is None else drawings | _metric_drawings(result.evaluation)


def _network(results: RunResults) -> Figure:
    """Draw the network by blocks, under a title that describes the model."""
    model, config = results.model, results.config
    decision = decision_of(model)
    described = results.metrics.get("averaged") or [results.metrics]
    networks = [
        plots.DrawnNetwork(
            f"Case {POLICIES[one.case].number}, {one.case}: {describe_training(values, config)}",
            network_blocks(model, number),
            one.cuts,
        )
        for number, (one, values) in enumerate(zip(decision.averaged or [decision], described, strict=True))
    ]
    if decision.averaged:
        title = f"Average of the probabilities of {len(networks)} models.\n"
        networks[0] = networks[0]._replace(title=title + networks[0].title)
    blocks = [block for network in networks for block in network.blocks]
    legend = dict(plots.STATES)
    if any(one.fine_tuned is False for one in decision.averaged or [decision]):
        legend["frozen"] = "pre-trained, not changed"
    if config.weights == "none":
        legend["trained"] = "random, then trained"
    normalized = any(isinstance(x, keras.layers.BatchNormalization) for x in model.layers)
    if normalized and decision.pin_batchnorm and any(state == "trained" for _, state in blocks):
        legend["trained"] += " (BatchNormalization pinned)"
    return plots.networks_by_blocks(
        networks,
        input_text="image\nRGB, 0 to 255\n(scaled inside)",
        output_text=outputs_text(results.data.task, results.data.class_names),
        legend=legend,
    )


def network_blocks(model: keras.Model, number: int = 0) -> list[tuple[str, str]]:
    """Return the blocks of a built model with their states, and the cuts that do not end a block."""
    decision, names = decision_of(model), analyze(model).names
    if decision.averaged:  # `number` is the position of the averaged model, from 0
        decision, prefix = decision.averaged[number], PREFIX.format(number + 1)
        names = [name.removeprefix(prefix) for name in names if name.startswith(prefix)]
    count = len(decision.kept)
    states, rest = dict(decision.blocks[:count]), decision.blocks[count:]
    trained = any(layer.trainable_weights for layer in model.layers[:-1])
    state = next(iter(states.values()), "trained" if trained else "frozen")
    blocks = []
    for layer in sorted({*decision.kept, *decision.cuts}, key=names.index):
        state = states.get(layer, state)
        blocks.append((layer, state))
    return blocks + rest


def evaluation_drawings(model: keras.Model, data: ImageData, evaluation: AnyEvaluation) -> dict[str, Draw]:
    """Return functions that draw the figures of an evaluation on test images, by name."""
    explained = _in_thread(
        lambda: _explain(fold_batchnorm(local_copy(model), frozen_only=False), data, evaluation)
    )
    drawings = _metric_drawings(evaluation)
    drawings["predictions"] = lambda: prediction_plots.prediction_sheet(evaluation, _sheet(evaluation, data))
    drawings["blocks"] = lambda: explanation_plots.response_sheet(explained().responses)
    if len(evaluation.mistakes):
        drawings["mistakes"] = lambda: _mistakes(explained(), evaluation)
    return drawings


def _metric_drawings(evaluation: AnyEvaluation) -> dict[str, Draw]:
    """Return functions that draw the figures that need no model, by name."""
    if isinstance(evaluation, LabelEvaluation):
        return {"labels": evaluation.plot_labels, "co_occurrence": evaluation.plot_co_occurrence}
    if not isinstance(evaluation, Evaluation):
        return {"values": evaluation.plot_values}
    drawings: dict[str, Draw] = {
        "confusion_matrix": evaluation.plot_confusion,
        "classes": evaluation.plot_classes,
    }
    if len(evaluation.labels) >= MIN_IMAGES_TO_PLOT:
        drawings["calibration"] = evaluation.plot_calibration
    return drawings


def _in_thread(explain: Callable[[], _Explained]) -> Callable[[], _Explained]:
    """Start `explain` in a thread while other figures are drawn; return a function that waits for the result."""
    thread = ThreadPoolExecutor(1, thread_name_prefix="explanations")
    future = thread.submit(explain)
    thread.shutdown(wait=False)
    return future.result


class _Explained(NamedTuple):
    mistakes: list[tuple[int, int]]  # image and explained output of the mistakes with heat maps
    images: np.ndarray  # images of the mistakes; `heat` has their heat maps
    heat: np.ndarray
    note: str
    responses: list[explanations.Response]


def _explain(model: keras.Model, data: ImageData, evaluation: AnyEvaluation) -> _Explained:
    """Explain the mistakes with the highest confidence in the wrong class, and the filters, in one pass."""
    size, count = input_size(model, data), len(data.test)
    mistakes = _worst(evaluation)
    positions = [image for image, _ in mistakes]
    others = np.setdiff1d(np.arange(count), positions)
    some = np.unique(np.linspace(0, len(others) - 1, min(MAX_SEARCHED, count) - len(mistakes)).astype(int))
    images = np.stack([data.test.image(int(i), size) for i in [*positions, *others[some]]])
    classes = np.array([output for _, output in mistakes], "int64")
    heat, responses = explanations.explain(model, images, len(mistakes), classes=classes)
    return _Explained(mistakes, images[: len(mistakes)], heat, explanations.map_note(model, size), responses)


def _worst(evaluation: AnyEvaluation) -> list[tuple[int, int]]:
    """Return the images of the worst mistakes, each with the output that its heat map explains."""
    if isinstance(evaluation, LabelEvaluation):
        clearest: dict[int, int] = {}
        for image, label in evaluation.mistakes.tolist():
            clearest.setdefault(image, label)
        return list(clearest.items())[:MAX_MISTAKES]
    positions = evaluation.mistakes[:MAX_MISTAKES].tolist()
    if isinstance(evaluation, Evaluation):
        return [(place, int(evaluation.predictions[place])) for place in positions]
    return [(place, RAISES) for place in positions]


def _mistakes(explained: _Explained, evaluation: AnyEvaluation) -> Figure:
    """Draw the worst mistakes with Grad-CAM."""
    captions = [prediction_plots.mistake_caption(evaluation, *one) for one in explained.mistakes]
    title = mistakes_title(len(captions), _count_mistakes(evaluation), task_of_evaluation(evaluation))
    note = f"{title}\n{explained.note}"
    return explanation_plots.heat_sheet(explained.images, explained.heat, captions, note=note)


def _count_mistakes(evaluation: AnyEvaluation) -> int:
    """Return the number of images with a mistake."""
    found = evaluation.mistakes
    return len(np.unique(found[:, 0])) if isinstance(evaluation, LabelEvaluation) else len(found)


def mistakes_title(shown: int, total: int, task: str = SINGLE) -> str:
    """Return the title of the figure of mistakes, with their order, and how many of them it shows."""
    count = f"{shown} of {total:,}" if shown < total else f"all {total}"
    if task == MULTI:
        return f"Images with wrong decisions, the clearest first ({count})"
    if task == REGRESSION:
        return f"Images sorted by their error, the largest first ({count})"
    return f"Mistakes, sorted by the confidence in the wrong class ({count})"


def _sheet(evaluation: AnyEvaluation, data: ImageData) -> dict[int, np.ndarray]:
    """Choose test images, evenly over the classes or numbers; keys are positions in the test set."""
    count, labels = len(evaluation.labels), evaluation.labels
    order = np.lexsort(labels.T) if labels.ndim == 2 else np.argsort(labels, kind="stable")
    picked = order[np.unique(np.linspace(0, count - 1, min(SHEET, count)).astype(int))]
    return {int(i): data.test.image(int(i), (128, 128)) for i in picked}


def write_heat_maps(run: FinishedRun, predictions: Sequence[Prediction], folder: Path) -> None:
    """Write a Grad-CAM heat map for each predicted image file, as numbered PNG files."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {str(folder)!r}: {(error.strerror or str(error)).lower()}.") from None
    note = explanations.map_note(run.model, run.image_size)
    with progress_bar(total=len(predictions), desc="heat maps", unit=" images", leave=False, delay=1) as bar:
        for start in range(0, len(predictions), BATCH):
            batch = predictions[start : start + BATCH]
            form: dict[str, Any] = {"resize": run.resize, "pixel_range": run.pixel_range}
            images = np.stack([decode(Path(one.name), run.image_size, **form) for one in batch])
            explained = [_outputs_to_explain(one) for one in batch]
            repeats = [len(outputs) for outputs in explained]
            classes = [output for outputs in explained for output, _ in outputs]
            heats = explanations.grad_cam(run.model, np.repeat(images, repeats, axis=0), classes=classes)
            of_image = np.split(heats, np.cumsum(repeats)[:-1])
            for i, (one, image, heat, outputs) in enumerate(
                zip(batch, images, of_image, explained, strict=True), start=start + 1
            ):
                captions = [caption for _, caption in outputs]
                shown = np.repeat(image[None], len(outputs), axis=0)
                figure = explanation_plots.heat_sheet(shown, heat, captions, note=note)
                with replacing(folder / f"{i:04}-{Path(one.name).stem[:80]}.png") as partial:
                    partial.write_bytes(png_of(figure))
                bar.update()


def _outputs_to_explain(one: Prediction) -> list[tuple[int, str]]:
    """Return the outputs that heat maps explain, with captions: the class, each predicted label, or the number."""
    if one.value is not None:
        return [(RAISES, f"what raises {one.class_names[0]} ({number(one.value)})")]
    probability = dict(zip(one.class_names, np.asarray(one.probabilities).tolist(), strict=True))
    names = one.labels or [name for name, _ in one.top(1)]  # without a label, the most probable one
    return [(one.class_names.index(name), f"{name} {probability[name]:.0%}") for name in names]
