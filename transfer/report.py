"""`python -m transfer.report RUN [RUN ...]`: write the report of a run again, or compare several runs."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from transfer.common.commands import carried_out
from transfer.common.errors import InputError
from transfer.common.files import write_text
from transfer.images.datasets import load_data
from transfer.results.finished_runs import SPLIT
from transfer.results.records import read_record
from transfer.results.run_pages import Thumbnail, comparison_page
from transfer.results.run_writer import COMPARISON, PAGE, _fitting, write_pages

log = logging.getLogger("transfer.report")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
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
    """Find the run's images, to show those that the check of the data speaks of; they may be gone."""
    record = read_record(folder)
    try:
        options = {**record.config.load_options(), "few_shot": None, "split_file": folder / SPLIT}
        return load_data(record.config.data, **options).thumbnail
    except InputError as error:
        log.warning("Images of the data are not shown: %s", error)
        return None


if __name__ == "__main__":
    sys.exit(main())
