"""Features are computed once, found again by content, and never wrong."""

import dataclasses
import json
import logging

import keras
import numpy as np
import pytest
from helpers.images import write_image
from helpers.networks import make_tiny

from transfer.cases.builders import small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.features import main
from transfer.frozen import engines, extraction
from transfer.frozen.extraction import KnownFeatures, extract, frozen_feature_extractor
from transfer.frozen.feature_cache import FeatureCache
from transfer.images.datasets import load_data
from transfer.networks import graphs, surgery
from transfer.training.fit import fit

SIZE = (32, 32)


@pytest.fixture(scope="module")
def extractor():
    return surgery.slice_at(make_tiny(), "pool")


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


@pytest.fixture
def split(color_folder):
    return load_data(color_folder).test


def by_keras(extractor, split, size=SIZE):
    return np.asarray(
        extractor(np.stack([split.image(i, size) for i in range(len(split))]).astype("float32"))
    )


def assert_near(found, expected):
    """Equal within the error of bfloat16, which is far smaller than the difference between images."""
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
    assert np.ptp(expected, axis=0).max() > 0.2 * np.abs(expected).max()


def run(extractor, split, cache, **options):
    return extract(extractor, split, image_size=SIZE, cache=cache, batch_size=4, **options)


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_features_equal_the_networks_outputs_in_the_order_of_the_split(engine, extractor, split, cache):
    expected = by_keras(extractor, split)
    found = run(extractor, split, cache, engine=engine, precision="float32")
    assert found.shape == expected.shape and found.computed == len(split) and found.engine
    assert np.abs(found.load() - expected).max() <= 1e-3 * np.abs(expected).max()
    order = np.random.default_rng(0).permutation(len(split))
    assert np.array_equal(found.take(order), found.load()[order])


def test_features_are_read_the_second_time(extractor, split, cache):
    first = run(extractor, split, cache)
    again = run(extractor, split, cache)
    assert (first.computed, again.computed, again.engine) == (len(split), 0, "")
    assert np.array_equal(first.load(), again.load())
    backwards = run(extractor, split.take(range(len(split))[::-1]), cache)
    assert backwards.computed == 0 and np.array_equal(backwards.load(), first.load()[::-1])


def test_another_seed_computes_only_new_images(extractor, color_folder, cache):
    one, other = (load_data(color_folder, seed=seed).train for seed in (0, 1))
    run(extractor, one, cache)
    new = len(set(other.names) - set(one.names))
    found = run(extractor, other, cache)
    assert 0 < found.computed == new < len(other)
    assert_near(found.load(), by_keras(extractor, other))


def test_known_features_are_used_instead_of_computing(extractor, colors, cache):
    some = colors.train.take(range(0, len(colors.train), 2))
    known = KnownFeatures(some, by_keras(extractor, some))
    found = run(extractor, colors.train, cache, known=known)
    assert found.computed == len(colors.train) - len(some)
    assert_near(found.load(), by_keras(extractor, colors.train))
    assert run(extractor, colors.train, cache).computed == 0
    other = FeatureCache(cache.folder / "other")
    assert run(extractor, some.take([0, 1]), other, known=known).computed == 0
    assert run(extractor, some, other).computed == len(some) - 2, "only the images of the split are written"


@pytest.mark.parametrize("change", ["values", "shape", "resize", "other images"])
def test_known_features_that_do_not_fit_are_ignored(change, extractor, colors, cache):
    split, values = colors.train.take(range(12)), by_keras(extractor, colors.train.take(range(12)))
    known = {
        "values": KnownFeatures(split, values * 1.1),
        "shape": KnownFeatures(split, values[:, :-1]),
        "resize": KnownFeatures(dataclasses.replace(split, resize="pad"), values),
        "other images": KnownFeatures(colors.test.take(range(12)), values),
    }[change]
    assert run(extractor, split, cache, known=known).computed == len(split)


