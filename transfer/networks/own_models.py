"""Networks from the user's own files: checked, taken apart, and made for one image size."""

from __future__ import annotations

import logging

import keras

from transfer.common.errors import InputError
from transfer.networks import surgery
from transfer.networks.graphs import graph
from transfer.networks.model_files import CustomObjects, saved_model
from transfer.networks.model_forms import model_place

log = logging.getLogger(__name__)

DEFAULT_SIZE = 224
"""Height and width of the images of a network that takes any size; most networks were trained with it."""


def load_own(name: str, image_size: int | None, custom_objects: CustomObjects) -> keras.Model:
    """Load a network from a file or a run's folder, for images of one size."""
    model = saved_model(model_place(name), custom_objects=custom_objects)
    graph(model)  # raises for a network that has no graph, or several inputs or outputs
    _check_input(model)
    _check_quantized(model)
    sizes = model.input_shape[1:3]
    if image_size is None and None in sizes:
        image_size = next(filter(None, sizes), DEFAULT_SIZE)
        log.info("%s takes images of any size. Using %d pixels; see --image-size.", model.name, image_size)
    mixed = any(getattr(node.op, "compute_dtype", "float32") != "float32" for node in graph(model))
    size = None if image_size is None else (image_size, image_size)
    if size in (None, tuple(sizes)) and not mixed:
        return model
    # The precision of the training is an option of its own, so the network starts in float32.
    return surgery.clone(model, image_size=size, precision="float32" if mixed else None)


def _check_input(model: keras.Model) -> None:
    """Raise unless a network takes color images with their channels last."""
    shape = model.input_shape[1:]
    if len(shape) == 3 and shape[-1] == 3:
        return
    hint = "Choose a network for color images."
    if len(shape) == 3 and shape[0] in (1, 3) and shape[-1] not in (1, 3, 4):
        hint = (
            "Its channels come first. Build it with the image data format channels_last, and save it again."
        )
    elif len(shape) == 3 and shape[-1] in (1, 4):
        kind = (
            "gray images: put a layer in front that averages the channels" if shape[-1] == 1 else "4 channels"
        )
        hint = (
            f"It takes {kind}. All images are read as RGB. Choose or build a network that takes RGB images."
        )
    raise InputError(
        f"Expected a network for images of shape (height, width, 3). Received: {model.name!r}, which takes "
        f"{tuple(shape)}. {hint}"
    )


def _check_quantized(model: keras.Model) -> None:
    """Raise for a quantized network: its weights are integers, which cannot be trained."""
    for node in graph(model):
        if getattr(node.op, "quantization_mode", None):
            raise InputError(
                f"{model.name!r} is quantized ({node.op.quantization_mode}) and cannot be trained. Pass the model "
                "before quantization; transfer.export quantizes the result."
            )
