"""`python -m transfer.datasets DIR`: check a data set without training."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

from transfer.common import streams
from transfer.common.errors import InputError
from transfer.common.files import check_writable, write_text
from transfer.images.datasets import load_data
from transfer.images.split_file import write_split
from transfer.parsing import parse_check_arguments


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Check a data set, print the report, and return the exit code."""
    logging.getLogger("transfer").addHandler(logging.NullHandler())  # the report contains all of it
    warnings.filterwarnings("ignore", module=r"PIL\.")  # they lack the file name; the report has it
    try:
        options, files = parse_check_arguments(arguments)
        check_writable(files.json, files.html, files.write_split)
        data = load_data(options.data, **options.load_options())
        if files.json:
            write_text(Path(files.json), data.report.to_json())
        if files.html:
            write_text(Path(files.html), data.report.to_html(data.thumbnail))
        if files.write_split:
            write_split(Path(files.write_split), data.splits, data.class_names)
    except InputError as error:
        streams.print_text(f"{error}\n", sys.stderr)
        return 2
    streams.print_text(data.report.to_text())
    return 0


if __name__ == "__main__":
    sys.exit(main())
