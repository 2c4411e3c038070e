"""The four cases as models: each builder clones, slices, freezes, attaches a head, and compiles last."""

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
    OPTIMIZERS,
    POLICIES,
    PRECISIONS,
    SCRATCH_LEARNING_RATE,
    Case,
    early_position,
)
from transfer.common.errors import InputError, unknown
from transfer.distributed.strategies import (
    get_strategy,
    needs_synchronized_batchnorm,
    record_devices,
    scope_of,
)
from transfer.images.decoding import as_size
from transfer.networks import graphs, surgery
from transfer.networks.backbones import block_ends, preprocessing_of

INITS = ("pretrained", "random", "auto")


def build(
    case: Case | str,
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    unfreeze_from: str | None = None,
    init: str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: Any = None,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    seed: int = 0,
) -> keras.Model:
    """Build the model of a case from a pre-trained network.

    Args:
        case: one of the four, by value or name.
        base: a `keras.applications` model, with its top or without, or one's own. It is cloned and stays
            as it is.
        num_classes: 2 or more.
        cut: the last layer to keep, or several, whose outputs the head sees side by side, each scaled to
            unit length (see `cuts.cuts_of`). None: the last layer before the classifier, but for
            `small-different` an early block's end (see `cases.EARLY_CUT`).
        unfreeze_from: the first layer, or block, to train in a case that freezes all; layers behind it train too.
        init: where training starts: `"pretrained"`; for `large-different` also `"random"`, or `"auto"`,
            with which `fit` tries the first and falls back on the second.
        image_size: pixels, one number or (height, width); None keeps the base's.
        preprocessing: a key of `backbones.PREPROCESSING`; needed for a network of one's own only.
        strategy: a name of `strategy.STRATEGIES` or a `tf.distribute.Strategy`; None chooses.
        optimizer: one of `policies.OPTIMIZERS`.
        learning_rate: of the optimizer; None is the case's own (see `cases.POLICIES`), or where `OPTIMIZERS` has one,
            that.
        pin_batchnorm: keep BatchNormalization as it was pre-trained; None does, but where weights start random.
        precision: one of `policies.PRECISIONS`. Weights, input scaling and the head are always float32.
        steps_per_execution: steps that are run at once, without Python between them.
        seed: of the new head's weights, and of all weights where they start random.

    Returns:
        A plain compiled `keras.Model`: raw RGB images, 0 to 255, in; class probabilities out; labels are
        whole numbers. Its last layer is the new Dense softmax.

    Raises:
        InputError: an argument is wrong; the message says what would be right.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> model = build("small-similar", base, 4)
        >>> sum(int(keras.ops.size(w)) for w in model.trainable_weights)
        5124
    """
    case = Case.parse(case)
    policy = POLICIES[case]
    _check_base(base)
    _check_arguments(case, init, learning_rate, unfreeze_from)
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if optimizer not in OPTIMIZERS:
        raise unknown("optimizer", optimizer, OPTIMIZERS)
    if steps_per_execution < 1:
        raise InputError(f"Expected steps_per_execution of 1 or more. Received: {steps_per_execution}.")
    sliced, plan = _slice(case, base, cut, init)
    pinned = plan.pin_batchnorm if pin_batchnorm is None else pin_batchnorm
    plan = replace(plan, optimizer=optimizer, pin_batchnorm=pinned)
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
        own = SCRATCH_LEARNING_RATE if init == "random" else policy.learning_rate
        _prepare(
            model,
            (lambda layer: layer == head) if policy.frozen else True,
            _optimizer(optimizer, learning_rate, own),
            pin_batchnorm=pinned,
            steps_per_execution=steps_per_execution,
        )
    record_decision(model, plan)
    if unfreeze_from is not None:
        unfreeze(model, from_layer=unfreeze_from, learning_rate=learning_rate, pin_batchnorm=pinned)
    return model


