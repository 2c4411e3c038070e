"""`python -m transfer.predict`: predict the classes, the labels or the numbers of images with a trained run."""

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
from transfer.results.predict import predictions, required_reference, required_scores
from transfer.results.prediction import Prediction

FORMATS = ("table", "csv", "json")


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
        set_threshold(required_scores(run, "--coverage"), parsed.coverage)
    top = min(parsed.top, len(run.class_names))
    options = {
        "abstain": parsed.abstain,
        "sets": parsed.coverage is not None,
        "task": run.task,
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
    format: str, top: int, **options: Any
) -> tuple[Callable[[Prediction], None], Callable[[], None]]:
    """Return a function that prints a prediction, and one that prints the end of the output."""
    from transfer.results import prediction_texts

    write = sys.stdout.write
    if format == "csv":
        from transfer.results.prediction_files import as_csv

        header, cells = prediction_texts.csv_columns(top, **options)
        write(as_csv([header]))

        def print_csv(prediction: Prediction) -> None:
            write(as_csv([cells(prediction)]))

        return print_csv, lambda: None
    if format == "json":
        separator = "[\n"

        def print_json(prediction: Prediction) -> None:
            nonlocal separator
            row = prediction_texts.json_row(prediction, top, abstain=options["abstain"])
            write(separator + json.dumps(row, ensure_ascii=not streams.writes_unicode(sys.stdout)))
            separator = ",\n"

        def finish() -> None:
            write("[]\n" if separator == "[\n" else "\n]\n")

        return print_json, finish

    def print_line(prediction: Prediction) -> None:
        write(prediction_texts.line(prediction, top, abstain=options["abstain"]))

    return print_line, lambda: None


def _parser() -> Parser:
    parser = Parser(
        "predict",
        "Predict the classes, the labels or the numbers of images with a trained run. Images that cannot be read are "
        "reported and have no prediction in CSV and JSON. The exit code is 0; 1 if an image was skipped; 2 for invalid "
        "input.",
    )
    parser.add_argument("run", metavar="RUN", help="folder of a run, or its .keras file")
    images = (
        "image files, folders or patterns ('photos/*.jpg'); - reads one path per line from standard input"
    )
    parser.add_argument("image", nargs="+", metavar="IMAGE", help=images)
    parser.add_argument(
        "--top", type=int, default=3, help="number of classes or labels to print (default: 3)"
    )
    abstain = (
        "mark images that are far from all training images as unknown, and about 5%% of those of your classes"
    )
    parser.add_argument("--abstain", action="store_true", help=abstain)
    coverage = (
        "show sets of classes, or intervals of numbers, that contain the true one with this probability (0.9)"
    )
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
