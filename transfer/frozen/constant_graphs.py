"""Frozen networks as TensorFlow graphs with constant weights, and the layer after which a network can be split."""

from __future__ import annotations

from typing import TYPE_CHECKING

import keras

from transfer.common.keras_private import function_of, with_constants
from transfer.networks.graphs import bottlenecks, graph

if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
if TYPE_CHECKING:
    from tensorflow.types.experimental import ConcreteFunction

_UPDATE = "XlaDynamicUpdateSlice"
"""Operation that no converter knows. Swin's blocks make the masks of shifted windows with it, from constants."""


def constant_function(model: keras.Model, shape: tuple[int, ...]) -> ConcreteFunction:
    """Trace a model in inference mode for one batch shape, with its variables as constants."""
    # Constants let TensorFlow fold BatchNorm into convolutions. Inserting them during the trace takes half the time of
    # freezing the graph afterwards.
    values = [(variable, keras.ops.convert_to_numpy(variable)) for variable in model.variables]

    @tf.function(autograph=False)
    def call(images: tf.Tensor) -> list[tf.Tensor]:
        with keras.StatelessScope(state_mapping=[(v, tf.constant(array)) for v, array in values]):
            return [tf.cast(y, tf.float32) for y in keras.tree.flatten(model(images, training=False))]

    function = call.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    # Some layers capture tensors; Normalization captures those that it computes from its variables.
    updates = any(op.type == _UPDATE for op in function.graph.get_operations())
    return all_constant(function) if function.captured_inputs or updates else function


def all_constant(function: ConcreteFunction) -> ConcreteFunction:
    """Return a function with constants for its variables, and for the masks that it makes from constants."""
    frozen = with_constants(function)
    varying, updates = set(), []
    for op in frozen.graph.get_operations():
        if op.type == "Placeholder" or any(tensor.op in varying for tensor in op.inputs):
            varying.add(op)
        elif op.type == _UPDATE:
            updates.append(op)
    if not updates:
        return frozen
    values = frozen.prune([], [op.outputs[0] for op in updates])()
    found = {op.name: value.numpy() for op, value in zip(updates, values, strict=True)}
    definition = frozen.graph.as_graph_def()
    for node in definition.node:
        if node.name in found:
            with tf.Graph().as_default():
                node.CopyFrom(tf.constant(found[node.name], name=node.name).op.node_def)
    return function_of(definition, frozen.inputs, frozen.outputs)


def graph_behind(output: tf.Tensor, function: ConcreteFunction) -> tuple[tf.Graph, tf.Tensor, tf.Tensor]:
    """Return the graph that computes a function's last output from another output, with its input and output."""
    source = output.op.inputs[0] if output.op.type == "Identity" else output
    with tf.Graph().as_default() as rest:
        start = tf.compat.v1.placeholder(source.dtype, source.shape, name="maps")
        (end,) = tf.graph_util.import_graph_def(
            function.graph.as_graph_def(),
            input_map={source.name: start},
            return_elements=[function.outputs[-1].name],
            name="rest",
        )
    return rest, start, end


def small_maps(model: keras.Model) -> keras.KerasTensor | None:
    """Return feature maps of at most an eighth of the image's size, from which all later layers are computed."""
    nodes = graph(model)
    size = nodes[0].tensor.shape[1:3]
    folded = (keras.layers.Activation, keras.layers.ReLU, keras.layers.LeakyReLU)
    found: list[keras.KerasTensor] = []
    for place in bottlenecks(nodes)[1:-1]:
        maps = nodes[place].tensor
        if len(maps.shape) != 4 or None in (*maps.shape[1:], *size) or maps.dtype != "float32":
            continue
        small = 64 * maps.shape[1] * maps.shape[2] <= size[0] * size[1]
        # OpenVINO could not merge a convolution with its BatchNorm or activation if the cut separated them.
        merged = "Conv" in type(nodes[place].op).__name__ or isinstance(nodes[place + 1].op, folded)
        if small and not merged and (not found or maps.shape[1:3] == found[0].shape[1:3]):
            found.append(maps)
    return min(found, key=lambda maps: maps.shape[3], default=None)
