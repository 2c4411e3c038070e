"""Builders of the four cases: slice and clone a network, freeze layers, attach a head, compile.

Nothing else in the package compiles a model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import keras

from transfer.cases.compiling import (
    Loss,
    Metric,
    Optimizer,
    as_loss,
    as_metrics,
    check_learning_rate,
    check_optimizer,
    compile_like,
    new_optimizer,
    optimizer_like_before,
)
from transfer.cases.cuts import Cut
from transfer.cases.decisions import find_decision, record_decision, task_of_model
from transfer.cases.policies import (
    POLICIES,
    SCRATCH_LEARNING_RATE,
    Case,
)
from transfer.cases.slicing import (
    analyze_base,
    check_case_options,
    check_compile_options,
    check_task,
    slice_for,
)
from transfer.common.arguments import explain_arguments
from transfer.distributed.strategies import (
    Strategy,
    get_strategy,
    needs_synchronized_batchnorm,
    record_devices,
    scope_of,
)
from transfer.images.decoding import as_size
from transfer.networks import surgery
from transfer.networks.graphs import analyze
from transfer.networks.hub import plain_network
from transfer.networks.low_rank import add_low_rank
from transfer.networks.preprocessing import preprocessing_of


@explain_arguments()
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
    head: keras.layers.Layer | None = None,
    task: str = "single",
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    lora: int | None = None,
    seed: int = 0,
) -> keras.Model:
    """Build the model of a case from a pre-trained network, compiled and ready for `fit`.

    The network is cloned, cut at a layer, and frozen as the case demands. A new head is attached: global average
    pooling if needed, then a Dense softmax or your own `head`. The preprocessing becomes part of the model.

    Args:
        case: one of the four cases, its name, or its number, 1 to 4.
        base: a `keras.applications` model, with or without its classifier, a KerasHub backbone, or your own. It does
            not change.
        num_classes: number of classes or of labels, 2 or more; 1 for the task `"regression"`.
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
        head: a Keras layer or model from feature vectors, shape (batch, features), to predictions of the task, shape
            (batch, num_classes). It is copied, with its weights if it has any. It gets the features as they are: start
            it with BatchNormalization if they need scaling. None is a Dense layer with the activation of the task.
        task: what the labels are, such as `data.task`. `"single"` and `"ordinal"` (one class per image) have a softmax;
            `"multi"` (any number of labels per image) has a sigmoid; `"regression"` (a number) has a linear output.
        optimizer: `"adam"`; `"rmsprop"` with the settings of Esteva et al. (2017), doi:10.1038/nature21056; the name of
            another Keras optimizer; or an optimizer object, which is copied.
        learning_rate: learning rate, above 0. It replaces that of an optimizer object. None is the rate of the case in
            `policies.POLICIES` for Adam, otherwise the optimizer's own rate.
        loss: a Keras loss, its name, or a function of labels and predictions. It gets one-hot labels if it needs
            them, otherwise integers of shape (batch, 1). For several labels and for regression, labels have the shape
            of the outputs; the values of a regression are standardized. None is the loss in `tasks.TASK`.
        metrics: further Keras metrics, their names, or functions, each with one number as its value. The metric in
            `tasks.TASK` is always measured.
        pin_batchnorm: whether BatchNormalization keeps its pre-trained statistics and weights. None means yes, except
            with `init="random"`.
        precision: data type of the computation, one of `policies.PRECISIONS`. Weights, the scaling of the images and
            the head are always float32.
        steps_per_execution: number of training steps in one call of the compiled function, 1 or more.
        lora: rank of LoRA (Hu et al., 2021, arXiv:2106.09685), 1 or more, in a case that trains all layers from the
            pre-trained weights. Each matrix of attention and Dense layers is frozen, and the product of two small
            matrices is added to it; only these and the head train. Saving and copying add the product to the matrix.
            None trains all weights.
        seed: random seed of the head's weights, and of all weights with `init="random"`.

    Returns:
        A compiled `keras.Model`. Its input is a batch of raw RGB images, shape (batch, height, width, 3), 0 to 255. Its
        output has shape (batch, num_classes): class probabilities, the probability of each label, or the number of a
            regression in the units of the labels.

    Raises:
        InputError: an argument is invalid, the network has no graph with one input of color images and one output, or
            Keras' floatx is float16.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> model = build("small-similar", base, 4)
        >>> sum(int(keras.ops.size(w)) for w in model.trainable_weights)
        5124
    """
    case, size = Case.parse(case), as_size(image_size)
    check_task(task)
    base = plain_network(base, size[0] if size else None)
    network = analyze_base(base)
    check_case_options(case, init, unfreeze_from, lora)
    check_learning_rate(learning_rate)
    check_compile_options(precision, steps_per_execution)
    name = check_optimizer(optimizer)
    pinned = init != "random" if pin_batchnorm is None else pin_batchnorm
    sliced, decision = slice_for(case, network, cut, init=init, pin_batchnorm=pinned, optimizer=name)
    devices = get_strategy(strategy)
    with devices.scope():
        extractor = surgery.clone(
            sliced,
            image_size=size,
            preprocess=preprocessing_of(base, preprocessing),
            weights="random" if init == "random" else "copy",
            precision=None if precision == "float32" else precision,
            seed=seed,
        )
        model = record_devices(
            surgery.attach_head(extractor, num_classes, seed=seed, head=head, task=task), devices
        )
        name = model.layers[-1].name
        default = SCRATCH_LEARNING_RATE if init == "random" else POLICIES[case].learning_rate
        _freeze_and_compile(
            model,
            (lambda layer: layer == name) if POLICIES[case].frozen else True,
            new_optimizer(optimizer, learning_rate, default),
            pin_batchnorm=pinned,
            head=name,
            lora=(lora, seed),
            loss=as_loss(loss, num_classes, task),
            metrics=as_metrics(metrics, num_classes, task),
            steps_per_execution=steps_per_execution,
        )
    record_decision(model, replace(decision, own_head=head is not None, task=task))
    if unfreeze_from is not None:
        unfreeze(model, from_layer=unfreeze_from, learning_rate=learning_rate, pin_batchnorm=pinned)
    return model


@explain_arguments()
def small_similar(
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    unfreeze_from: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: str | Strategy | None = None,
    head: keras.layers.Layer | None = None,
    task: str = "single",
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    seed: int = 0,
) -> keras.Model:
    """Build the model of case 1: slice off the classifier, freeze all layers, attach a new head.

    The other arguments are those of `build`.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes or of labels, as in `build`.

    Returns:
        A compiled model whose head alone trains, as described in `build`.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> small_similar(base, 4).layers[-1].output.shape
        (None, 4)
    """
    return build(Case.SMALL_SIMILAR, **locals())


@explain_arguments()
def small_different(
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    unfreeze_from: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: str | Strategy | None = None,
    head: keras.layers.Layer | None = None,
    task: str = "single",
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    seed: int = 0,
) -> keras.Model:
    """Build the model of case 2: keep the early layers only, freeze them, attach a new head.

    The other arguments are those of `build`.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes or of labels, as in `build`.

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
    return build(Case.SMALL_DIFFERENT, **locals())


