"""Small saved models of each task, as transformers or contextseg write them, and images in one folder per class."""

import torch
from coco_shapes import CATEGORIES, FEW
from PIL import Image
from transformers import (
    DetrImageProcessor,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
)

from contextseg import MaskRcnnConfig, MaskRcnnForObjectDetection

COLORS = {
    "ant": "red",
    "bee": "green",
    "cat": "blue",
    "dog": "gray",
    "elk": "yellow",
    "fox": "white",
    "gnu": "pink",
}

REVERSED, CATEGORY_NAMES = tuple(reversed(COLORS)), tuple(CATEGORIES.values())


def labels(names):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def saved(model, processor, folder):
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_classifier(folder, names=REVERSED):
    """transformers' own classifier and processor; the classes are in no alphabetical order."""
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        initializer_range=0.5,
        **labels(names),
    )
    processor = ViTImageProcessor(size={"height": 16, "width": 16})
    return saved(ViTForImageClassification(config), processor, folder)


def save_detector(folder, names=CATEGORY_NAMES):
    torch.manual_seed(0)
    backbone = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8] * 4, embedding_size=8)
    config = MaskRcnnConfig(backbone_config=backbone, detector_options=FEW, **labels(names))
    processor = DetrImageProcessor(size={"shortest_edge": 48, "longest_edge": 64})
    return saved(MaskRcnnForObjectDetection(config), processor, folder)


def save_segformer(folder, names=("wall", "grass", "sky"), **options):
    """transformers' own segmenter with its own processor, which has neither a palette nor a pixel limit."""
    torch.manual_seed(0)
    widths = {
        "hidden_sizes": [8] * 4,
        "depths": [1] * 4,
        "num_attention_heads": [1] * 4,
        "sr_ratios": [1] * 4,
    }
    config = SegformerConfig(**widths, decoder_hidden_size=8, initializer_range=0.5, **labels(names))
    processor = SegformerImageProcessor(size={"height": 32, "width": 32}, **options)
    return saved(SegformerForSemanticSegmentation(config), processor, folder)


def write_class_folders(folder, names=COLORS, count=2):
    """`count` images of one color in each folder, each darker than the last."""
    for name in names:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            color = Image.new("RGB", (20, 24), COLORS[name]).point(
                lambda level, index=index: level * (count - index) // count
            )
            color.save(folder / name / f"{index}.png")
    return folder
