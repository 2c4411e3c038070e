"""`python -m transfer.export`: convert a trained run for another runtime and verify the file there."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from transfer.common import streams
from transfer.common.commands import add_model_options, run_command
from transfer.common.parsers import Parser
from transfer.exporters.export import MAX_IMAGES, check_arguments, export


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    options = vars(_parser().parse_args(arguments))

    def work() -> None:
        from transfer.distributed import strategies

        check_arguments(options["to"], options["quantize"], options["output"], options["max_images"])
        strategies.start_quietly()
        from transfer.results.finished_runs import load_run

        loading = {name: options.pop(name) for name in ("custom_objects", "class_names")}
        run = load_run(options.pop("run"), **loading)
        streams.print_text(export(run, **options).to_text() + "\n")

    stopped = "Stopped. Nothing was written."
    return run_command(work, stream=sys.stderr, stopped=stopped, level=logging.INFO)


def _parser() -> Parser:
    parser = Parser(
        "export",
        "Convert a trained run for another runtime, run it there, and compare its predictions with Keras.",
    )
    parser.add_argument(
        "run", metavar="RUN", help="folder of a run, or a .keras file that python -m transfer.train wrote"
    )
    formats = "format: saved-model (TensorFlow Serving), litert (phones), onnx (browsers and many others) or openvino"
    parser.add_argument("--to", required=True, metavar="FORMAT", help=formats)
    types = "quantization: float16 (half the size) or int8 (a quarter of the size, and faster); not for saved-model"
    parser.add_argument("--quantize", metavar="TYPE", help=types)
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write (default: a folder under exported in the run)"
    )
    data = "labeled images to verify the file on (default: the run's own images)"
    parser.add_argument("--data", metavar="DATA", help=data)
    most = (
        f"maximum number of images for verification, and of training images for int8 (default: {MAX_IMAGES})"
    )
    parser.add_argument("--max-images", type=int, default=MAX_IMAGES, metavar="N", help=most)
    add_model_options(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
