"""Every use of private Keras and TensorFlow API in the package.

A new version of Keras or TensorFlow may change any of these names. `tests/common/test_keras_private.py` has one test
for each use, which says what breaks.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import keras

# The first two import scikit-learn, the others matplotlib.
_DEFERRED = (
    "keras.wrappers",
    "keras._tf_keras.keras.wrappers",
    "keras.visualization",
    "keras._tf_keras.keras.visualization",
    "keras.src.visualization",
)


class _Deferred(ModuleType):
    """A placeholder for a module of Keras, which is imported when one of its names is used."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)


@contextlib.contextmanager
def lean_imports(*hidden: str) -> Iterator[None]:
    """Speed up the import of Keras in a `with` block: defer rarely used modules, and let imports of `hidden` fail."""
    stand_ins: dict[str, Any] = {name: _Deferred(name) for name in _DEFERRED} | dict.fromkeys(hidden)
    stand_ins = {name: module for name, module in stand_ins.items() if name not in sys.modules}
    sys.modules.update(stand_ins)
    # Importing hundreds of modules creates many objects and little garbage: collect it less often.
    thresholds = gc.get_threshold()
    gc.set_threshold(50_000, 20, 100)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]


class Call(NamedTuple):
    """The call of an operation that made a symbolic tensor."""

    op: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: list[keras.KerasTensor]
    outputs: list[keras.KerasTensor]
    output: int  # index of the tensor among the outputs


def call_of(tensor: keras.KerasTensor) -> Call:
    """Return the call that made a symbolic tensor."""
    op, node_index, output = tensor._keras_history
    node = op._inbound_nodes[node_index]
    arguments = node.arguments
    return Call(op, arguments.args, arguments.kwargs, node.input_tensors, node.output_tensors, output)


def count_calls(op: Any) -> int:
    """Count the calls of an operation on symbolic tensors."""
    return len(op._inbound_nodes)


def accepts_training(op: Any) -> bool:
    """Return whether an operation is a layer with a `training` argument."""
    return bool(getattr(op, "_call_has_training_arg", False))


def all_layers(op: Any) -> list[keras.layers.Layer]:
    """Return a layer and all layers inside it; an empty list for an operation that is no layer."""
    import keras

    return list(op._flatten_layers()) if isinstance(op, keras.layers.Layer) else []


def direct_layers(layer: keras.layers.Layer) -> list[keras.layers.Layer]:
    """Return the layers that a layer holds itself, without those inside them."""
    return list(layer._flatten_layers(recursive=False, include_self=False))


def kernel_without_lora(layer: keras.layers.Layer) -> keras.Variable:
    """Return the matrix of a layer to which LoRA adds a product."""
    return layer._kernel


def interpolated_positions(layer: Any, side: int) -> Any:
    """Return the position embeddings of KerasHub's DINOv2 for an image size in pixels, as it interpolates them."""
    return layer._interpolate_position_embeddings(
        layer.position_embeddings,
        patch_size=layer.patch_size,
        source_shape=layer.position_embedding_shape,
        target_shape=(side, side),
        antialias=layer.antialias_in_interpolation,
    )


# Settings among the attributes that the constructor of each layer sets; the others are records of its own calls.
_SETTINGS = (
    "_allow_non_tensor_positional_args",
    "_auto_config",
    "_build_shapes_dict",
    "_convert_input_args",
    "_dtype_policy",
    "_input_spec",
    "_path",
    "_supports_masking",
    "_trainable",
    "activity_regularizer",
    "autocast",
    "built",
    "supports_jit",
)


def blank_layer(kind: type) -> Any:
    """Return a layer or a model of a class whose own constructor has not run."""
    import keras

    new = keras.layers.Layer.__new__(kind)
    base = keras.Model if issubclass(kind, keras.Model) else keras.layers.Layer
    base.__init__(new, name="blank")  # a name of its own keeps Keras from counting it
    return new


def own_attributes(layer: keras.layers.Layer) -> dict[str, Any]:
    """Return the attributes that the class of a layer sets, without those that every layer has."""
    of_all = {"_compile_config", "optimizer", *vars(blank_layer(_base_of(layer)))}
    # TensorFlow notes its own records of a layer under these prefixes.
    records = ("_self_", "_obj_reference_counts")
    return {k: v for k, v in vars(layer).items() if k not in of_all and not k.startswith(records)}


def _base_of(layer: keras.layers.Layer) -> type:
    import keras

    return keras.Model if isinstance(layer, keras.Model) else keras.layers.Layer


