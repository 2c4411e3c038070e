"""The flags of the commands `train`, `datasets` and `advice`: from the options in `config`, on top of a YAML file."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transfer.common.errors import InputError
from transfer.common.parsers import OptionTexts, Parser, take_place
from transfer.config import CHOICES, GROUPS, AdviceConfig, TrainConfig, load_config
from transfer.images.data_config import DataConfig
from transfer.training.option_table import situations_text

FIRST = (
    "data",
    "model",
    "case",
    "time_budget",
    "image_size",
    "epochs",
    "batch_size",
    "augment",
    "seed",
    "output",
)
"""The options that `transfer train --help` shows first."""

METAVARS = {
    "data": "DATA",
    "data_dir": "DIR",
    "tfds_split": "SPLIT",
    "path_column": "COLUMN",
    "label_column": "COLUMN",
    "split_column": "COLUMN",
    "group_column": "COLUMN",
    "class_order": "NAMES",
    "split": "FILE",
    "model": "MODEL",
    "weights": "WEIGHTS",
    "preprocessing": "KIND",
    "custom_objects": "MODULE",
    "time_budget": "TIME",
    "cut": "LAYER",
    "unfreeze_from": "LAYER",
    "output": "DIR",
    "checkpoint_every": "TIME",
}
"""Placeholders of values in `--help`."""

PLAIN = OptionTexts(CHOICES, METAVARS, {})


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Parse the flags of `python -m transfer.train`, on top of the YAML file that `--config` names."""
    parser = Parser("train", "Train an image classifier by one of the four cases of transfer learning.")
    parser.usage = "%(prog)s [DATA] [--model MODEL] [--case CASE] [options]"
    parser.add_place()
    file = "YAML file with these options; flags override it"
    parser.add_argument("--config", metavar="FILE", help=file)
    texts = dataclasses.replace(PLAIN, notes=situations_text(), several=["model"])
    for group in GROUPS:
        title = group.__name__.removesuffix("Options").removesuffix("Config").lower()
        parser.add_dataclass(group, f"{title.replace('recipe', 'fine-tuning')} options", texts)
    parser.first = FIRST
    given: dict[str, Any] = vars(parser.parse_args(arguments))
    if "model" in given:
        names = given["model"]
        if len(names) > 1 and given["place"] is None and _is_data(names[-1]):
            given["place"] = names.pop()
        given["model"] = ",".join(names)
    given |= take_place(given)
    file = given.pop("config")
    defaults = load_config(file) if file else TrainConfig()
    # Options from elsewhere are data: they cannot import a module that the command line does not name.
    named = defaults.custom_objects
    if named and not given.get("custom_objects"):
        raise InputError(
            f"{file} names the module {named!r}, whose code would be run. If you trust it, add "
            f"--custom-objects {named}."
        )
    return dataclasses.replace(defaults, **given)


def _is_data(word: str) -> bool:
    """Return whether the last word after --model is the data: a folder or a list, and not a model."""
    path = Path(word)
    is_model = path.suffix in (".keras", ".h5") or (path / "model.keras").exists()
    return word == DataConfig.data or word.startswith("tfds:") or (path.exists() and not is_model)


def parse_check_arguments(arguments: Sequence[str] | None = None) -> tuple[DataConfig, argparse.Namespace]:
    """Parse the flags of `python -m transfer.datasets`: the data, and the files to write."""
    parser = Parser("datasets", "Check a data set: its classes, splits, files and labels.")
    parser.usage = "%(prog)s [DATA] [options]"
    parser.add_place()
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as an HTML page with images")
    parser.add_argument("--write-split", metavar="FILE", help="write the split of each image as CSV")
    parser.add_dataclass(DataConfig, "data options", PLAIN)
    return parse_options(parser, DataConfig, arguments)


def parse_advice_arguments(arguments: Sequence[str] | None = None) -> tuple[AdviceConfig, argparse.Namespace]:
    """Parse the flags of `python -m transfer.advice`: the options, the files to write, and networks to compare."""
    parser = Parser("advice", AdviceConfig.__doc__ or "")
    parser.usage = "%(prog)s [DATA] [options]"
    parser.add_place()
    parser.add_argument("--json", metavar="FILE", help="write the advice as JSON")
    parser.add_argument(
        "--plots",
        metavar="DIR",
        help="write the charts of the advice, such as the four cases and the layer curve",
    )
    compared = "compare these networks: estimated accuracy of a head on each, and its time"
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help=compared)
    parser.add_dataclass(AdviceConfig, "advice options", PLAIN)
    return parse_options(parser, AdviceConfig, arguments)


def parse_options(
    parser: Parser, options: Any, arguments: Sequence[str] | None
) -> tuple[Any, argparse.Namespace]:
    """Parse arguments; return an object of a class of options, and the other arguments."""
    given = vars(parser.parse_args(arguments))
    given |= take_place(given)
    names = {field.name for field in dataclasses.fields(options)} & set(given)
    made = options(**{name: given.pop(name) for name in names})
    return made, argparse.Namespace(**given)
