"""Builders of the four cases: slice and clone a network, freeze layers, attach a head, compile.

Nothing else in the package compiles a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from numbers import Real
from typing import Any

import keras

from transfer.cases.cuts import Cut, cuts_of
from transfer.cases.decisions import CaseDecision, find_decision, record_decision
from transfer.cases.policies import (
    INITS,
    OPTIMIZERS,
    POLICIES,
    PRECISIONS,
    SCRATCH_LEARNING_RATE,
    Case,
    early_position,
)
from transfer.common.errors import InputError, unknown
from transfer.distributed.strategies import (
    Strategy,
    get_strategy,
    needs_synchronized_batchnorm,
    record_devices,
    scope_of,
)
from transfer.images.decoding import as_size
from transfer.networks import surgery
from transfer.networks.arguments import check_network
from transfer.networks.graphs import NetworkInfo, analyze, graph
from transfer.networks.preprocessing import preprocessing_of


def build(
    case: Case | str | int,
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    unfreeze_from: str | None = None,
    init: str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: str | Strategy | None = None,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    seed: int = 0,
) -> keras.Model:
    """Build the model of a case from a pre-trained network, compiled and ready for `fit`.

    The network is cloned, cut at a layer, and frozen as the case demands. A new head is attached: global average
    pooling if needed, then a Dense softmax. The preprocessing of the images becomes part of the model.

    Args:
        case: one of the four cases, its name, or its number, 1 to 4.
        base: a `keras.applications` model, with or without its classifier, or your own. It does not change.
        num_classes: number of classes, 2 or more.
        cut: the last layer to keep, by name or by the position of its block. With several layers, the head sees the
            features of all of them, each scaled to unit length; `"all"` means the ends of all blocks. None is the layer
            before the classifier, and for `small-different` the end of an early block (see `policies.EARLY_CUT`).
        unfreeze_from: the first layer or block to train, in a case that freezes all layers. Layers after it train
            too. None trains the head only.
        init: initial weights: `"pretrained"`; for `large-different` also `"random"`, or `"auto"`: `fit` starts from
            the pre-trained weights, and again from random weights if training fails.
        image_size: image size in pixels, one number or (height, width). None is the size that `base` was built for.
        preprocessing: a key of `preprocessing.PREPROCESSING`. Only your own networks need it.
        strategy: a name in `strategies.STRATEGIES`, or a `tf.distribute.Strategy`. None is `"auto"`.
        optimizer: `"adam"`, or `"rmsprop"` with the settings of Esteva et al. (2017), doi:10.1038/nature21056.
        learning_rate: learning rate, above 0. None is the rate of the optimizer in `policies.OPTIMIZERS` if it has one,
            else the rate of the case in `policies.POLICIES`.
        pin_batchnorm: whether BatchNormalization keeps its pre-trained statistics and weights. None means yes, except
            with `init="random"`.
        precision: data type of the computation, one of `policies.PRECISIONS`. Weights, the scaling of the images and
            the head are always float32.
        steps_per_execution: number of training steps in one call of the compiled function, 1 or more.
        seed: random seed of the head's weights, and of all weights with `init="random"`.

    Returns:
        A compiled `keras.Model`. Its input is a batch of raw RGB images, shape (batch, height, width, 3), 0 to 255. Its
        output is the class probabilities, shape (batch, num_classes). Labels are integers.

    Raises:
        InputError: an argument is invalid, the network has no graph with one input of color images and one output, or
            Keras' floatx is float16.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> model = build("small-similar", base, 4)
        >>> sum(int(keras.ops.size(w)) for w in model.trainable_weights)
        5124
    """
    case = Case.parse(case)
    network = _analyze_base(base)
    _check_case_options(case, init, unfreeze_from)
    _check_learning_rate(learning_rate)
    _check_compile_options(precision, optimizer, steps_per_execution)
    pinned = init != "random" if pin_batchnorm is None else pin_batchnorm
    sliced, decision = _slice(case, network, cut, init=init, pin_batchnorm=pinned, optimizer=optimizer)
    devices = get_strategy(strategy)
    with devices.scope():
        extractor = surgery.clone(
            sliced,
            image_size=as_size(image_size),
            preprocess=preprocessing_of(base, preprocessing),
            weights="random" if init == "random" else "copy",
            precision=None if precision == "float32" else precision,
            seed=seed,
        )
        model = record_devices(surgery.attach_head(extractor, num_classes, seed=seed), devices)
        head = model.layers[-1].name
        default = SCRATCH_LEARNING_RATE if init == "random" else POLICIES[case].learning_rate
        _freeze_and_compile(
            model,
            (lambda layer: layer == head) if POLICIES[case].frozen else True,
            _optimizer(optimizer, learning_rate, default),
            pin_batchnorm=pinned,
            steps_per_execution=steps_per_execution,
        )
    record_decision(model, decision)
    if unfreeze_from is not None:
        unfreeze(model, from_layer=unfreeze_from, learning_rate=learning_rate, pin_batchnorm=pinned)
    return model


def small_similar(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Build the model of case 1: slice off the classifier, freeze all layers, attach a new head.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes, 2 or more.
        **options: keyword arguments of `build`, except `init`.

    Returns:
        A compiled model whose head alone trains, as described in `build`.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> small_similar(base, 4).layers[-1].output.shape
        (None, 4)
    """
    return build(Case.SMALL_SIMILAR, base, num_classes, **options)


