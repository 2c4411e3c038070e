"""Features: computed once, found again by content, never wrong."""

import dataclasses
import json
import logging

import keras
import numpy as np
import pytest
from helpers.images import write_picture
from helpers.networks import make_tiny

from transfer.cases.builders import small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.frozen import engines, extraction
from transfer.frozen.extraction import extract, frozen_trunk, main
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.networks import graphs, surgery
from transfer.training.fit import fit

SIZE = (32, 32)


@pytest.fixture(scope="module")
def trunk():
    return surgery.slice_at(make_tiny(), "pool")


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def split(color_folder):
    return load_data(color_folder).test


def by_keras(trunk, split, size=SIZE):
    return np.asarray(trunk(np.stack([split.picture(i, size) for i in range(len(split))]).astype("float32")))


def assert_near(found, expected):
    """As near as bfloat16 brings it; pictures differ by far more."""
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.2 * np.abs(expected).max()


def run(trunk, split, cache, **options):
    return extract(trunk, split, image_size=SIZE, cache=cache, batch_size=4, **options)


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_features_are_the_networks_own_in_the_splits_order(engine, trunk, split, cache):
    expected = by_keras(trunk, split)
    found = run(trunk, split, cache, engine=engine, precision="float32")
    assert found.shape == expected.shape and found.computed == len(split) and found.engine
    assert np.abs(found.load() - expected).max() <= 1e-3 * np.abs(expected).max()
    order = np.random.default_rng(0).permutation(len(split))
    assert np.array_equal(found.take(order), found.load()[order])


def test_what_was_computed_is_read_the_second_time(trunk, split, cache):
    first = run(trunk, split, cache)
    again = run(trunk, split, cache)
    assert (first.computed, again.computed, again.engine) == (len(split), 0, "")
    assert np.array_equal(first.load(), again.load())
    backwards = run(trunk, split.take(range(len(split))[::-1]), cache)
    assert backwards.computed == 0 and np.array_equal(backwards.load(), first.load()[::-1])


def test_another_split_or_seed_computes_what_is_new_alone(trunk, color_folder, cache):
    one, other = (load_data(color_folder, seed=seed).train for seed in (0, 1))
    run(trunk, one, cache)
    new = len(set(other.names) - set(one.names))
    found = run(trunk, other, cache)
    assert 0 < found.computed == new < len(other)
    assert_near(found.load(), by_keras(trunk, other))


