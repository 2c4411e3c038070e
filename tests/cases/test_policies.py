"""The rule of thumb and the policies; pure Python, without TensorFlow."""

from __future__ import annotations

import subprocess
import sys

import pytest

from transfer.cases.policies import EARLY_CUT, POLICIES, SMALL_DATA, Case, early_position, rule_of_thumb
from transfer.common.errors import InputError


@pytest.mark.parametrize(
    "num_images, similar, number",
    [
        (1, True, 1),
        (2_000, True, 1),
        (SMALL_DATA - 1, True, 1),
        (2_000, False, 2),
        (SMALL_DATA - 1, False, 2),
        (SMALL_DATA, True, 3),
        (1_000_000, True, 3),
        (SMALL_DATA, False, 4),
        (1_000_000, False, 4),
    ],
)
def test_the_rule_of_thumb_is_the_classic_table(num_images, similar, number):
    assert POLICIES[rule_of_thumb(num_images, similar)].number == number


@pytest.mark.parametrize("num_images", [0, -5])
def test_the_rule_of_thumb_refuses_no_images(num_images):
    with pytest.raises(InputError, match="at least 1 training image"):
        rule_of_thumb(num_images, True)


def test_policies_match_the_four_classic_cases():
    cuts = {policy.number: (policy.cut, policy.frozen) for policy in POLICIES.values()}
    assert cuts == {1: ("top", True), 2: ("early", True), 3: ("top", False), 4: ("top", False)}
    assert list(POLICIES) == list(Case)
    heads = [p.learning_rate for p in POLICIES.values() if p.frozen]
    whole = [p.learning_rate for p in POLICIES.values() if not p.frozen]
    assert max(whole) < min(heads), "pre-trained weights are to be moved less than a new head"


@pytest.mark.parametrize("name", ["small-similar", "SMALL_SIMILAR", "Small-Similar", Case.SMALL_SIMILAR])
def test_a_case_is_read_in_any_spelling(name):
    assert Case.parse(name) is Case.SMALL_SIMILAR


@pytest.mark.parametrize(
    "name, message",
    [
        ("small-similer", r"Did you mean 'small-similar'"),
        ("5", r"Expected one of 'small-similar', 'small-different', 'large-similar', 'large-different'\."),
        (None, "Unknown case None"),
    ],
)
def test_an_unknown_case_lists_the_nearest(name, message):
    with pytest.raises(InputError, match=message):
        Case.parse(name)


def test_a_case_prints_its_name_on_the_command_line():
    assert f"{Case.LARGE_DIFFERENT}" == "large-different"


def test_the_early_cut_is_a_position_for_any_number_of_blocks():
    for blocks in range(1, 200):
        position = early_position(blocks)
        assert 0 <= position < blocks
        assert abs(position + 1 - EARLY_CUT * blocks) <= 0.5 or blocks == 1


def test_the_early_cut_removes_blocks_from_networks_of_three_or_more():
    assert [early_position(blocks) for blocks in (1, 2, 3, 5, 16)] == [0, 1, 1, 3, 12]


def test_cases_config_and_probes_import_neither_tensorflow_nor_keras():
    code = (
        "import sys, transfer, transfer.cases.policies, transfer.config, transfer.adviser.probes; "
        "print(sorted({m.split('.')[0] for m in sys.modules} & {'tensorflow', 'keras', 'matplotlib'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
