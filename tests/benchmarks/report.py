"""Time the figures and pages of a run on emoji.

    python tests/benchmarks/report.py

Trains a head once, then writes the report as a new process does: the first draw of each figure, and the fastest of the
later ones.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

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
    return saved_runs.results_of(
        config, model, data, training, transfer.evaluate(model, data), metrics={}, seconds=0.0
    )


def main() -> None:
    """Print a row per figure, one for the pages, and one for the whole report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="emoji")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    results = trained(options.data, options.model)
    times: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        run_writer.write_run(folder, results)
        for _ in range(options.rounds):
            for name, draw in run_figures.run_drawings(results).items():
                started = time.perf_counter()
                content = png_of(draw())
                times.setdefault(name, []).append(time.perf_counter() - started)
                (folder / f"{name}.png").write_bytes(content)
            started = time.perf_counter()
            run_writer.write_pages(folder, thumbnail=results.data.thumbnail)
            times.setdefault("pages", []).append(time.perf_counter() - started)
            started = time.perf_counter()
            saved_runs.write_report(folder, results)
            times.setdefault("whole report", []).append(time.perf_counter() - started)
    for name, seconds in times.items():
        print(f"{name:18} first {seconds[0]:6.2f} s   later {min(seconds[1:] or seconds):6.2f} s")


if __name__ == "__main__":
    main()