def own_variables(layer: keras.layers.Layer) -> list[keras.Variable]:
    """Return the variables of a layer, without those of the layers inside it and of random generators."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def copy_attributes(old: keras.layers.Layer, new: Any, copied: Callable[[Any], Any]) -> None:
    """Give a blank layer the variables, inner layers and attributes of another one, in the same order."""
    for store, (_, values) in old._tracker.config.items():
        for value in values:
            new._tracker.add_to_store(store, copied(value))
    settings = {name: vars(old)[name] for name in _SETTINGS if name in vars(old)}
    for name, value in (settings | own_attributes(old)).items():
        setattr(new, name, copied(value))
    if old._tracker.locked:
        new._lock_state()


def copy_variable(old: keras.Variable, value: Any) -> keras.Variable:
    """Return a new variable with the settings of another one."""
    import keras

    options = {
        name: getattr(old, name) for name in ("dtype", "trainable", "aggregation", "synchronization", "name")
    }
    new = keras.Variable(value, autocast=old._autocast, **options)
    new.regularizer, new.constraint, new._path = old.regularizer, old.constraint, old._path
    new.overwrite_with_gradient = old.overwrite_with_gradient
    return new


def draws_random_numbers(layer: keras.layers.Layer) -> bool:
    """Return whether a layer itself, without the layers inside it, has a random generator."""
    return bool(layer._seed_generators)


def has_own_state(layer: keras.layers.Layer) -> bool:
    """Return whether a layer itself has variables that are never trained by gradients."""
    return bool(layer._non_trainable_variables)


def has_schedule(optimizer: keras.optimizers.Optimizer) -> bool:
    """Return whether an optimizer's learning rate is a schedule of Keras."""
    import keras

    return isinstance(optimizer._learning_rate, keras.optimizers.schedules.LearningRateSchedule)


def index_of(optimizer: keras.optimizers.Optimizer, variable: keras.Variable) -> int:
    """Return the index of a variable among those that an optimizer trains."""
    return int(optimizer._get_variable_index(variable))


def compile_arguments(model: keras.Model) -> dict[str, Any]:
    """Return the arguments with which a model was compiled: the objects themselves, with their present state."""
    return dict(model._compile_config.config)


UpdateStep = Callable[[Any, Any, Any], None]
"""Updates one variable: takes its gradient, the variable and the learning rate."""


@contextlib.contextmanager
def replaced_update_step(model: keras.Model, optimizer: Any, update_step: UpdateStep) -> Iterator[None]:
    """Replace an optimizer's step for one variable, within a `with` block."""
    # Keras keeps the training step that it traced, with the old step in it, unless train_function is None.
    optimizer.update_step, model.train_function = update_step, None
    try:
        yield
    finally:
        del optimizer.update_step
        model.train_function = None


@contextlib.contextmanager
def averages_not_applied(optimizer: Any) -> Iterator[None]:
    """Stop `fit` from replacing the weights by their averages when it ends, within a `with` block."""
    optimizer.finalize_variable_values = lambda variables: None
    try:
        yield
    finally:
        del optimizer.finalize_variable_values


def apply_averages(optimizer: Any, variables: Sequence[keras.Variable]) -> None:
    """Replace the weights by the averages that an optimizer keeps, also inside `averages_not_applied`."""
    inner = getattr(optimizer, "inner_optimizer", optimizer)  # for a LossScaleOptimizer
    type(inner).finalize_variable_values(inner, variables)


def replace_symbolic_build(model: keras.Model, batch: tuple[Any, ...], scope: Callable[[], Any]) -> None:
    """Let `fit` build a model's metrics and optimizer from this batch, inside a scope."""

    def build(iterator: Any = None, data_batch: Any = None) -> None:
        with scope():
            model._symbolic_build(data_batch=batch)

    model._maybe_symbolic_build = build


def update_loss(model: keras.Model, loss: Any, count: Any) -> None:
    """Add the loss of a batch of `count` images to the mean loss that `fit` reports."""
    model._loss_tracker.update_state(loss, sample_weight=count)


def divide_cardinality(dataset: Any, divisor: int) -> None:
    """Divide the number of batches that a distributed data set reports."""
    dataset._cardinality //= divisor


def set_worker_timeouts(count: int, start: float, heartbeat: float) -> None:
    """Set the seconds that TensorFlow waits for `count` workers to start, and for their heartbeats."""
    from tensorflow.python.distribute import collective_all_reduce_strategy
    from tensorflow.python.eager import context

    job = collective_all_reduce_strategy.coordination_config_pb2.CoordinatedJob
    context.context().configure_coordination_service(
        service_type="standalone",
        service_leader="/job:worker/replica:0/task:0",
        cluster_register_timeout_in_ms=int(1000 * start),
        heartbeat_timeout_in_ms=int(1000 * heartbeat),
        shutdown_barrier_timeout_in_ms=int(1000 * heartbeat),
        coordinated_jobs=[job(name="worker", num_tasks=count)],
    )


def with_constants(function: Any) -> Any:
    """Return a concrete TensorFlow function with its variables turned into constants."""
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    return convert_variables_to_constants_v2(function)


def function_of(definition: Any, inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Return a concrete TensorFlow function of a graph's definition, with the inputs and outputs of these names."""
    from tensorflow.python.eager.wrap_function import function_from_graph_def

    return function_from_graph_def(
        definition, *([tensor.name for tensor in ends] for ends in (inputs, outputs))
    )