def small_different(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Build the model of case 2: keep the early layers only, freeze them, attach a new head.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes, 2 or more.
        **options: keyword arguments of `build`, except `init`.

    Returns:
        A compiled model whose head alone trains, as described in `build`.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> from transfer.cases.decisions import decision_of
        >>> decision_of(small_different(base, 4)).cut
        'block_13_project_BN'
    """
    return build(Case.SMALL_DIFFERENT, base, num_classes, **options)


def large_similar(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Build the model of case 3: attach a new head and fine-tune all layers from the pre-trained weights.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes, 2 or more.
        **options: keyword arguments of `build`, except `init` and `unfreeze_from`.

    Returns:
        A compiled model, as described in `build`, whose layers all train, except BatchNormalization.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> large_similar(base, 4).get_layer("Conv1").trainable
        True
    """
    return build(Case.LARGE_SIMILAR, base, num_classes, **options)


def large_different(
    base: keras.Model, num_classes: int, *, init: str = "pretrained", **options: Any
) -> keras.Model:
    """Build the model of case 4: attach a new head and train all layers, from pre-trained or random weights.

    Args:
        base: a network. It does not change.
        num_classes: number of classes, 2 or more.
        init: initial weights: `"pretrained"`; `"random"`, with which BatchNormalization trains too; or `"auto"`: `fit`
            starts from the pre-trained weights, and again from random weights if the validation accuracy shows that
            training failed.
        **options: keyword arguments of `build`, except `unfreeze_from`.

    Returns:
        A compiled model, as described in `build`, whose layers all train.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> large_different(base, 4, init="random").get_layer("bn_Conv1").trainable
        True
    """
    return build(Case.LARGE_DIFFERENT, base, num_classes, init=init, **options)


def unfreeze(
    model: keras.Model,
    *,
    from_layer: str | None = None,
    learning_rate: float | None = None,
    pin_batchnorm: bool = True,
) -> keras.Model:
    """Unfreeze layers of a built model, and compile it again so that the change takes effect.

    Args:
        model: a model from a builder. It is changed in place.
        from_layer: the first layer to train, or the first block, such as `"block6a"`. Layers after it train too. None
            trains all layers.
        learning_rate: learning rate of the new optimizer, above 0. The optimizer is of the same kind as before. None is
            the optimizer's rate in `policies.OPTIMIZERS` if it has one, else the rate of fine-tuning in
            `policies.POLICIES`.
        pin_batchnorm: whether BatchNormalization keeps its pre-trained statistics and weights.

    Returns:
        The same model, compiled.

    Raises:
        InputError: the layer is unknown (the message lists similar names), or the learning rate is not above 0.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> model = unfreeze(small_similar(base, 4), from_layer="block_16_expand")
        >>> model.get_layer("block_15_project").trainable, model.get_layer("block_16_project").trainable
        (False, True)
    """
    network = analyze(model)
    late = set(network.names[network.block_start(from_layer) if from_layer else 0 :])
    _check_learning_rate(learning_rate)
    with scope_of(model):
        optimizer = _optimizer(_kind_of(model), learning_rate, POLICIES[Case.LARGE_SIMILAR].learning_rate)
        _freeze_and_compile(model, late.__contains__, optimizer, pin_batchnorm=pin_batchnorm)
    decision = find_decision(model)
    if decision is not None:
        trained = tuple(end for end in decision.kept if end in late)
        record_decision(model, replace(decision, pin_batchnorm=pin_batchnorm, trained=trained))
    return model


def start_over(model: keras.Model, *, seed: int = 0) -> keras.Model:
    """Give a built model random weights, trainable BatchNormalization and a new optimizer."""
    with scope_of(model):
        model.set_weights(surgery.clone(model, weights="random", seed=seed).get_weights())
        optimizer = _optimizer(_kind_of(model), None, SCRATCH_LEARNING_RATE)
        _freeze_and_compile(model, True, optimizer, pin_batchnorm=False)
    decision = find_decision(model)
    if decision is not None:
        record_decision(model, replace(decision, init="random", pin_batchnorm=False))
    return model


def _kind_of(model: keras.Model) -> str:
    """Return the kind of optimizer that a model was built with, or Adam if no builder made it."""
    decision = find_decision(model)
    return decision.optimizer if decision else "adam"


def _optimizer(kind: str, learning_rate: float | None, default: float) -> keras.optimizers.Optimizer:
    """Create an optimizer with the given learning rate, or its own from `OPTIMIZERS`, or the default."""
    optimizer = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[kind]
    rate = {} if learning_rate is None else {"learning_rate": learning_rate}
    return optimizer(**{"learning_rate": default, **OPTIMIZERS[kind], **rate})


def _freeze_and_compile(
    model: keras.Model,
    trainable: Callable[[str], bool] | bool,
    optimizer: keras.optimizers.Optimizer,
    *,
    pin_batchnorm: bool,
    steps_per_execution: int | None = None,
) -> None:
    """Set which layers train, then compile with a new optimizer so that the flags take effect."""
    surgery.set_trainable(
        model, trainable, pin_batchnorm=pin_batchnorm, synchronized=needs_synchronized_batchnorm(model)
    )
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution or getattr(model, "steps_per_execution", 1),
    )


