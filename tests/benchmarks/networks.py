"""Measure networks as frozen feature extractors: parameters, features, time per image, and memory.

    python tests/benchmarks/networks.py run
    python tests/benchmarks/networks.py run --networks MobileNetV2 hub:dinov2_small
    python tests/benchmarks/networks.py show

`run` measures the forward pass of each network in batches of 32 at its own image size, with the engines `keras` and
`openvino`. Each pair of a network and an engine runs in a separate process. All weights are random, so nothing is
downloaded. The first batch, which compiles the network and compares the engine with Keras, does not count. The fastest
of the following batches counts, because other programs may run at the same time.

Networks with `hub:` are built by KerasHub in the size of the preset of that name, without its weights. They need the
extra `hub`. Two of them, ViT-Ti/16 and ViT-S/16, have no preset.

Each unit adds a row to `--results`; units that have a row are skipped. `show` prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import frozen
import numpy as np

ENGINES = ("openvino", "keras")
BATCHES = 4  # that count
SECONDS = 8  # after which no further batch starts; two batches always count


def _vit(hidden: int, heads: int, patch: int = 16, mlp: str = "intermediate_dim", **more: Any) -> dict:
    """Return the arguments of a vision transformer of 12 layers."""
    sizes = {"hidden_dim": hidden, "num_heads": heads, mlp: 4 * hidden}
    return {"patch_size": patch, "num_layers": 12, **sizes, "image_shape": (224, 224, 3), **more}


DINOV3 = {"num_register_tokens": 4, "use_key_bias": False}
HUB: dict[str, tuple[str, dict[str, Any]]] = {
    "vit_tiny_patch16_224": ("ViTBackbone", _vit(192, 3, mlp="mlp_dim")),
    "vit_small_patch16_224": ("ViTBackbone", _vit(384, 6, mlp="mlp_dim")),
    "vit_base_patch16_224_imagenet": ("ViTBackbone", _vit(768, 12, mlp="mlp_dim")),
    "deit_small_distilled_patch16_224_imagenet": ("DeiTBackbone", _vit(384, 6)),
    "dinov2_small": ("DINOV2Backbone", _vit(384, 6, 14)),
    "dinov2_base": ("DINOV2Backbone", _vit(768, 12, 14)),
    "dinov3_vit_small_lvd1689m": ("DINOV3Backbone", _vit(384, 6, **DINOV3)),
    "siglip_base_patch16_224": ("SigLIPVisionEncoder", _vit(768, 12)),
    "clip_vit_base_patch16": ("CLIPVisionEncoder", _vit(768, 12)),
    "swin_tiny_patch4_window7_224": (
        "SwinTransformerBackbone",
        {
            **{"image_shape": (224, 224, 3), "patch_size": 4, "embed_dim": 96, "window_size": 7},
            **{"depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
        },
    ),
    "mit_b0_ade20k_512": (
        "MiTBackbone",
        {
            **{"layerwise_depths": [2, 2, 2, 2], "num_layers": 4, "layerwise_num_heads": [1, 2, 5, 8]},
            **{"layerwise_sr_ratios": [8, 4, 2, 1], "max_drop_path_rate": 0.1},
            **{"layerwise_patch_sizes": [7, 3, 3, 3], "layerwise_strides": [4, 2, 2, 2]},
            **{"hidden_dims": [32, 64, 160, 256], "image_shape": (224, 224, 3)},
        },
    ),
    "resnet_50_imagenet": (
        "ResNetBackbone",
        {
            **{"input_conv_filters": [64], "input_conv_kernel_sizes": [7]},
            **{"stackwise_num_filters": [64, 128, 256, 512], "stackwise_num_blocks": [3, 4, 6, 3]},
            **{"stackwise_num_strides": [1, 2, 2, 2], "block_type": "bottleneck_block"},
            **{"image_shape": (224, 224, 3)},
        },
    ),
}
"""The classes and arguments of KerasHub's networks by preset; the sizes are those of the papers."""


