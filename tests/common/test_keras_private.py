"""Private names of Keras and TensorFlow that the package uses. Each test says what breaks when one of them changes."""

from __future__ import annotations

import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny, two_replicas

from transfer.common import keras_private

layers = keras.layers


def compiled(optimizer: keras.optimizers.Optimizer | str = "sgd") -> keras.Model:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, kernel_initializer="ones")])
    model.compile(optimizer, "mse")
    return model


def train(model: keras.Model) -> float:
    return model.fit(np.ones((4, 3)), np.zeros((4, 2)), batch_size=4, verbose=0).history["loss"][0]


def test_call_of_a_tensor():
    """Without `_keras_history` and `_inbound_nodes` no graph can be read: no slice, no fingerprint, no explanation."""
    image = keras.Input((4,))
    dense = layers.Dense(3)
    tensor = keras.ops.add(dense(image), 2)
    call = keras_private.call_of(tensor)
    assert isinstance(call.op, keras.Operation) and call.outputs[call.output] is tensor
    assert call.args[1:] == (2,) and not call.kwargs
    (inner,) = call.inputs
    assert keras_private.call_of(inner).op is dense and keras_private.call_of(inner).inputs[0] is image


def test_call_of_one_of_several_outputs():
    """Without the output's index in `_keras_history` the wrong part of a split layer is sliced."""
    first, second = keras.ops.split(keras.Input((4,)), 2, axis=-1)
    assert [keras_private.call_of(tensor).output for tensor in (first, second)] == [0, 1]


def test_count_calls():
    """Without `_inbound_nodes` the adviser cannot skip BatchNormalization layers that are called twice."""
    dense = layers.Dense(4)
    dense(dense(keras.Input((4,))))
    assert keras_private.count_calls(dense) == 2


def test_accepts_training():
    """Without `_call_has_training_arg` explanations run Dropout and BatchNormalization in training mode."""
    assert keras_private.accepts_training(layers.Dropout(0.5))
    assert not keras_private.accepts_training(layers.ReLU())
    assert not keras_private.accepts_training(keras_private.call_of(keras.ops.add(keras.Input((4,)), 2)).op)


def test_all_layers():
    """Without `_flatten_layers` flags do not reach layers inside other layers: frozen networks would train."""
    inner = make_tiny()
    outer = keras.Sequential([keras.Input((32, 32, 3)), inner, layers.Dropout(0.5)])
    found = keras_private.all_layers(outer)
    assert found[0] is outer and inner in found and set(inner.layers) <= set(found)
    operation = keras_private.call_of(keras.ops.add(keras.Input((4,)), 2)).op
    assert keras_private.all_layers(operation) == []


class Shifted(layers.Layer):
    def __init__(self, by):
        super().__init__()
        self.by, self.inner = by, [layers.Dense(2)]
        self.start = self.add_weight(shape=(2,), trainable=False, name="start")

    def call(self, x):
        return self.inner[0](x) + self.start + self.by


def test_copied_attributes():
    """Without these names custom layers without get_config() cannot be copied, or copies share variables."""
    old = Shifted(3)
    image = keras.Input((2,))
    old(image)
    new = keras_private.blank_layer(Shifted)
    values = {id(v): keras_private.copy_variable(v, v.numpy()) for v in old.variables}
    values[id(old.inner[0])] = dense = layers.Dense(2)
    keras_private.copy_attributes(old, new, lambda value: values.get(id(value), value))
    assert new.by == 3 and new.built and new.start is values[id(old.start)]
    assert new.start is not old.start and new.start.path == old.start.path and not new.start.trainable
    assert keras_private.direct_layers(new)[0] is dense
    with pytest.raises(ValueError, match="already built"):
        new.more = layers.Dense(3)
    assert set(keras_private.own_attributes(old)) == {"by", "inner", "start"}
    assert keras_private.own_variables(new) == [new.start]
    assert old.get_config()["by"] == new.get_config()["by"]


def test_draws_random_numbers():
    """Without `_seed_generators` the cache keeps features behind Dropout and random augmentation."""
    assert keras_private.draws_random_numbers(layers.Dropout(0.5))
    assert keras_private.draws_random_numbers(layers.RandomFlip())
    assert not keras_private.draws_random_numbers(layers.Dense(3))


def test_has_own_state():
    """Without `_non_trainable_variables` the cache keeps features behind a layer whose state changes."""
    norm = layers.BatchNormalization()
    norm.build((None, 4))
    dense = layers.Dense(3)
    dense.build((None, 4))
    dense.trainable = False
    assert keras_private.has_own_state(norm) and not keras_private.has_own_state(dense)


def test_has_schedule():
    """Without `_learning_rate` training overwrites the schedule that the user gave to the optimizer."""
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    assert keras_private.has_schedule(keras.optimizers.SGD(schedule))
    assert not keras_private.has_schedule(keras.optimizers.SGD(0.1))


def test_index_of_a_variable():
    """Without `_get_variable_index` layer-wise learning-rate decay cannot find the block of a variable."""
    model = compiled()
    train(model)
    found = [keras_private.index_of(model.optimizer, variable) for variable in model.trainable_variables]
    assert found == [0, 1]


def test_replaced_update_step():
    """Without `update_step` and `train_function` layer-wise decay, weight decay and unfreezing have no effect."""
    model = compiled()
    train(model)  # Keras has traced the training step
    before, step = model.get_weights(), model.optimizer.update_step
    with keras_private.replaced_update_step(model, model.optimizer, lambda gradient, variable, rate: None):
        train(model)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))
    assert model.optimizer.update_step == step
    train(model)
    assert not np.array_equal(before[0], model.get_weights()[0])


