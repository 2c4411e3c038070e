"""Builders with a head, an optimizer, a loss and metrics of the caller."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
from helpers.networks import assert_bit_equal, flags, infer, make_tiny, raw_images, snapshot

from transfer.cases import builders
from transfer.cases.builders import build, large_similar, small_different, small_similar, start_over, unfreeze
from transfer.cases.compiling import DEFAULT_LOSS, OneHotLoss, as_loss, as_metrics, compile_like
from transfer.cases.decisions import decision_of
from transfer.common.errors import InputError
from transfer.common.keras_private import compile_arguments
from transfer.networks import surgery

IMAGES, LABELS = raw_images(8), np.arange(8) % 3
OWN = {"preprocessing": "tf"}
layers = keras.layers


def make_head(classes: int = 3) -> keras.Sequential:
    return keras.Sequential(
        [
            layers.BatchNormalization(),
            layers.Dropout(0.3),
            layers.Dense(6, activation="relu"),
            layers.Dense(classes, activation="softmax"),
        ]
    )


def functional_head() -> keras.Model:
    features = keras.Input((16,))
    both = layers.Concatenate()([features, layers.Dense(4, activation="tanh")(features)])
    return keras.Model(features, layers.Softmax()(layers.Dense(3)(both)))


class Centroids(keras.layers.Layer):
    """Classify by the distance to trained centroids; not registered with Keras."""

    def __init__(self, classes: int = 3, **options) -> None:
        super().__init__(**options)
        self.classes = classes

    def build(self, shape) -> None:
        self.centers = self.add_weight((self.classes, shape[-1]))

    def call(self, features):
        distances = keras.ops.sum((features[:, None] - self.centers) ** 2, axis=-1)
        return keras.ops.softmax(-distances)

    def get_config(self):
        return {**super().get_config(), "classes": self.classes}


def gather(labels, probabilities):
    """Return the cross-entropy, for labels as integers of shape (batch, 1)."""
    return keras.losses.sparse_categorical_crossentropy(labels, probabilities)


def product(labels, probabilities):
    """Return the cross-entropy, for one-hot labels; integers would be broadcast."""
    return -keras.ops.sum(labels * keras.ops.log(probabilities), axis=-1)


# Signatures


def test_each_builder_has_the_arguments_of_build_that_its_case_takes():
    arguments = set(inspect.signature(build).parameters) - {"case"}
    for name, excluded in {
        "small_similar": {"init", "lora"},
        "small_different": {"init", "lora"},
        "large_similar": {"init", "unfreeze_from"},
        "large_different": {"unfreeze_from"},
    }.items():
        assert set(inspect.signature(getattr(builders, name)).parameters) == arguments - excluded, name


def test_an_unknown_argument_names_the_builder_that_was_called(tiny):
    with pytest.raises(InputError, match=r"small_similar: unknown argument 'cutt'\. Did you mean cut\?"):
        small_similar(tiny, 3, cutt=2, **OWN)


# The head


@pytest.mark.parametrize("make", [make_head, functional_head, Centroids])
def test_the_head_is_copied_and_the_callers_stays_untouched(make, tiny):
    head, before = make(), snapshot(tiny)
    state, had = flags(head), snapshot(head)
    model, same = (small_similar(tiny, 3, head=head, **OWN) for _ in range(2))
    assert model.layers[-1] is not head and model.layers[-1].name == "head"
    assert ("head", "new") in decision_of(model).blocks
    assert model.output_shape == (None, 3)
    assert sum(len(layer.trainable_weights) for layer in model.layers[:-1]) == 0
    assert_bit_equal(snapshot(model), snapshot(same))
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    assert flags(head) == state
    assert_bit_equal(snapshot(head), had)
    assert_bit_equal(snapshot(tiny), before)


def test_the_weights_of_a_trained_head_are_its_initial_weights(tiny):
    head = make_head()
    features = infer(surgery.feature_extractor_of(small_similar(tiny, 3, **OWN)), IMAGES)
    head.compile("adam", "sparse_categorical_crossentropy")
    head.fit(features, LABELS, epochs=2, verbose=0)
    model = small_similar(tiny, 3, head=head, **OWN)
    np.testing.assert_allclose(infer(model, IMAGES), infer(head, features), atol=1e-6)
    with pytest.raises(InputError, match="a head for 12 features"):
        small_different(tiny, 3, head=head, **OWN)


def test_batchnorm_and_frozen_layers_of_the_head_keep_their_flags(tiny):
    head = make_head()
    head.layers[2].trainable = False
    for model in (small_similar(tiny, 3, head=head, **OWN), large_similar(tiny, 3, head=head, **OWN)):
        unfreeze(model, from_layer="block3_conv")
        own = model.layers[-1].layers
        assert [layer.trainable for layer in own if layer.weights] == [True, False, True]
        assert not model.get_layer("block3_bn").trainable
    statistics = model.layers[-1].layers[0].moving_mean.numpy()
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    assert (model.layers[-1].layers[0].moving_mean.numpy() != statistics).any()


def test_the_head_sees_all_cuts(tiny):
    model = small_similar(tiny, 3, cut=["block1_add", "block3_add"], head=make_head(), **OWN)
    assert model.layers[-1].input.shape == (None, 8 + 16)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (lambda: layers.Dense(3), "End the head with a softmax"),
        (lambda: layers.Dense(3, activation="sigmoid"), "with a sum of 1"),
        (lambda: layers.Dense(4, activation="softmax"), r"the shape \(batch, 3\)"),
        (lambda: keras.Sequential([keras.Input((7,)), layers.Dense(3)]), "a head for 16 features"),
        (lambda: layers.Dense(3, activation="softmax", trainable=False), "weights to train"),
        (lambda: layers.Dense, "a Keras layer or model"),
    ],
)
def test_heads_that_do_not_fit_are_errors(head, message, tiny):
    with pytest.raises(InputError, match=message):
        small_similar(tiny, 3, head=head(), **OWN)


# The optimizer


def test_an_optimizer_object_is_copied(tiny):
    own = keras.optimizers.SGD(0.05, momentum=0.9)
    models = [large_similar(tiny, 3, optimizer=own, **OWN) for _ in range(2)]
    for model in models:
        model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
        assert model.optimizer.momentum == 0.9
        assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
    assert not own.built
    assert_bit_equal(snapshot(models[0]), snapshot(models[1]))


def test_the_learning_rate_replaces_that_of_an_optimizer_object(tiny):
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 100)
    model = large_similar(tiny, 3, optimizer=keras.optimizers.Lion(schedule), learning_rate=0.02, **OWN)
    assert isinstance(model.optimizer, keras.optimizers.Lion)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.02)


def test_any_optimizer_of_keras_has_a_name(tiny):
    rates = {"adam": 3e-4, "adamw": 3e-4, "SGD": 0.01, "rmsprop": 0.001}
    for name, rate in rates.items():
        model = large_similar(tiny, 3, optimizer=name, **OWN)
        assert type(model.optimizer).__name__.lower() == name.lower()
        assert float(model.optimizer.learning_rate) == pytest.approx(rate)
    for wrong, message in (("adm", "'adam'"), (0.1, "keras.optimizers.Optimizer")):
        with pytest.raises(InputError, match=message):
            large_similar(tiny, 3, optimizer=wrong, **OWN)


# The loss


@pytest.mark.parametrize(
    "loss",
    [
        "categorical_focal_crossentropy",
        keras.losses.KLDivergence(),
        keras.losses.MeanSquaredError,
        keras.losses.mean_absolute_error,
        keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        product,
    ],
)
@pytest.mark.parametrize("classes", [2, 3])
def test_a_loss_that_takes_one_hot_labels_gets_them(loss, classes):
    wrapped = as_loss(loss, classes)
    assert isinstance(wrapped, OneHotLoss)
    labels, scores = np.array([1, 0, 1]), np.random.default_rng(0).dirichlet(np.ones(classes), 3)
    expected = np.mean(wrapped.loss(np.eye(classes, dtype="float32")[labels], scores.astype("float32")))
    for form in (labels, labels[:, None], np.eye(classes)[labels]):
        assert float(wrapped(form, scores.astype("float32"))) == pytest.approx(float(expected), abs=1e-6)


@pytest.mark.parametrize("loss", [gather, keras.losses.SparseCategoricalCrossentropy(ignore_class=1)])
def test_a_loss_that_takes_integers_is_left_as_it_is(loss):
    assert as_loss(loss, 3) is loss


@pytest.mark.parametrize(
    "loss", [None, "ce", "categorical_crossentropy", keras.losses.CategoricalCrossentropy()]
)
def test_forms_of_the_cross_entropy_are_the_default_loss(loss):
    assert as_loss(loss, 3) == DEFAULT_LOSS


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (keras.losses.SparseCategoricalCrossentropy(from_logits=True), "Leave from_logits out"),
        ("catgorical_focal_crossentropy", "'categorical_focal_crossentropy'"),
        (lambda labels, probabilities: -product(labels, probabilities), "lower for right predictions"),
        (lambda labels: labels, "fails for both"),
        ({"head": "mse"}, "a name, an object or a function"),
    ],
)
def test_losses_that_do_not_fit_are_errors(loss, message):
    with pytest.raises(InputError, match=message):
        as_loss(loss, 3)


def test_a_one_hot_loss_trains_like_the_same_loss_on_integers(tiny):
    models = [large_similar(tiny, 3, loss=loss, optimizer="sgd", **OWN) for loss in (None, product)]
    for model in models:
        model.fit(IMAGES, LABELS, batch_size=4, shuffle=False, verbose=0)
    for one, other in zip(snapshot(models[0]), snapshot(models[1]), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_smoothing_needs_a_loss_of_one_hot_labels(tiny):
    model = large_similar(tiny, 3, loss="mse", **OWN)
    compile_like(model, model, model.optimizer, smoothing=0.3)
    soft = np.full((1, 3), 0.1) + 0.7 * np.eye(3)[:1]
    scores = np.array([[0.2, 0.3, 0.5]])
    assert float(model.loss(np.array([0]), scores)) == pytest.approx(
        np.square(soft - scores).mean(), abs=1e-6
    )
    model = large_similar(tiny, 3, loss=gather, **OWN)
    with pytest.raises(InputError, match="gather, which takes integer labels"):
        compile_like(model, model, model.optimizer, soft_labels=True)


# The metrics


def test_metrics_get_the_labels_that_they_take(tiny):
    given = [
        "auc",
        keras.metrics.F1Score(average="macro", name="f1"),
        keras.metrics.SparseTopKCategoricalAccuracy(2, name="sparse_top2"),
        keras.metrics.TopKCategoricalAccuracy(2, name="top2"),
        product,
        gather,
    ]
    model = large_similar(tiny, 3, metrics=given, **OWN)
    values = model.evaluate(IMAGES, LABELS, verbose=0, return_dict=True)
    assert list(values) == ["accuracy", "auc", "f1", "gather", "loss", "product", "sparse_top2", "top2"]
    assert values["top2"] == values["sparse_top2"]
    assert values["gather"] == pytest.approx(values["product"], abs=1e-5)
    assert float(given[2].count) == 0, "the caller's metric has no state"


def test_the_accuracy_is_measured_once():
    assert as_metrics(["acc", keras.metrics.SparseCategoricalAccuracy(name="accuracy")], 3) == ["accuracy"]


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["f1_score"], "average='macro'"),
        (["acuracy"], "'accuracy'"),
        ("auc", "as a list"),
        ([lambda labels: labels], "fails"),
    ],
)
def test_metrics_that_do_not_fit_are_errors(metrics, message):
    with pytest.raises(InputError, match=message):
        as_metrics(metrics, 3)


def test_a_metric_may_not_have_the_name_of_the_loss():
    with pytest.raises(InputError, match="another name than 'loss'"):
        as_metrics([keras.metrics.AUC(name="loss")], 3)


# Compiling again


def test_unfreeze_and_start_over_keep_the_optimizer_the_loss_and_the_metrics(tiny):
    own = keras.optimizers.SGD(0.05, momentum=0.9)
    model = small_similar(tiny, 3, optimizer=own, loss="mse", metrics=["auc"], steps_per_execution=2, **OWN)
    for change in (lambda: unfreeze(model, from_layer="block3_conv"), lambda: start_over(model)):
        before = model.optimizer
        change()
        assert model.optimizer is not before and model.optimizer.momentum == 0.9
        assert float(model.optimizer.learning_rate) == pytest.approx(0.05)
        assert model.loss.loss is as_loss("mse", 3).loss
        assert [getattr(m, "name", m) for m in compile_arguments(model)["metrics"]] == ["accuracy", "auc"]
        assert model.steps_per_execution == 2
    unfreeze(model, learning_rate=0.01)
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert decision_of(model).optimizer == ""


def test_unfreeze_keeps_what_a_model_without_a_builder_was_compiled_with():
    model = make_tiny()
    model.compile(keras.optimizers.SGD(0.1, nesterov=True), "kl_divergence", metrics=["auc"])
    unfreeze(model, from_layer="block3_conv")
    assert model.optimizer.nesterov and model.loss == "kl_divergence"
