"""What is known of each family of networks, in one table, and how to load one by name.

The only place that knows names: constructors, preprocessing, image sizes, block ends, sources of weights.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, unknown
from transfer.networks import demo_cnn, efficientnet_lite, graphs, surgery, weight_files

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "EfficientNetLite0"
"""Its weights come from the package registry, so that it works where nothing else can be downloaded."""

_MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB, in units of 255
_STD = (0.229, 0.224, 0.225)
_SCALE = "preprocess_scale"  # the layer by which a model of ours is known to take raw images


@dataclass(frozen=True)
class Family:
    """What the members of a family of networks share."""

    # Constructor's name -> image size (pixels) that its weights were trained for.
    builders: dict[str, int]
    preprocessing: str
    model_name: str
    block: str
    # Smallest image size in pixels.
    min_size: int = 32
    fixed_top: bool = False
    weights: str = "imagenet"


def _efficientnet_sizes(prefix: str) -> dict[str, int]:
    return {f"{prefix}{i}": size for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))}


FAMILIES: dict[str, Family] = {
    "ConvNeXt": Family(
        {f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
        "inside",
        r"convnext_\w+",
        r".*?(stage_\d+_block_\d+)_",
    ),
    "DemoCNN": Family({"DemoCNN": 48}, "tf", r"democnn", r"(conv\d)$", 16, fixed_top=True, weights="shapes"),
    "DenseNet": Family(
        {f"DenseNet{depth}": 224 for depth in (121, 169, 201)},
        "torch",
        r"densenet\d+",
        r"(conv\d+_block\d+|pool\d+)_",
    ),
    "EfficientNet": Family(
        _efficientnet_sizes("EfficientNetB"), "efficientnet", r"efficientnetb\d", r"(block\d+[a-z]+)_"
    ),
    "EfficientNetLite": Family(
        {"EfficientNetLite0": 224, "EfficientNetLite1": 240, "EfficientNetLite2": 260},
        "lite",
        r"efficientnetlite\d",
        r"(block\d+[a-z]+)_",
    ),
    "EfficientNetV2": Family(
        {
            **{f"EfficientNetV2B{i}": size for i, size in enumerate((224, 240, 260, 300))},
            **{"EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480},
        },
        "inside",
        r"efficientnetv2-\w+",
        r"(block\d+[a-z]+)_",
    ),
    "InceptionResNetV2": Family(
        {"InceptionResNetV2": 299}, "tf", r"inception_resnet_v2", r"(mixed_\d\w|block\d+_\d+)(?:_|$)", 75
    ),
    "InceptionV3": Family({"InceptionV3": 299}, "tf", r"inception_v3", r"(mixed\d+)$", 75),
    "MobileNet": Family({"MobileNet": 224}, "tf", r"mobilenet_\d\.\d+_(\d+|None)", r"conv_[dp]w_(\d+)"),
    "MobileNetV2": Family(
        {"MobileNetV2": 224}, "tf", r"mobilenetv2_\d\.\d+_(\d+|None)", r"(expanded_conv|block_\d+)_"
    ),
    "MobileNetV3": Family(
        {"MobileNetV3Small": 224, "MobileNetV3Large": 224},
        "inside",
        r"MobileNetV3(?:Small|Large)",
        r"(expanded_conv(?:_\d+)?)_",
    ),
    "NASNet": Family(
        {"NASNetMobile": 224, "NASNetLarge": 331},
        "tf",
        r"(?i:nasnet(?:_\w+)?)",
        r"((?:normal|reduction)_concat_\w+)$",
    ),
    "ResNet": Family(
        {f"ResNet{depth}": 224 for depth in (50, 101, 152)}, "caffe", r"resnet\d+", r"(conv\d+_block\d+)_"
    ),
    "ResNetV2": Family(
        {f"ResNet{depth}V2": 224 for depth in (50, 101, 152)}, "tf", r"resnet\d+v2", r"(conv\d+_block\d+)_"
    ),
    "VGG": Family({"VGG16": 224, "VGG19": 224}, "caffe", r"vgg1[69]", r"(block\d)_", fixed_top=True),
    "Xception": Family({"Xception": 299}, "tf", r"xception", r"(block\d+)_", 71),
}

PREPROCESSING = {
    "inside": "nothing: the network scales raw pixels itself",
    "efficientnet": "nothing, but the scaling that Keras forgets for ImageNet weights from a file",
    "lite": "(x - 127) / 128",
    "tf": "x / 127.5 - 1",
    "torch": "x / 255, minus ImageNet's mean, divided by its standard deviation",
    "caffe": "RGB to BGR, minus ImageNet's mean",
    "none": "nothing",
}


def preprocessing_of(model: keras.Model, preprocessing: str | None = None) -> Callable[[Any], Any]:
    """Give what turns raw RGB images, 0 to 255, into what a network was trained on."""
    done = any(layer.name == _SCALE for layer in model.layers)
    key = preprocessing or ("none" if done else _preprocessing_key(model))
    if key not in PREPROCESSING:
        raise unknown("preprocessing", key, PREPROCESSING, hint=_PREPROCESSING_HELP)
    if done and key not in ("none", "inside"):
        raise InputError(
            f"{model.name!r} scales raw images itself, in its layer {_SCALE!r}. Leave preprocessing={key!r} out."
        )
    scale = partial(keras.layers.Rescaling, dtype="float32", name=_SCALE)
    if key == "efficientnet" and _lacks_second_scaling(model):
        factor = np.sqrt(1.0 / np.array(_STD))
        offset = 255.0 * np.array(_MEAN) * (1.0 - factor)
        return scale(factor.tolist(), offset.tolist())
    if key == "lite":
        return scale(1 / 128.0, -127 / 128.0)
    if key == "tf":
        return scale(1 / 127.5, -1.0)
    if key == "torch":
        mean, variance = [255.0 * m for m in _MEAN], [(255.0 * s) ** 2 for s in _STD]
        return keras.layers.Normalization(mean=mean, variance=variance, dtype="float32", name=_SCALE)
    if key == "caffe":
        shift = scale(1.0, [-103.939, -116.779, -123.68])
        return lambda raw: shift(keras.ops.flip(raw, axis=-1))
    return lambda raw: raw


_PREPROCESSING_HELP = "They mean: " + "; ".join(f"{key}: {text}" for key, text in PREPROCESSING.items()) + "."


def _preprocessing_key(model: keras.Model) -> str:
    family = family_of(model)
    if family is None:
        raise InputError(
            f"The preprocessing of {model.name!r} is not known, since no network of keras.applications has that name. "
            f"Name it: preprocessing=... {_PREPROCESSING_HELP}"
        )
    scaled = any(
        isinstance(layer, keras.layers.Rescaling | keras.layers.Normalization) for layer in model.layers
    )
    if family.preprocessing == "inside" and not scaled:
        raise InputError(
            f"{model.name!r} was made with include_preprocessing=False. Leave that out, or name what its input is: "
            f"preprocessing=... {_PREPROCESSING_HELP}"
        )
    return family.preprocessing


def _lacks_second_scaling(model: keras.Model) -> bool:
    """Tell ImageNet weights that were loaded from a file into `EfficientNetB*(weights=None)`."""
    scalings = [layer for layer in model.layers if isinstance(layer, keras.layers.Rescaling)]
    normalizations = [layer for layer in model.layers if isinstance(layer, keras.layers.Normalization)]
    if len(scalings) > 1 or not normalizations:
        return False
    mean = np.ravel(keras.ops.convert_to_numpy(normalizations[0].mean))
    return mean.shape == (3,) and bool(np.allclose(mean, _MEAN, atol=1e-3))


def family_of(model: keras.Model) -> Family | None:
    """Find the family of a network by the name that its constructor gave it."""
    for family in FAMILIES.values():
        if re.fullmatch(family.model_name, model.name):
            return family
    return None


def block_ends(model: keras.Model) -> list[str]:
    """List the sensible places to cut: the last layer of each block, from the first block to the last.

    Cutting inside a residual block leaves a branch without its sum; any layer can be cut at by name, but no
    default does. In a network that is not in the table, blocks end where branches meet or maps are pooled.

    Args:
        model: the network.

    Returns:
        Names of layers.

    Example:
        >>> block_ends(keras.applications.VGG16(weights=None, include_top=False))[:2]
        ['block1_pool', 'block2_pool']
    """
    nodes = graphs.graph(model)
    family = family_of(model)
    named = [node for node in nodes if family and re.match(family.block, node.op.name)]
    if family is None or not named:
        return _generic_block_ends(model, nodes)
    uses: dict[int, list[int]] = {}
    for place, node in enumerate(nodes):
        for parent in node.parents:
            uses.setdefault(parent, []).append(place)
    ends: dict[str, int] = {}
    for place, node in enumerate(nodes):
        match = re.match(family.block, node.op.name)
        if match:
            ends[match.group(1)] = place
    # A skip connection's sum may carry a name that Keras made up: step on to it.
    places = []
    for place in ends.values():
        after = uses.get(place, [])
        steps_on = len(after) == 1 and len(nodes[after[0]].parents) > 1
        places.append(after[0] if steps_on and after[0] not in ends.values() else place)
    return [nodes[place].op.name for place in sorted(places)]


def _generic_block_ends(model: keras.Model, nodes: Sequence[graphs.Node]) -> list[str]:
    last = graphs.find(model, graphs.layer_before_classifier(model)).op
    pools = (keras.layers.MaxPooling2D, keras.layers.AveragePooling2D)
    ends, some = [], []
    for place in graphs.bottlenecks(nodes):
        node = nodes[place]
        if place and len(node.tensor.shape) == 4:
            some.append(node.op.name)
            if len(node.parents) > 1 or isinstance(node.op, pools):
                ends.append(node.op.name)
        if node.op is last:
            break
    return ends if len(ends) > 1 else some


def backbone_names() -> list[str]:
    """List the networks that `load_backbone` knows.

    Returns:
        The names, those of the default family first.

    Example:
        >>> "ResNet50" in backbone_names()
        True
    """
    names = [name for family in FAMILIES.values() for name in family.builders]
    return sorted(names, key=lambda name: not name.startswith("EfficientNetLite"))


def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = "pretrained",
    image_size: int | None = None,
    include_top: bool | None = None,
    **arguments: Any,
) -> keras.Model:
    """Load a pre-trained network by name.

    Args:
        name: of a `keras.applications` constructor, `"EfficientNetLite0"` to `2`, `"DemoCNN"`, or the path of a
            `.keras` file of one's own.
        weights: `"pretrained"`, those that the network is known for: `"imagenet"`, which Keras downloads but for the
            EfficientNet-Lites; but `"shapes"` for the DemoCNN, which has none of ImageNet: asked for `"imagenet"`, it
            warns, and takes its own. `"none"` (or None) for random ones; or the path of a weights file.
        image_size: height and width in pixels; None is the size that the weights were trained for.
        include_top: keep the network's own classifier, which shows how much the new data resemble the old.
            None keeps it where it works at this image size.
        **arguments: of the constructor, such as `alpha=0.5`.

    Returns:
        The network as its constructor makes it, but for layer names, which do not depend on what else was
        built before. It expects preprocessed input; the builders put that in front.

    Raises:
        InputError: unknown name or argument, too small an image size, weights that do not fit or that cannot
            be downloaded.

    Example:
        >>> load_backbone("MobileNetV2", weights="none", image_size=96, alpha=0.35).output.shape
        (None, 1000)
    """
    if str(name).endswith(".keras"):
        return _own(str(name), weights, image_size, include_top, arguments)
    family, name = _find(name)
    default = family.builders[name]
    size = _checked_size(name, family, default if image_size is None else image_size)
    if include_top is None and family.fixed_top and size != default:
        include_top = False
    constructor = next(
        getattr(m, name) for m in (demo_cnn, efficientnet_lite, keras.applications) if hasattr(m, name)
    )
    known = [p for p in inspect.signature(constructor).parameters if p not in ("weights", "include_top")]
    for argument in set(arguments).difference(known):
        raise unknown(f"argument of {name}", argument, known)

    def make(top: bool, size: int = size, weights: str | None = None) -> keras.Model:
        shape = {"input_shape": (size, size, 3), **arguments}
        return surgery.renumber(constructor(weights=weights, include_top=top, **shape))

    top = include_top is not False
    if weights in (None, "none"):
        return weight_files.build(partial(make, top), name)
    if weights == "imagenet" != family.weights:
        log.warning("%s has no weights of ImageNet. It takes its own: weights=%r.", name, family.weights)
    if weights not in ("pretrained", "imagenet", family.weights):
        tops = [True, False] if include_top is None else [top]
        return _from_file(name, make, str(weights), tops, default)
    # Keras refuses another size together with the top, although nothing but VGG's depends on it.
    first = default if top else size
    model = weight_files.download(partial(make, top, first, family.weights), name, instead=DEFAULT_BACKBONE)
    return model if first == size else surgery.clone(model, image_size=(size, size))


def _checked_size(name: str, family: Family, size: int) -> int:
    if not isinstance(size, Integral) or size < family.min_size:
        raise InputError(
            f"Expected an image size, one number of pixels, of at least {family.min_size} for {name}. "
            f"Received: {size!r}."
        )
    return int(size)


def _from_file(
    name: str, make: Callable[..., keras.Model], path: str, tops: Sequence[bool], default: int
) -> keras.Model:
    own = {"EfficientNetLite": ".pth", "DemoCNN": ".npz"}.get(name.rstrip("0123456789"))
    if own and path.endswith(own):  # their constructors read these
        try:
            return make(tops[0], weights=path)
        except InputError:
            if len(tops) == 1:
                raise
            return make(tops[1], weights=path)
    return weight_files.from_file(
        lambda top: weight_files.build(partial(make, top), name),
        path,
        name,
        tops=tops,
        whole=lambda: weight_files.build(partial(make, True, default), name),
    )


def _own(
    path: str, weights: Any, size: int | None, include_top: bool | None, arguments: dict[str, Any]
) -> keras.Model:
    if weights not in ("pretrained", "imagenet", None, "none") or include_top is not None or arguments:
        raise InputError(
            f"{path} brings its own weights and arguments. Of the options, image_size alone applies to it."
        )
    model = weight_files.saved_model(path)
    if size is None or tuple(model.input_shape[1:3]) == (size, size):
        return model
    return surgery.clone(model, image_size=(size, size))


def _find(name: str) -> tuple[Family, str]:
    for family in FAMILIES.values():
        for builder in family.builders:
            if builder.lower() == str(name).lower():
                return family, builder
    raise unknown("model", name, backbone_names(), hint="Any keras.applications constructor will do.")