NO_PRESET = {
    "hub:vit_tiny_patch16_224": "ViT-Ti/16 of KerasHub, no preset",
    "hub:vit_small_patch16_224": "ViT-S/16 of KerasHub, no preset",
}
"""Names in the table of networks that have no preset."""

ACCURACY = {
    **{"EfficientNetLite0": 75.1, "EfficientNetLite1": 76.7, "EfficientNetLite2": 77.6},
    **{"ConvNeXtTiny": 81.3, "ConvNeXtSmall": 82.3, "ConvNeXtBase": 85.3, "ConvNeXtLarge": 86.3},
    **{"ConvNeXtXLarge": 86.7, "DenseNet121": 75.0, "DenseNet169": 76.2, "DenseNet201": 77.3},
    **{"EfficientNetB0": 77.1, "EfficientNetB1": 79.1, "EfficientNetB2": 80.1, "EfficientNetB3": 81.6},
    **{"EfficientNetB4": 82.9, "EfficientNetB5": 83.6, "EfficientNetB6": 84.0, "EfficientNetB7": 84.3},
    **{
        "EfficientNetV2B0": 78.7,
        "EfficientNetV2B1": 79.8,
        "EfficientNetV2B2": 80.5,
        "EfficientNetV2B3": 82.0,
    },
    **{"EfficientNetV2S": 83.9, "EfficientNetV2M": 85.3, "EfficientNetV2L": 85.7, "MobileNet": 70.4},
    **{"InceptionResNetV2": 80.3, "InceptionV3": 77.9, "MobileNetV2": 71.3, "Xception": 79.0},
    **{"NASNetMobile": 74.4, "NASNetLarge": 82.5, "VGG16": 71.3, "VGG19": 71.3},
    **{"ResNet50": 74.9, "ResNet101": 76.4, "ResNet152": 76.6},
    **{"ResNet50V2": 76.0, "ResNet101V2": 77.2, "ResNet152V2": 78.0},
    **{"hub:deit_small_distilled_patch16_224_imagenet": 81.2, "hub:swin_tiny_patch4_window7_224": 81.2},
    **{"hub:dinov2_small": 81.1, "hub:dinov2_base": 84.5},
}
"""Published top-1 accuracy on ImageNet in percent. Sources: keras.io/api/applications; for the EfficientNet-Lites
github.com/tensorflow/tpu (models/official/efficientnet/lite); for DeiT, Swin and DINOv2 (linear classifier) the
repositories of the authors."""


def main() -> None:
    """Run the units, print the table, or measure one unit."""
    if sys.argv[1:2] == ["unit"]:
        return measure(json.loads(sys.argv[2]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "show"))
    parser.add_argument("--networks", nargs="+", help="names (default: all)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=ENGINES)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results" / "networks.jsonl")
    options = parser.parse_args()
    if options.action == "show":
        return show(frozen.stored(options.results))
    for network in options.networks or names():
        for engine in options.engines:
            unit = {"network": network, "engine": engine}
            if not any(unit.items() <= row.items() for row in frozen.stored(options.results)):
                run_unit(unit, options.results)


def names() -> list[str]:
    """Return the names of all networks."""
    from transfer.networks.backbones import backbone_names

    return [*backbone_names(), *(f"hub:{name}" for name in HUB)]


def run_unit(unit: dict[str, str], results: Path) -> None:
    """Measure a unit in a separate process with an empty cache, and append its row."""
    with tempfile.TemporaryDirectory() as folder:
        job = json.dumps({**unit, "out": f"{folder}/out.json"})
        environment = {**os.environ, "TRANSFER_CACHE": f"{folder}/cache"}
        load = os.getloadavg()[0]
        process = frozen.subprocess.Popen([sys.executable, __file__, "unit", job], env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            print(f"{unit}: the process ended with exit code {process.returncode}.", flush=True)
            return
        row = {**unit, **json.loads(Path(f"{folder}/out.json").read_text())}
    row |= {"peak_mb": round(usage.ru_maxrss / 2**10), "load": round(load, 1)}
    with results.open("a") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)


