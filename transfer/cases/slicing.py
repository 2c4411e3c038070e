"""Check the arguments of a builder, and slice a network for a case."""

from __future__ import annotations

import keras

from transfer.cases.cuts import Cut, cuts_of, keeps_whole
from transfer.cases.decisions import CaseDecision
from transfer.cases.policies import INITS, POLICIES, PRECISIONS, Case, early_position, frozen_case
from transfer.common.errors import InputError, unknown
from transfer.common.tasks import TASK
from transfer.networks import surgery
from transfer.networks.arguments import check_network
from transfer.networks.graphs import NetworkInfo, analyze, graph
from transfer.networks.low_rank import check_rank


def analyze_base(base: keras.Model) -> NetworkInfo:
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


def check_task(task: str) -> None:
    """Raise unless a task is known; `auto` needs labels, which a builder does not see."""
    if task not in TASK:
        raise unknown("task", task, list(TASK), hint="'auto' is for load_data: write task=data.task.")


def check_case_options(case: Case, init: str, unfreeze_from: str | None, lora: int | None) -> None:
    """Raise if the initial weights, the first layer to train or LoRA do not fit the case."""
    check_rank(lora)
    if lora is not None and (POLICIES[case].frozen or init != "pretrained"):
        raise InputError(
            "Expected lora only with a case that trains all layers from the pre-trained weights, such as "
            f"{Case.LARGE_SIMILAR}. Received: {case} with init={init!r}."
        )
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


def check_compile_options(precision: str, steps_per_execution: int) -> None:
    """Raise if the precision or the steps per execution are invalid."""
    if precision not in PRECISIONS:
        raise unknown("precision", precision, PRECISIONS)
    if keras.config.floatx() not in ("float32", "float64"):
        raise InputError(
            f"Expected 'float32' or 'float64' as Keras' floatx. Received: {keras.config.floatx()!r}, in which training "
            "fails. Call keras.config.set_floatx('float32') before you load the network, or change floatx in "
            "keras.json. For speed, use precision='mixed_float16'."
        )
    if steps_per_execution < 1:
        raise InputError(f"Expected steps_per_execution of 1 or more. Received: {steps_per_execution}.")


def slice_for(
    case: Case, network: NetworkInfo, cut: Cut | None, *, init: str, pin_batchnorm: bool, optimizer: str
) -> tuple[keras.Model, CaseDecision]:
    """Cut a network for a case; return the kept part and the decision."""
    ends = network.block_ends
    if cut is None:
        cut = early_position(len(ends)) if POLICIES[case].cut == "early" and ends else [network.last_layer]
    cuts = cuts_of(network, cut)
    case = frozen_case(whole=keeps_whole(network, cuts)) if POLICIES[case].frozen else case
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
