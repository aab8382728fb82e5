import math
from types import SimpleNamespace

import pytest
import torch
from cases import each
from coco_shapes import DISK, SQUARE, shapes
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import MultiScaleRoIAlign, box_iou

import contextseg
from contextseg import (
    GlamSwinBackbone,
    GlamSwinConfig,
    MaformerBackbone,
    MaformerConfig,
    MaskRcnnConfig,
    MaskRcnnForObjectDetection,
    cascade_mask_rcnn,
    mask_rcnn,
)
from contextseg.modeling.detection_cascade import generalized_iou

UNUSED_BACKGROUND = (
    4 * 1025 + 257
)  # a box and a mask for background, which torchvision has and the paper's detector lacks


def tiny_backbone(**overrides):
    sizes = {"embed_dim": 16, "depths": (2, 2), "num_heads": (1, 2), "window_size": 4, "num_global_tokens": 2}
    return GlamSwinBackbone(GlamSwinConfig(**{**sizes, "drop_path_rate": 0.0, **overrides}))


def tiny_detector(build=mask_rcnn, **options):
    torch.manual_seed(0)
    small = {
        "min_size": 64,
        "max_size": 96,
        "rpn_post_nms_top_n_train": 100,
        "rpn_post_nms_top_n_test": 30,
        "box_batch_size_per_image": 16,
        "box_roi_pool": MultiScaleRoIAlign(["0", "1"], output_size=4, sampling_ratio=2),
        "mask_roi_pool": MultiScaleRoIAlign(["0", "1"], output_size=7, sampling_ratio=2),
    }
    return build(tiny_backbone(), num_labels=2, **{**small, **options})


def batch(count):
    images, targets = zip(*(shapes(seed=seed) for seed in range(count)), strict=True)
    return list(images), list(targets)


each_detector = pytest.mark.parametrize("build", [mask_rcnn, cascade_mask_rcnn])
each_detector_but_slow = pytest.mark.parametrize(
    "build", [mask_rcnn, pytest.param(cascade_mask_rcnn, marks=pytest.mark.slow)]
)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def heads_on(channels, num_labels=80, build=mask_rcnn):
    """The detector without a backbone that has parameters, and without memory for its own."""
    backbone = nn.Identity()
    backbone.channels = channels
    with torch.device("meta"):
        return build(backbone, num_labels)


class TorchvisionBackbone(nn.Module):
    """A torchvision ResNet with the interface of ours."""

    def __init__(self, body, channels):
        super().__init__()
        self.body, self.channels = body, channels

    def forward(self, pixel_values):
        return SimpleNamespace(feature_maps=tuple(self.body(pixel_values).values()))


def test_it_is_torchvisions_detector_with_another_backbone():
    torch.manual_seed(0)
    pyramid = resnet_fpn_backbone(backbone_name="resnet18", weights=None)
    options = {
        "min_size": 64,
        "rpn_post_nms_top_n_test": 50,
        "box_score_thresh": 0.0,
        "box_detections_per_img": 5,
    }
    theirs = MaskRCNN(pyramid, num_classes=3, **options).eval()
    with torch.device("meta"):
        body = TorchvisionBackbone(pyramid.body, (64, 128, 256, 512))
        ours = mask_rcnn(body, 2, **options).eval()
    weights = {name.replace(".body.", ".body.body."): value for name, value in theirs.state_dict().items()}
    ours.load_state_dict(weights, assign=True)
    images = [shapes()[0], shapes(70, 90)[0]]
    with torch.no_grad():
        expected, found = theirs(images), ours(images)
    assert len(expected[0]["boxes"]) > 0
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@each(
    ("build", "channels", "heads_of_the_paper", "stages"),
    [
        (mask_rcnn, (64, 128, 320, 512), 20_167_408, 1),
        (mask_rcnn, (128, 192, 448, 640), 20_265_712, 1),
        (cascade_mask_rcnn, (64, 128, 320, 512), 58_002_610, 3),
        (cascade_mask_rcnn, (128, 192, 448, 640), 58_100_914, 3),
    ],
)
def test_heads_have_the_papers_parameters_and_an_unused_background(
    build, channels, heads_of_the_paper, stages
):
    assert count(heads_on(channels, build=build)) == heads_of_the_paper + stages * UNUSED_BACKGROUND


