"""The options of the commands: flags, YAML keys and defaults come from dataclasses, one for each group of options."""

from __future__ import annotations

import dataclasses
import math
import shlex
import typing
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transfer.cases.policies import INITS, OPTIMIZERS, PRECISIONS, Case
from transfer.common.display import changed_options
from transfer.common.display import one_line as short
from transfer.common.errors import InputError, one_line, unknown
from transfer.common.files import write_text
from transfer.common.old_names import OLD_OPTIONS
from transfer.common.tasks import LOSSES, TASKS
from transfer.common.text import seconds_of
from transfer.distributed.cluster import STRATEGIES, requests_several_workers
from transfer.frozen.openvino_engine import ENGINES, INT8
from transfer.images.augmentation import AUGMENTATIONS, MIXES, check_views
from transfer.images.data_config import DataConfig
from transfer.images.decoding import RESIZES
from transfer.training.option_table import SOLVERS, SWITCHES, Situation, ignored_options, situations_of
from transfer.training.recipes import BATCHNORMS, SCHEDULES, Recipe

FLIPS = ("auto", "yes", "no")
"""Whether augmentation may flip images; `auto` decides by the class names and by a measurement."""

CHOICES: dict[str, Collection[str]] = {
    "case": ("auto", *map(str, Case)),
    "task": TASKS,
    "init": INITS,
    "optimizer": OPTIMIZERS,
    "loss": LOSSES,
    "augment": AUGMENTATIONS,
    "flip": FLIPS,
    "solver": SOLVERS,
    "mix": MIXES,
    "batchnorm": BATCHNORMS,
    "schedule": SCHEDULES,
    "resize": RESIZES,
    "engine": ENGINES,
    "precision": PRECISIONS,
    "strategy": STRATEGIES,
}
"""The values of options that have a fixed set of them."""


FROZEN_ONLY = ("cut", "unfreeze_from", "solver", "dropout")
"""Options that restrict the case `auto` to a head on a frozen network."""


