"""Beam computes the same features as the local extraction, in the same cache, and none twice."""

import logging
import os
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.images import write_image
from helpers.networks import make_tiny

from transfer.beam_features import BeamConfig, main
from transfer.cases.builders import small_similar
from transfer.common.errors import InputError
from transfer.evaluation.evaluate import evaluate
from transfer.frozen import beam_extraction, extraction, feature_shards
from transfer.frozen.beam_extraction import extract_with_beam
from transfer.frozen.feature_cache import FeatureCache
from transfer.frozen.feature_shards import ShardReport, Worker
from transfer.images.datasets import load_data
from transfer.networks import surgery
from transfer.networks.backbones import load_backbone
from transfer.training.fit import fit

pytest.importorskip("apache_beam")

SIZE = (32, 32)
TWO_PROCESSES = ["--direct_running_mode=multi_processing", "--direct_num_workers=2"]


@pytest.fixture(scope="module")
def extractor():
    return surgery.slice_at(make_tiny(), "pool")


@pytest.fixture(scope="module")
def split(colors):
    return colors.test


@pytest.fixture(autouse=True)
def fast_progress_bar(monkeypatch):
    """Do not wait for the progress bar."""
    monkeypatch.setattr(beam_extraction, "_INTERVAL", 0.01)


def on_beam(extractor, split, cache, **options):
    settings = {"engine": "keras", "batch_size": 4, "shard_size": 5}
    return extract_with_beam(extractor, split, image_size=SIZE, cache=cache, **{**settings, **options})


def locally(extractor, split, cache, **options):
    settings = {"engine": "keras", "batch_size": 4}
    return extraction.extract(extractor, split, image_size=SIZE, cache=cache, **{**settings, **options})


def other_cache(cache):
    return FeatureCache(cache.folder.with_name("other"))


def passes(cache):
    return list(cache.folder.glob("pass-*"))


# Equal to the local extraction


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_features_equal_those_of_the_local_extraction(dtype, extractor, split, cache):
    """Batches differ, but the engine always runs the same number of images at a time."""
    found = on_beam(extractor, split, cache, dtype=dtype)
    expected = locally(extractor, split, other_cache(cache), dtype=dtype)
    assert found.computed == len(split) == len(found) and found.engine == "keras"
    assert np.array_equal(found.load(), expected.load())
    assert np.ptp(expected.load(), axis=0).max() > 0
    assert found.shapes == expected.shapes
    again = locally(extractor, split, cache, dtype=dtype)
    assert again.computed == 0 and np.array_equal(again.load(), expected.load())
    assert [f.name for f in cache.folder.glob("*.features")] == [
        f.name for f in other_cache(cache).folder.glob("*.features")
    ]


def test_networks_with_several_outputs_are_supported(split, cache):
    tiny = make_tiny()
    both = keras.Model(tiny.inputs[0], [tiny.get_layer("block3_add").output, tiny.get_layer("pool").output])
    found, expected = on_beam(both, split, cache), locally(both, split, other_cache(cache))
    parts = zip(found.parts(range(len(split))), expected.parts(range(len(split))), strict=True)
    assert all(np.array_equal(a, b) for a, b in parts)
    assert locally(both, split, cache).computed == 0


@pytest.mark.parametrize("kind", ["grey arrays", "arrays", "encoded"])
def test_shards_hold_images_that_are_not_files(kind, extractor, split, cache):
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (24, 20, 28, 3), "uint8")
    labels = np.arange(24) % 2
    if kind == "encoded":
        encoded = [Path(split.images[i]).read_bytes() for i in range(12)]
        split = feature_shards.Split(encoded, labels[:12], list("abcdefghijkl"), resize="pad")
    else:
        split = load_data((images[..., 0] if kind == "grey arrays" else images, labels), resize="crop").train
    found, expected = on_beam(extractor, split, cache), locally(extractor, split, other_cache(cache))
    assert np.array_equal(found.load(), expected.load()) and len(np.unique(found.load()[:, 0])) > 5


def test_copies_are_computed_once(extractor, split, cache, monkeypatch):
    seen, read = [], feature_shards.read_reports
    monkeypatch.setattr(feature_shards, "read_reports", lambda folder: seen.extend(read(folder)) or seen)
    found = on_beam(extractor, split.take([0, 1, 0, 2, 1]), cache)
    assert found.computed == 3 == sum(report.images for report in seen)
    assert np.array_equal(found.load()[0], found.load()[2])


# Resumed passes


