"""`transfer COMMAND`, or `python -m transfer COMMAND`: one entry point for all commands."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import transfer
from transfer.common import streams
from transfer.common.errors import unknown

COMMANDS = {
    "train": "train a classifier by one of the four cases, and write its report",
    "advice": "estimate which case suits your images, its accuracy and its training time",
    "datasets": "check a data set: classes, splits, files and labels",
    "evaluate": "measure a trained run on its own test images, or on others",
    "predict": "predict the classes of images with a trained run",
    "export": "write a trained run for another runtime, and verify it there",
    "report": "write the report of a run again, or compare several runs",
    "features": "list or clear the cache of features",
    "beam_features": "fill the cache of features with Apache Beam",
}
"""Each command is the module `transfer.NAME`, which also runs as `python -m transfer.NAME`."""


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first argument names."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help"):
        lines = [f"  {name:<15}{what}\n" for name, what in COMMANDS.items()]
        streams.print_text("usage: transfer COMMAND [options]\n\ncommands:\n" + "".join(lines))
        streams.print_text(
            "\ntransfer COMMAND --help shows the options of a command. transfer --version shows the version.\n"
        )
        return 0
    if given[0] in ("-V", "--version"):
        streams.print_text(f"transfer {transfer.__version__}\n")
        return 0
    name = given[0].replace("-", "_")
    if name not in COMMANDS:
        streams.print_text(f"{unknown('command', given[0], COMMANDS)}\n", sys.stderr)
        return 2
    command = importlib.import_module(f"transfer.{name}")
    code: int = command.main(given[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