def _analyze_base(base: keras.Model) -> NetworkInfo:
    """Analyze a base network; raise unless it takes color images."""
    check_network(base)
    network = analyze(base)
    shape = tuple(network.nodes[0].tensor.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            f"Expected a network for color images, with an input of shape (batch, height, width, 3). Received: "
            f"{base.name!r} with {shape}. Grayscale images are read as color images."
        )
    return network


def _check_case_options(case: Case, init: str, unfreeze_from: str | None) -> None:
    """Raise if the initial weights or the first layer to train do not fit the case."""
    if unfreeze_from is not None and not POLICIES[case].frozen:
        raise InputError(
            f"Expected unfreeze_from only with a case that freezes layers: {Case.SMALL_SIMILAR} or "
            f"{Case.SMALL_DIFFERENT}. Received: {case}, which trains all layers."
        )
    if init not in INITS:
        raise unknown("init", init, INITS)
    if init != "pretrained" and case is not Case.LARGE_DIFFERENT:
        raise InputError(
            f"Expected init='pretrained' for {case}. Received: {init!r}, which needs {Case.LARGE_DIFFERENT}."
        )


def _check_compile_options(precision: str, optimizer: str, steps_per_execution: int) -> None:
    """Raise if the precision, the optimizer or the steps per execution are invalid."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if keras.config.floatx() not in ("float32", "float64"):
        raise InputError(
            f"Expected 'float32' or 'float64' as Keras' floatx. Received: {keras.config.floatx()!r}, in which training "
            "fails. Call keras.config.set_floatx('float32') before you load the network, or change floatx in "
            "keras.json. For speed, use precision='mixed_float16'."
        )
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    if steps_per_execution < 1:
        raise InputError(f"Expected steps_per_execution of 1 or more. Received: {steps_per_execution}.")


def _check_learning_rate(learning_rate: float | None) -> None:
    """Raise if a learning rate is given that is not a number above 0."""
    if learning_rate is None:
        return
    if not isinstance(learning_rate, Real) or not 0 < learning_rate < math.inf:
        raise InputError(f"Expected a learning rate, a number above 0. Received: {learning_rate!r}.")


def _slice(
    case: Case, network: NetworkInfo, cut: Cut | None, *, init: str, pin_batchnorm: bool, optimizer: str
) -> tuple[keras.Model, CaseDecision]:
    """Cut a network for a case; return the kept part and the decision."""
    ends = network.block_ends
    if cut is None:
        cut = early_position(len(ends)) if POLICIES[case].cut == "early" and ends else [network.last_layer]
    cuts = cuts_of(network, cut)
    sliced = surgery.join_at(network, cuts)
    kept = {node.op.name for node in graph(sliced)}
    return sliced, CaseDecision(
        case=case,
        cut=cuts[-1],
        cuts=cuts,
        init=init,
        base=network.name,
        kept=tuple(end for end in ends if end in kept),
        cut_away=tuple(end for end in ends if end not in kept),
        had_classifier=network.has_classifier,
        pin_batchnorm=pin_batchnorm,
        optimizer=optimizer,
    )
