"""Networks of KerasHub: loaded by preset, and turned into graphs whose layers are the blocks of the network."""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import re
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import keras
import numpy as np

from transfer.common.errors import InputError, install_hint, one_line, unknown
from transfer.common.keras_private import all_layers, call_of, direct_layers, interpolated_positions
from transfer.networks import surgery
from transfer.networks.families import HUB_FAMILIES
from transfer.networks.graphs import graph
from transfer.networks.initial_values import as_array
from transfer.networks.preprocessing import scaling

PREFIX = "hub:"
"""Start of the name of a preset: `hub:dinov2_small`, `hub:hf://USER/MODEL`, `hub:kaggle://...` or `hub:FOLDER`."""

DEFAULT_SIZE = 224
"""Height and width of the images of a network that takes any size."""

ENCODERS = {
    "DINOV2Encoder": False,
    "DINOV3Encoder": False,
    "DeiTEncoderBlock": True,
    "HGNetV2Encoder": False,
    "HierarchicalTransformerEncoder": True,
    "PatchEmbedding": True,
    "SwinTransformerStage": True,
    "ViTEncoder": False,
}
"""Layers that are replaced by the layers in them, and whether the inner names need the outer name to be unique.

They hold several blocks, or they cannot be built again from their configuration.
"""

log = logging.getLogger(__name__)


def import_hub() -> ModuleType:
    """Return KerasHub; raise if it is not installed."""
    try:
        import keras_hub
    except ImportError as error:
        raise InputError(
            f"Presets of KerasHub need the extra hub, which is not installed. Install it: {install_hint('hub')}."
        ) from error
    return keras_hub


def plain_network(model: keras.Model, side: int | None = None) -> keras.Model:
    """Return a copy of a KerasHub backbone as a graph of its blocks; other models are returned as they are."""
    if not type(model).__module__.startswith("keras_hub."):
        return model
    encoder = getattr(model, "vision_encoder", model)
    return as_graph(with_image_size(encoder, side)) if type(encoder).__name__ in HUB_FAMILIES else model


def load_preset(name: str, *, weights: Any, image_size: int | None, **arguments: Any) -> keras.Model:
    """Load a preset as a graph that takes raw images, if the preset says how to scale them."""
    if weights not in ("pretrained", None, "none"):
        raise InputError(f"{name} has its own weights. Leave out weights={weights!r}, or use weights='none'.")
    random = weights != "pretrained"
    hub, preset = import_hub(), name.removeprefix(PREFIX)
    if preset in hub.models.Backbone.presets and preset not in preset_names():
        raise _not_for_images(name, "a preset of another kind")
    with _plain_errors(hub, name):
        backbone = hub.models.Backbone.from_preset(preset, load_weights=not random, **arguments)
    backbone = getattr(backbone, "vision_encoder", backbone)
    if type(backbone).__name__ not in HUB_FAMILIES:
        raise _not_for_images(name, f"a {type(backbone).__name__}")
    try:
        converter = hub.layers.ImageConverter.from_preset(preset)
    except Exception:  # KerasHub raises errors of many classes
        converter = None
        log.warning("%s does not say how its images are scaled. Using the scaling of its family.", name)
    own = converter.image_size[0] if converter is not None and converter.image_size else None
    return as_graph(with_image_size(backbone, image_size or own), converter)


def _not_for_images(name: str, kind: str) -> InputError:
    return InputError(
        f"Expected a preset of an image network. Received: {name!r}, {kind}. Supported are presets of: "
        f"{', '.join(HUB_FAMILIES)}."
    )


@contextlib.contextmanager
def _plain_errors(hub: ModuleType, name: str) -> Iterator[None]:
    """Turn the errors of KerasHub's loading into one sentence with the remedy."""
    try:
        yield
    except Exception as error:  # downloaders and file formats raise errors of many classes
        preset = name.removeprefix(PREFIX)
        if "://" not in preset and "/" not in preset and preset not in hub.models.Backbone.presets:
            raise unknown("preset of KerasHub", preset, preset_names()) from error
        raise InputError(
            f"The preset {name!r} cannot be loaded: {_reason(error)}. Without a network connection, download its "
            f"folder on another machine, and use {PREFIX}FOLDER."
        ) from error


def _reason(error: Exception) -> str:
    """Return why a preset cannot be loaded, in a few words."""
    text = str(error)
    if host := re.search(r"host='([^']+)'|https://([^/\s]+)", text):
        return f"{host[1] or host[2]} cannot be reached or does not have the preset"
    if "no config.json" in text or "Unknown preset" in text:
        return "no preset was found there"
    return one_line(error, most=200).rstrip(".")


def preset_names() -> list[str]:
    """List the presets of image networks that KerasHub knows by name."""
    models = import_hub().models
    # The presets of an image encoder are those of the whole network, with its text encoder.
    classes = [*HUB_FAMILIES, *(name.replace("VisionEncoder", "Backbone") for name in HUB_FAMILIES)]
    found = [getattr(models, name, None) for name in classes]
    return sorted({name for one in found if one is not None for name in one.presets})


