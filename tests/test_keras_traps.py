"""Behaviour of Keras that the package works around. If a test fails, its message says what can be removed."""

from __future__ import annotations

import keras
import numpy as np
import pytest
from helpers.networks import make_tiny, policy, raw_images, snapshot, two_replicas

layers = keras.layers
IMAGES, LABELS = raw_images(8) / 127.5 - 1, np.arange(8) % 5


def compiled(model: keras.Model, optimizer="sgd") -> keras.Model:
    model.compile(optimizer, "sparse_categorical_crossentropy")
    return model


def train(model: keras.Model) -> keras.Model:
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    return model


def differ(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return any((a != b).any() for a, b in zip(first, second, strict=True))


def test_trap_1_xla_is_left_off_on_the_cpu():
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU")
    assert not compiled(make_tiny()).jit_compile, "jit_compile='auto' turns XLA on on the CPU: measure again"


def test_trap_2_training_false_does_not_protect_batchnorm_once_the_base_trains():
    base = make_tiny(top=False)
    base.trainable = False
    image = keras.Input((32, 32, 3))
    pooled = layers.GlobalAveragePooling2D()(base(image, training=False))
    model = keras.Model(image, layers.Dense(5, "softmax")(pooled))
    norm = base.get_layer("block1_bn")
    before = snapshot(norm)
    train(compiled(model))
    assert not differ(snapshot(norm), before)
    base.trainable = True
    train(compiled(model))
    assert differ(snapshot(norm)[2:], before[2:]), (
        "training=False now keeps the statistics: pinning BatchNorm layers (surgery.set_trainable) can be removed"
    )


def test_trap_2_a_batchnorm_that_is_itself_frozen_keeps_its_statistics():
    model = make_tiny()
    norm = model.get_layer("block1_bn")
    norm.trainable = False
    before = snapshot(norm)
    train(compiled(model))
    assert not differ(snapshot(norm), before), (
        "freezing BatchNorm layers no longer pins them: the builders must change"
    )


def test_trap_3_flags_set_after_the_first_fit_are_ignored_without_a_warning(recwarn):
    model = train(compiled(make_tiny()))
    conv = model.get_layer("block1_conv")
    conv.trainable = False
    before = snapshot(conv)
    train(model)
    assert differ(snapshot(conv), before), (
        "flags now have an effect at once: builders.unfreeze need not compile again"
    )
    assert not [w for w in recwarn if "trainable" in str(w.message)]


def test_trap_4_a_slice_shares_its_layers_with_its_model():
    model = make_tiny()
    keras.Model(model.input, model.get_layer("block1_add").output).trainable = False
    assert not model.get_layer("block1_conv").trainable, "slices are copies now: builders need not clone"


def test_trap_4_clone_model_copies_neither_weights_nor_the_constants_of_normalization():
    normalization = layers.Normalization()
    normalization.adapt(IMAGES)
    model = keras.Sequential([keras.Input((32, 32, 3)), normalization, layers.Conv2D(2, 3)])
    clone = keras.models.clone_model(model)
    assert differ(clone.get_weights(), model.get_weights()), (
        "clone_model copies weights now: surgery.clone can be shorter"
    )
    clone.set_weights(model.get_weights())
    same = np.allclose(clone.layers[0](IMAGES), normalization(IMAGES))
    assert not same, (
        "set_weights now sets Normalization's constants: finalize_state in surgery.clone can be removed"
    )


def test_trap_5_a_network_made_outside_the_scope_fails_on_two_replicas():
    base = make_tiny(top=False)
    with two_replicas().scope():
        pooled = layers.GlobalAveragePooling2D()(base.output)
        model = compiled(keras.Model(base.input, layers.Dense(5, "softmax")(pooled)))
    try:
        train(model)
    except AssertionError as error:
        assert not str(error), "the error now has a message"
    else:
        pytest.fail("such a network now trains: the builders need not clone inside the scope")


def test_trap_18_automatic_layer_names_depend_on_earlier_models():
    first, second = (
        [layer.name for layer in keras.Sequential([keras.Input((8, 8, 3)), layers.Conv2D(2, 3)]).layers]
        for _ in range(2)
    )
    assert first != second, "automatic names are stable now: surgery.renumber can be removed"


def test_trap_19_setting_a_flag_to_its_old_value_does_not_reach_the_layers():
    model = make_tiny()
    for layer in model.layers:
        layer.trainable = False
    model.trainable = True
    assert not model.trainable_weights, (
        "flags now always reach the layers: surgery.set_trainable can set only the flag of the model"
    )


def test_trap_20_an_optimizer_cannot_train_other_variables_later():
    model = make_tiny()
    model.get_layer("block1_conv").trainable = False
    optimizer = keras.optimizers.Adam()
    train(compiled(model, optimizer))
    model.get_layer("block1_conv").trainable = True
    with pytest.raises((KeyError, ValueError), match=r"[Uu]nknown variable"):
        train(compiled(model, optimizer))


def test_trap_21_saved_models_forget_the_state_of_random_generators(tmp_path):
    model = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, seed=1)])
    model(np.ones((2, 4)), training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert differ(snapshot(loaded), snapshot(model)), "generators are saved now: resuming can use it"


def test_trap_23_preprocessing_in_bfloat16_is_inexact():
    raw = raw_images(2)
    with policy("mixed_bfloat16"):
        low = np.asarray(keras.ops.cast(layers.Rescaling(1 / 127.5, -1.0)(raw), "float32"))
        high = np.asarray(layers.Rescaling(1 / 127.5, -1.0, dtype="float32")(raw))
    exact = keras.applications.mobilenet_v2.preprocess_input(raw.copy())
    assert np.abs(high - exact).max() < 1e-6
    assert np.abs(low - exact).max() > 1e-3, (
        "Rescaling now computes in float32: dtype='float32' can be removed"
    )


def test_trap_24_random_layers_stay_active_in_an_exported_model(tmp_path):
    import tensorflow as tf

    model = keras.Sequential([keras.Input((8, 8, 3)), layers.RandomTranslation(0.5, 0.5)])
    model.export(str(tmp_path / "model"), verbose=False)
    exported = tf.saved_model.load(str(tmp_path / "model"))
    images = raw_images(4, 8)
    assert (np.asarray(exported.serve(images)) != images).any(), (
        "export now turns Random layers off: augmentation can be part of the model"
    )


def test_trap_27_live_batchnorm_differs_between_replicas_unless_synchronized():
    def replicas(synchronized: bool) -> list[np.ndarray]:
        with two_replicas().scope():
            norm = layers.BatchNormalization(momentum=0.5, synchronized=synchronized)
            stack = [layers.Conv2D(4, 3), norm, layers.GlobalAveragePooling2D(), layers.Dense(5, "softmax")]
            model = compiled(keras.Sequential([keras.Input((32, 32, 3)), *stack]))
        train(model)
        return [np.asarray(v) for v in two_replicas().experimental_local_results(norm.moving_mean.value)]

    assert np.abs(np.subtract(*replicas(True))).max() < 1e-6
    apart = np.abs(np.subtract(*replicas(False))).max()
    assert apart > 1e-4, (
        "replicas now agree without it: synchronized=True in surgery.set_trainable can be removed"
    )


def test_two_mirrored_strategies_in_a_process_disturb_each_other():
    """Both number their messages from the same start. The failure itself is not tested: it breaks the process."""
    import tensorflow as tf

    keys = [tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).extended._collective_keys for _ in range(2)]
    groups = [key.get_group_key(["CPU:0", "CPU:1"]) for key in keys]
    assert groups[0] == groups[1], (
        "strategies number their groups separately now: the cache of strategies._mirrored can be removed"
    )


def test_a_lambda_is_copied_only_without_safe_mode():
    double = layers.Lambda(lambda x: 2 * x)
    with pytest.raises(ValueError, match="safe_mode"):
        layers.Lambda.from_config(double.get_config())
    assert layers.Lambda.from_config(double.get_config(), safe_mode=False)


def test_the_error_for_weights_that_do_not_fit_is_long(tmp_path):
    make_tiny().save_weights(tmp_path / "five.weights.h5")
    with pytest.raises(
        ValueError, match=r"variable\.shape=\(16, 7\), Received: value\.shape=\(16, 5\)"
    ) as caught:
        make_tiny(classes=7).load_weights(tmp_path / "five.weights.h5")
    assert str(caught.value).count("\n") > 5, (
        "Keras' error is short now: the summary in weight_files can be removed"
    )
