"""Files for other runtimes: which models and processors they are of, and what they say of the processing."""

import json
from functools import partial

import numpy as np
import pytest
import torch
from cases import each, slow_but
from coco_shapes import FEW
from mask_checkpoints import build
from tiny import LABELS, tiny_glam_swin, tiny_mit, tiny_nnformer, tiny_relay, tiny_segdeformer
from transformers import (
    BeitImageProcessor,
    HieraConfig,
    MobileViTImageProcessor,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
)

from contextseg import (
    GlamSwinForImageClassification,
    MaskRcnnConfig,
    MaskRcnnForObjectDetection,
    SegmentationImageProcessor,
)
from contextseg.hub.served_files import metadata, served
from contextseg.hub.served_segmenters import ServedIds
from contextseg.processing.mask_models import MaskSegmenter

ODD = {"height": 37, "width": 83}
BANDS = {
    "do_convert_rgb": False,
    "image_mean": [0.1, 0.2, 0.3, 0.4, 0.5],
    "image_std": [0.5, 0.4, 0.3, 0.2, 0.1],
}
PROCESSORS = {
    "ours": SegmentationImageProcessor(image_mean=[0.2, 0.5, 0.6], image_std=[0.3, 0.2, 0.1]),
    "five channels": SegmentationImageProcessor(**BANDS),
    "levels": SegmentationImageProcessor(do_rescale=False),
    "shares": SegmentationImageProcessor(do_normalize=False),
    "neither": SegmentationImageProcessor(do_rescale=False, do_normalize=False),
    "resizing": SegmentationImageProcessor(size=ODD),
    "one mean": SegmentationImageProcessor(image_mean=0.4, image_std=0.3),
    "SegFormer's": SegformerImageProcessor(),
    "BEiT's": BeitImageProcessor(do_center_crop=True),
    "BGR": MobileViTImageProcessor(),
}


def channels_for(name):
    return 5 if name == "five channels" else 3


@each("name", list(PROCESSORS))
def test_ids_of_bytes_are_those_of_the_processor(name):
    torch.manual_seed(0)
    encoder, processor = tiny_mit(num_channels=channels_for(name)), PROCESSORS[name]
    model = tiny_segdeformer(backbone_config=encoder).eval()
    module = ServedIds(model, processor).eval()
    images = module.images(2, 37, 83)
    unchanged = {"do_resize": False} | ({"do_center_crop": False} if "BEiT" in name or name == "BGR" else {})
    inputs = processor(
        [image.numpy() for image in images],
        **unchanged,
        input_data_format="channels_last",
        return_tensors="pt",
    )
    with torch.no_grad():
        logits = model(inputs["pixel_values"].float()).logits
        result = module(images)
    scores = torch.nn.functional.interpolate(logits, size=(37, 83), mode="bilinear")
    assert (result == scores.argmax(1)).float().mean() > 0.999
    assert result.dtype == torch.int32


@each("name", list(PROCESSORS))
def test_metadata_are_what_a_caller_needs_to_do_the_same(name):
    processor, count = PROCESSORS[name], channels_for(name)
    facts = {
        key: json.loads(text) for key, text in metadata(tiny_relay(num_channels=count), processor).items()
    }
    image = np.random.default_rng(0).integers(0, 256, (37, 83, count), dtype=np.uint8)
    levels = image[..., facts["channel_order"]] * facts["rescale_factor"]
    result = (levels - facts["image_mean"]) / facts["image_std"]
    unchanged = {"do_resize": False} | ({"do_center_crop": False} if "BEiT" in name or name == "BGR" else {})
    expected = processor(image, **unchanged, input_data_format="channels_last", return_tensors="np")[
        "pixel_values"
    ][0]
    np.testing.assert_allclose(np.moveaxis(result, -1, 0), expected, atol=1e-4)


def test_metadata_tell_of_resizing_cropping_and_of_values_that_are_not_bytes():
    model = tiny_relay()
    facts = metadata(model, BeitImageProcessor(size=ODD, do_center_crop=True))
    assert json.loads(facts["size"]) == ODD
    assert json.loads(facts["crop_size"]) == {"height": 224, "width": 224}
    assert [facts["value_range"], metadata(model, SegmentationImageProcessor())["crop_size"]] == [
        "null",
        "null",
    ]
    assert metadata(model, SegmentationImageProcessor(value_range=(0, 4000)))["value_range"] == "[0, 4000]"


class Inverting(SegmentationImageProcessor):
    def _preprocess(self, images, **options):
        return super()._preprocess([255 - image for image in images], **options)


def test_processing_that_cannot_be_inside_is_refused():
    model = tiny_segdeformer()
    served(model, Inverting(), with_processing=False)
    with pytest.raises(ValueError, match="what Inverting does to pixels cannot be inside a file. Leave out"):
        served(model, Inverting(), with_processing=True)


def tiny_segformer_of_bands():
    config = SegformerConfig(
        num_channels=4,
        hidden_sizes=[8] * 4,
        depths=[1] * 4,
        num_attention_heads=[1] * 4,
        decoder_hidden_size=8,
        id2label=LABELS,
    )
    return SegformerForSemanticSegmentation(config)


def detector():
    backbone = ResNetConfig(depths=[1, 1, 1, 1], hidden_sizes=[8] * 4, embedding_size=8)
    return MaskRcnnForObjectDetection(MaskRcnnConfig(backbone_config=backbone, detector_options=FEW))


REFUSED = {
    "classifier": (
        lambda: GlamSwinForImageClassification(tiny_glam_swin().config),
        "GlamSwinForImageClassification is not one",
    ),
    "volumes": (partial(tiny_nnformer, num_channels=3), "this NnFormerForSemanticSegmentation is not one"),
    "half precision": (
        lambda: tiny_relay().bfloat16(),
        "is torch.bfloat16 on cpu; float32 on the CPU is required",
    ),
    "other channels": (tiny_segformer_of_bands, "normalizes 3 channels, and the model takes 4"),
    "detector": (detector, "this MaskRcnnForObjectDetection is not one"),
    "masks": (lambda: MaskSegmenter(*build("maskformer")), "maskformer classifies masks"),
    "one size": (
        lambda: tiny_segdeformer(
            backbone_config=HieraConfig(
                embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], image_size=[96, 96]
            )
        ),
        r"is not one \(an image of \d+x\d+ is larger than 96x96",
    ),
}


@pytest.mark.parametrize("name", slow_but(REFUSED, "classifier", "half precision", "other channels"))
def test_what_a_file_cannot_hold_is_refused_before_tracing(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        served(make(), SegmentationImageProcessor(), with_processing=False)