def with_image_size(backbone: keras.Model, side: int | None = None) -> keras.Model:
    """Return a new network with the same weights for square images, with position embeddings interpolated."""
    config = backbone.get_config()
    name = next(key for key in ("image_shape", "input_shape") if key in config)
    side = side or config[name][0] or DEFAULT_SIZE
    config[name] = (side, side, 3)
    if "position_embedding_shape" in config:
        # Saving would interpolate to this shape, and would not save what was trained.
        config["position_embedding_shape"] = (side, side, 3)
    if "use_mask_token" in config:  # it is for pre-training only
        config["use_mask_token"] = False
    try:
        new = type(backbone).from_config(config)
    except Exception as error:  # layers raise errors of many classes
        raise InputError(
            f"{type(backbone).__name__} cannot take images of {side} pixels: {one_line(error, most=200)}"
        ) from error
    kept = [weight for weight in backbone.weights if weight.name != "mask_token"]
    for old, target in zip(kept, new.weights, strict=True):
        if old.shape == target.shape:
            target.assign(as_array(old))
        elif "rel_pos_" in target.path:  # ViTDet: distances along one side
            resized = _resized(as_array(old)[None, :, None], (target.shape[0], 1), "bilinear")
            target.assign(resized[0, :, 0])
        elif "position_ids" in target.path:  # these count the positions
            target.assign(np.arange(target.shape[-1]).reshape(target.shape))
        else:
            target.assign(_interpolated(as_array(old), tuple(target.shape)))
    for old, target in zip(all_layers(backbone), all_layers(new), strict=True):
        if hasattr(old, "interpolated_position_embeddings"):
            values = _by_family(old, side)
            target.position_embeddings.assign(values)
            target.interpolated_position_embeddings.assign(values)
    return new


def _by_family(layer: Any, side: int) -> np.ndarray:
    """Return the position embeddings of DINOv2 for an image size, by its own interpolation."""
    if layer.image_shape[0] == side:
        return as_array(layer.interpolated_position_embeddings)
    return np.asarray(keras.ops.convert_to_numpy(interpolated_positions(layer, side)))


def _interpolated(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate the position embeddings of a grid of patches; those of other tokens, which come first, stay."""
    if values.ndim == 4:  # ViTDet: the grid itself
        return _resized(values, shape[1:3])
    rows, count = values.reshape(-1, values.shape[-1]), shape[-2]
    old, new = math.isqrt(len(rows)), math.isqrt(count)
    others = len(rows) - old * old
    if count - new * new != others:
        raise InputError(
            f"Expected position embeddings of a square grid. Received: {values.shape}. Use a network for square images."
        )
    resized = _resized(rows[others:].reshape(1, old, old, -1), (new, new))
    return np.concatenate([rows[:others], resized.reshape(new * new, -1)]).reshape(shape)


def _resized(grid: np.ndarray, size: tuple[int, ...], interpolation: str = "bicubic") -> np.ndarray:
    resized = keras.ops.image.resize(grid, size, interpolation=interpolation, data_format="channels_last")
    return keras.ops.convert_to_numpy(resized)


def as_graph(backbone: keras.Model, converter: Any = None) -> keras.Model:
    """Build a graph of the same layers, with blocks in place of encoders and the scaling of a converter in front."""
    output = backbone.output
    output = [*output.values()][-1] if isinstance(output, dict) else output
    nodes = graph(keras.Model(backbone.inputs[0], output))
    image = keras.Input(tuple(nodes[0].tensor.shape[1:]), name="image")
    # A converter without a scale passes raw images on.
    values: dict[int, Any] = {0: scaling(converter.scale, converter.offset)(image) if converter else image}
    for place, node in enumerate(nodes):
        if place not in values:
            call = call_of(node.tensor)
            rest = iter([values[parent] for parent in node.parents])
            args, kwargs = keras.tree.map_structure(
                lambda a, rest=rest: next(rest) if isinstance(a, keras.KerasTensor) else a,
                (call.args, call.kwargs),
            )
            values[place] = keras.tree.flatten(_call_blocks(node.op)(*args, **kwargs))[call.output]
    return surgery.renumber(keras.Model(image, values[len(nodes) - 1], name=type(backbone).__name__))


def _call_blocks(op: Any) -> Callable[..., Any]:
    """Return an operation itself, or for an encoder a function that calls its blocks as layers."""
    kind = type(op).__name__
    if kind not in ENCODERS:
        return functools.partial(_SPECIAL[kind], op) if kind in _SPECIAL else op
    if ENCODERS[kind]:
        inner = direct_layers(op)
        surgery.renumber_names(inner)
        for layer in inner:
            layer.name = f"{op.name}_{layer.name}"
    return functools.partial(_SPECIAL[kind], op) if kind in _SPECIAL else op.call


def _run_deit(encoder: Any, x: Any) -> Any:
    """Call the layers of DeiT's blocks; a block itself returns None besides its output, which no graph can hold."""
    for block in encoder.encoder_layers:
        x, _ = _call_blocks(block)(x)
    return encoder.layer_norm(x)


def _run_swin(stage: Any, x: Any) -> Any:
    """Call the blocks of a stage of Swin; their own output shape lacks the number of tokens."""
    height, width = stage.input_resolution
    for block in stage.blocks:
        x = keras.layers.Reshape((height * width, stage.dim), name=f"{block.name}_tokens")(block(x))
    if stage.downsample is None:
        return x
    count = ((height + 1) // 2) * ((width + 1) // 2)
    merged = stage.downsample(x, H=height, W=width)
    return keras.layers.Reshape((count, 2 * stage.dim), name=f"{stage.downsample.name}_tokens")(merged)


def _embed_patches(layer: Any, x: Any) -> Any:
    """Call the layers of Swin's patch embedding, whose get_config() fails."""
    x = keras.layers.Reshape((-1, layer.embed_dim), name="patches")(layer.proj(x))
    return layer.norm(x) if layer.norm else x


_SPECIAL: dict[str, Callable[[Any, Any], Any]] = {
    "DeiTEncoder": _run_deit,
    "PatchEmbedding": _embed_patches,
    "SwinTransformerStage": _run_swin,
}
"""Layers that are called in another way, because their output or its shape is not that of a layer."""
