"""`python -m transfer.predict`: predict the classes of images with a trained run."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from transfer.common.commands import carried_out
from transfer.common.errors import InputError
from transfer.images.decoding import inspect_image
from transfer.results.predict import BATCH, Prediction, find_images, predictions

if TYPE_CHECKING:
    from transfer.results.finished_runs import FinishedRun

FORMATS = ("table", "csv", "json")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    bad: list[str] = []

    def work() -> None:
        if parsed.image == ["-"]:
            items: Iterable[Any] = (line.rstrip("\n") for line in sys.stdin if line.strip())
        else:
            items = [item for source in parsed.image for item in find_images(source)]
        bad.extend(_run(parsed, items))

    with contextlib.suppress(BrokenPipeError):  # `| head` has seen enough
        code = carried_out(work, stream=sys.stderr, stopped="Stopped.")
        return code or int(bool(bad))
    return 0


def _run(parsed: argparse.Namespace, items: Iterable[Any]) -> list[str]:
    """Predict and print; give the images that could not be read."""
    if parsed.top < 1:
        raise InputError(f"Expected --top of 1 or more. Received: {parsed.top}.")
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.results.finished_runs import load_run

    run = load_run(parsed.run)
    print_row, end = _printer(parsed.format, min(parsed.top, len(run.class_names)))
    bad, good = [], []
    for found in predictions(run, items, engine=parsed.engine, progress=True):
        if found.problem:
            bad.append(found.name)
            sys.stderr.write(f"Skipped {found.name}: {found.problem}\n")
        else:
            print_row(found)
            if parsed.gradcam:
                good.append(found)
    end()
    if good:
        _heat(run, good, Path(parsed.gradcam))
    return bad


def _printer(format: str, top: int) -> tuple[Callable[[Prediction], None], Callable[[], None]]:
    """Give what prints a prediction, as soon as it is there, and what prints the end."""
    write = sys.stdout.write
    if format == "csv":
        from transfer.results.prediction_files import as_csv

        numbers = range(1, top + 1)
        write(as_csv([("path", *(f"{what}{i}" for i in numbers for what in ("class", "probability")))]))

        def row(found: Prediction) -> None:
            cells = [cell for name, share in found.top(top) for cell in (name, f"{share:.6f}")]
            write(as_csv([(found.name, *cells)]))

        return row, lambda: None
    if format == "json":
        printed: list[bool] = []

        def item(found: Prediction) -> None:
            classes = [{"class": name, "probability": round(share, 6)} for name, share in found.top(top)]
            row = json.dumps({"path": found.name, "classes": classes}, ensure_ascii=False)
            write((",\n" if printed else "[\n") + row)
            printed[:] = [True]

        def end() -> None:
            write("\n]\n" if printed else "[]\n")

        return item, end

    def line(found: Prediction) -> None:
        shown = "  ".join(f"{name} {share:.1%}" for name, share in found.top(top))
        write(f"{found.name}  {shown}\n")

    return line, lambda: None


def _heat(run: FinishedRun, found: Sequence[Prediction], folder: Path) -> None:
    """Draw where the model looked, one file for each image."""
    from transfer.common.files import replacing
    from transfer.evaluation import explanation_plots, explanations

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {str(folder)!r}: {(error.strerror or str(error)).lower()}.") from None
    for start in range(0, len(found), BATCH):
        some = found[start : start + BATCH]
        pixels = np.stack(
            [inspect_image(Path(one.name), run.image_size, resize=run.resize).pixels for one in some]
        )
        for i, heat in enumerate(explanations.grad_cam(run.model, pixels)):
            one = some[i]
            figure = explanation_plots.heat_sheet(
                pixels[i : i + 1], heat[None], [f"{one.label} {one.probability:.0%}"]
            )
            with replacing(folder / f"{start + i + 1:04}-{Path(one.name).stem[:80]}.png") as partial:
                figure.savefig(partial, format="png", dpi=110)


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m transfer.predict",
        allow_abbrev=False,
        description="Say what images show, by a trained run. The exit code is 0; 1 where an image could not be "
        "read, which is named and skipped; 2 after bad input.",
    )
    flags.add_argument("run", metavar="RUN", help="folder of a run, or a .keras file of one")
    images = "files or folders; - reads a file's path from each line of standard input"
    flags.add_argument("image", nargs="+", metavar="IMAGE", help=images)
    flags.add_argument("--top", type=int, default=3, help="how many classes to name (default: 3)")
    flags.add_argument(
        "--format", choices=FORMATS, default="table", help="of what is printed (default: table)"
    )
    where = "draw where the model looked, into this folder (default: gradcam)"
    flags.add_argument("--gradcam", nargs="?", const="gradcam", metavar="DIR", help=where)
    runs = "what runs many images: auto, keras or openvino (default: auto)"
    flags.add_argument("--engine", default="auto", help=runs)
    return flags


if __name__ == "__main__":
    sys.exit(main())
