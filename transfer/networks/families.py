"""The families of networks, in two tables: constructors, image sizes, preprocessing, names of blocks."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import keras


@dataclass(frozen=True)
class Family:
    """Properties that the networks of a family have in common."""

    # Constructor's name -> image size in pixels that its weights were trained for.
    constructors: dict[str, int]
    preprocessing: str  # a key of PREPROCESSING
    model_name: str  # pattern of the name that the constructor gives the model
    block: str  # pattern of the layer names of a block; its first group is the block's name
    min_size: int = 32  # smallest image size in pixels
    fixed_top: bool = False  # whether the classifier needs images of the default size
    weights: str = "imagenet"
    tokens: str = "patches"  # one of tokens.POOLING, for networks whose output is a sequence of tokens


def _efficientnets(prefix: str) -> dict[str, int]:
    return {f"{prefix}{i}": size for i, size in enumerate((224, 240, 260, 300, 380, 456, 528, 600))}


FAMILIES: dict[str, Family] = {
    "ConvNeXt": Family(
        {f"ConvNeXt{size}": 224 for size in ("Tiny", "Small", "Base", "Large", "XLarge")},
        "inside",
        r"convnext_\w+",
        r".*?(stage_\d+_block_\d+)_",
    ),
    "DemoCNN": Family({"DemoCNN": 48}, "tf", r"democnn", r"(conv\d)$", 16, fixed_top=True, weights="shapes"),
    "DenseNet": Family(
        {f"DenseNet{depth}": 224 for depth in (121, 169, 201)},
        "torch",
        r"densenet\d+",
        r"(conv\d+_block\d+|pool\d+)_",
    ),
    "EfficientNet": Family(
        _efficientnets("EfficientNetB"), "efficientnet", r"efficientnetb\d", r"(block\d+[a-z]+)_"
    ),
    "EfficientNetLite": Family(
        {"EfficientNetLite0": 224, "EfficientNetLite1": 240, "EfficientNetLite2": 260},
        "lite",
        r"efficientnetlite\d",
        r"(block\d+[a-z]+)_",
    ),
    "EfficientNetV2": Family(
        {
            **{f"EfficientNetV2B{i}": size for i, size in enumerate((224, 240, 260, 300))},
            **{"EfficientNetV2S": 384, "EfficientNetV2M": 480, "EfficientNetV2L": 480},
        },
        "inside",
        r"efficientnetv2-\w+",
        r"(block\d+[a-z]+)_",
    ),
    "InceptionResNetV2": Family(
        {"InceptionResNetV2": 299}, "tf", r"inception_resnet_v2", r"(mixed_\d\w|block\d+_\d+)(?:_|$)", 75
    ),
    "InceptionV3": Family({"InceptionV3": 299}, "tf", r"inception_v3", r"(mixed\d+)$", 75),
    "MobileNet": Family({"MobileNet": 224}, "tf", r"mobilenet_\d\.\d+_(\d+|None)", r"conv_[dp]w_(\d+)"),
    "MobileNetV2": Family(
        {"MobileNetV2": 224}, "tf", r"mobilenetv2_\d\.\d+_(\d+|None)", r"(expanded_conv|block_\d+)_"
    ),
    "MobileNetV3": Family(
        {"MobileNetV3Small": 224, "MobileNetV3Large": 224},
        "inside",
        r"MobileNetV3(?:Small|Large)",
        r"(expanded_conv(?:_\d+)?)_",
    ),
    "NASNet": Family(
        {"NASNetMobile": 224, "NASNetLarge": 331},
        "tf",
        r"(?i:nasnet(?:_\w+)?)",
        r"((?:normal|reduction)_concat_\w+)$",
    ),
    "ResNet": Family(
        {f"ResNet{depth}": 224 for depth in (50, 101, 152)}, "caffe", r"resnet\d+", r"(conv\d+_block\d+)_"
    ),
    "ResNetV2": Family(
        {f"ResNet{depth}V2": 224 for depth in (50, 101, 152)}, "tf", r"resnet\d+v2", r"(conv\d+_block\d+)_"
    ),
    "VGG": Family({"VGG16": 224, "VGG19": 224}, "caffe", r"vgg1[69]", r"(block\d)_", fixed_top=True),
    "Xception": Family({"Xception": 299}, "tf", r"xception", r"(block\d+)_", 71),
}


def _of_hub(preprocessing: str, block: str, tokens: str = "patches") -> Family:
    """Return a family of KerasHub, whose models are called like their class."""
    return Family({}, preprocessing, "", block, tokens=tokens)


# Families of KerasHub by the class of their networks. The preprocessing counts if a preset does not state its own.
HUB_FAMILIES: dict[str, Family] = {
    "CLIPVisionEncoder": _of_hub("clip", r".*(encoder_block_\d+)$", "class"),
    "CSPNetBackbone": _of_hub("torch", ""),
    "DINOV2Backbone": _of_hub("torch", r".*(layers_\d+)$", "both"),
    "DINOV3Backbone": _of_hub("torch", r".*(layers_\d+)$", "both"),
    "DeiTBackbone": _of_hub("torch", r"(transformer_block_\d+)_", "class"),
    "DenseNetBackbone": _of_hub("torch", r"(stack\d+_block\d+|transition\d+)_"),
    "EfficientNetBackbone": _of_hub("torch", ""),
    "HGNetV2Backbone": _of_hub("torch", ""),
    "MetaCLIP2VisionEncoder": _of_hub("clip", r".*(encoder_block_\d+)$", "class"),
    "MiTBackbone": _of_hub("torch", r"(hierarchical_encoder_\d+_\d+)_"),
    "MobileNetBackbone": _of_hub("tf", r"(block_\d+_\d+)$"),
    "MobileNetV5Backbone": _of_hub(
        "tf", r"((?:conv_norm_act|edge_residual|universal_inverted_residual|mobile_attention)(?:_\d+)?)$"
    ),
    "ResNetBackbone": _of_hub("torch", ""),
    "SigLIPVisionEncoder": _of_hub("tf", r".*(encoder_block_\d+)$"),
    "SwinTransformerBackbone": _of_hub("torch", r"(stage_\d+_blocks_\d+)_tokens$"),
    "VGGBackbone": _of_hub("caffe", r"(block\d+)_"),
    "ViTDetBackbone": _of_hub("unit", r"(windowed_transformer_encoder(?:_\d+)?)$"),
    "ViTBackbone": _of_hub("tf", r"(transformer_block_\d+)$", "class"),
    "XceptionBackbone": _of_hub("tf", r"(block\d+)_"),
}
HUB_FAMILIES = {name: replace(family, model_name=name) for name, family in HUB_FAMILIES.items()}


def family_of(model: keras.Model) -> Family | None:
    """Return the family of a network by the name that its constructor gave it, or None."""
    known = [*FAMILIES.values(), *HUB_FAMILIES.values()]
    return next((f for f in known if re.fullmatch(f.model_name, model.name)), None)