def test_cached_features_are_not_computed_again(extractor, split, cache, monkeypatch):
    locally(extractor, split.take(range(0, len(split), 2)), cache)
    found = on_beam(extractor, split, cache)
    assert found.computed == len(split) // 2
    monkeypatch.setattr(beam_extraction, "run_shards", None)  # must not be called
    again = on_beam(extractor, split, cache)
    assert (again.computed, again.engine) == (0, "") and np.array_equal(again.load(), found.load())


def test_an_interrupted_pass_is_resumed(extractor, split, cache, monkeypatch):
    class Killed(Exception):
        pass

    compute = extraction.compute_features
    shards = []

    def compute_two_shards(run, store, shard, *arguments, **options):
        shards.append(len(shard))
        if len(shards) == 3:
            raise Killed
        return compute(run, store, shard, *arguments, **options)

    monkeypatch.setattr(extraction, "compute_features", compute_two_shards)
    with pytest.raises(Exception, match="Killed"):
        on_beam(extractor, split, cache)
    assert not passes(cache)
    kept = sum(shards[:2])
    found = on_beam(extractor, split, cache)
    assert 0 < kept < len(split) and found.computed == len(split) - kept == sum(shards[3:])
    assert np.array_equal(found.load(), locally(extractor, split, other_cache(cache)).load())


def test_a_repeated_shard_is_not_computed_again(extractor, split, cache):
    """Clusters repeat a shard after losing contact with a worker."""
    settings = settings_of(extractor, split, cache)
    with feature_shards.pass_folder(cache.folder) as folder:
        write_pass(folder, extractor, split)
        assert Worker(folder, settings).work(0).images == len(split)
        assert Worker(folder, settings).work(0) is None
    assert locally(extractor, split, cache).computed == 0


def settings_of(extractor, split, cache, **changes):
    store = locally(extractor, split.take([0]), other_cache(cache)).store
    cache.folder.mkdir(parents=True, exist_ok=True)
    options = {"image_size": SIZE, "resize": split.resize, "dtype": "float32", "engine": "keras"}
    options |= {
        "precision": "float32",
        "batch_size": 4,
        "limit": 10**9,
        "store": store.folder.name,
        **changes,
    }
    return feature_shards.PassSettings(**options)


def write_pass(folder, extractor, split):
    feature_shards.write_pass(folder, extractor, split, count=1)


# Errors


def test_invalid_arguments_are_errors(extractor, split, cache, tmp_path):
    with pytest.raises(InputError, match="Received: an empty split"):
        on_beam(extractor, split.take([]), cache)
    with pytest.raises(InputError, match="shard_size of at least 1 image"):
        on_beam(extractor, split, cache, shard_size=0)
    with pytest.raises(InputError, match="Did you mean 'keras'"):
        on_beam(extractor, split, cache, engine="kers")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        on_beam(extractor, split, FeatureCache(tmp_path / "file" / "cache"))


def test_without_a_writable_cache_features_are_temporary(extractor, split, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "file" / "cache"))
    found = on_beam(extractor, split.take(range(6)), None)
    assert found.computed == 6 and "not cached for later runs" in caplog.text


def test_errors_of_workers_are_reported_in_one_sentence(extractor, split, cache):
    broken = surgery.clone(extractor)
    broken.get_layer("block3_bn").gamma.assign(np.full(16, np.nan, "float32"))
    with pytest.raises(InputError, match="returns NaN") as caught:
        on_beam(broken, split, cache)
    assert "Traceback" not in str(caught.value) and len(str(caught.value)) < 300
    assert all(store.rows == 0 for store in cache.stores()) and not passes(cache)


def test_a_missing_image_is_reported(extractor, tmp_path, cache):
    for i in range(12):
        write_image(tmp_path / "photos" / "ab"[i % 2] / f"{i}.png", (40 * i % 256, 90, 200), seed=i)
    split = load_data(tmp_path / "photos", val=0, test=0).train
    os.unlink(split.images[7])
    with pytest.raises(InputError, match=r"Cannot read .*photos.*no such file") as caught:
        on_beam(extractor, split, cache, shard_size=1, batch_size=1)
    assert os.path.basename(split.images[7]) in str(caught.value) and "\n" not in str(caught.value)


def test_networks_with_unsafe_layers_are_errors(split, cache):
    code = keras.layers.Lambda(lambda x: x / 255)
    model = keras.Sequential([keras.Input((*SIZE, 3)), code, keras.layers.GlobalAveragePooling2D()])
    with pytest.raises(InputError, match="cannot be loaded"):
        on_beam(model, split, cache)


