"""Wrong arguments of exported functions: the error has the function that was called and the nearest argument."""

import inspect
import re

import pytest

import transfer
from transfer.common.errors import InputError

FUNCTIONS = [name for name in transfer.__all__ if inspect.isfunction(getattr(transfer, name))]
PASSES_ON = {"load_backbone", "calibrate", "cross_validate", "find_learning_rate"}
"""Functions that check their model first, and pass other arguments on."""


def options_of(name):
    """Return the names of the arguments of a function that must be passed by name."""
    parameters = inspect.signature(getattr(transfer, name)).parameters.values()
    return [one.name for one in parameters if one.kind is one.KEYWORD_ONLY]


def test_many_functions_are_checked():
    assert {"predict", "export", "advise", "compare", "load_data", "load_run", "save_run"} <= set(FUNCTIONS)


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if name not in PASSES_ON and options_of(name)])
def test_an_unknown_argument_names_the_function_and_the_nearest_argument(name):
    option = options_of(name)[0]
    expected = rf"^{name}: unknown argument '{option}s'\. Did you mean .*\b{option}\b"
    with pytest.raises(InputError, match=expected):
        getattr(transfer, name)(**{f"{option}s": 1})


def test_an_unknown_option_of_a_cross_validation_names_the_nearest_one():
    data = transfer.load_data(transfer.make_shapes(120))
    with pytest.raises(InputError, match=r"option 'epoch'\. Did you mean 'epochs'"):
        transfer.cross_validate(data, transfer.DemoCNN(weights=None), epoch=3)


def test_an_unknown_argument_of_a_network_names_the_nearest_one():
    with pytest.raises(
        InputError, match=r"load_backbone\('DemoCNN'\) 'image_sze'\. Did you mean 'image_size'"
    ):
        transfer.load_backbone("DemoCNN", image_sze=48)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: transfer.export("run", "onnx", "there"), "Write export(run, to)."),
        (lambda: transfer.export("run", format="onnx"), "Write to=..."),
        (lambda: transfer.predict("run"), "Write predict(run, images)."),
        (lambda: transfer.predict("run", [], verbose=0), "Write progress=False"),
        (lambda: transfer.load_data([], []), "Write load_data((images, labels))"),
        (lambda: transfer.load_data("emoji", batch_size=8), "make_dataset"),
    ],
)
def test_habits_from_other_libraries_get_the_line_to_write(call, message):
    with pytest.raises(InputError, match=re.escape(message)):
        call()