def measure(job: dict[str, str]) -> None:
    """Time the batches of a unit."""
    from transfer.frozen.engines import make_engine

    model = extractor(job["network"])
    size = model.inputs[0].shape[1]
    engine = make_engine(model, engine=job["engine"], batch_size=frozen.BATCH_SIZE)
    batch = np.tile(images(size, 8), (frozen.BATCH_SIZE // 8, 1, 1, 1))
    times: list[tuple[float, float]] = []
    while len(times) < 3 or (len(times) <= BATCHES and sum(wall for wall, _ in times[1:]) < SECONDS):
        before, cpu = time.perf_counter(), time.process_time()
        features = engine(batch)
        times.append((time.perf_counter() - before, time.process_time() - cpu))
    if not np.isfinite(features).all():
        raise SystemExit(f"{job['network']}: the features are not finite.")
    wall, cpu = (1e3 * min(column[1:]) / frozen.BATCH_SIZE for column in zip(*times, strict=True))
    row = {
        **{"size": size, "parameters": model.count_params(), "features": features.shape[-1]},
        **{"ms": round(wall, 2), "cpu_ms": round(cpu, 2), "first_s": round(times[0][0], 1)},
        **{"batches": len(times) - 1, "runs": engine.name},
    }
    Path(job["out"]).write_text(json.dumps(row))


def extractor(network: str) -> Any:
    """Return the frozen feature extractor of case 1 with random weights, for raw images."""
    import keras

    import transfer
    from transfer.common.keras_private import all_layers
    from transfer.networks.surgery import feature_extractor_of

    keras.utils.set_random_seed(0)
    if network.startswith("hub:"):
        import keras_hub

        kind, arguments = HUB[network.removeprefix("hub:")]
        base = getattr(keras_hub.models, kind)(**arguments)
    else:
        base = transfer.load_backbone(network, weights="none")
    model = feature_extractor_of(transfer.small_similar(base, 2))
    # With their initial statistics, random weights give tiny or infinite activations.
    found = [layer for layer in all_layers(model) if isinstance(layer, keras.layers.BatchNormalization)]
    for layer in found:
        layer.trainable, layer.momentum = True, 0.0
    if found:
        model(images(model.inputs[0].shape[1], 4), training=True)
    model.trainable = False
    return model


def images(size: int, count: int) -> np.ndarray:
    """Return smooth images with values from 0 to 255."""
    import tensorflow as tf

    coarse = np.random.default_rng(0).integers(0, 256, (count, 7, 7, 3)).astype("float32")
    return np.clip(tf.image.resize(coarse, (size, size), "bicubic").numpy(), 0, 255)


def show(rows: list[dict]) -> None:
    """Print the table."""
    print(table(rows))


def table(rows: list[dict]) -> str:
    """Return the table in Markdown, with the engines of a network side by side."""
    heads = ["network", "px", "million weights", "MB", "features", "ImageNet"]
    heads += [f"{engine}, {unit}" for unit in ("CPU ms", "peak MB") for engine in ("Keras", "OpenVINO")]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for network in names():
        found = {row["engine"]: row for row in rows if row["network"] == network}
        if not found:
            continue
        one = next(iter(found.values()))
        cells = [NO_PRESET.get(network, f"`{network}`"), str(one["size"]), f"{one['parameters'] / 1e6:.1f}"]
        cells += [
            f"{one['parameters'] * 4 / 1e6:.0f}",
            f"{one['features']:,}",
            f"{ACCURACY.get(network, '')}",
        ]
        for key in ("cpu_ms", "peak_mb"):
            cells += [cell(found.get(engine), key) for engine in ("keras", "openvino")]
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines)


def cell(row: dict | None, key: str) -> str:
    """Format a value of a row, or nothing if the engine is not measured or Keras ran in its place."""
    if row is None or not row["runs"].startswith(row["engine"]):
        return ""
    return f"{row[key]:,.{int(row[key] < 10)}f}"


if __name__ == "__main__":
    main()