def test_a_network_that_cannot_be_saved_is_an_error_without_leftovers(split, cache):
    class Stubborn(keras.layers.Layer):
        def get_config(self):
            if (folder := cache.folder).is_dir() and passes(cache):
                raise AttributeError(f"not to {folder.name}")
            return super().get_config()

        def call(self, x):
            return keras.ops.mean(x, (1, 2))

    model = keras.Sequential([keras.Input((*SIZE, 3)), Stubborn()])
    with pytest.raises(InputError, match=r"cannot be saved for the workers: not to .*get_config"):
        on_beam(model, split, cache)
    assert all(store.rows == 0 for store in cache.stores()) and not passes(cache)


def test_a_worker_with_another_engine_is_an_error(extractor, split, cache):
    settings = settings_of(extractor, split, cache, store="another.features")
    with feature_shards.pass_folder(cache.folder) as folder:
        write_pass(folder, extractor, split)
        with pytest.raises(InputError, match="computes other features"):
            Worker(folder, settings)


def test_a_folder_that_workers_do_not_see_is_an_error(extractor, split, cache, monkeypatch, tmp_path):
    with pytest.raises(InputError, match=r"does not see .*TRANSFER_CACHE"):
        feature_shards.run_shard(0, tmp_path / "elsewhere", settings_of(extractor, split, cache))
    monkeypatch.setattr(beam_extraction, "run_shards", lambda *arguments: None)
    with pytest.raises(InputError, match=f"{len(split)} images are not in"):
        on_beam(extractor, split, cache)


def test_old_folders_of_killed_passes_are_deleted(cache):
    old, new = cache.folder / "pass-old", cache.folder / "pass-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    before = time.time() - feature_shards.WEEK - 60
    os.utime(old, (before, before))
    with feature_shards.pass_folder(cache.folder) as folder:
        assert sorted(passes(cache)) == sorted([folder, new])
    assert passes(cache) == [new]