@dataclass(frozen=True)
class ModelOptions:
    """The pre-trained network."""

    # Pre-trained network: a name from keras.applications, EfficientNetLite0 to 2, DemoCNN, hub: and a preset of
    # KerasHub, such as hub:dinov2_small or hub:FOLDER, or your own model's file.
    # With --case auto also several to try, the first one first, or 'auto': the EfficientNetLites that are installed.
    model: str = "EfficientNetLite0"  # its weights are installed with the package: works offline
    # Weights: 'pretrained', 'none' for random weights, or a weights file.
    weights: str = "pretrained"
    # Input preprocessing of your own model: none, tf, torch, caffe, lite, clip or unit.
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

    # Case, or its number: 1 to 4. auto measures which case is best.
    case: str = "auto"
    # Time of the whole command with --case auto, such as 90s, 30m or 2h; 'none' for no limit. A larger one
    # continues a finished run.
    time_budget: str = "1m"
    # With --case auto, try the average of the frozen head and the fine-tuned network. Predictions take twice as long.
    average: bool = False
    # Last layer to keep: a layer name, the number of a block (0 is the first, -1 the last), several of them with
    # commas, or 'all' (a head on all blocks). Default: by case.
    cut: str | None = None
    # First layer or block to train in a frozen network, such as block6a. The layers before it run only once.
    unfreeze_from: str | None = None
    # Rank of LoRA: in large-similar, train small matrices beside those of attention and Dense layers.
    lora: int | None = None
    # Initial weights of large-different. auto: random if the pre-trained weights fail to learn.
    init: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for an unknown case, or a time budget that cannot be read."""
        name = str(self.case).strip().lower()
        try:
            object.__setattr__(self, "case", "auto" if name == "auto" else str(Case.parse(name)))
        except InputError:
            raise unknown("case", self.case, CHOICES["case"]) from None
        _check_choices(self, "init")
        _check_at_least_one(self, "lora")
        seconds_of(None if self.time_budget == "none" else self.time_budget)


@dataclass(frozen=True)
class TrainingOptions:
    """Training of the head and of the network."""

    # Maximum number of epochs. Default: by case and number of images.
    epochs: int | None = None
    # Images per training step, over all devices together.
    batch_size: int = 32
    # Optimizer. rmsprop has the settings of Esteva et al. (2017).
    optimizer: str = "adam"
    # Learning rate. Default: by case; 0.001 with rmsprop.
    learning_rate: float | None = None
    # Loss. auto is that of the task; huber is for the task regression and gives outliers less weight.
    loss: str = "auto"
    # Number of folds of a cross-validation, such as 5. The final model trains on the images of all folds.
    folds: int | None = None
    # Run a learning-rate range test only; train nothing.
    find_learning_rate: bool = False
    # Augmentation of training images.
    augment: str = "light"
    # Flip images horizontally. auto decides by the class names and a test on training images.
    flip: str = "auto"
    # Weight classes inversely to their size.
    class_weights: bool = False
    # Solver of a head on frozen layers. sgd trains in epochs.
    solver: str = "auto"
    # Dropout rate before the head, 0 to below 1.
    dropout: float = 0.0
    # Views of each image for frozen layers: the image and augmented ones. Evaluation averages over as many views.
    views: int | None = None

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        _check_at_least_one(self, "epochs", "batch_size", "views")
        if self.folds is not None and self.folds < 2:
            raise InputError(f"Expected 2 folds or more. Received: {self.folds}.")
        if self.learning_rate is not None and not 0 < self.learning_rate < math.inf:
            raise InputError(f"Expected a finite learning_rate above 0. Received: {self.learning_rate}.")
        if not 0 <= self.dropout < 1:
            raise InputError(f"Expected dropout from 0 to below 1. Received: {self.dropout}.")
        _check_choices(self, "optimizer", "loss", "flip", "augment", "solver")
        check_views(self.views or 1, self.augment)


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

    # Engine that runs frozen layers. auto uses OpenVINO on CPUs if it is installed, otherwise Keras. openvino-int8
    # quantizes the layers with training images: about twice as fast as float32, less precise. It needs a --case other
    # than auto, and the extra int8.
    engine: str = "auto"
    # Data type of the layers. mixed_bfloat16 and mixed_float16 are for GPUs and TPUs.
    precision: str = "float32"
    # Training steps per call from Python: larger values help fast accelerators.
    steps_per_execution: int = 1
    # Distribution strategy.
    strategy: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        _check_at_least_one(self, "steps_per_execution")
        _check_choices(self, "engine", "precision", "strategy")


@dataclass(frozen=True)
class AdviceConfig(ModelOptions, DataConfig):
    """Estimate which case of transfer learning suits labeled images, its accuracy and its training time."""

    # Maximum number of training images to use.
    max_images: int = 2000
    # Longest training time that may be recommended, such as 90s, 5m or 1h. Default: no limit.
    time_budget: str | None = None
    # Run a trial of fine-tuning. Without it, the estimated time is only a lower bound.
    trial: bool = True
    # Engine that runs the network. auto uses OpenVINO on CPUs if it is installed, otherwise Keras.
    engine: str = "auto"

    def __post_init__(self) -> None:
        """Raise an error for a value out of range."""
        DataConfig.__post_init__(self)
        ModelOptions.__post_init__(self)
        _check_choices(self, "engine")
        if self.engine == INT8:
            raise InputError(
                "Expected the engine auto, keras or openvino: advice compares layers in full precision. Received: "
                f"{INT8}."
            )
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
        if self.engine == INT8 and self.case == "auto":
            raise InputError(
                f"Expected --case small-similar or small-different with --engine {INT8}. Received: auto, which "
                "compares layers in full precision."
            )
        if not self.improves and (len(self.models) > 1 or self.model == "auto"):
            raise InputError(
                f"Expected one model, except with --case auto and without options that restrict it. Received: "
                f"{self.model}."
            )

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

    @property
    def given(self) -> dict[str, Any]:
        """The options that differ from their defaults."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value != getattr(TrainConfig, name)}

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the networks to try, as the user writes them."""
        return tuple(name.strip() for name in self.model.split(",") if name.strip()) or (self.model,)

    @property
    def budget(self) -> float | None:
        """The time budget in seconds; None is no limit."""
        return None if self.time_budget == "none" else seconds_of(self.time_budget)

    @property
    def improves(self) -> bool:
        """Whether a run with these options improves its model while the time budget lasts."""
        restricted = (
            self.find_learning_rate
            or self.folds is not None
            or any(name in self.given for name in FROZEN_ONLY)
        )
        return self.case == "auto" and not restricted and not requests_several_workers(self.strategy)

    @property
    def situations(self) -> frozenset[Situation]:
        """The kinds of training that these options may lead to; with the case `auto`, all of them."""
        names = ("case", "unfreeze_from", "init", "solver", *SWITCHES)
        options = self._values(*names)
        if self.case == "auto" and self.folds is not None:  # it compares heads
            options["case"] = "small-similar"
        return frozenset(Situation) if options["case"] == "auto" else situations_of(**options)

    @property
    def ignored(self) -> dict[str, str]:
        """The options that have no effect, each with the key of its reason in the table of options."""
        reason = "auto" if self.case != "auto" else "folds" if self.folds is not None else ""
        useless = {"time_budget", "average"} & self.given.keys() if reason else ()
        return {**ignored_options(self.given, self.situations), **dict.fromkeys(useless, reason)}

    def without_ignored(self) -> TrainConfig:
        """Return these options with the defaults of those that have no effect."""
        return dataclasses.replace(self, **{name: getattr(TrainConfig, name) for name in self.ignored})

    def build_options(self) -> dict[str, Any]:
        """The arguments of `build` besides network, classes and devices."""
        default = self.init == TrainConfig.init and self.case != "large-different"
        names = ("case", "cut", "unfreeze_from", "image_size", "preprocessing", "optimizer", "learning_rate")
        return {
            **self._values(*names, "lora", "precision", "steps_per_execution", "seed"),
            "init": "pretrained" if default else self.init,
            **({} if self.loss == "auto" else {"loss": self.loss}),
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
        for key, value in self.given.items():
            name = key.replace("_", "-")
            switch = f"--{name}" if value else f"--no-{name}"
            words.append(switch if isinstance(value, bool) else f"--{name}={value}")
        return shlex.join(words)


GROUPS: tuple[type[Any], ...] = tuple(reversed(TrainConfig.__bases__))
"""The groups of `TrainConfig`'s options, in the order of `--help`."""


def _check_at_least_one(options: Any, *names: str) -> None:
    for name in names:
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"Expected {name} of 1 or more. Received: {value}.")


def _check_choices(options: Any, *names: str) -> None:
    for name in names:
        if getattr(options, name) not in CHOICES[name]:
            raise unknown(
                "augmentation" if name == "augment" else name, getattr(options, name), CHOICES[name]
            )


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


def save_config(config: TrainConfig, path: str | Path, *, comment: str = "") -> None:
    """Write options as YAML that `load_config` reads, below a comment."""
    import yaml

    values = {k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items()}
    head = f"# {comment}\n" if comment else ""
    write_text(Path(path), head + yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


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
