"""Time each figure of a run's report, and its pages.

    python tests/benchmarks/report.py --data emoji

Trains a head, then writes the report several times. Prints the seconds and the CPU seconds of the first time, as a
command needs them, and the least of the later times. The filters and the mistakes share one pass through the network,
which counts for the first of them.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TQDM_DISABLE", "1")

import transfer
from transfer.common.figures import png_of
from transfer.config import TrainConfig
from transfer.results import run_figures, run_writer, saved_runs


def trained(source: str, network: str) -> run_writer.RunResults:
    """Train a head on frozen features, and evaluate it."""
    data = transfer.load_data(source)
    model = transfer.small_similar(transfer.load_backbone(network), data.num_classes)
    training = transfer.fit(model, data, verbose=0)
    config = TrainConfig(data=source, model=network, case="small-similar")
    evaluation = transfer.evaluate(model, data)
    return saved_runs.results_of(config, model, data, training, evaluation, metrics={}, seconds=0.0)


def main() -> None:
    """Print a row per figure, one for the pages, and the sum."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    results = trained(options.data, options.model)
    times: dict[str, list[tuple[float, float]]] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        started, cpu = time.perf_counter(), time.process_time()
        result = work()
        times.setdefault(name, []).append((time.perf_counter() - started, time.process_time() - cpu))
        return result

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_writer.write_run(folder, results)
        for _ in range(options.rounds):
            for name, draw in run_figures.run_drawings(results).items():
                content = timed(name, lambda draw=draw: png_of(draw()))
                (folder / f"{name}.png").write_bytes(content)
            timed("pages", lambda: run_writer.write_pages(folder, thumbnail=results.data.thumbnail))
    firsts = [rows[0] for rows in times.values()]
    later = [tuple(map(min, zip(*(rows[1:] or rows), strict=True))) for rows in times.values()]
    sums = [tuple(map(sum, zip(*rows, strict=True))) for rows in (firsts, later)]
    print(f"{'':18}  first: s   CPU s   later: s   CPU s")
    for name, one, other in zip([*times, "sum"], [*firsts, sums[0]], [*later, sums[1]], strict=True):
        print(f"{name:18}{one[0]:10.2f}{one[1]:8.2f}{other[0]:11.2f}{other[1]:8.2f}")


if __name__ == "__main__":
    main()
