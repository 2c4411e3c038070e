"""`python -m transfer.advice`: estimate which case of transfer learning suits a data set."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer.common import streams
from transfer.common.allocator import kept_memory
from transfer.common.commands import run_command
from transfer.common.errors import InputError
from transfer.common.files import check_folder, check_writable, replacing, write_text
from transfer.common.text import seconds_of
from transfer.config import AdviceConfig
from transfer.parsing import parse_advice_arguments


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def work() -> None:
        options, more = parse_advice_arguments(arguments)
        with kept_memory():  # so that the trial takes as long per step as the command `train`
            run(options, compared=more.compare, json_file=more.json, plots=more.plots)

    return run_command(work, stream=sys.stderr, stopped="Stopped. Nothing was written.")


def run(
    config: AdviceConfig,
    *,
    compared: Sequence[str] | None = None,
    json_file: str | None = None,
    plots: str | None = None,
) -> None:
    """Advise, or compare networks; print the result, and write the files that were asked for."""
    check_writable(json_file)
    check_folder(plots)
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.adviser import advise, comparison
    from transfer.images import datasets
    from transfer.networks.backbones import load_backbone

    data = datasets.load_data(config.data, **config.load_options())
    options: dict[str, Any] = {
        "max_images": config.max_images,
        "engine": config.engine,
        "seed": config.seed,
    }
    if compared:
        weights = {config.model: config.weights} if config.model in compared else {}
        ranking = comparison.compare(data, compared, weights=weights, image_size=config.image_size, **options)
        streams.print_text(ranking.to_text())
        if json_file:
            write_text(Path(json_file), ranking.to_json())
        return
    base = load_backbone(config.model, **config.network_options())
    advice = advise.advise(
        data,
        base,
        time_budget=seconds_of(config.time_budget),
        trial=config.trial,
        preprocessing=config.preprocessing,
        **options,
    )
    streams.print_text(advice.to_text())
    if json_file:
        write_text(Path(json_file), advice.to_json())
    if plots:
        _draw(advice, Path(plots))


def _draw(advice: Any, folder: Path) -> None:
    from transfer.adviser import advice_plots
    from transfer.common.figures import draw_each

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"Cannot make {str(folder)!r}: {(error.strerror or str(error)).lower()}.") from None
    for name, content in draw_each(advice_plots.advice_drawings(advice)):
        with replacing(folder / f"{name}.png") as partial:
            partial.write_bytes(content)


if __name__ == "__main__":
    sys.exit(main())