@explain_arguments()
def large_similar(
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: str | Strategy | None = None,
    head: keras.layers.Layer | None = None,
    task: str = "single",
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    lora: int | None = None,
    seed: int = 0,
) -> keras.Model:
    """Build the model of case 3: attach a new head and fine-tune all layers from the pre-trained weights.

    The other arguments are those of `build`.

    Args:
        base: a pre-trained network. It does not change.
        num_classes: number of classes or of labels, as in `build`.

    Returns:
        A compiled model, as described in `build`, whose layers all train, except BatchNormalization.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> large_similar(base, 4).get_layer("Conv1").trainable
        True
    """
    return build(Case.LARGE_SIMILAR, **locals())


@explain_arguments()
def large_different(
    base: keras.Model,
    num_classes: int,
    *,
    cut: Cut | None = None,
    init: str = "pretrained",
    image_size: int | tuple[int, int] | None = None,
    preprocessing: str | None = None,
    strategy: str | Strategy | None = None,
    head: keras.layers.Layer | None = None,
    task: str = "single",
    optimizer: Optimizer = "adam",
    learning_rate: float | None = None,
    loss: Loss | None = None,
    metrics: Sequence[Metric] | None = None,
    pin_batchnorm: bool | None = None,
    precision: str = "float32",
    steps_per_execution: int = 1,
    lora: int | None = None,
    seed: int = 0,
) -> keras.Model:
    """Build the model of case 4: attach a new head and train all layers, from pre-trained or random weights.

    The other arguments are those of `build`.

    Args:
        base: a network. It does not change.
        num_classes: number of classes or of labels, as in `build`.
        init: initial weights: `"pretrained"`; `"random"`, with which BatchNormalization trains too; or `"auto"`: `fit`
            starts from the pre-trained weights, and again from random weights if the validation accuracy shows that
            training failed.

    Returns:
        A compiled model, as described in `build`, whose layers all train.

    Raises:
        InputError: an argument is invalid, see `build`.

    Example:
        >>> base = keras.applications.MobileNetV2(weights=None, input_shape=(64, 64, 3))
        >>> large_different(base, 4, init="random").get_layer("bn_Conv1").trainable
        True
    """
    return build(Case.LARGE_DIFFERENT, **locals())


