"""`python -m transfer.beam_features`: fill the feature cache with Apache Beam."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from transfer.cases.policies import POLICIES, Case
from transfer.common import streams
from transfer.common.commands import run_command
from transfer.common.errors import InputError
from transfer.common.parsers import Parser
from transfer.config import CHOICES, ModelOptions
from transfer.frozen.beam_extraction import SHARD_SIZE, extract_with_beam, read_options
from transfer.images.data_config import DataConfig
from transfer.parsing import PLAIN

log = logging.getLogger("transfer.beam_features")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class BeamConfig(ModelOptions, DataConfig):
    """Run a frozen network over labeled images on Apache Beam, and cache its features. Other flags go to Beam."""

    # Case to train later.
    case: str = "small-similar"
    # Last layer to keep: a layer name, comma-separated names, or 'all'. Default: by case.
    cut: str | None = None
    # Engine that runs the network. auto uses OpenVINO on CPUs if it is installed, otherwise Keras.
    engine: str = "auto"
    # Precision of OpenVINO.
    precision: str = "auto"
    # Maximum number of images per shard.
    shard_size: int = SHARD_SIZE

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        DataConfig.__post_init__(self)
        ModelOptions.__post_init__(self)
        object.__setattr__(self, "case", str(Case.parse(self.case)))
        if not POLICIES[Case(self.case)].frozen:
            raise InputError(
                f"Expected a case that freezes the network, small-similar or small-different. Received: {self.case}."
            )


def parse_beam_arguments(
    arguments: Sequence[str] | None = None,
) -> tuple[BeamConfig, tuple[str, ...], list[str]]:
    """Parse the flags of `python -m transfer.beam_features`: the options, the splits, and flags for Beam."""
    parser = Parser("beam_features", BeamConfig.__doc__ or "")
    parser.usage = "%(prog)s [options] [options of Beam]"
    which = "splits to extract features of"
    parser.add_argument("--splits", nargs="+", choices=SPLITS, default=SPLITS, help=which)
    frozen = [case for case in Case if POLICIES[case].frozen]
    choices = {**CHOICES, "case": frozen, "precision": ("auto", "float32", "bfloat16")}
    parser.add_dataclass(BeamConfig, "options", replace(PLAIN, choices=choices))
    parsed, flags = parser.parse_known_args(parser.plain_words(arguments))
    given = vars(parsed)
    splits = tuple(given.pop("splits"))
    return BeamConfig(**given), splits, flags


def run(config: BeamConfig, *, splits: Sequence[str] = SPLITS, flags: Sequence[str] = ()) -> int:
    """Fill the cache with the features that `fit` and `evaluate` read; return how many images were computed."""
    read_options(flags)  # raises before any slow work
    from transfer.distributed import strategies

    strategies.start_quietly()
    from transfer.cases import builders
    from transfer.frozen import extraction
    from transfer.images import datasets
    from transfer.images.splitting import concatenate
    from transfer.networks.backbones import load_backbone

    data = datasets.load_data(config.data, **config.load_options())
    base = load_backbone(config.model, **config.network_options())
    options: dict[str, Any] = {"image_size": config.image_size, "preprocessing": config.preprocessing}
    model = builders.build(config.case, base, data.num_classes, cut=config.cut, strategy="default", **options)
    extractor = extraction.frozen_feature_extractor(model)
    size = extraction.input_size(model, data)
    wanted = [data.splits[name] for name in splits if len(data.splits[name])]
    name = ", ".join(name for name in splits if len(data.splits[name]))
    if not wanted:
        raise InputError(f"Expected images in {', '.join(splits)}. Received: none.")
    features = extract_with_beam(
        extractor,
        concatenate(wanted),  # one pass, so that workers start once
        image_size=size,
        engine=config.engine,
        precision=config.precision,
        shard_size=config.shard_size,
        options=flags,
        name=name,
    )
    log.info(
        "%s: %d of %d images computed, in %s", name, features.computed, len(features), features.store.folder
    )
    return features.computed


@streams.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def work() -> None:
        options, splits, flags = parse_beam_arguments(arguments)
        run(options, splits=splits, flags=flags)

    stopped = "Stopped. Run the same command again to resume."
    return run_command(work, stream=sys.stdout, stopped=stopped, level=logging.INFO)


if __name__ == "__main__":
    sys.exit(main())
