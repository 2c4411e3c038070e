"""The options of the commands: flags, YAML keys and defaults come from dataclasses, one for each group of options."""

from __future__ import annotations

import argparse
import dataclasses
import math
import shlex
import typing
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfer.cases.policies import OPTIMIZERS, PRECISIONS, Case
from transfer.common.display import changed_options
from transfer.common.display import one_line as short
from transfer.common.errors import InputError, one_line, unknown
from transfer.common.files import write_text
from transfer.common.old_names import OLD_OPTIONS
from transfer.common.parsers import make_parser
from transfer.images.augmentation import AUGMENTATIONS
from transfer.images.data_config import DataConfig
from transfer.training.recipes import Recipe

FLIPS = ("auto", "yes", "no")
"""Whether augmentation may flip images; `auto` decides by the class names and by a measurement."""

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


@dataclass(frozen=True)
class ModelOptions:
    """The pre-trained network."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, DemoCNN, or your own model's file.
    model: str = "EfficientNetLite0"  # its weights are installed with the package: works offline
    # Weights: 'pretrained', 'none' for random weights, or a weights file.
    weights: str = "pretrained"
    # Input preprocessing of your own model: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # Python module, or .py file, that defines the custom layers of your own model. Its code is run.
    custom_objects: str | None = None
    # Height and width in pixels. Default: the size that the network was pre-trained with.
    image_size: int | None = None

    def __post_init__(self) -> None:
        """Raise an error for an impossible image size."""
        _check_at_least_one(self, "image_size")

    def network_options(self) -> dict[str, Any]:
        """The arguments of `load_backbone` besides the name."""
        names = ("weights", "image_size", "custom_objects")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class CaseOptions:
    """The case, and the layers that are kept and trained."""

    # Case: auto, small-similar, small-different, large-similar or large-different. auto measures which case is best.
    case: str = "auto"
    # Longest training time that --case auto may choose, such as 90s, 30m or 2h; 'none' for no limit.
    time_budget: str = "5m"
    # Last layer to keep: a layer name, several names with commas, or 'all' (a head on all blocks). Default: by case.
    cut: str | None = None
    # First layer or block to train in a frozen network, such as block6a. The layers before it run only once.
    unfreeze_from: str | None = None
    # Initial weights of large-different: pretrained, random, or auto (random if pre-trained weights fail to learn).
    init: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for an unknown case, or a time budget that cannot be read."""
        cases = [str(case) for case in Case]
        name = self.case.lower().replace("_", "-")
        if name not in ("auto", *cases):
            raise unknown("case", self.case, ["auto", *cases])
        object.__setattr__(self, "case", name)
        seconds_of(None if self.time_budget == "none" else self.time_budget)


@dataclass(frozen=True)
class TrainingOptions:
    """Training of the head and of the network."""

    # Maximum number of epochs. Default: by case and number of images.
    epochs: int | None = None
    # Images per training step, over all devices together.
    batch_size: int = 32
    # Optimizer: adam, or rmsprop with the settings of Esteva et al. (2017).
    optimizer: str = "adam"
    # Learning rate. Default: by case; 0.001 with rmsprop.
    learning_rate: float | None = None
    # Run a learning-rate range test only; train nothing.
    find_learning_rate: bool = False
    # Augmentation of training images during fine-tuning: none, light, standard or strong.
    augment: str = "light"
    # Flip images horizontally: yes, no, or auto, which decides by the class names and a test on training images.
    flip: str = "auto"
    # Weight classes inversely to their size.
    class_weights: bool = False
    # Solver of a head on frozen layers: auto, exact or sgd.
    solver: str = "auto"
    # Dropout rate before the head, 0 to below 1 (switches to the sgd solver).
    dropout: float = 0.0
    # Views of each image for frozen layers: the image and augmented views. Evaluation averages the same number.
    views: int | None = None

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        _check_at_least_one(self, "epochs", "batch_size", "views")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"Expected a finite learning_rate above 0. Received: {self.learning_rate}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"Expected dropout from 0 to below 1. Received: {self.dropout}.")
        for name, valid in (("optimizer", OPTIMIZERS), ("flip", FLIPS)):
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid)
        if self.augment not in AUGMENTATIONS:
            raise unknown("augmentation", self.augment, AUGMENTATIONS)


@dataclass(frozen=True)
class OutputOptions:
    """Where results go, and how often checkpoints are written."""

    # Folder for the results. Default: a new folder under runs/. Resumes an interrupted run with the same options.
    output: str | None = None
    # Resume an interrupted run; fail if there is none.
    resume: bool = False
    # Calibrate the probabilities: fit a temperature on the validation images.
    calibrate: bool = False
    # Time between two checkpoints, such as 60s or 10m.
    checkpoint_every: str = "60s"

    def __post_init__(self) -> None:
        """Raise an error for a time that cannot be read."""
        seconds_of(self.checkpoint_every)