def small_similar(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Case 1: slice off the classifier, freeze everything, attach a new head.

    Args:
        base: a pre-trained network; it stays as it is.
        num_classes: 2 or more.
        **options: keyword arguments of `build`: cut, unfreeze_from, image_size, preprocessing, strategy,
            optimizer, learning_rate, pin_batchnorm, seed.

    Returns:
        A compiled model of which only the head trains.

    Raises:
        InputError: see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> small_similar(base, 4).layers[-1].output.shape
        (None, 4)
    """
    return build(Case.SMALL_SIMILAR, base, num_classes, **options)


def small_different(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Case 2: keep only the early layers, freeze them, attach a new head.

    Args:
        base: a pre-trained network; it stays as it is.
        num_classes: 2 or more.
        **options: keyword arguments of `build`: cut, unfreeze_from, image_size, preprocessing, strategy,
            optimizer, learning_rate, pin_batchnorm, seed.

    Returns:
        A compiled model of which only the head trains.

    Raises:
        InputError: see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> from transfer.cases.decisions import decision_of
        >>> decision_of(small_different(base, 4)).cut
        'block_13_project_BN'
    """
    return build(Case.SMALL_DIFFERENT, base, num_classes, **options)


def large_similar(base: keras.Model, num_classes: int, **options: Any) -> keras.Model:
    """Case 3: new head, start from the pre-trained weights, retrain everything (BatchNorm stays pinned).

    Args:
        base: a pre-trained network; it stays as it is.
        num_classes: 2 or more.
        **options: keyword arguments of `build`: cut, image_size, preprocessing, strategy, optimizer,
            learning_rate, pin_batchnorm, seed.

    Returns:
        A compiled model that trains from end to end.

    Raises:
        InputError: see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> large_similar(base, 4).get_layer("Conv1").trainable
        True
    """
    return build(Case.LARGE_SIMILAR, base, num_classes, **options)


def large_different(
    base: keras.Model, num_classes: int, *, init: str = "pretrained", **options: Any
) -> keras.Model:
    """Case 4: new head, retrain everything, from the pre-trained weights or from random ones.

    Args:
        base: a network; it stays as it is.
        num_classes: 2 or more.
        init: `"pretrained"`, `"random"` (BatchNorm is live then), or `"auto"`: `fit` tries the first and
            falls back on the second where it does not succeed on the validation set.
        **options: keyword arguments of `build`: cut, image_size, preprocessing, strategy, optimizer,
            learning_rate, pin_batchnorm, seed.

    Returns:
        A compiled model that trains from end to end.

    Raises:
        InputError: see `build`.

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
    """Let more of a built model train, and compile it again so that the flags count.

    Args:
        model: a model of the builders; its flags change.
        from_layer: the first layer to train, or the block that begins with it, such as `"block6a"`; None trains
            all.
        learning_rate: of a new optimizer of the same kind; None is that of fine-tuning (see `cases.POLICIES`), or where
            `policies.OPTIMIZERS` has one, that.
        pin_batchnorm: keep BatchNormalization as it was pre-trained.

    Returns:
        The same model, compiled.

    Raises:
        InputError: no layer is called that; the nearest names are listed.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> model = unfreeze(small_similar(base, 4), from_layer="block_16_expand")
        >>> model.get_layer("block_15_project").trainable, model.get_layer("block_16_project").trainable
        (False, True)
    """
    names = [node.op.name for node in graphs.graph(model)]
    first = names.index(graphs.find_first(model, from_layer).op.name) if from_layer else 0
    late = set(names[first:])
    if learning_rate is not None:
        _check_learning_rate(learning_rate)
    with scope_of(model):
        optimizer = _optimizer(_kind_of(model), learning_rate, POLICIES[Case.LARGE_SIMILAR].learning_rate)
        _prepare(model, lambda name: name in late, optimizer, pin_batchnorm=pin_batchnorm)
    decision = find_decision(model)
    if decision is not None:
        trained = tuple(end for end in decision.kept if end in late)
        record_decision(model, replace(decision, pin_batchnorm=pin_batchnorm, trained=trained))
    return model


def start_over(model: keras.Model, *, seed: int = 0) -> keras.Model:
    """Give a built model random weights, live BatchNormalization, and a new optimizer."""
    with scope_of(model):
        model.set_weights(surgery.clone(model, weights="random", seed=seed).get_weights())
        optimizer = _optimizer(_kind_of(model), None, SCRATCH_LEARNING_RATE)
        _prepare(model, True, optimizer, pin_batchnorm=False)
    decision = find_decision(model)
    if decision is not None:
        record_decision(model, replace(decision, init="random", pin_batchnorm=False))
    return model


def _kind_of(model: keras.Model) -> str:
    """The optimizer that a model was built with; one that no builder built gets Adam."""
    decision = find_decision(model)
    return decision.optimizer if decision else "adam"


def _optimizer(kind: str, learning_rate: float | None, own: float) -> keras.optimizers.Optimizer:
    """Make the optimizer: at the rate that is given, or else its own, or else the case's."""
    make = {"adam": keras.optimizers.Adam, "rmsprop": keras.optimizers.RMSprop}[kind]
    settings = {"learning_rate": own, **OPTIMIZERS[kind]}
    return make(**settings if learning_rate is None else {**settings, "learning_rate": learning_rate})


def _prepare(
    model: keras.Model,
    trainable: Callable[[str], bool] | bool,
    optimizer: keras.optimizers.Optimizer,
    *,
    pin_batchnorm: bool,
    steps_per_execution: int | None = None,
) -> None:
    """Set the flags, then compile with a new optimizer, so that they count."""
    surgery.set_trainable(
        model, trainable, pin_batchnorm=pin_batchnorm, synchronized=needs_synchronized_batchnorm(model)
    )
    model.compile(
        optimizer=optimizer,
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
        steps_per_execution=steps_per_execution or getattr(model, "steps_per_execution", 1),
    )


def _check_base(base: Any) -> None:
    if not isinstance(base, keras.Model):
        raise InputError(
            f"Expected a keras.Model as base. Received: {type(base).__name__}. load_backbone(name) gives one."
        )
    shape = tuple(graphs.graph(base)[0].tensor.shape)
    if len(shape) != 4 or shape[-1] != 3:
        raise InputError(
            f"Expected a network of color images, with an input of shape (batch, height, width, 3). Received: "
            f"{base.name!r} with {shape}. Grey images are read as color ones."
        )


def _check_arguments(case: Case, init: str, learning_rate: float | None, unfreeze_from: str | None) -> None:
    if unfreeze_from is not None and not POLICIES[case].frozen:
        raise InputError(
            f"Expected unfreeze_from with a case that freezes layers, {Case.SMALL_SIMILAR} or {Case.SMALL_DIFFERENT}. "
            f"Received: {case}, which trains all."
        )
    if init not in INITS:
        raise unknown("init", init, INITS)
    if init != "pretrained" and case is not Case.LARGE_DIFFERENT:
        raise InputError(f"Expected init='pretrained' for {case}; only large-different takes {init!r}.")
    if learning_rate is not None:
        _check_learning_rate(learning_rate)


def _check_learning_rate(learning_rate: float) -> None:
    if not isinstance(learning_rate, Real) or not 0 < learning_rate < math.inf:
        raise InputError(f"Expected a learning rate, a number above 0. Received: {learning_rate!r}.")


def _slice(case: Case, base: keras.Model, cut: Cut | None, init: str) -> tuple[keras.Model, CaseDecision]:
    ends = block_ends(base)
    before = graphs.layer_before_classifier(base)
    if cut is None:
        cut = early_position(len(ends)) if POLICIES[case].cut == "early" and ends else [before]
    cuts = cuts_of(base, cut)
    sliced = surgery.join_at(base, cuts)
    kept = {node.op.name for node in graphs.graph(sliced)}
    return sliced, CaseDecision(
        case=case,
        cut=cuts[-1],
        cuts=cuts,
        init=init,
        base=base.name,
        kept=tuple(end for end in ends if end in kept),
        cut_away=tuple(end for end in ends if end not in kept),
        had_classifier=before != graphs.graph(base)[-1].op.name,
        pin_batchnorm=init != "random",
    )
