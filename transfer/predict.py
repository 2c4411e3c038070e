"""`python -m transfer.predict`: predict the classes of images with a trained run."""

from __future__ import annotations

import argparse
import io
import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from transfer.common import streams
from transfer.common.commands import add_model_options, run_command
from transfer.common.errors import InputError
from transfer.common.files import check_folder
from transfer.common.parsers import Parser
from transfer.images.image_inputs import Image, find_images
from transfer.images.path_list import read_paths
from transfer.results.predict import Prediction, predictions, required_reference

FORMATS = ("table", "csv", "json")
RANKS = ("predicted", "expected_rank")  # columns of ordered classes


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    skipped: list[str] = []

    def work() -> None:
        if parsed.image == ["-"]:
            items: Iterable[Image] = _from_standard_input()
        else:
            items = _images_of(parsed.image)
        skipped.extend(_run(parsed, items))

    code = run_command(work, stream=sys.stderr, stopped="Stopped.")
    return code or int(bool(skipped))


def _images_of(sources: Sequence[str]) -> list[Image]:
    """Return the images of files and folders; of several, one that cannot be used is reported with the images."""
    items: list[Image] = []
    for source in sources:
        try:
            items += find_images(source)
        except InputError:
            if len(sources) == 1:
                raise
            items.append(source)
    return items


def _from_standard_input() -> Iterator[Image]:
    """Yield the images of the paths on standard input; raise an error if there are none."""
    stream = getattr(sys.stdin, "buffer", None) or io.BytesIO(sys.stdin.read().encode())
    images = find_images(read_paths(stream))
    first = next(images, None)
    if first is None:
        raise InputError("Expected one path per line on standard input. Received none.")
    return itertools.chain([first], images)


def _run(parsed: argparse.Namespace, items: Iterable[Image]) -> list[str]:
    """Predict and print; return the names of images that could not be read."""
    if parsed.top < 1:
        raise InputError(f"Expected --top of 1 or more. Received: {parsed.top}.")
    check_folder(parsed.gradcam)
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.evaluation.prediction_sets import set_threshold
    from transfer.results.finished_runs import load_run

    run = load_run(parsed.run, custom_objects=parsed.custom_objects, class_names=parsed.class_names)
    if parsed.abstain:
        required_reference(run, "--abstain")
    if parsed.coverage is not None:  # raise before the first line of output
        set_threshold(required_reference(run, "--coverage").scores, parsed.coverage)
    top = min(parsed.top, len(run.class_names))
    options = {
        "abstain": parsed.abstain,
        "sets": parsed.coverage is not None,
        "ordered": run.rule is not None,
    }
    print_row, finish = _printer(parsed.format, top, **options)
    skipped, good = [], []
    for prediction in predictions(run, items, engine=parsed.engine, coverage=parsed.coverage, progress=True):
        print_row(prediction)
        if prediction.problem:
            skipped.append(prediction.name)
            streams.print_text(f"Skipped {prediction.name}: {prediction.problem}\n", sys.stderr)
        elif parsed.gradcam:
            good.append(prediction)
    finish()
    if good:
        from transfer.results.run_figures import write_heat_maps

        write_heat_maps(run, good, Path(parsed.gradcam))
    return skipped


def _printer(
    format: str, top: int, *, abstain: bool, sets: bool, ordered: bool
) -> tuple[Callable[[Prediction], None], Callable[[], None]]:
    """Return a function that prints a prediction, and one that prints the end of the output."""
    write = sys.stdout.write
    if format == "csv":
        return _csv_printer(top, abstain=abstain, sets=sets, ordered=ordered), lambda: None
    if format == "json":
        separator = "[\n"

        def print_json(prediction: Prediction) -> None:
            nonlocal separator
            row = _json_row(prediction, top, abstain=abstain)
            write(separator + json.dumps(row, ensure_ascii=not streams.writes_unicode(sys.stdout)))
            separator = ",\n"

        def finish() -> None:
            write("[]\n" if separator == "[\n" else "\n]\n")

        return print_json, finish

    def print_line(prediction: Prediction) -> None:
        shown = prediction.top(len(prediction.prediction_set or ()) or top)
        cells = [f"{name} {value:.1%}" for name, value in shown]
        if prediction.expected_rank is not None:
            cells.insert(0, f"predicted {prediction.label}, expected rank {prediction.expected_rank:.2f}")
        if abstain and prediction.known is False:
            cells.insert(0, "unknown")
        write("  ".join([prediction.name, *cells]) + "\n" if shown else "")

    return print_line, lambda: None


