"""`python -m transfer.report RUN [RUN ...]`: write the report of a run again, or compare several runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from transfer.common import streams
from transfer.common.commands import run_command
from transfer.common.errors import InputError
from transfer.common.files import check_writable
from transfer.common.parsers import Parser
from transfer.results.file_names import COMPARISON, PAGE

if TYPE_CHECKING:
    from transfer.results.run_pages import Thumbnail

log = logging.getLogger("transfer.report")


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""
    parsed = _parser().parse_args(arguments)
    return run_command(
        lambda: _run([Path(run) for run in parsed.runs], parsed.output),
        stream=sys.stderr,
        stopped="Stopped. No file was changed.",
    )


def _parser() -> Parser:
    parser = Parser(
        "report",
        "Write the report and the model card of a run again, or a page that compares several runs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folder of a run")
    output = f"page that compares several runs (default: {COMPARISON})"
    parser.add_argument("--output", metavar="FILE", help=output)
    return parser


def _run(runs: Sequence[Path], output: str | None) -> None:
    check_writable(output)
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.results.run_writer import write_comparison, write_pages

    if len(runs) > 1:
        place = Path(output or COMPARISON)
        write_comparison(place, runs)
    elif output:
        raise InputError(
            f"Expected two runs or more with --output. Received one run, whose report is its {PAGE}."
        )
    else:
        place = runs[0] / PAGE
        write_pages(runs[0], thumbnail=_thumbnails(runs[0]))
    streams.print_text(f"{place}\n")


def _thumbnails(folder: Path) -> Thumbnail | None:
    """Return the thumbnails of the run's images; None if the images are missing."""
    from transfer.results.finished_runs import load_run_data
    from transfer.results.run_records import read_record

    config = read_record(folder).config
    try:
        return load_run_data(folder, config).thumbnail
    except InputError as error:
        log.warning("The report shows no images of the data: %s", error)
        return None


if __name__ == "__main__":
    sys.exit(main())