def test_missing_beam_is_an_error_with_the_install_command(extractor, split, cache, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(InputError, match=r'pip install "transfer-cases\[beam\]"'):
        on_beam(extractor, split, cache)
    assert main(["--data", "emoji"]) == 2
    assert "transfer-cases[beam]" in capsys.readouterr().err


# Shards and workers


def test_shards_hold_paths_and_beam_gets_their_numbers(extractor, split, cache, monkeypatch):
    """Beam gets only numbers; the file of a shard holds paths and no images."""
    monkeypatch.setattr(
        feature_shards, "run_shard", lambda number, folder, settings: (folder / f"{number}.told").touch()
    )
    settings = settings_of(extractor, split, cache)
    with feature_shards.pass_folder(cache.folder) as folder:
        feature_shards.write_pass(folder, extractor, split, count=3)
        sizes = [path.stat().st_size for path in folder.glob("*.shard")]
        beam_extraction.run_shards(folder, settings, 3, beam_extraction.read_options([]))
        told = sorted(path.name for path in folder.glob("*.told"))
        found = [feature_shards.read_shard(path, "stretch") for path in sorted(folder.glob("*.shard"))]
    assert told == ["0.told", "1.told", "2.told"]
    assert sum(sizes) < 3 * 1200 + 300 * len(split)
    assert sorted(p for part in found for p in part.images) == sorted(map(str, split.images))
    assert sorted(d for part in found for d in part.digests) == sorted(split.digests)


def test_a_shard_is_a_sample_of_all_images(extractor, colors, cache):
    split = colors.train
    cache.folder.mkdir()
    names = {digest: name for digest, name in zip(split.digests, split.names, strict=True)}
    with feature_shards.pass_folder(cache.folder) as folder:
        feature_shards.write_pass(folder, extractor, split, count=4)
        for path in folder.glob("*.shard"):
            of_class = {
                Path(names[d]).parent.name for d in feature_shards.read_shard(path, "stretch").digests
            }
            assert of_class == {"blue", "green", "red"}


def test_the_number_of_shards_is_a_multiple_of_the_workers():
    assert [beam_extraction._count_shards(n, 10, 2) for n in (1, 10, 11, 21, 40, 41)] == [1, 2, 2, 4, 4, 6]
    assert beam_extraction._count_shards(41, 10, 1) == 5


def test_flags_of_beam_are_read_and_unknown_flags_are_errors():
    options = beam_extraction.read_options(TWO_PROCESSES)
    assert beam_extraction.count_workers(options) == 2
    assert beam_extraction.threads_per_worker(options) == max(1, os.cpu_count() // 2)
    assert beam_extraction.threads_per_worker(beam_extraction.read_options([])) == 0
    with pytest.raises(InputError, match="Unknown flag: --image-sise"):
        beam_extraction.read_options(["--image-sise=96"])
    on_cluster = beam_extraction.read_options(
        ["--runner=FlinkRunner", "--flink_master=here:1", "--num_workers=8"]
    )
    assert (
        beam_extraction.count_workers(on_cluster) == 8 and beam_extraction.threads_per_worker(on_cluster) == 0
    )


def test_messages_are_extracted_from_wrapped_errors():
    assert feature_shards.problem_in(InputError("So.")) == "So."
    text = "{{node}} InputError: Cannot read a.png: it is broken.\nTraceback (most recent call last):\n  File"
    assert feature_shards.problem_in(RuntimeError(text)) == "Cannot read a.png: it is broken."
    assert feature_shards.problem_in(RuntimeError("out of memory")) is None


def test_the_speed_excludes_the_start_of_the_workers():
    reports = [
        ShardReport("a", 10, first=5, last=9, first_batch=2, setup=5),
        ShardReport("a", 12, first=9.5, last=10, first_batch=2, setup=5),
        ShardReport("b", 22, first=6, last=11, first_batch=2, setup=4),
    ]
    assert feature_shards.seconds_per_image(reports) == pytest.approx(1 / (4 + 4))
    assert feature_shards.seconds_per_image([ShardReport("a", 2, 5, 5, 2, 5)]) is None
    assert feature_shards.seconds_per_image([]) is None


@pytest.mark.slow
def test_two_processes_compute_the_same_features(extractor, split, cache, monkeypatch):
    seen, read = [], feature_shards.read_reports
    monkeypatch.setattr(feature_shards, "read_reports", lambda folder: seen.extend(read(folder)) or seen)
    found = on_beam(extractor, split, cache, options=TWO_PROCESSES)
    assert found.computed == len(split)
    assert np.array_equal(found.load(), locally(extractor, split, other_cache(cache)).load())
    workers = {report.worker for report in seen}
    assert len(workers) == 2 and not any(worker.endswith(f" {os.getpid()}") for worker in workers)
    counts = [sum(r.images for r in seen if r.worker == worker) for worker in workers]
    assert sum(counts) == len(split) and max(counts) - min(counts) <= 5


@pytest.mark.slow
def test_errors_of_other_processes_are_reported_in_one_sentence(extractor, split, cache, capfd):
    broken = surgery.clone(extractor)
    broken.get_layer("block3_bn").gamma.assign(np.full(16, np.nan, "float32"))
    with pytest.raises(InputError, match="returns NaN"):
        on_beam(broken, split, cache, options=TWO_PROCESSES)
    said = capfd.readouterr()
    assert "Traceback" not in said.err and "INFO" not in said.err


# The command


def test_training_reads_the_features_that_the_command_computed(color_folder, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TRANSFER_CACHE", str(tmp_path / "mine"))
    make_tiny().save(tmp_path / "tiny.keras")
    network = ["--model", str(tmp_path / "tiny.keras"), "--preprocessing", "tf"]
    arguments = ["--data", str(color_folder), *network, "--engine", "keras"]
    handlers = [*logging.getLogger("transfer").handlers]
    assert main([*arguments, "--splits", "train", "val"]) == 0
    said = capsys.readouterr().out
    data = load_data(color_folder)
    count = len(data.train) + len(data.val)
    assert f"train, val: {count} of {count} images computed" in said
    assert "images/s" in said and str(tmp_path / "mine") in said
    model = small_similar(load_backbone(str(tmp_path / "tiny.keras")), data.num_classes, preprocessing="tf")
    assert fit(model, data, engine="keras", verbose=0).computed == 0
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert f"train, val, test: {len(data.test)} of {count + len(data.test)} images computed" in said
    monkeypatch.setattr("transfer.frozen.extraction.compute_features", None)
    assert evaluate(model, data, engine="keras").accuracy > 0.5
    assert logging.getLogger("transfer").handlers == handlers


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--case", "large-similar"], "freezes the network"),
        (["--data", "nowhere"], "nowhere"),
        (["--direct_num_wrokers=2"], "Unknown flag: --direct_num_wrokers"),
    ],
)
def test_invalid_command_lines_are_reported_in_one_message(arguments, expected, capsys):
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert expected in said and "Traceback" not in said


def test_the_defaults_are_those_of_training():
    from transfer.config import TrainConfig

    for name in ("model", "weights", "preprocessing", "cut", "image_size", "engine", "data", "seed"):
        assert getattr(BeamConfig, name) == getattr(TrainConfig, name), name
    assert beam_extraction.BATCH_SIZE == extraction.BATCH_SIZE
