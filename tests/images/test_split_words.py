"""Words that mean a split, in common spellings of names."""

import pytest

from transfer.images.split_words import rest_of, split_of


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train", "train"),
        ("TRAINING", "train"),
        ("trn", "train"),
        ("training_set", "train"),
        ("TrainImages", "train"),
        ("trainset", "train"),
        ("train2017", "train"),
        ("seg_train", "train"),
        ("PublicTest", "test"),
        ("tst", "test"),
        ("hold-out", "test"),
        ("held_out", "test"),
        ("imgs.test", "test"),
        ("valid", "val"),
        ("dev", "val"),
        ("Eval Images", "val"),
        ("latest", None),
        ("retrain", None),
        ("contest", None),
        ("train_test", None),
        ("cats", None),
        ("2023", None),
        ("", None),
    ],
)
def test_a_split_is_read_from_the_words_of_a_name(name: str, split: str | None) -> None:
    assert split_of(name) == split


def test_the_rest_of_a_name_has_the_other_words() -> None:
    assert rest_of("seg_train") == rest_of("SegTest") == ("seg",)
    assert rest_of("testset") == ("set",)
    assert rest_of("val") == ()
