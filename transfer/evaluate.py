"""`python -m transfer.evaluate`: how good a trained run is, on its own test images or on others."""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from transfer.common.commands import carried_out
from transfer.common.errors import InputError
from transfer.common.files import write_text

log = logging.getLogger("transfer.evaluate")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    below: list[str] = []

    def work() -> None:
        least = parsed.assert_accuracy_at_least
        found = _run(parsed)
        if least is not None and found.accuracy < least:
            below.append(f"The accuracy, {found.accuracy:.4f}, is below {least:g}.\n")

    code = carried_out(work, stream=sys.stderr, stopped="Stopped. Nothing was written.")
    sys.stderr.write("".join(below))
    return code or len(below)


def _run(parsed: argparse.Namespace) -> Any:
    """Evaluate, print, and write what is asked for."""
    least = parsed.assert_accuracy_at_least
    if least is not None and not 0 <= least <= 1:
        raise InputError(f"Expected an accuracy from 0 to 1, such as 0.9. Received: {least:g}.")
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.evaluation import evaluate
    from transfer.images.split_file import training_digests
    from transfer.results import run_figures
    from transfer.results.finished_runs import SPLIT, load_run
    from transfer.results.prediction_files import write_predictions

    run = load_run(parsed.run)
    data = run.data(parsed.data)
    known = training_digests(run.folder / SPLIT)
    seen = sum(digest in known for digest in data.test.digests)
    if seen:
        log.warning(
            "%d of the %d images were trained or validated on: figures measured so flatter. Take them out.",
            seen,
            len(data.test),
        )
    found = replace(evaluate.evaluate(run.model, data, engine=parsed.engine), seen=seen)
    label_issues = run_figures.label_issues_of(found)
    sys.stdout.write(found.to_text())
    for one in label_issues[:5]:
        sys.stdout.write(f"Perhaps labelled wrongly: {one.name} as {one.label}, looks like {one.likely}\n")
    if parsed.json:
        values = {**found.to_dict(), "label_issues": [one._asdict() for one in label_issues]}
        write_text(Path(parsed.json), json.dumps(values, indent=1, ensure_ascii=False) + "\n")
    if parsed.csv:
        write_predictions(Path(parsed.csv), found)
    if parsed.html:
        _write_page(Path(parsed.html), run, data, found, label_issues)
    return found


def _write_page(path: Path, run: Any, data: Any, found: Any, label_issues: Sequence[Any]) -> None:
    from transfer.results import run_figures, run_pages

    figures = run_figures.test_figures(run.model, data, found)
    title = f"{run.name} on {data.name}"
    write_text(path, run_pages.evaluation_page(title, found, label_issues, figures))


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m transfer.evaluate",
        allow_abbrev=False,
        description="Measure a trained run on its own test images, or on others. The exit code is 0; 1 where the "
        "accuracy is below the one that is asserted; 2 after bad input.",
    )
    flags.add_argument("run", metavar="RUN", help="folder of a run, or a .keras file of one")
    data = (
        "labelled images, as for training, all of which are measured on (default: the run's own test images)"
    )
    flags.add_argument("--data", metavar="DIR", help=data)
    flags.add_argument("--json", metavar="FILE", help="write the figures, for programs")
    flags.add_argument("--csv", metavar="FILE", help="write what each image was taken for")
    flags.add_argument("--html", metavar="FILE", help="write a page with images")
    least = "end with exit code 1 where the accuracy is below this, from 0 to 1"
    flags.add_argument("--assert-accuracy-at-least", type=float, metavar="X", help=least)
    runs = "what runs a frozen network: auto, keras or openvino (default: auto)"
    flags.add_argument("--engine", default="auto", help=runs)
    return flags


if __name__ == "__main__":
    sys.exit(main())