@dataclass(frozen=True)
class DeviceOptions:
    """Devices, engines and number formats."""

    # Engine that runs frozen layers: auto, keras or openvino (needs: pip install "transfer-cases[fast]").
    engine: str = "auto"
    # Data type of the layers: float32, or mixed_bfloat16 or mixed_float16 for GPUs and TPUs.
    precision: str = "float32"
    # Training steps per call from Python: larger values help fast accelerators.
    steps_per_execution: int = 1
    # Distribution strategy: auto, default, mirrored, multiworker or tpu.
    strategy: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        _check_at_least_one(self, "steps_per_execution")
        if self.precision not in PRECISIONS:
            raise unknown("precision", self.precision, PRECISIONS)


@dataclass(frozen=True)
class AdviceConfig(ModelOptions, DataConfig):
    """Estimate which case of transfer learning suits labeled images, its accuracy and its training time."""

    # Maximum number of training images to use.
    max_images: int = 2000
    # Longest training time that may be recommended, such as 90s, 5m or 1h. Default: no limit.
    time_budget: str | None = None
    # Skip the trial of fine-tuning: faster, but its estimated time is only a lower bound.
    no_trial: bool = False
    # Engine that runs the network: auto, keras or openvino (needs: pip install "transfer-cases[fast]").
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        DataConfig.__post_init__(self)
        ModelOptions.__post_init__(self)
        if self.max_images < 2:
            raise InputError(f"Expected max_images of 2 or more. Received: {self.max_images}.")
        seconds_of(self.time_budget)


@dataclass(frozen=True)
class TrainConfig(
    DeviceOptions, OutputOptions, Recipe, TrainingOptions, CaseOptions, ModelOptions, DataConfig
):
    """All options of a training run; every field is a flag of `python -m transfer.train` and a key in YAML.

    `python -m transfer.train --help` describes each option. Values are checked when the object is made.

    Raises:
        InputError: a value is out of range; the message lists what is allowed.

    Example:
        >>> TrainConfig(data="photos", case="small-similar").command
        'python -m transfer.train --data=photos --case=small-similar'
    """

    def __post_init__(self) -> None:
        """Check all groups of options."""
        for group in GROUPS:
            group.__post_init__(self)

    def __repr__(self) -> str:
        return short(self, changed_options(self))

    @property
    def flips(self) -> bool | None:
        """Whether augmentation flips images; None decides by the class names and a measurement."""
        return {"auto": None, "yes": True, "no": False}[self.flip]

    @property
    def recipe(self) -> Recipe:
        """The options of fine-tuning as the `recipe` argument of `fit`."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

    def build_options(self) -> dict[str, Any]:
        """The arguments of `build` besides network, classes and devices."""
        default = self.init == TrainConfig.init and self.case != "large-different"
        names = ("case", "cut", "unfreeze_from", "image_size", "preprocessing", "optimizer", "learning_rate")
        return {
            **self._values(*names, "precision", "steps_per_execution", "seed"),
            "init": "pretrained" if default else self.init,
            "pin_batchnorm": False if self.batchnorm == "live" else None,
        }

    def fit_options(self) -> dict[str, Any]:
        """The arguments of `fit` besides model, data and checkpoints."""
        names = (
            "epochs",
            "batch_size",
            "augment",
            "class_weights",
            "solver",
            "dropout",
            "label_smoothing",
            "views",
        )
        return {**self._values(*names, "engine", "seed"), "flip": self.flips, "recipe": self.recipe}

    def evaluate_options(self) -> dict[str, Any]:
        """The arguments of `evaluate` and `calibrate` besides model and data."""
        return {**self._values("augment", "engine", "seed"), "flip": self.flips, "views": self.views or 1}

    def _values(self, *names: str) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names}

    @property
    def result_options(self) -> dict[str, Any]:
        """The options that change the result. An interrupted run is resumed only if they are equal."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if k not in ("output", "resume", "checkpoint_every")}

    @property
    def command(self) -> str:
        """The shell command that trains with these options: all that differ from the defaults, as flags."""
        words = ["python", "-m", "transfer.train"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                flag = "--" + field.name.replace("_", "-")
                words += [flag] if value is True else [f"{flag}={value}"]
        return shlex.join(words)


GROUPS: tuple[type[Any], ...] = tuple(reversed(TrainConfig.__bases__))
"""The groups of `TrainConfig`'s options, in the order of `--help`."""


def _check_at_least_one(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"Expected {name} of 1 or more. Received: {value}.")


def seconds_of(text: str | None) -> float | None:
    """Return the seconds of a time such as "90s", "5m" or "1h"; None stays None."""
    if text is None:
        return None
    unit = {"s": 1, "m": 60, "h": 3600}.get(str(text)[-1:].lower())
    try:
        seconds = float(str(text)[:-1] if unit else text) * (unit or 1)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"Expected a time such as 90s, 5m or 1h, above 0. Received: {text!r}.")
    return seconds


