"""The options of a run, once: flags, YAML and defaults are all read off one dataclass."""

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

from transfer.cases.policies import OPTIMIZERS, PRECISIONS
from transfer.common.errors import InputError, one_line, unknown
from transfer.images.augmentation import AUGMENTATIONS
from transfer.images.data_config import DataConfig
from transfer.training.recipes import Recipe

FLIPS = ("auto", "yes", "no")
"""Whether augmentation mirrors images; `auto` looks at the names of the classes."""


@dataclass(frozen=True)
class AdviceConfig(DataConfig):
    """Say which case of transfer learning suits labelled images, and what to expect of it."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, or a .keras file of your own.
    model: str = "EfficientNetLite0"
    # 'pretrained', 'none' for random ones, or a weights file.
    weights: str = "pretrained"
    # How your own .keras file wants its input: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # Pixels, height and width; by default those that the network was trained for.
    image_size: int | None = None
    # Training images to look at, at most.
    max_images: int = 2000
    # How long training may take, such as 90s, 5m or 1h; by default as long as it takes.
    time_budget: str | None = None
    # Do not try fine-tuning: quicker, and its time is the least that it can be.
    no_trial: bool = False
    # What runs the network: auto, keras or openvino (pip install ".[fast]").
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Check what can be checked without looking at data or networks."""
        super().__post_init__()
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"Expected image_size of 1 or more. Received: {self.image_size}.")
        if self.max_images < 2:
            raise InputError(f"Expected max_images of 2 or more. Received: {self.max_images}.")
        seconds_of(self.time_budget)


def seconds_of(text: str | None) -> float | None:
    """Read how long something may take."""
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