@each(
    ("preset", "mask", "cascade"),
    [
        ("small", 42_623_192, 80_458_394),
        ("base", 71_201_911, 109_037_113),
        ("large", 122_366_007, 160_201_209),
    ],
)
def test_maformers_detectors_have_the_papers_parameters_and_an_unused_background(preset, mask, cascade):
    with torch.device("meta"):
        backbone = MaformerBackbone(MaformerConfig.preset(preset))
        assert count(mask_rcnn(backbone, 80)) == mask + UNUSED_BACKGROUND
        assert count(cascade_mask_rcnn(backbone, 80)) == cascade + 3 * UNUSED_BACKGROUND


def test_background_is_all_that_the_heads_have_more():
    heads = heads_on((64, 128, 320, 512)).roi_heads
    assert heads.box_predictor.cls_score.out_features == 81  # the paper's too: a score says "nothing here"
    assert heads.box_predictor.bbox_pred.out_features == 4 * 81  # the paper's: 4 * 80
    assert heads.mask_predictor.mask_fcn_logits.out_channels == 81  # the paper's: 80


def test_glam_swin_tiny_has_a_swins_mask_rcnn_and_its_global_tokens():
    with torch.device("meta"):
        swin, glam = (
            mask_rcnn(GlamSwinBackbone(GlamSwinConfig.preset("tiny", num_global_tokens=tokens)), 80)
            for tokens in (0, 10)
        )
    assert round((count(swin) - UNUSED_BACKGROUND) / 1e6, 1) == 47.8  # as published for Swin-T
    assert count(glam) - count(swin) == count(glam.backbone.body) - count(swin.backbone.body) > 0


def test_anchors_are_32_to_512_on_strides_4_to_64():
    model = mask_rcnn(tiny_backbone(depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1)), 2, min_size=128).eval()
    images, _ = model.transform([torch.rand(3, 128, 192)])
    features = model.backbone(images.tensors)
    assert [(*level.shape[-2:],) for level in features.values()] == [
        (32, 48),
        (16, 24),
        (8, 12),
        (4, 6),
        (2, 3),
    ]
    assert model.rpn.anchor_generator.sizes == ((32,), (64,), (128,), (256,), (512,))


def test_images_are_resized_and_padded_as_in_the_paper():
    transform = mask_rcnn(tiny_backbone(), 2).transform
    images, _ = transform([torch.rand(3, 480, 640), torch.rand(3, 300, 900)])
    assert images.image_sizes == [
        (800, 1066),
        (444, 1333),
    ]  # the short side is 800 unless the long one passes 1333
    assert images.tensors.shape[-2:] == (800, 1344)
    assert transform.image_mean == [0.485, 0.456, 0.406]
    assert transform.image_std == [0.229, 0.224, 0.225]


