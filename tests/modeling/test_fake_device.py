"""Every forward and every loss on a CUDA device that does not exist: a tensor that code makes on the CPU fails here.

Fake tensors have a shape, a type and a device, but no values, so that no GPU is needed. What reads values is replaced:
the initialization from a truncated normal distribution, the check of the labels, and in a detector what follows the heads.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from cases import slow_but
from coco_shapes import FEW
from tiny import (
    LABELS,
    REPRESENTATIVES,
    SEGMENTERS,
    UNET,
    size_for,
    tiny_cswin,
    tiny_glam_swin,
    tiny_maformer,
    tiny_segdeformer,
)
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers import AutoBackbone, AutoModelForImageClassification
from transformers import initialization as init

from contextseg import MaformerForImageClassification, MaskRcnnConfig, MaskRcnnForObjectDetection
from contextseg.modeling import external_tokens, losses
from contextseg.modeling.detection import fused_maps
from contextseg.modeling.loss_operators import label_likelihood
from contextseg.modeling.modeling_mask_rcnn import detection_outputs, padded

ALL_TERMS = "cross_entropy+dice+focal+lovasz+boundary"
SEGDEFORMER = {"external_tokens": "momentum", "internal_mlp": True, "neck": "segformer", "reduction_ratio": 2}
BUILT_ON_FAKE = [
    name for name in SEGMENTERS if name != "glam_swinv2"
]  # Swin V2 reads values while it is built
# Besides the tiny ones, options that run other code.
VARIANTS: dict[str, Callable[[], nn.Module]] = {
    "glam_swin_sincos": lambda: tiny_glam_swin(global_position_embedding="sincos"),
    "glam_swin_table": lambda: tiny_glam_swin(
        global_position_embedding="table", global_position_rows=(400, 100), loss=ALL_TERMS
    ),
    "maformer_windows": lambda: tiny_maformer(
        local_attention="shifted_window", global_branch="conv", class_weights=(1.0, 2.0, 3.0)
    ),
    "maformer_enhanced": lambda: tiny_maformer(fusion="local_enhanced", decoder="upernet"),
    "maformer_global": lambda: tiny_maformer(
        **{**UNET, "upsampling": "nonlocal_global", "use_auxiliary_head": False}
    ),
    "cswin_official": lambda: tiny_cswin(stripe_padding="official"),
    "cswin_bilinear": lambda: tiny_cswin(**UNET, nonlocal_shortcut="bilinear", nonlocal_bias="official"),
    "segdeformer_momentum": lambda: tiny_segdeformer(**SEGDEFORMER),
    "segdeformer_fpn": lambda: tiny_segdeformer(decoder="semantic_fpn", use_auxiliary_head=True),
}


def needs_driver() -> bool:
    """Whether this PyTorch asks the driver of a GPU even for fake tensors, as 2.8 does."""
    with FakeTensorMode():
        try:
            torch.empty(1, device="cuda").uniform_()
        except RuntimeError:
            return True
    return False


pytestmark = pytest.mark.skipif(needs_driver(), reason="this PyTorch needs a GPU for fake CUDA tensors")


@pytest.fixture
def cuda(monkeypatch) -> Iterator[FakeTensorMode]:
    """Inside the test, models and tensors are fake ones; `torch.device("cuda")` puts new ones on that device."""
    monkeypatch.setattr(init, "trunc_normal_", lambda tensor, **_: tensor)
    for module in (losses, external_tokens):
        monkeypatch.setattr(module, "check_labels", lambda *_: None)
    # The operator's own code in place of its registered shapes.
    monkeypatch.setattr(losses, "label_likelihood", label_likelihood._init_fn)
    with FakeTensorMode() as mode:
        yield mode


def on_cuda(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("cuda"):
        return build()


def images(*size: int, num_channels: int = 3) -> dict[str, Tensor]:
    size = size or (37, 45)
    with torch.device("cuda"):
        return {
            "pixel_values": torch.randn(2, num_channels, *size),
            "pixel_mask": torch.ones(2, *size),
            "labels": torch.zeros(2, *size, dtype=torch.int64),
        }


def devices(*tensors: Tensor) -> set[str]:
    return {tensor.device.type for tensor in tensors}


@pytest.mark.usefixtures("cuda")
@pytest.mark.parametrize(
    "name",
    slow_but(BUILT_ON_FAKE, *(name for name in (*REPRESENTATIVES, "glam_nnformer") if name in BUILT_ON_FAKE)),
)
def test_a_segmenter_and_its_loss_stay_on_the_device(name):
    model = on_cuda(SEGMENTERS[name])
    inputs = images(*size_for(model, 5, 37, 45), num_channels=getattr(model.config, "num_channels", 3))
    for is_training in (True, False):
        outputs = model.train(is_training)(**inputs, output_hidden_states=True)
        assert devices(outputs.loss, outputs.logits, *outputs.hidden_states) == {"cuda"}


@pytest.mark.slow
@pytest.mark.usefixtures("cuda")
def test_every_option_stays_on_the_device():
    inputs = images()
    for build in VARIANTS.values():
        outputs = on_cuda(build)(**inputs)
        assert devices(outputs.loss, outputs.logits) == {"cuda"}


@pytest.mark.slow
@pytest.mark.usefixtures("cuda")
def test_backbones_and_classifiers_stay_on_the_device():
    inputs = images()
    labels = inputs["labels"][:, 0, 0]
    for name in ("glam_swin", "maformer", "cswin"):
        config = SEGMENTERS[name]().config
        backbone, classifier = (
            on_cuda(lambda auto=auto, config=config: auto.from_config(config))
            for auto in (AutoBackbone, AutoModelForImageClassification)
        )
        maps = backbone(inputs["pixel_values"], pixel_mask=inputs["pixel_mask"]).feature_maps
        classified = classifier(inputs["pixel_values"], labels=labels)
        assert devices(*maps, classified.loss, classified.logits) == {"cuda"}


@pytest.mark.usefixtures("cuda")
def test_the_loss_of_token_labels_stays_on_the_device():
    config = tiny_maformer(use_token_labels=True).config
    model, inputs = on_cuda(lambda: MaformerForImageClassification(config)), images()
    labels = inputs["labels"]
    outputs = model(inputs["pixel_values"], labels=labels[:, 0, 0], token_labels=labels[:, :3, :3])
    assert devices(outputs.loss, outputs.logits) == {"cuda"}


@pytest.mark.usefixtures("cuda")
def test_the_parts_of_a_detector_stay_on_the_device():
    config = MaskRcnnConfig(backbone_config=tiny_maformer().config, detector_options=FEW, id2label=LABELS)
    model = on_cuda(lambda: MaskRcnnForObjectDetection(config))
    maps = fused_maps(model.fpn, model.backbone(padded(images()["pixel_values"])).feature_maps)
    scores, offsets = model.rpn.head(list(maps.values()))
    with torch.device("cuda"):
        found = {"scores": torch.ones(4), "labels": torch.ones(4).long(), "boxes": torch.ones(4, 4)}
        found["masks"] = torch.ones(4, 1, 28, 28)
    outputs = detection_outputs([found, found], [(37, 45)] * 2, len(LABELS))
    parts = (outputs.logits, outputs.pred_boxes, outputs.roi_masks)
    assert devices(*maps.values(), *scores, *offsets, *parts) == {"cuda"}


@pytest.mark.usefixtures("cuda")
def test_every_loss_stays_on_the_device():
    with torch.device("cuda"):
        logits, labels = torch.randn(2, 3, 4, 5), torch.zeros(2, 9, 12, dtype=torch.int64)
    loss = losses.segmentation_loss(logits, labels, terms=ALL_TERMS, class_weights=(1.0, 2.0, 3.0))
    assert devices(loss) == {"cuda"}
