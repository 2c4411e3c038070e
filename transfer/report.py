"""Writes a run's folder and the pages on it: `python -m transfer.report RUN [RUN ...]`.

Everything in it was computed elsewhere.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import json
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from transfer.commands import carried_out
from transfer.config import TrainConfig, save_config
from transfer.datasets import ImageData, load_data
from transfer.errors import InputError, one_line
from transfer.evaluation import Evaluation
from transfer.files import replacing, write_text
from transfer.predictions import write_predictions
from transfer.records import ADVICE, DATA, EVALUATION, PREDICTIONS, read_record
from transfer.run_pages import Thumbnail, comparison_page, model_card, run_page
from transfer.runs import CONFIG, LABELS, METRICS, MODEL, SPLIT, add_labels
from transfer.split_file import write_split
from transfer.training_run import TrainingLog

PAGE, CARD, COMPARISON = "report.html", "README.md", "comparison.html"

log = logging.getLogger("transfer.report")  # __name__ is __main__ where this room is the command


def write_run(
    folder: Path,
    *,
    model: Any,
    config: TrainConfig,
    data: ImageData,
    done: TrainingLog,
    evaluation: Evaluation | None,
    figures: Mapping[str, Any],
    suspects: Sequence[Any] = (),
) -> None:
    """Write the model, its labels, the split, the options, the history, the predictions and the pictures of a run.

    Args:
        folder: to write into.
        model: the trained model.
        config: options that reproduce the run.
        data: what it was trained on.
        done: the log of training.
        evaluation: on the test pictures, where there are any.
        figures: of `review.figures_of`.
        suspects: test pictures whose label is probably wrong.

    Example:
        write_run(folder, model=model, config=config, data=data, done=done, evaluation=None, figures={})
    """
    model.save(folder / MODEL)
    add_labels(folder / MODEL, data.class_names)
    save_config(config, folder / CONFIG)
    write_text(folder / LABELS, "".join(f"{name}\n" for name in data.class_names))
    write_split(folder / SPLIT, data.splits, data.class_names)
    write_text(folder / DATA, data.report.to_json())
    write_text(folder / "history.csv", _history(done.rows))
    if evaluation is not None:
        write_predictions(folder / PREDICTIONS, evaluation)
        found = {**evaluation.to_dict(), "suspected_labels": [one._asdict() for one in suspects]}
        write_text(folder / EVALUATION, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_figures(folder, figures)


def write_figures(folder: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as PNG.

    Args:
        folder: to write into.
        figures: by name, without the ending.

    Example:
        write_figures(folder, {"network": figure})
    """
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as partial:
            figure.savefig(partial, format="png", dpi=110)


def write_advice(folder: Path, advice: Any, figures: Mapping[str, Any]) -> None:
    """Write why a case was taken.

    Args:
        folder: to write into.
        advice: of `adviser.advise`.
        figures: its charts, by name.

    Example:
        write_advice(folder, advise(data, base), {})
    """
    write_text(folder / ADVICE, advice.to_json())
    write_figures(folder, figures)


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Write the figures of a run; last but for the pages, so that its total time is known.

    Args:
        folder: to write into.
        metrics: for metrics.json.

    Example:
        write_metrics(folder, {"test_accuracy": 0.76})
    """
    write_text(folder / METRICS, json.dumps(dict(metrics), indent=2) + "\n")


def write_pages(folder: Path, *, thumbnail: Thumbnail | None = None) -> None:
    """Write the report and the model card of a run, from its other files.

    Args:
        folder: of the run.
        thumbnail: gives a small picture of the data by its name; None shows none.

    Raises:
        InputError: it is not the folder of a run, or a file in it is damaged.

    Example:
        write_pages(Path("runs/emoji-small-similar-1"))
    """
    record = read_record(folder)
    with _fitting(folder):
        page, card = run_page(record, thumbnail=thumbnail), model_card(record)
    write_text(folder / PAGE, page)
    write_text(folder / CARD, card)


@contextlib.contextmanager
def _fitting(*folders: Path) -> Iterator[None]:
    """Say where files that each can be read do not hold what a page is made of: they may come from anywhere."""
    try:
        yield
    except InputError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"{type(error).__name__}: {one_line(error, most=200)}"
        named = ", ".join(map(str, folders))
        raise InputError(
            f"The files of {named} are not those of a finished run of this version: {what}."
        ) from error


def _history(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: flags; None takes those of the process.

    Returns:
        The exit code: 0; 2 after bad input, of which standard error has one clear message; 130 after Ctrl-C.

    Example:
        main(["runs/emoji-small-similar-1", "runs/emoji-small-different-1"])
    """
    parsed = _parser().parse_args(arguments)
    return carried_out(
        lambda: _run(parsed.runs, parsed.output),
        stream=sys.stderr,
        stopped="Stopped. What was there is as it was.",
    )


def _parser() -> argparse.ArgumentParser:
    flags = argparse.ArgumentParser(
        prog="python -m transfer.report",
        allow_abbrev=False,
        description="Write the report and the model card of a run anew, or lay several runs side by side.",
    )
    flags.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    where = f"of the page on several runs; by default {COMPARISON}"
    flags.add_argument("--output", metavar="FILE", help=where)
    return flags


def _run(runs: Sequence[str], output: str | None) -> None:
    if len(runs) > 1:
        place = Path(output or COMPARISON)
        with _fitting(*map(Path, runs)):
            page = comparison_page([read_record(run) for run in runs])
        write_text(place, page)
    elif output:
        raise InputError(f"Expected --output with several runs. One run's report is its {PAGE}.")
    else:
        place = Path(runs[0]) / PAGE
        write_pages(Path(runs[0]), thumbnail=_thumbnails(Path(runs[0])))
    sys.stdout.write(f"{place}\n")


def _thumbnails(folder: Path) -> Thumbnail | None:
    """Find the run's pictures, to show those that the check of the data speaks of; they may be gone."""
    record = read_record(folder)
    try:
        options = {**record.config.load_options(), "few_shot": None, "split_file": folder / SPLIT}
        return load_data(record.config.data, **options).thumbnail
    except InputError as error:
        log.warning("Pictures of the data are not shown: %s", error)
        return None


if __name__ == "__main__":
    sys.exit(main())
