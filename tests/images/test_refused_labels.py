"""Labels that no training could use are refused when the images are loaded."""

import numpy as np
import pytest

from transfer.common.errors import InputError
from transfer.images.datasets import load_data


def load(labels, **options):
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16, 3)).astype("uint8")
    return load_data((images, labels), near_duplicates=False, **options)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (1.7e9 + np.arange(30.0), "up to 1.7e[+]09, standard deviation 8.6.*subtract an offset"),
        (np.arange(30.0) * 1e301, "at most 1e[+]30"),
        (np.eye(2)[np.arange(30) % 2], "Expected one number per image, shape .30,."),
        (np.full(30, 5.0), "different numbers"),
    ],
)
def test_numbers(labels, message):
    with pytest.raises(InputError, match=message):
        load(labels, task="regression")


def test_numbers_with_a_small_offset_are_fine():
    assert load(1990 + np.arange(30.0), task="regression").train.labels.min() >= 1990


def test_one_label_is_refused():
    with pytest.raises(InputError, match="Expected 2 labels or more"):
        load((np.arange(30)[:, None] % 2), task="multi")


@pytest.mark.parametrize("task", ["single", "multi"])
def test_names_with_line_breaks_are_refused(task):
    labels = np.eye(2, dtype=int)[np.arange(30) % 2]
    with pytest.raises(InputError, match=r"without line breaks. Received: 'a\\nb'"):
        load(labels, task=task, class_names=["a\nb", "c"])