@pytest.mark.parametrize("wrapped", [False, True])
def test_averages_are_applied_on_request_only(wrapped):
    """Without `finalize_variable_values` the average of the weights is lost, or replaces them before validation."""
    inner = optimizer = keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5)
    if wrapped:
        optimizer = keras.optimizers.LossScaleOptimizer(inner, initial_scale=1.0)
    model = compiled(optimizer)
    with keras_private.averages_not_applied(inner):
        train(model)
        last = model.get_weights()[0]
        train(model)
        assert not np.array_equal(last, model.get_weights()[0])
        last = model.get_weights()[0]
        keras_private.apply_averages(optimizer, model.trainable_variables)
        assert not np.array_equal(last, model.get_weights()[0])
    last = model.get_weights()[0]
    inner.finalize_variable_values(model.trainable_variables)
    assert np.array_equal(last, model.get_weights()[0])  # the averages are in place already


def test_symbolic_build_on_two_replicas():
    """Without `_maybe_symbolic_build` training on several devices consumes the first batch to build the metrics."""
    with two_replicas().scope():
        model = compiled()
    batch = (np.zeros((1, 3), "float32"), np.zeros((1, 2), "float32"))
    keras_private.replace_symbolic_build(model, batch, two_replicas().scope)
    assert not model.optimizer.built
    model._maybe_symbolic_build(iterator=iter(()))  # as `fit` does; it has no batch to give
    assert model.optimizer.built


def test_update_loss():
    """Without `_loss_tracker` the loss that training on several devices reports is wrong."""
    model = compiled()
    keras_private.update_loss(model, 1.0, 1)
    keras_private.update_loss(model, 4.0, 2)
    loss = next(metric for metric in model.metrics if metric.name == "loss")
    assert float(loss.result()) == pytest.approx(3.0)


def test_divide_cardinality():
    """Without `_cardinality` Keras waits for twice as many steps as two devices take in an epoch."""
    import tensorflow as tf

    strategy = two_replicas()
    dataset = tf.data.Dataset.range(8).batch(2)
    distributed = strategy.distribute_datasets_from_function(lambda context: dataset)
    assert int(distributed.cardinality) == 4
    keras_private.divide_cardinality(distributed, 2)
    assert int(distributed.cardinality) == 2


def test_set_worker_timeouts(monkeypatch):
    """Without the coordination service's settings TensorFlow waits an hour for a missing worker, and never reports one
    that is gone."""
    from tensorflow.python.eager import context

    fresh = context.Context()
    monkeypatch.setattr(context, "context", lambda: fresh)
    keras_private.set_worker_timeouts(3, start=2.5, heartbeat=10)
    config = fresh.coordination_service
    assert config.cluster_register_timeout_in_ms == 2500 and config.heartbeat_timeout_in_ms == 10_000
    assert [(job.name, job.num_tasks) for job in config.coordinated_job_list] == [("worker", 3)]


def test_with_constants():
    """Without `convert_variables_to_constants_v2` no model can be exported, and OpenVINO cannot be used."""
    import tensorflow as tf

    variable = tf.Variable([2.0, 3.0])
    traced = tf.function(lambda x: x * variable).get_concrete_function(tf.TensorSpec((2,), tf.float32))
    frozen = keras_private.with_constants(traced)
    assert len(traced.captured_inputs) == 1 and not frozen.captured_inputs
    assert np.array_equal(frozen(tf.constant([1.0, 2.0]))[0], [2.0, 6.0])


def test_arguments_of_compile():
    """Without `_compile_config` a model cannot be compiled again with the loss and the metrics of the user."""

    def loss(labels, outputs):
        return keras.ops.mean(outputs, axis=-1)

    model, metric = compiled(), keras.metrics.MeanSquaredError()
    model.compile("sgd", loss, metrics=[metric], steps_per_execution=3)
    given = keras_private.compile_arguments(model)
    assert given["loss"] is loss and given["metrics"][0] is metric and given["steps_per_execution"] == 3
    other = compiled()
    other.compile(**given)
    assert train(other) == pytest.approx(3.0, abs=0.2)


LEAN = """
import gc, sys
from transfer.common.keras_private import lean_imports
before = gc.get_threshold()
with lean_imports("json.tool"):
    import keras
assert gc.get_threshold() == before
assert not {"sklearn", "matplotlib"} & set(sys.modules)
import json.tool
import keras.src.visualization.draw_bounding_boxes
print(keras.wrappers.SKLearnClassifier.__name__, keras.visualization.plot_image_gallery.__name__)
from keras.wrappers import SKLearnClassifier
from sklearn.base import BaseEstimator
assert issubclass(SKLearnClassifier, BaseEstimator) and not hasattr(keras.wrappers, "none")
"""


def test_modules_that_are_imported_when_they_are_used():
    """If Keras renames these modules, commands import scikit-learn and matplotlib, which takes a second."""
    done = subprocess.run([sys.executable, "-c", LEAN], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "SKLearnClassifier plot_image_gallery"


def test_keras_that_is_imported_already_stays():
    wrappers = keras.wrappers
    with keras_private.lean_imports("json"):
        assert keras.wrappers is wrappers
        assert sys.modules["json"] is not None
    assert keras.wrappers is wrappers


def test_function_of():
    """Without `function_from_graph_def` Swin's networks cannot run in OpenVINO."""
    import tensorflow as tf

    traced = tf.function(lambda x: x + 1.0).get_concrete_function(tf.TensorSpec((2,), tf.float32))
    definition = traced.graph.as_graph_def()
    again = keras_private.function_of(definition, traced.inputs, traced.outputs)
    assert np.array_equal(again(tf.constant([1.0, 2.0]))[0], [2.0, 3.0])