def test_a_changed_picture_alone_is_computed_anew(trunk, tmp_path, cache):
    for i in range(12):
        write_picture(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", (40 * i % 256, 90, 200), seed=i)
    before = load_data(tmp_path / "photos", val=0, test=0).train
    run(trunk, before, cache)
    write_picture(tmp_path / "photos" / "a" / "0.png", (250, 250, 0), seed=99)
    after = load_data(tmp_path / "photos", val=0, test=0).train
    found = run(trunk, after, cache)
    assert found.computed == 1
    assert_near(found.load(), by_keras(trunk, after))


def test_copies_are_computed_once(trunk, split, cache):
    twice = split.take([0, 1, 0, 2, 1])
    found = run(trunk, twice, cache)
    assert found.computed == 3
    assert np.array_equal(found.load()[0], found.load()[2])


def test_pictures_that_nobody_looked_at_are_told_by_their_content(trunk, split, cache):
    run(trunk, split, cache)
    assert run(trunk, dataclasses.replace(split, digests=()), cache).computed == 0


def changed_weight(trunk):
    copy = surgery.clone(trunk)
    kernel = copy.get_layer("block1_conv").kernel
    kernel.assign(kernel.numpy() * 1.01)
    return copy


@pytest.mark.parametrize("change", ["weights", "size", "resize", "precision", "dtype", "preprocessing"])
def test_whatever_changes_the_features_computes_them_anew(change, trunk, split, cache):
    run(trunk, split, cache, precision="float32")
    options = {"image_size": SIZE, "cache": cache, "precision": "float32"}
    if change == "size":
        free = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
        extract(free, split, **options)
        assert extract(free, split, **{**options, "image_size": (24, 24)}).computed == len(split)
        return
    if change == "weights":
        trunk = changed_weight(trunk)
    if change == "preprocessing":
        trunk = surgery.clone(trunk, preprocess=keras.layers.Rescaling(1 / 255))
    if change == "resize":
        split = dataclasses.replace(split, resize="pad")
    if change == "dtype":
        options["dtype"] = "float16"
    if change == "precision":
        if run(trunk, split.take([0]), cache, precision="auto").engine != "openvino bfloat16":
            pytest.skip("no bfloat16 here")
        assert run(trunk, split, cache, precision="auto").computed == len(split) - 1
        return
    assert extract(trunk, split, **options).computed == len(split)


def test_a_run_that_was_killed_goes_on_where_it_was(trunk, split, cache, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_BYTES", 1)  # a file for each batch
    make = extraction.make_engine

    class Killed(Exception):
        pass

    def make_mortal(*arguments, **options):
        engine, batches = make(*arguments, **options), []

        class Mortal:
            name, model, batch_size = engine.name, engine.model, engine.batch_size

            def __call__(self, images):
                batches.append(len(images))
                if len(batches) > 2:
                    raise Killed
                return engine(images)

        return Mortal()

    monkeypatch.setattr(extraction, "make_engine", make_mortal)
    with pytest.raises(Killed):
        run(trunk, split, cache)
    monkeypatch.setattr(extraction, "make_engine", make)
    found = run(trunk, split, cache)
    assert found.computed == len(split) - 8, "two batches of four were kept"
    assert_near(found.load(), by_keras(trunk, split))


def test_damage_on_disk_is_noticed_and_mended(trunk, split, cache, caplog):
    before = run(trunk, split, cache).load()
    largest = max((f for f in cache.folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    again = run(trunk, split, cache)
    assert again.computed == len(split) and np.array_equal(again.load(), before)
    assert largest.name in caplog.text


def test_a_network_that_gives_nan_is_refused_and_nothing_kept(trunk, split, cache):
    broken = surgery.clone(trunk)
    broken.get_layer("block3_bn").gamma.assign(np.full(16, np.nan, "float32"))
    with pytest.raises(InputError, match="NaN"):
        run(broken, split, cache)
    assert all(shelf.rows == 0 for shelf in cache.shelves())


def test_one_picture_is_enough_and_none_is_refused(trunk, split, cache):
    assert run(trunk, split.take([3]), cache).shape == (1, 16)
    with pytest.raises(InputError, match="Received: an empty split"):
        run(trunk, split.take([]), cache)


def test_the_cache_is_listed_and_cleared_by_command(trunk, split, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "mine"))
    run(trunk, split, None)
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert f"{len(split)} pictures" in listed and "tiny" in listed and "32x32 stretch" in listed
    assert main(["--clear"]) == 0
    assert "Removed" in capsys.readouterr().out
    main(["--list"])
    assert "pictures" not in capsys.readouterr().out
    assert run(trunk, split, None).computed == len(split)


def test_a_cache_that_cannot_be_made_costs_the_keeping_alone(trunk, split, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    assert_near(run(trunk, split, None).load(), by_keras(trunk, split))
    assert "not kept for the next run" in caplog.text
    with pytest.raises(InputError):
        run(trunk, split, FeatureCache())


def test_the_trunk_is_given_only_where_the_head_alone_trains(tiny):
    model = small_similar(tiny, 3, preprocessing="tf")
    assert graphs.fingerprint(frozen_trunk(model)) == graphs.fingerprint(surgery.trunk_of(model))
    model.get_layer("block3_conv").trainable = True
    assert frozen_trunk(model) is None


# Training and evaluation on them


def test_a_second_fit_computes_nothing_and_gives_the_same(color_folder, cache):
    data = load_data(color_folder)
    models = [small_similar(make_tiny(), 3, preprocessing="tf") for _ in range(2)]
    first, second = (fit(model, data, cache=cache, verbose=0) for model in models)
    assert first.computed == len(data.train) + len(data.val) and second.computed == 0
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_both_solvers_learn_and_say_what_happened(solver, color_folder, cache):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    done = fit(model, data, solver=solver, cache=cache, verbose=0)
    assert evaluate(model, data, cache=cache).accuracy >= 0.9
    assert (done.regularisation is not None) is (solver == "exact")
    assert (len(done.rows) > 1) is (solver == "sgd")
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(done.rows[-1])


def test_epochs_ask_for_epochs(color_folder, cache):
    done = fit(small_similar(make_tiny(), 3, preprocessing="tf"), load_data(color_folder), epochs=2, cache=cache,
               verbose=0)  # fmt: skip
    assert [row["epoch"] for row in done.rows] == [1, 2]


def test_evaluation_on_kept_features_is_that_of_the_model(color_folder, cache):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, data, cache=cache, verbose=0)
    found = evaluate(model, data, cache=cache)
    pictures = np.stack([data.test.picture(i, SIZE) for i in range(len(data.test))]).astype("float32")
    expected = model.predict(pictures, verbose=0)
    assert np.abs(found.probabilities - expected).max() < 0.05
    assert (found.predictions == expected.argmax(axis=1)).mean() > 0.9


def test_unknown_solvers_are_named(color_folder):
    with pytest.raises(InputError, match=r"Unknown solver 'exakt'\. Did you mean 'exact'"):
        fit(small_similar(make_tiny(), 3, preprocessing="tf"), load_data(color_folder), solver="exakt")


def test_nothing_is_said_above_info(trunk, split, cache, caplog):
    run(trunk, split, cache)
    assert not [r for r in caplog.records if r.name.startswith("transfer") and r.levelno > logging.INFO]
    json.dumps([shelf.about for shelf in cache.shelves()])


# Several outputs, several views, one engine for several splits


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_several_outputs_come_side_by_side_and_apart_again(engine, split, cache):
    tiny = make_tiny()
    maps, vector = tiny.get_layer("block2_add").output, tiny.get_layer("pool").output
    both = keras.Model(tiny.inputs[0], [maps, vector])
    found = run(both, split, cache, engine=engine, precision="float32")
    pictures = np.stack([split.picture(i, SIZE) for i in range(len(split))]).astype("float32")
    expected = [np.asarray(part) for part in both(pictures)]
    parts = found.parts(range(len(split)))
    assert [part.shape for part in parts] == [part.shape for part in expected]
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-3 * np.abs(wanted).max())
    assert run(both, split, cache, engine=engine, precision="float32").computed == 0


def test_an_output_that_is_wrong_is_noticed_beside_a_large_one_that_is_right(tiny):
    maps = tiny.get_layer("block2_add").output
    large = keras.layers.Rescaling(1e6)(maps)
    engine = engines.make_engine(
        keras.Model(tiny.inputs[0], [large, tiny.get_layer("pool").output]), engine="keras"
    )
    images = np.random.default_rng(0).uniform(0, 255, (4, *SIZE, 3)).astype("float32")
    right = np.asarray(engine.model(images))
    wrong = right.copy()
    wrong[:, engine.sections[0] :] *= 1.5
    assert engine._problem(images, right) == ""
    engine._trusted = False
    assert "differs" in engine._problem(images, wrong)
    assert engines.relative_error(wrong, right) < 1e-3, "all together it would pass"


def test_an_engine_serves_several_splits(trunk, color_folder, cache):
    data = load_data(color_folder)
    engine = engines.make_engine(trunk, batch_size=4)
    first = run(trunk, data.test, cache, engine=engine)
    second = run(trunk, data.val, cache, engine=engine)
    assert first.computed == len(data.test) and second.computed == len(data.val)
    assert_near(second.load(), by_keras(trunk, data.val))


def test_views_are_the_picture_and_changes_of_it(trunk, split, cache):
    alone = run(trunk, split, cache)
    found = run(trunk, split, cache, views=3, augment="light", flip=False)
    assert found.shape == (3 * len(split), *alone.shape[1:]) and found.computed == 2 * len(split)
    first, second, third = found.load().reshape(3, len(split), -1)
    assert np.array_equal(first, alone.load())
    assert np.abs(first - second).max() > 1e-3 and np.abs(second - third).max() > 1e-3
    order = np.random.default_rng(0).permutation(len(split))
    mixed = run(trunk, split.take(order), cache, views=3, augment="light", flip=False)
    assert mixed.computed == 0, "a picture changes by its content, not by its place"
    assert np.array_equal(mixed.load().reshape(3, len(split), -1)[1], second[order])
