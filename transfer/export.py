"""`python -m transfer.export`: write a trained run for another runtime and verify the file there."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from transfer.common.commands import carried_out
from transfer.exporters.export import MAX_IMAGES, _check_arguments, export


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)

    def work() -> None:
        from transfer.distributed import strategies

        _check_arguments(parsed.to, parsed.quantize, parsed.output, parsed.max_images)
        strategies.start_quietly()
        done = export(
            parsed.run,
            to=parsed.to,
            quantize=parsed.quantize,
            output=parsed.output,
            data=parsed.data,
            max_images=parsed.max_images,
        )
        sys.stdout.write(done.to_text() + "\n")

    stopped = "Stopped. Nothing was written."
    return carried_out(work, stream=sys.stderr, stopped=stopped, level=logging.INFO)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m transfer.export",
        description="Write a trained run for another runtime, and check the file there, beside Keras.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "run", metavar="RUN", help="the folder of a run, or a .keras file of python -m transfer.train"
    )
    kinds = (
        "saved-model for TensorFlow Serving, litert for telephones, onnx for browsers and most else, openvino"
    )
    parser.add_argument("--to", required=True, metavar="FORMAT", help=kinds)
    ways = "float16 (half the size) or int8 (a quarter, and faster), for all but saved-model"
    parser.add_argument("--quantize", metavar="TYPE", help=ways)
    parser.add_argument(
        "--output", metavar="DIR", help="folder to write; by default one under exported in the run's own"
    )
    checked = "labelled images to check the file on, where the run's own are gone"
    parser.add_argument("--data", metavar="DATA", help=checked)
    most = (
        f"held-out images to check it on, at most (default {MAX_IMAGES}), and training images to set int8 by"
    )
    parser.add_argument("--max-images", type=int, default=MAX_IMAGES, metavar="N", help=most)
    return parser


if __name__ == "__main__":
    sys.exit(main())
