"""Fold BatchNormalization into the convolution before it, so that a network takes less time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import keras

from transfer.networks.graphs import Node, call_again, graph

_CONVOLUTIONS = (keras.layers.Conv2D, keras.layers.DepthwiseConv2D)


def fold_batchnorm(model: keras.Model, *, frozen_only: bool = True) -> keras.Model:
    """Return a model with folded layers and the same variables, or the model itself if nothing can be folded."""
    # With `frozen_only=False`, the new model must not be trained.
    nodes = graph(model)
    folded = _foldable(nodes, frozen_only)
    if not folded:
        return model
    everything, skipped = range(len(nodes)), set(folded.values())
    values: dict[int, Any] = {0: nodes[0].tensor}
    for place in everything:
        if place in folded:
            convolution = nodes[folded[place]]
            layer = FoldedConvolution(convolution.op, nodes[place].op)
            values[place] = layer(values[convolution.parents[0]])
        elif place not in skipped:
            values = call_again(nodes, values, [place], keep=everything)
    return keras.Model(model.inputs[0], values[len(nodes) - 1], name=model.name)


def _foldable(nodes: Sequence[Node], frozen_only: bool) -> dict[int, int]:
    """Map the position of each BatchNormalization that can be folded to the position of its convolution."""
    uses = Counter(parent for node in nodes for parent in node.parents)
    calls = Counter(id(node.op) for node in nodes)
    return {
        place: node.parents[0]
        for place, node in enumerate(nodes)
        if type(node.op) is keras.layers.BatchNormalization
        and node.op.axis in (-1, len(node.tensor.shape) - 1)
        if not (frozen_only and node.op.trainable)
        # Nothing else uses the output of the convolution, and both layers are called once.
        if uses[node.parents[0]] == calls[id(nodes[node.parents[0]].op)] == calls[id(node.op)] == 1
        if _is_plain(nodes[node.parents[0]].op)
    }


def _is_plain(op: Any) -> bool:
    """Return whether an operation is a linear convolution in float32 with channels last."""
    return (
        type(op) in _CONVOLUTIONS
        and op.data_format == "channels_last"
        and op.compute_dtype == "float32"
        and op.activation is keras.activations.linear
        and op.activity_regularizer is None
    )


class FoldedConvolution(keras.layers.Layer):
    """A convolution and its frozen BatchNormalization as one convolution with a bias; it shares their variables."""

    def __init__(self, convolution: Any, norm: keras.layers.BatchNormalization) -> None:
        super().__init__(name=norm.name, dtype=convolution.dtype_policy)  # its output is that of `norm`
        self.convolution, self.norm = convolution, norm
        # `receptive_fields` reads these attributes.
        self.kernel_size, self.strides = convolution.kernel_size, convolution.strides
        self.dilation_rate = convolution.dilation_rate
        self.built = True

    def call(self, x: Any) -> Any:
        """Return the normalized output of the convolution, up to rounding."""
        ops, layer, norm = keras.ops, self.convolution, self.norm
        scale = ops.rsqrt(norm.moving_variance + norm.epsilon)
        scale = scale * norm.gamma if norm.scale else scale
        shift = ((layer.bias if layer.use_bias else 0.0) - norm.moving_mean) * scale
        shift = shift + norm.beta if norm.center else shift
        if isinstance(layer, keras.layers.DepthwiseConv2D):
            kernel = layer.kernel * ops.reshape(scale, layer.kernel.shape[2:])
            options = {
                "strides": self.strides,
                "padding": layer.padding,
                "dilation_rate": self.dilation_rate,
            }
            return ops.depthwise_conv(x, kernel, **options) + shift
        kernel = layer.kernel * scale
        if None in x.shape[1:] or (*self.kernel_size, *self.strides, layer.groups) != (1, 1, 1, 1, 1):
            return layer.convolution_op(x, kernel) + shift
        # TensorFlow multiplies matrices faster than it convolves.
        rows = ops.matmul(ops.reshape(x, (-1, x.shape[-1])), ops.reshape(kernel, kernel.shape[2:])) + shift
        return ops.reshape(rows, (-1, *x.shape[1:-1], kernel.shape[-1]))
