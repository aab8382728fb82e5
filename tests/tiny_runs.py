"""A dataset of a few small images, and options that make training take a moment."""

import json

import numpy as np
from PIL import Image

CLASSES = ["wall", "grass", "sky"]
COLORS = np.array([[200, 60, 60], [60, 200, 60], [60, 60, 200], [0, 0, 0]], dtype=np.uint8)
TINY_MODEL = [
    *("--preset", "nano", "--set", "depths=[2,2]", "--set", "num_heads=[1,2]", "--set", "embed_dim=8"),
    *("--set", "decoder_hidden_size=8", "--set", "auxiliary_hidden_size=8"),
]
TINY_RUN = [
    *("--crop-size", "16x24", "--batch-size", "2", "--workers", "0", "--tracker", "none"),
    *("--learning-rate", "1e-3", "--steps", "4", "--eval-interval", "4"),
]

RECIPES_OF_EACH_KIND = [
    *("maformer_small_imagenet1k", "maformer_small_semantic_fpn_ade20k", "maformer_small_mask_rcnn_1x_coco"),
    *("glam_swin_upernet_tiny_ade20k", "glam_swin_unet_tiny_cityscapes", "swin_unet_nlu_tiny_ade20k"),
    *("segdeformer_mit_b1_ade20k", "segformer_mit_b1_ade20k", "upernet_deit_small_ade20k"),
]


def write_pairs(folder, count, *, size=(24, 30), seed=0):
    """Images whose colors are their classes, with a row of ignored pixels."""
    random = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros(size, dtype=np.uint8)
        mask[:, random.integers(4, size[1] - 4) :] = 1
        mask[random.integers(4, size[0] - 4) :, : size[1] // 3] = 2
        mask[0] = 255
        image = COLORS[np.where(mask == 255, 3, mask)]
        Image.fromarray(image).save(folder / "images" / f"scene{index}.png")
        Image.fromarray(mask).save(folder / "masks" / f"scene{index}.png")


def write_data(root, classes=CLASSES):
    """train/ with 5 pairs, val/ with 2."""
    write_pairs(root / "train", 5)
    write_pairs(root / "val", 2, size=(21, 35), seed=1)
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
    return root


def run_options(data, output, model=TINY_MODEL):
    return ["--train", f"{data}/train", "--val", f"{data}/val", "--output", str(output), *model, *TINY_RUN]