def _csv_printer(top: int, *, abstain: bool, sets: bool, ordered: bool) -> Callable[[Prediction], None]:
    """Print the header of CSV, and return a function that prints a prediction."""
    from transfer.results.prediction_files import as_csv

    header = ["path", *(f"{name}{i + 1}" for i in range(top) for name in ("class", "probability"))]
    sys.stdout.write(as_csv([[*header, *["known"] * abstain, *["prediction_set"] * sets, *RANKS * ordered]]))

    def print_csv(prediction: Prediction) -> None:
        cells = [cell for name, value in prediction.top(top) for cell in (name, f"{value:.6f}")]
        cells += [""] * (2 * top - len(cells))
        if abstain:
            cells.append("" if prediction.known is None else str(prediction.known).lower())
        if sets:  # names may contain any separator, so that this cell is JSON
            found = prediction.prediction_set
            cells.append("" if found is None else json.dumps(found, ensure_ascii=False))
        if ordered:
            rank = prediction.expected_rank
            cells += ["", ""] if rank is None else [str(prediction.label), f"{rank:.4f}"]
        sys.stdout.write(as_csv([(prediction.name, *cells)]))

    return print_csv


def _json_row(prediction: Prediction, top: int, *, abstain: bool) -> dict[str, Any]:
    """Return a prediction as a JSON object."""
    classes = [{"class": name, "probability": round(value, 6)} for name, value in prediction.top(top)]
    row: dict[str, Any] = {"path": prediction.name, "classes": classes}
    if abstain and prediction.distance is not None:
        row |= {"known": prediction.known, "distance": round(prediction.distance, 6)}
    if prediction.prediction_set is not None:
        row["prediction_set"] = list(prediction.prediction_set)
    if prediction.expected_rank is not None:
        row |= {"predicted": prediction.label, "expected_rank": round(prediction.expected_rank, 4)}
    return row | ({"problem": prediction.problem} if prediction.problem else {})


def _parser() -> Parser:
    parser = Parser(
        "predict",
        "Predict the classes of images with a trained run. Images that cannot be read are reported and "
        "have no classes in CSV and JSON. The exit code is 0; 1 if an image was skipped; 2 for invalid input.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its .keras file")
    images = (
        "image files, folders or patterns ('photos/*.jpg'); - reads one path per line from standard input"
    )
    parser.add_argument("image", nargs="+", metavar="IMAGE", help=images)
    parser.add_argument("--top", type=int, default=3, help="number of classes to print (default: 3)")
    abstain = (
        "mark images that are far from all training images as unknown, and about 5%% of those of your classes"
    )
    parser.add_argument("--abstain", action="store_true", help=abstain)
    coverage = "show sets of classes that contain the true class with this probability, such as 0.9"
    parser.add_argument("--coverage", type=float, metavar="X", help=coverage)
    parser.add_argument("--format", choices=FORMATS, default="table", help="output format (default: table)")
    folder = "write Grad-CAM heat maps to this folder (default: gradcam)"
    parser.add_argument("--gradcam", nargs="?", const="gradcam", metavar="DIR", help=folder)
    engine = "engine for many images: auto, keras or openvino (default: auto)"
    parser.add_argument("--engine", default="auto", help=engine)
    add_model_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