def test_only_a_changed_image_is_computed_again(extractor, tmp_path, cache):
    for i in range(12):
        write_image(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", (40 * i % 256, 90, 200), seed=i)
    before = load_data(tmp_path / "photos", val=0, test=0).train
    run(extractor, before, cache)
    write_image(tmp_path / "photos" / "a" / "0.png", (250, 250, 0), seed=99)
    after = load_data(tmp_path / "photos", val=0, test=0).train
    found = run(extractor, after, cache)
    assert found.computed == 1
    assert_near(found.load(), by_keras(extractor, after))


def test_copies_are_computed_once(extractor, split, cache):
    twice = split.take([0, 1, 0, 2, 1])
    found = run(extractor, twice, cache)
    assert found.computed == 3
    assert np.array_equal(found.load()[0], found.load()[2])


def test_unchecked_images_are_identified_by_their_content(extractor, split, cache):
    run(extractor, split, cache)
    assert run(extractor, dataclasses.replace(split, digests=()), cache).computed == 0


def changed_weight(extractor):
    copy = surgery.clone(extractor)
    kernel = copy.get_layer("block1_conv").kernel
    kernel.assign(kernel.numpy() * 1.01)
    return copy


@pytest.mark.parametrize("change", ["weights", "size", "resize", "precision", "dtype", "preprocessing"])
def test_any_change_of_the_features_computes_them_again(change, extractor, split, cache):
    run(extractor, split, cache, precision="float32")
    options = {"image_size": SIZE, "cache": cache, "precision": "float32"}
    if change == "size":
        free = keras.Sequential([keras.Input((None, None, 3)), keras.layers.GlobalAveragePooling2D()])
        extract(free, split, **options)
        assert extract(free, split, **{**options, "image_size": (24, 24)}).computed == len(split)
        return
    if change == "weights":
        extractor = changed_weight(extractor)
    if change == "preprocessing":
        extractor = surgery.clone(extractor, preprocess=keras.layers.Rescaling(1 / 255))
    if change == "resize":
        split = dataclasses.replace(split, resize="pad")
    if change == "dtype":
        options["dtype"] = "float16"
    if change == "precision":
        if run(extractor, split.take([0]), cache, precision="auto").engine != "openvino bfloat16":
            pytest.skip("no bfloat16 here")
        assert run(extractor, split, cache, precision="auto").computed == len(split) - 1
        return
    assert extract(extractor, split, **options).computed == len(split)


def test_an_interrupted_extraction_is_resumed(extractor, split, cache, monkeypatch):
    monkeypatch.setattr(extraction, "CHUNK_BYTES", 1)  # a file for each batch
    make = extraction.make_engine

    class Killed(Exception):
        pass

    def make_mortal(*arguments, **options):
        engine, batches = make(*arguments, **options), []

        class Mortal:
            def __getattr__(self, name):
                return getattr(engine, name)

            def __call__(self, images):
                batches.append(len(images))
                if len(batches) > 2:
                    raise Killed
                return engine(images)

        return Mortal()

    monkeypatch.setattr(extraction, "make_engine", make_mortal)
    with pytest.raises(Killed):
        run(extractor, split, cache)
    monkeypatch.setattr(extraction, "make_engine", make)
    found = run(extractor, split, cache)
    assert found.computed == len(split) - 8, "two batches of four were kept"
    assert_near(found.load(), by_keras(extractor, split))


def test_damaged_features_are_computed_again(extractor, split, cache, caplog):
    before = run(extractor, split, cache).load()
    largest = max((f for f in cache.folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    again = run(extractor, split, cache)
    assert again.computed == len(split) and np.array_equal(again.load(), before)
    assert largest.name in caplog.text


def test_nan_is_an_error_and_nothing_is_stored(extractor, split, cache):
    broken = surgery.clone(extractor)
    broken.get_layer("block3_bn").gamma.assign(np.full(16, np.nan, "float32"))
    with pytest.raises(InputError, match="NaN"):
        run(broken, split, cache)
    assert all(store.rows == 0 for store in cache.stores())


def test_one_image_suffices_and_none_is_an_error(extractor, split, cache):
    assert run(extractor, split.take([3]), cache).shape == (1, 16)
    with pytest.raises(InputError, match="Received: an empty split"):
        run(extractor, split.take([]), cache)


def test_the_command_lists_and_clears_the_cache(extractor, split, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "mine"))
    run(extractor, split, None)
    assert main(["--list"]) == 0
    listed = capsys.readouterr().out
    assert f"{len(split)} images" in listed and "tiny" in listed and "32x32 stretch" in listed
    assert main(["--clear"]) == 0
    assert "Removed" in capsys.readouterr().out
    main(["--list"])
    assert "images" not in capsys.readouterr().out
    assert run(extractor, split, None).computed == len(split)


def test_without_a_writable_cache_features_are_temporary(extractor, split, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    assert_near(run(extractor, split, None).load(), by_keras(extractor, split))
    assert "not cached for later runs" in caplog.text
    with pytest.raises(InputError):
        run(extractor, split, FeatureCache())


def test_there_is_a_frozen_extractor_only_if_only_the_head_trains(tiny):
    model = small_similar(tiny, 3, preprocessing="tf")
    assert graphs.fingerprint(frozen_feature_extractor(model)) == graphs.fingerprint(
        surgery.feature_extractor_of(model)
    )
    model.get_layer("block3_conv").trainable = True
    assert frozen_feature_extractor(model) is None


# Training and evaluation on features


def test_a_second_fit_reads_all_features_and_gives_the_same_result(color_folder, cache):
    data = load_data(color_folder)
    models = [small_similar(make_tiny(), 3, preprocessing="tf") for _ in range(2)]
    first, second = (fit(model, data, cache=cache, verbose=0) for model in models)
    assert first.computed == len(data.train) + len(data.val) and second.computed == 0
    for a, b in zip(models[0].get_weights(), models[1].get_weights(), strict=True):
        assert np.array_equal(a, b)


@pytest.mark.parametrize("solver", ["exact", "sgd"])
def test_both_solvers_learn_and_log(solver, color_folder, cache):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    done = fit(model, data, solver=solver, cache=cache, verbose=0)
    assert evaluate(model, data, cache=cache).accuracy >= 0.9
    assert (done.regularization is not None) is (solver == "exact")
    assert (len(done.rows) > 1) is (solver == "sgd")
    assert {"loss", "accuracy", "val_loss", "val_accuracy"} <= set(done.rows[-1])


def test_options_of_epochs_select_sgd(color_folder, cache):
    done = fit(small_similar(make_tiny(), 3, preprocessing="tf"), load_data(color_folder), epochs=2, cache=cache,
               verbose=0)  # fmt: skip
    assert [row["epoch"] for row in done.rows] == [1, 2]


def test_evaluation_on_stored_features_equals_that_of_the_model(color_folder, cache):
    data = load_data(color_folder)
    model = small_similar(make_tiny(), 3, preprocessing="tf")
    fit(model, data, cache=cache, verbose=0)
    found = evaluate(model, data, cache=cache)
    images = np.stack([data.test.image(i, SIZE) for i in range(len(data.test))]).astype("float32")
    expected = model.predict(images, verbose=0)
    assert np.abs(found.probabilities - expected).max() < 0.05
    assert (found.predictions == expected.argmax(axis=1)).mean() > 0.9


def test_unknown_solvers_are_errors(color_folder):
    with pytest.raises(InputError, match=r"Unknown solver 'exakt'\. Did you mean 'exact'"):
        fit(small_similar(make_tiny(), 3, preprocessing="tf"), load_data(color_folder), solver="exakt")


def test_nothing_is_logged_above_info(extractor, split, cache, caplog):
    run(extractor, split, cache)
    assert not [r for r in caplog.records if r.name.startswith("transfer") and r.levelno > logging.INFO]
    json.dumps([store.about for store in cache.stores()])


# Several outputs, several views, one engine for several splits


@pytest.mark.parametrize("engine", ["auto", "keras"])
def test_several_outputs_are_joined_and_split_again(engine, split, cache):
    tiny = make_tiny()
    maps, vector = tiny.get_layer("block2_add").output, tiny.get_layer("pool").output
    both = keras.Model(tiny.inputs[0], [maps, vector])
    found = run(both, split, cache, engine=engine, precision="float32")
    images = np.stack([split.image(i, SIZE) for i in range(len(split))]).astype("float32")
    expected = [np.asarray(part) for part in both(images)]
    parts = found.parts(range(len(split)))
    assert [part.shape for part in parts] == [part.shape for part in expected]
    for part, wanted in zip(parts, expected, strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-3 * np.abs(wanted).max())
    assert run(both, split, cache, engine=engine, precision="float32").computed == 0


def test_a_wrong_small_output_is_noticed_beside_a_correct_large_one(tiny):
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


def test_an_engine_serves_several_splits(extractor, color_folder, cache):
    data = load_data(color_folder)
    engine = engines.make_engine(extractor, batch_size=4)
    first = run(extractor, data.test, cache, engine=engine)
    second = run(extractor, data.val, cache, engine=engine)
    assert first.computed == len(data.test) and second.computed == len(data.val)
    assert_near(second.load(), by_keras(extractor, data.val))


def test_views_are_the_image_and_augmented_views(extractor, split, cache):
    alone = run(extractor, split, cache)
    found = run(extractor, split, cache, views=3, augment="light", flip=False)
    assert found.shape == (3 * len(split), *alone.shape[1:]) and found.computed == 2 * len(split)
    first, second, third = found.load().reshape(3, len(split), -1)
    assert np.array_equal(first, alone.load())
    assert np.abs(first - second).max() > 1e-3 and np.abs(second - third).max() > 1e-3
    order = np.random.default_rng(0).permutation(len(split))
    mixed = run(extractor, split.take(order), cache, views=3, augment="light", flip=False)
    assert mixed.computed == 0, "an image changes by its content, not by its place"
    assert np.array_equal(mixed.load().reshape(3, len(split), -1)[1], second[order])