@dataclass(frozen=True)
class TrainConfig(DataConfig):
    """Train an image classifier by one of the four cases of transfer learning."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, or a .keras file of your own.
    model: str = "EfficientNetLite0"  # its weights were installed along: works without a network
    # 'pretrained', 'none' for random ones, or a weights file.
    weights: str = "pretrained"
    # How your own .keras file wants its input: none, tf, torch, caffe or lite.
    preprocessing: str | None = None
    # auto, small-similar, small-different, large-similar or large-different.
    case: str = "auto"
    # How long the case that auto finds may take to train, such as 90s, 30m or 2h; 'none' is as long as it takes.
    time_budget: str = "5m"
    # The last layer to keep, by name; several, with commas, or 'all' for a head on each; by default the case's own.
    cut: str | None = None
    # The first layer or block to train where a case freezes all, such as block6a; what is before it runs but once.
    unfreeze_from: str | None = None
    # Start of large-different: pretrained, random, or auto: the first, and the second where that fails.
    init: str = "auto"
    # Pixels, height and width; by default those that the network was trained for.
    image_size: int | None = None
    # Passes over the training images, at most; by default the case's own.
    epochs: int | None = None
    # Images per training step, over all devices together.
    batch_size: int = 32
    # What takes the steps: adam, or rmsprop with the settings of Esteva et al. 2017.
    optimizer: str = "adam"
    # Of the optimizer; by default the case's own, and with rmsprop 0.001.
    learning_rate: float | None = None
    # Only look which learning rate the network bears: raise it from step to step and draw the loss.
    find_learning_rate: bool = False
    # Changes to training images where the whole network trains: none, light, standard or strong.
    augment: str = "light"
    # Whether those changes mirror images: auto (not where classes are digits or letters), yes or no.
    flip: str = "auto"
    # Let images of small classes count more, so that all classes count the same.
    class_weights: bool = False
    # How a head on a frozen network is trained: auto, exact or sgd.
    solver: str = "auto"
    # Share of the features that are left out while such a head trains in epochs.
    dropout: float = 0.0
    # Share of each label that is spread over all classes, where a head trains in epochs or everything trains.
    label_smoothing: float = 0.0
    # Where everything trains: the first block's learning rate as a share of the head's; it falls from block to block.
    layer_decay: float = Recipe.layer_decay
    # Share of the training over which blocks begin to train, the last first.
    gradual_unfreezing: float = Recipe.gradual_unfreezing
    # Of all weights but biases and normalization, times the learning rate, at each step.
    weight_decay: float = Recipe.weight_decay
    # Length of the gradient beyond which it is shortened.
    clip_norm: float | None = Recipe.clip_norm
    # How much of the weights' moving average stays at each step, such as 0.99; the average is what is kept in the end.
    ema: float = Recipe.ema
    # Mix the images of a batch, labels and all: none, mixup or cutmix.
    mix: str = Recipe.mix
    # Pre-trained BatchNormalization: pinned as it is, adapted to the training images first, or live.
    batchnorm: str = Recipe.batchnorm
    # How the learning rate goes where everything trains: cosine, after a warm-up; or steps: divided again and again.
    schedule: str = Recipe.schedule
    # By what it is divided, with steps.
    decay_factor: float = Recipe.decay_factor
    # After how many epochs each time, with steps.
    decay_every: int = Recipe.decay_every
    # How often a frozen part sees each image, changed by --augment from the second time on; the test averages too.
    views: int | None = None
    # What runs a frozen network: auto, keras or openvino (pip install ".[fast]").
    engine: str = "auto"
    # What layers compute in: float32, or mixed_bfloat16 or mixed_float16, for GPUs and TPUs.
    precision: str = "float32"
    # Training steps that are run at once, without Python between them: for accelerators that wait for it.
    steps_per_execution: int = 1
    # Devices: auto, default, mirrored, multiworker or tpu.
    strategy: str = "auto"
    # Folder for the results; by default a new one under runs/. An interrupted run with these options is gone on with.
    output: str | None = None
    # Go on with an interrupted run, and start none.
    resume: bool = False
    # Fit a temperature on the validation images, so that the model's probabilities are honest.
    calibrate: bool = False
    # How often the state of the training is written, such as 60s or 10m.
    checkpoint_every: str = "60s"

    def __post_init__(self) -> None:
        """Check what can be checked without looking at data or networks."""
        super().__post_init__()
        for name in ("image_size", "epochs", "batch_size", "views", "steps_per_execution"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"Expected {name} of 1 or more. Received: {value}.")
        seconds_of(None if self.time_budget == "none" else self.time_budget)
        seconds_of(self.checkpoint_every)
        _ = self.recipe  # it checks itself
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"Expected a learning_rate above 0, finite. Received: {self.learning_rate}.")
        for name in ("dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise InputError(f"Expected {name} from 0 to below 1. Received: {getattr(self, name)}.")
        for name, valid in (("precision", PRECISIONS), ("optimizer", OPTIMIZERS), ("flip", FLIPS)):
            if getattr(self, name) not in valid:
                raise unknown(name, getattr(self, name), valid)
        if self.augment not in AUGMENTATIONS:
            raise unknown("augmentation", self.augment, AUGMENTATIONS)

    @property
    def flips(self) -> bool | None:
        """Whether augmentation mirrors images; None leaves it to the names of the classes."""
        return {"auto": None, "yes": True, "no": False}[self.flip]

    @property
    def recipe(self) -> Recipe:
        """How everything trains."""
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})

    @property
    def asked(self) -> dict[str, Any]:
        """All that makes a run what it is, and not where it is or how often its state is kept."""
        found = dataclasses.asdict(self)
        return {k: v for k, v in found.items() if k not in ("output", "resume", "checkpoint_every")}

    @property
    def command(self) -> str:
        """The command that trains so: what differs from the defaults, as flags."""
        words = ["python", "-m", "transfer.train"]
        for field in fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                flag = "--" + field.name.replace("_", "-")
                words += [flag] if value is True else [f"{flag}={value}"]
        return shlex.join(words)


def parse_arguments(
    arguments: Sequence[str] | None = None, *, program: str = "transfer.train"
) -> TrainConfig:
    """Read the flags of the command line, on top of a YAML file where `--config` names one."""
    config_flag: dict[str, Any] = {"metavar": "FILE", "help": "YAML file of these options; flags win over it"}
    # No abbreviations: the second parser would take --conf for --config and do nothing about it.
    first = argparse.ArgumentParser(prog=f"python -m {program}", add_help=False, allow_abbrev=False)
    first.add_argument("--config", **config_flag)
    known, rest = first.parse_known_args(arguments)
    defaults = load_config(known.config) if known.config else TrainConfig()
    parser = _parser(program)
    parser.add_argument("--config", **config_flag)
    parser.add_arguments(TrainConfig, dest="options", default=defaults)
    return parser.parse_args(rest).options


def parse_check_arguments(arguments: Sequence[str] | None = None) -> tuple[DataConfig, argparse.Namespace]:
    """Read the flags of `python -m transfer.datasets`."""
    parser = _parser("transfer.datasets")
    parser.add_argument("place", nargs="?", metavar="DATA", help="the same as --data")
    parser.add_argument("--json", metavar="FILE", help="write the report as JSON, for programs")
    parser.add_argument("--html", metavar="FILE", help="write the report as a page, with images")
    parser.add_argument("--write-split", metavar="FILE", help="write which image is in which split, as CSV")
    parser.add_arguments(DataConfig, dest="options")
    parsed = parser.parse_args(arguments)
    options = parsed.options
    return (options if parsed.place is None else dataclasses.replace(options, data=parsed.place)), parsed


def parse_advice_arguments(arguments: Sequence[str] | None = None) -> tuple[AdviceConfig, argparse.Namespace]:
    """Read the flags of `python -m transfer.advice`."""
    parser = _parser("transfer.advice")
    parser.add_argument("--json", metavar="FILE", help="write the advice as JSON, for programs")
    parser.add_argument(
        "--plots", metavar="DIR", help="write the chart of the four cases and the layer curve"
    )
    compared = "rank these networks by what a head on each would give, and what it costs"
    parser.add_argument("--compare", nargs="+", metavar="MODEL", help=compared)
    parser.add_arguments(AdviceConfig, dest="options")
    parsed = parser.parse_args(arguments)
    return parsed.options, parsed


def _parser(program: str) -> Any:
    import simple_parsing

    return simple_parsing.ArgumentParser(
        prog=f"python -m {program}",
        allow_abbrev=False,
        add_option_string_dash_variants=simple_parsing.DashVariant.DASH,
        argument_generation_mode=simple_parsing.ArgumentGenerationMode.FLAT,
    )


def load_config(path: str | Path) -> TrainConfig:
    """Read a run's options from YAML."""
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
        if name not in names:
            raise unknown("option", key, names, hint=f"It is in {path}.")
        checked[name] = _typed(name, value, path)
    return TrainConfig(**checked)


def save_config(config: TrainConfig, path: str | Path) -> None:
    """Write a run's options as YAML that `load_config` reads back."""
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