def parse_arguments(arguments: Sequence[str] | None = None) -> TrainConfig:
    """Parse the flags of `python -m transfer.train`, on top of the YAML file that `--config` names."""
    config_flag: dict[str, Any] = {
        "metavar": "FILE",
        "help": "YAML file with these options; flags override it",
    }
    program = "transfer.train"
    # The first parser accepts no abbreviations: the second one would take --conf for --config and ignore it.
    first = argparse.ArgumentParser(prog=f"python -m {program}", add_help=False, allow_abbrev=False)
    first.add_argument("--config", **config_flag)
    known, rest = first.parse_known_args(arguments)
    defaults = load_config(known.config) if known.config else TrainConfig()
    # Options from elsewhere are data: they cannot import a module that the command line does not name.
    named, defaults = defaults.custom_objects, dataclasses.replace(defaults, custom_objects=None)
    parser = make_parser(program, "Train an image classifier by one of the four cases of transfer learning.")
    parser.usage = "%(prog)s [--data DATA] [--model MODEL] [--case CASE] [options]"
    parser.add_argument("--config", **config_flag)
    for group in GROUPS:
        own = group(**{field.name: getattr(defaults, field.name) for field in fields(group)})
        parser.add_arguments(group, dest=group.__name__, default=own)
    parser.first = FIRST
    parsed = vars(parser.parse_args(rest))
    config = TrainConfig(
        **{key: value for group in GROUPS for key, value in vars(parsed[group.__name__]).items()}
    )
    if named and config.custom_objects is None:
        raise InputError(
            f"{known.config} names the module {named!r}, whose code would be run. If you trust it, add "
            f"--custom-objects {named}."
        )
    return config


def parse_check_arguments(arguments: Sequence[str] | None = None) -> tuple[DataConfig, argparse.Namespace]:
    """Parse the flags of `python -m transfer.datasets`: the data, and the files to write."""
    parser = make_parser("transfer.datasets", "Check a data set: its classes, splits, files and labels.")
    parser.add_argument("place", nargs="?", metavar="DATA", help="the same as --data")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON")
    parser.add_argument("--html", metavar="FILE", help="write the report as an HTML page with images")
    parser.add_argument("--write-split", metavar="FILE", help="write the split of each image as CSV")
    parser.add_arguments(DataConfig, dest="options")
    parsed = parser.parse_args(arguments)
    options = parsed.options
    return (options if parsed.place is None else dataclasses.replace(options, data=parsed.place)), parsed


def parse_advice_arguments(arguments: Sequence[str] | None = None) -> tuple[AdviceConfig, argparse.Namespace]:
    """Parse the flags of `python -m transfer.advice`: the options, the files to write, and networks to compare."""
    parser = make_parser("transfer.advice", AdviceConfig.__doc__ or "")
    parser.add_argument("--json", metavar="FILE", help="write the advice as JSON")
    parser.add_argument(
        "--plots", metavar="DIR", help="write the chart of the four cases and the layer curve"
    )
    compared = "compare these networks: estimated accuracy of a head on each, and its time"
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help=compared)
    parser.add_arguments(AdviceConfig, dest="options")
    parsed = parser.parse_args(arguments)
    return parsed.options, parsed


def load_config(path: str | Path) -> TrainConfig:
    """Read options from a YAML file, such as `config.yaml` of a run; options that it leaves out keep their defaults."""
    import yaml

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"Cannot read the options in {path}: {one_line(error)}.") from None
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
        name = OLD_OPTIONS.get(name, name)
        if name not in names:
            raise unknown("option", key, names, hint=f"It is in {path}.")
        checked[name] = _typed(name, value, path)
    return TrainConfig(**checked)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write options as YAML that `load_config` reads."""
    import yaml

    values = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    write_text(Path(path), yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _typed(name: str, value: Any, path: str | Path) -> Any:
    """Return a YAML value in the type of its option; numbers may be text, since YAML reads `1e-3` as text."""
    kind = typing.get_type_hints(TrainConfig)[name]
    kinds = typing.get_args(kind) or (kind,)
    if value is None and type(None) in kinds:
        return None
    try:
        if int in kinds and type(value) is int:  # first, since a float would round large numbers
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