@each_detector
def test_training_gives_five_finite_losses_and_a_gradient_in_every_parameter(build):
    model = tiny_detector(build, rpn_batch_size_per_image=5000)  # every anchor, so that each level is sampled
    losses = model(*batch(2))
    assert sorted(losses) == [
        "loss_box_reg",
        "loss_classifier",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    ]
    sum(losses.values()).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert missing == []
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_maformer_trains_and_finds_things_at_odd_sizes():
    sizes = {"hidden_sizes": (16, 32, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (2, 2, 2, 2)}
    backbone = MaformerBackbone(MaformerConfig(**sizes, drop_path_rate=0.0))
    few = {"rpn_post_nms_top_n_test": 20, "box_batch_size_per_image": 8, "rpn_batch_size_per_image": 5000}
    model = mask_rcnn(backbone, 2, min_size=64, max_size=96, box_score_thresh=0.0, **few)
    sum(model(*batch(2)).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []
    with torch.no_grad():
        (found,) = model.eval()([torch.rand(3, 37, 53)])
    assert len(found["boxes"]) > 0
    assert found["masks"].shape[1:] == (1, 37, 53)


@each_detector
def test_an_image_without_objects_trains(build):
    image, target = shapes()
    nothing = {name: value[:0] for name, value in target.items()}
    losses = tiny_detector(build)([image], [nothing])
    sum(losses.values()).backward()
    assert losses["loss_mask"] == losses["loss_box_reg"] == 0
    assert losses["loss_classifier"].isfinite()


@pytest.fixture(scope="module", params=[mask_rcnn, pytest.param(cascade_mask_rcnn, marks=pytest.mark.slow)])
def finds_everything(request):
    return tiny_detector(request.param, box_score_thresh=0.0, box_detections_per_img=5).eval()


@each("sizes", [[(37, 53)], [(64, 41), (33, 90)], [(1, 1)], [(7, 300)]])
def test_any_size_gives_boxes_and_masks_in_the_images_own_pixels(finds_everything, sizes):
    with torch.no_grad():
        outputs = finds_everything([torch.rand(3, *size) for size in sizes])
    for (height, width), found in zip(sizes, outputs, strict=True):
        objects = len(found["boxes"])
        assert {name: (*value.shape,) for name, value in found.items()} == {
            "boxes": (objects, 4),
            "labels": (objects,),
            "scores": (objects,),
            "masks": (objects, 1, height, width),
        }
        assert objects > 0
        assert (found["boxes"] >= 0).all()
        rounding = 1e-3  # torchvision clips boxes before it scales them back to the image
        assert (found["boxes"] <= torch.tensor([width, height, width, height]) + rounding).all()
        assert set(found["labels"].tolist()) <= {SQUARE, DISK}
        assert ((found["masks"] >= 0) & (found["masks"] <= 1)).all()


@each_detector_but_slow
def test_saved_weights_give_the_same_detections(build, tmp_path):
    options = {"box_score_thresh": 0.0, "box_detections_per_img": 5}
    model, other = (tiny_detector(build, **options).eval() for _ in range(2))
    for parameter in other.parameters():
        nn.init.normal_(parameter)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    images, _ = batch(1)
    with torch.no_grad():
        torch.testing.assert_close(other(images), model(images), rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("build", [mask_rcnn, pytest.param(cascade_mask_rcnn, marks=pytest.mark.long)])
def test_it_learns_a_handful_of_shapes(build):
    model, (images, targets) = tiny_detector(build), batch(3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(60):
        loss = sum(model(images, targets).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step == 45:
            optimizer.param_groups[0]["lr"] = 1e-4
    model.eval()
    with torch.no_grad():
        outputs = model(images)
    for found, target in zip(outputs, targets, strict=True):
        best = torch.stack(
            [torch.where(found["labels"] == label, found["scores"], 0).argmax() for label in (1, 2)]
        )
        overlaps = box_iou(found["boxes"][best], target["boxes"]).diagonal()
        masks = found["masks"][best, 0] > 0.5
        truth = target["masks"].bool()
        mask_overlaps = (masks & truth).sum((1, 2)) / (masks | truth).sum((1, 2))
        assert found["labels"][best].tolist() == [SQUARE, DISK]
        assert (found["scores"][best] > 0.5).all()
        assert (overlaps > 0.5).all()
        assert (mask_overlaps > 0.5).all()


def set_predictor(stage, scores, offsets):
    """Makes a stage answer the same for every box: class scores (3,), and offsets (4,) of every class."""
    for layer, answer in (
        (stage.box_predictor.cls_score, scores),
        (stage.box_predictor.bbox_pred, offsets * 3),
    ):
        nn.init.zeros_(layer.weight)
        layer.bias.data = torch.tensor(answer)


@torch.no_grad()
def test_a_cascade_moves_each_stages_boxes_and_averages_the_scores():
    model = tiny_detector(cascade_mask_rcnn, box_score_thresh=0.0, box_nms_thresh=1.0).eval()
    scores = ([0.0, 2.0, 0.0], [0.0, 0.0, 1.0], [3.0, 0.0, 0.0])
    moves = (
        1.0,
        -2.0,
        3.0,
    )  # of the center to the right, in tenths, twentieths and thirtieths of the box's width
    for stage, answer, move in zip(model.roi_heads.stages, scores, moves, strict=True):
        set_predictor(stage, answer, [move, 0.0, 0.0, 0.0])
    proposals, features = [torch.tensor([[20.0, 10.0, 30.0, 40.0]])], model.backbone(torch.rand(1, 3, 64, 64))
    (found,), _ = model.roi_heads(features, proposals, [(64, 64)])
    expected = torch.tensor(scores).softmax(dim=1).mean(dim=0)[1:]
    torch.testing.assert_close(found["scores"], expected.sort(descending=True).values)
    torch.testing.assert_close(found["boxes"], torch.tensor([[21.0, 10.0, 31.0, 40.0]]).expand(2, 4))


@torch.no_grad()
def test_stages_of_a_cascade_count_a_whole_a_half_and_a_quarter():
    model = tiny_detector(cascade_mask_rcnn)
    for stage in model.roi_heads.stages:
        set_predictor(stage, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0])
    losses = model(*batch(1))
    assert losses["loss_classifier"].item() == pytest.approx(1.75 * math.log(3))


def test_the_giou_loss_of_a_cascade_is_that_of_the_decoded_boxes():
    (stage, *_) = tiny_detector(cascade_mask_rcnn, box_loss="giou").roi_heads.stages
    boxes, labels = [torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])], [torch.tensor([DISK, 0])]
    targets = stage.box_coder.encode([torch.tensor([[0.0, 0, 20, 10], [0, 0, 1, 1]])], boxes)
    offsets = torch.zeros(2, 3 * 4, requires_grad=True)
    loss = generalized_iou(stage, offsets, boxes, labels, targets)
    loss.backward()
    assert loss.item() == pytest.approx(
        10 * (1 - 0.5) / 2
    )  # of two boxes one is positive and covers half its object
    moved = offsets.grad.unflatten(1, (3, 4)).abs().sum(2) > 0
    assert moved.tolist() == [[False, False, True], [False] * 3]
    offsets = targets[0].repeat(1, 3)
    assert generalized_iou(stage, offsets, boxes, labels, targets).item() == pytest.approx(0, abs=1e-5)


def test_a_cascade_trains_with_the_box_loss_that_it_names():
    losses = []
    for box_loss in ("smooth_l1", "giou"):
        torch.manual_seed(0)
        losses.append(tiny_detector(cascade_mask_rcnn, box_loss=box_loss)(*batch(1)))
    assert losses[0]["loss_box_reg"] != losses[1]["loss_box_reg"]
    assert losses[0]["loss_mask"] == losses[1]["loss_mask"]
    with pytest.raises(ValueError, match="no box loss 'iou', did you mean 'giou'"):
        tiny_detector(cascade_mask_rcnn, box_loss="iou")
    with pytest.raises(ValueError, match="cascade_box_loss is 'iou'. Use 'smooth_l1' or 'giou'"):
        MaskRcnnConfig(cascade_box_loss="iou")
    with torch.device("meta"):
        of_config = MaskRcnnForObjectDetection(
            MaskRcnnConfig.preset("nano", use_cascade=True, cascade_box_loss="giou")
        )
    assert of_config.roi_heads.uses_giou


def test_stages_of_a_cascade_demand_more_and_more_overlap():
    stages = tiny_detector(cascade_mask_rcnn).roi_heads.stages
    objects, boxes = (
        torch.tensor([[0.0, 0, 10, 10]]),
        torch.tensor([[0.0, 0, 10, 5.5], [0, 0, 10, 6.5], [0, 0, 10, 7.5]]),
    )
    labels = [
        stage.assign_targets_to_proposals([boxes], [objects], [torch.tensor([DISK])])[1][0]
        for stage in stages
    ]
    assert [found.tolist() for found in labels] == [[2, 2, 2], [0, 2, 2], [0, 0, 2]]


def test_an_unknown_option_is_named_with_what_it_may_have_been():
    with pytest.raises(ValueError, match=r"no option 'min_sise', did you mean 'min_size'\?"):
        mask_rcnn(tiny_backbone(), 2, min_sise=64)


def test_heads_that_a_cascade_sets_for_each_stage_are_no_options_of_it():
    with pytest.raises(ValueError, match="cascade_mask_rcnn has no option 'box_head'"):
        cascade_mask_rcnn(tiny_backbone(), 2, box_head=nn.Identity())


@each_detector
def test_no_labels_are_refused(build):
    with pytest.raises(ValueError, match="num_labels is 0"):
        build(tiny_backbone(), 0)


def test_the_names_are_public():
    assert {"cascade_mask_rcnn", "mask_rcnn"} <= set(contextseg.__all__)
