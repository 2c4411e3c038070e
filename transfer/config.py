"""The options of a run, once: flags, YAML and defaults are all read off one dataclass."""

from __future__ import annotations

import argparse
import dataclasses
import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfer.augmentation import AUGMENTATIONS
from transfer.errors import InputError, unknown


@dataclass(frozen=True)
class TrainConfig:
    """Train a picture classifier by one of the four cases of transfer learning."""

    # Pictures: a folder with a sub-folder per class, tfds:NAME, or 'emoji', which comes along.
    data: str = "emoji"
    # Where tensorflow_datasets keeps its data; by default its own place.
    data_dir: str | None = None
    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, or a .keras file of your own.
    model: str = "EfficientNetLite0"  # its weights were installed along: works without a network
    # 'imagenet', 'none' for random ones, or a weights file.
    weights: str = "imagenet"
    # How your own .keras file wants its input: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # auto, small-similar, small-different, large-similar or large-different.
    case: str = "auto"
    # The last layer to keep, by name; by default the case's own.
    cut: str | None = None
    # Start of large-different: pretrained, random, or auto: the first, and the second where that fails.
    init: str = "auto"
    # Pixels, height and width; by default those that the network was trained for.
    image_size: int | None = None
    # Passes over the training pictures, at most; by default the case's own.
    epochs: int | None = None
    # Pictures per training step, over all devices together.
    batch_size: int = 32
    # Of Adam; by default the case's own.
    learning_rate: float | None = None
    # Changes to training pictures where the whole network trains: none or light.
    augment: str = "light"
    # Devices: auto, default, mirrored, multiworker or tpu.
    strategy: str = "auto"
    # Of the split, the order, the augmentation and the new weights.
    seed: int = 0
    # Stop at pictures that cannot be read, instead of skipping them.
    strict: bool = False
    # Folder for the results; by default a new one under runs/.
    output: str | None = None

    def __post_init__(self) -> None:
        """Check what can be checked without looking at data or networks."""
        for name in ("image_size", "epochs", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {name} of 1 or more. Received: {value}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"Expected a learning_rate above 0, finite. Received: {self.learning_rate}.")
        if self.seed < 0:
            raise InputError(f"Expected a seed of 0 or more. Received: {self.seed}.")
        if self.augment not in AUGMENTATIONS:
            raise unknown("augmentation", self.augment, AUGMENTATIONS)


def parse_arguments(
    arguments: Sequence[str] | None = None, *, program: str = "transfer.train"
) -> TrainConfig:
    """Read the flags of the command line, on top of a YAML file where `--config` names one.

    Args:
        arguments: the flags; None takes those of the process.
        program: the module, for the help text.

    Returns:
        The configuration.

    Raises:
        InputError: a value is out of range, or the YAML file has unknown keys or wrong types.
        SystemExit: with 0 after `--help`, with 2 after flags that do not parse.

    Example:
        >>> parse_arguments(["--seed", "3", "--case", "large-similar"]).case
        'large-similar'
    """
    import simple_parsing

    config_flag: dict[str, Any] = {"metavar": "FILE", "help": "YAML file of these options; flags win over it"}
    # No abbreviations: the second parser would take --conf for --config and do nothing about it.
    first = argparse.ArgumentParser(prog=f"python -m {program}", add_help=False, allow_abbrev=False)
    first.add_argument("--config", **config_flag)
    known, rest = first.parse_known_args(arguments)
    defaults = load_config(known.config) if known.config else TrainConfig()
    parser = simple_parsing.ArgumentParser(
        prog=f"python -m {program}",
        allow_abbrev=False,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
    )
    parser.add_argument("--config", **config_flag)
    parser.add_arguments(TrainConfig, dest="options", default=defaults)
    return parser.parse_args(rest).options


def load_config(path: str | Path) -> TrainConfig:
    """Read a run's options from YAML.

    Args:
        path: of the file, such as `config.yaml` of an earlier run.

    Returns:
        The configuration; what the file leaves out has its default.

    Raises:
        InputError: there is no such file, it is not a YAML mapping, or a key or type is wrong.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "run.yaml"
        >>> save_config(TrainConfig(seed=7), path)
        >>> load_config(path).seed
        7
    """
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the options in {path}: {' '.join(str(error).split())}.") from None
    if values is None:  # an empty file
        return TrainConfig()
    if not isinstance(values, dict):
        raise InputError(
            f"Expected options as 'name: value' lines in {path}. Received: {type(values).__name__}."
        )
    names = [field.name for field in fields(TrainConfig)]
    checked = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name not in names:
            raise unknown("option", key, names, hint=f"It is in {path}.")
        checked[name] = _typed(name, value, path)
    return TrainConfig(**checked)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write a run's options as YAML that `load_config` reads back.

    Args:
        config: the options.
        path: of the file to write.

    Example:
        >>> import tempfile
        >>> save_config(TrainConfig(), Path(tempfile.mkdtemp()) / "run.yaml")
    """
    import yaml

    values = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    Path(path).write_text(yaml.safe_dump(values, sort_keys=False, allow_unicode=True), encoding="utf-8")


def _typed(name: str, value: Any, path: str | Path) -> Any:
    """Check a YAML value against its field's type; YAML reads `1e-3` as text, so numbers may come so."""
    kind = typing.get_type_hints(TrainConfig)[name]  # the fields' own types are text or types, by turns
    kinds = typing.get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    try:
        if int in kinds and type(value) is int:  # first, since a float would round large ones
            return value
        if {int, float} & set(kinds) and not isinstance(value, bool):
            number = float(value)
            if float in kinds or number.is_integer():
                return number if float in kinds else int(number)
        if bool in kinds and isinstance(value, bool):
            return value
        if str in kinds and not isinstance(value, dict | list | bool) and value is not None:
            return str(value)
    except (TypeError, ValueError, OverflowError):
        pass
    shown = " or ".join("nothing" if k is type(None) else k.__name__ for k in kinds)
    raise InputError(f"Expected {shown} for {name} in {path}. Received: {value!r}.")
