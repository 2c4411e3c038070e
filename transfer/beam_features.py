"""`python -m transfer.beam_features`: fill the feature cache with Apache Beam."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transfer.cases.policies import POLICIES, Case
from transfer.common.commands import run_command
from transfer.common.errors import InputError
from transfer.config import DataConfig
from transfer.frozen.beam_extraction import SHARD_SIZE, extract_with_beam, read_options

log = logging.getLogger("transfer.beam_features")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class PassConfig(DataConfig):
    """Run a frozen network over labelled images on Apache Beam, and keep what it gives."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, or a .keras file of your own.
    model: str = "EfficientNetLite0"
    # 'pretrained', 'none' for random ones, or a weights file.
    weights: str = "pretrained"
    # How your own .keras file wants its input: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # The case to train later: small-similar or small-different.
    case: str = "small-similar"
    # The last layer to keep, by name; several, with commas, or 'all'; by default the case's own.
    cut: str | None = None
    # Pixels, height and width; by default those that the network was trained for.
    image_size: int | None = None
    # What runs the network: auto, keras or openvino (pip install ".[fast]").
    engine: str = "auto"
    # What OpenVINO computes in: auto, float32 or bfloat16.
    precision: str = "auto"
    # Images per shard, at most.
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        """Check what can be checked without looking at data or networks."""
        super().__post_init__()
        if not POLICIES[Case.parse(self.case)].frozen:
            raise InputError(
                f"Expected a case that freezes the network, small-similar or small-different. Received: {self.case}."
            )


def parse_pass_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[PassConfig, tuple[str, ...], list[str]]:
    """Read the flags of `python -m transfer.beam_features`."""
    import simple_parsing

    parser = simple_parsing.ArgumentParser(
        prog="python -m transfer.beam_features",
        allow_abbrev=False,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
    )
    which = "which images to run the network over; by default all"
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help=which)
    parser.add_arguments(PassConfig, dest="options")
    parsed, flags = parser.parse_known_args(arguments)
    return parsed.options, tuple(parsed.splits), flags


def run(config: PassConfig, *, splits: Sequence[str] = SPLITS, flags: Sequence[str] = ()) -> int:
    """Fill the cache with what `fit` and `evaluate` will look for."""
    read_options(flags)  # before anything slow
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.cases import builders
    from transfer.frozen import extraction
    from transfer.images import datasets
    from transfer.images.splitting import concatenate
    from transfer.networks.backbones import load_backbone

    data = datasets.load_data(config.data, **config.load_options())
    base = load_backbone(config.model, weights=config.weights, image_size=config.image_size)
    options: dict[str, Any] = {"image_size": config.image_size, "preprocessing": config.preprocessing}
    model = builders.build(config.case, base, data.num_classes, cut=config.cut, strategy="default", **options)
    extractor = extraction.frozen_feature_extractor(model)
    size = extraction.input_size(model, data)
    wanted = [data.splits[name] for name in splits if len(data.splits[name])]
    name = ", ".join(name for name in splits if len(data.splits[name]))
    if not wanted:
        raise InputError(f"Expected images in {', '.join(splits)}. Received: none.")
    found = extract_with_beam(
        extractor,
        concatenate(wanted),  # one pass, so that workers start once
        image_size=size,
        engine=config.engine,
        precision=config.precision,
        shard_size=config.shard_size,
        options=flags,
        name=name,
    )
    log.info("%s: %d of %d images computed; %s", name, found.computed, len(found), found.store.folder)
    return found.computed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command."""

    def work() -> None:
        options, splits, flags = parse_pass_arguments(arguments)
        run(options, splits=splits, flags=flags)

    said = "Stopped. The same command goes on from there."
    return run_command(work, stream=sys.stdout, stopped=said, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