@explain_arguments()
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
        learning_rate: learning rate of the new optimizer, above 0. The optimizer is of the same kind as before, and the
            loss and the metrics are the same. None is the rate of fine-tuning in `policies.POLICIES` for Adam,
            otherwise the optimizer's own rate.
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
    check_learning_rate(learning_rate)
    decision = find_decision(model)
    with scope_of(model):
        optimizer = optimizer_like_before(model, learning_rate, POLICIES[Case.LARGE_SIMILAR].learning_rate)
        head = model.layers[-1].name if decision else None
        _freeze_and_compile(model, late.__contains__, optimizer, pin_batchnorm=pin_batchnorm, head=head)
    if decision is not None:
        trained = tuple(end for end in decision.kept if end in late)
        record_decision(model, replace(decision, pin_batchnorm=pin_batchnorm, trained=trained))
    return model


def start_over(model: keras.Model, *, seed: int = 0) -> keras.Model:
    """Give a built model random weights, trainable BatchNormalization and a new optimizer."""
    decision = find_decision(model)
    with scope_of(model):
        model.set_weights(surgery.clone(model, weights="random", seed=seed).get_weights())
        optimizer = optimizer_like_before(model, None, SCRATCH_LEARNING_RATE)
        head = model.layers[-1].name if decision else None
        _freeze_and_compile(model, True, optimizer, pin_batchnorm=False, head=head)
    if decision is not None:
        record_decision(model, replace(decision, init="random", pin_batchnorm=False))
    return model


def _freeze_and_compile(
    model: keras.Model,
    trainable: Callable[[str], bool] | bool,
    optimizer: keras.optimizers.Optimizer,
    *,
    pin_batchnorm: bool,
    head: str | None,
    lora: tuple[int | None, int] = (None, 0),
    **options: Any,
) -> None:
    """Set which layers train, then compile with a new optimizer so that the flags take effect."""
    synchronized = needs_synchronized_batchnorm(model)
    surgery.set_trainable(model, trainable, pin_batchnorm=pin_batchnorm, synchronized=synchronized, head=head)
    rank, seed = lora
    if rank is not None and head is not None:
        add_low_rank(model, rank, head=head, seed=seed)
    if not options and getattr(model, "compiled", False):
        compile_like(model, model, optimizer)
    else:
        form = model.output_shape[-1], task_of_model(model)
        defaults: dict[str, Any] = {"loss": as_loss(None, *form), "metrics": as_metrics(None, *form)}
        model.compile(optimizer, **{**defaults, **options})
