"""The detectors as models of transformers: beside torchvision's own, and what a user of transformers expects of them."""

import functools
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from cases import each
from coco_shapes import FEW, shapes
from PIL import Image
from transformers import (
    AutoModelForObjectDetection,
    DetrImageProcessor,
    ResNetConfig,
    pipeline,
)
from transformers.image_transforms import corners_to_center_format

from contextseg import (
    GlamSwinConfig,
    MaformerBackbone,
    MaformerConfig,
    MaformerForImageClassification,
    MaskRcnnConfig,
    MaskRcnnForObjectDetection,
    cascade_mask_rcnn,
    mask_rcnn,
)

NAMES = {0: "square", 1: "disk"}
SIZES = {"hidden_sizes": (8, 16, 16), "depths": (1, 1, 1), "num_heads": (2, 2, 2), "gld_grid_size": 4}


def build(**overrides):
    torch.manual_seed(0)
    options = {
        "backbone_config": MaformerConfig(**SIZES, drop_path_rate=0.0),
        "detector_options": {**FEW, "box_score_thresh": 0.0},
        "id2label": NAMES,
    }
    return MaskRcnnForObjectDetection(MaskRcnnConfig(**{**options, **overrides}))


plain = functools.cache(build)  # to draw the weights of three heads takes longer than to copy them


def detector(**overrides):
    is_plain = overrides.keys() <= {"use_cascade"}
    return deepcopy(plain(**overrides)) if is_plain else build(**overrides)


@pytest.fixture(scope="module")
def model():
    return detector().eval()


each_head = pytest.mark.parametrize("use_cascade", [False, True], ids=["mask_rcnn", "cascade"])
each_head_but_slow = pytest.mark.parametrize(  # the cascade of three heads is three times as dear
    "use_cascade", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["mask_rcnn", "cascade"]
)


def torchvisions(model, **options):
    """torchvision's own detector with the same weights."""
    build = cascade_mask_rcnn if model.config.use_cascade else mask_rcnn
    theirs = build(model.backbone, 2, **{**model.config.detector_options, **options})
    theirs.backbone.fpn, theirs.rpn, theirs.roi_heads = model.fpn, model.rpn, model.roi_heads
    theirs.transform._skip_resize = True  # it would draw a size, and so other samples after it
    return theirs


def batch(*sizes):
    """Images of these sizes in one padded batch, and labels as transformers has them; the same for torchvision."""
    images, targets = zip(*(shapes(*size, seed=seed) for seed, size in enumerate(sizes)), strict=True)
    height, width = (max(sides) for sides in zip(*sizes, strict=True))
    pixel_values, pixel_mask = (
        torch.zeros(len(sizes), 3, height, width),
        torch.zeros(len(sizes), height, width),
    )
    labels = []
    for index, (image, target) in enumerate(zip(images, targets, strict=True)):
        own_height, own_width = image.shape[1:]
        pixel_values[index, :, :own_height, :own_width] = image
        pixel_mask[index, :own_height, :own_width] = 1
        masks = torch.zeros(2, height, width, dtype=torch.uint8)
        masks[:, :own_height, :own_width] = target["masks"]
        boxes = corners_to_center_format(target["boxes"]) / torch.tensor([width, height, width, height])
        labels.append({"class_labels": target["labels"] - 1, "boxes": boxes, "masks": masks})
    inputs = {"pixel_values": pixel_values, "pixel_mask": pixel_mask, "labels": labels}
    return inputs, (list(images), list(targets))


PLAIN = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3, "min_size": 64, "max_size": 1333}  # nothing resized


@each_head_but_slow
def test_losses_are_torchvisions(use_cascade):
    model = detector(use_cascade=use_cascade).train()
    inputs, (images, targets) = batch((64, 64), (64, 128))
    theirs = torchvisions(model, **PLAIN).train()
    torch.manual_seed(1)
    outputs = model(**inputs)
    torch.manual_seed(1)
    expected = theirs(images, targets)
    torch.testing.assert_close(outputs.loss_dict, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(outputs.loss, sum(expected.values()), rtol=1e-4, atol=1e-5)


@each_head_but_slow
@torch.no_grad()
def test_detections_are_torchvisions(use_cascade):
    model = detector(use_cascade=use_cascade).eval()
    inputs, (images, _) = batch((64, 64), (64, 128))
    found = model.instances(model(**inputs), [(64, 64), (64, 128)], threshold=0.0)
    for ours, theirs in zip(found, torchvisions(model, **PLAIN).eval()(images), strict=True):
        torch.testing.assert_close(ours["scores"], theirs["scores"])
        torch.testing.assert_close(ours["boxes"], theirs["boxes"], rtol=0, atol=1e-3)
        assert torch.equal(ours["labels"], theirs["labels"] - 1)
        differing = ours["masks"] ^ (theirs["masks"][:, 0] > 0.5)
        assert differing.float().mean() < 0.01  # a box is pasted at whole pixels
        assert len(ours["labels"]) > 0


def test_the_loss_gives_every_parameter_a_gradient():
    few = {**FEW, "rpn_batch_size_per_image": 5000}  # every anchor, so that each level is sampled
    model = detector(detector_options=few).train()
    model(**batch((64, 64))[0]).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@each_head
def test_an_image_without_objects_trains_and_leaves_no_parameter_out(use_cascade):
    """Else other processes would wait for its gradient."""
    nothing = {
        "class_labels": torch.zeros(0).long(),
        "boxes": torch.zeros(0, 4),
        "masks": torch.zeros(0, 64, 64),
    }
    model = detector(use_cascade=use_cascade).train()
    outputs = model(torch.rand(1, 3, 64, 64), labels=[nothing])
    outputs.loss.backward()
    assert outputs.loss.isfinite()
    assert [name for name, parameter in model.named_parameters() if parameter.grad is None] == []


@each(
    ("options", "build"),
    {
        "mask_rcnn": ({"use_cascade": False}, mask_rcnn),
        "cascade": ({"use_cascade": True}, cascade_mask_rcnn),
    },
)
@each("preset", ["small", "base", "large"])
def test_presets_have_the_parameters_of_the_detectors_they_wrap(preset, options, build):
    name = f"maformer_{preset}" + "_cascade" * options["use_cascade"]
    with torch.device("meta"):
        ours = MaskRcnnForObjectDetection(MaskRcnnConfig.preset(name, num_labels=80))
        theirs = build(MaformerBackbone(MaformerConfig.preset(preset)), 80)
    count, expected = (sum(p.numel() for p in each.parameters()) for each in (ours, theirs))
    assert count == expected


@each_head_but_slow
def test_fresh_weights_are_spread_as_torchvisions(use_cascade):
    ours = detector(use_cascade=use_cascade)
    theirs = (cascade_mask_rcnn if use_cascade else mask_rcnn)(detector().backbone, 2)
    theirs = {name.replace("backbone.fpn", "fpn"): p for name, p in theirs.named_parameters()}
    own = {name: p for name, p in ours.named_parameters() if not name.startswith("backbone.")}
    assert own.keys() <= theirs.keys()
    large = [name for name, parameter in own.items() if parameter.numel() > 500 and theirs[name].any()]
    spread, expected = ([each[name].std().item() for name in large] for each in (own, theirs))
    assert spread == pytest.approx(expected, rel=0.15)
    zero = [name for name, parameter in theirs.items() if name in own and not parameter.any()]
    assert len(zero) > 10
    assert [name for name in zero if own[name].any()] == []


def test_new_labels_leave_the_rest_as_it_was_and_draw_new_predictors(model, tmp_path):
    model.save_pretrained(tmp_path)
    more = MaskRcnnForObjectDetection.from_pretrained(tmp_path, num_labels=5, ignore_mismatched_sizes=True)
    assert more.roi_heads.box_predictor.cls_score.out_features == 6
    kept = {name: value for name, value in model.state_dict().items() if "predictor" not in name}
    torch.testing.assert_close({name: more.state_dict()[name] for name in kept}, kept, rtol=0, atol=0)
    drawn = more.roi_heads.mask_predictor.mask_fcn_logits.weight.std().item()
    assert drawn == pytest.approx((2 / 6) ** 0.5, rel=0.2)  # He et al.'s, for six outputs


# -- as a model of transformers


@each_head_but_slow
@torch.no_grad()
def test_a_saved_detector_opens_by_the_auto_class_and_finds_the_same(use_cascade, tmp_path):
    model = detector(use_cascade=use_cascade).eval()
    model.save_pretrained(tmp_path)
    inputs, _ = batch((64, 64), (40, 80))
    outputs = AutoModelForObjectDetection.from_pretrained(tmp_path)(**inputs)
    torch.testing.assert_close(dict(outputs), dict(model(**inputs)), rtol=0, atol=0)


STRANGER = """
import sys
sys.modules["contextseg"] = None  # as if it had never been installed
import torch
from PIL import Image
from transformers import AutoModelForObjectDetection, pipeline
folder = sys.argv[1]
model = AutoModelForObjectDetection.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    outputs = model(torch.load(f"{folder}/pixels.pt"))
torch.save(dict(outputs), f"{folder}/outputs.pt")
found = pipeline("object-detection", folder, threshold=0.0, trust_remote_code=True)(Image.new("RGB", (90, 60)))
assert found and {one["label"] for one in found} <= {"square", "disk"}, found
"""


@pytest.mark.processes
@torch.no_grad()
def test_a_saved_detector_opens_without_the_package(model, tmp_path, monkeypatch):
    pixels = torch.rand(1, 3, 64, 64)
    model.save_pretrained(tmp_path)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    torch.save(pixels, tmp_path / "pixels.pt")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    subprocess.run([sys.executable, "-I", "-c", STRANGER, str(tmp_path)], check=True, cwd=tmp_path)
    torch.testing.assert_close(torch.load(tmp_path / "outputs.pt"), dict(model(pixels)), rtol=0, atol=1e-6)
    card = (tmp_path / "README.md").read_text()
    assert 'pipeline("object-detection"' in card
    assert "pipeline_tag: object-detection" in card


@torch.no_grad()
def test_the_processors_boxes_are_those_of_the_instances(model):
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    images = [Image.new("RGB", size, "gray") for size in ((90, 60), (64, 128))]
    sizes = [(60, 90), (128, 64)]
    outputs = model(**processor(images, return_tensors="pt"))
    for ours, theirs in zip(
        model.instances(outputs, sizes, threshold=0.0),
        processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes),
        strict=True,
    ):
        torch.testing.assert_close({name: ours[name] for name in theirs}, theirs)
        assert ours["masks"].shape[0] == len(theirs["labels"])


def test_the_pipeline_names_what_it_finds(model, tmp_path, caplog):
    model.save_pretrained(tmp_path)
    DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96}).save_pretrained(tmp_path)
    found = pipeline("object-detection", str(tmp_path), threshold=0.0)(Image.new("RGB", (90, 60)))
    assert {one["label"] for one in found} <= set(NAMES.values())
    assert "not supported" not in caplog.text


def test_the_processors_labels_of_coco_annotations_are_the_labels():
    """What `DetrImageProcessor` makes of annotations goes into the model as it is."""
    image, target = shapes(64, 64)
    annotations = [
        {
            "image_id": 1, "category_id": label - 1, "iscrowd": 0, "area": (right - left) * (bottom - top),
            "bbox": [left, top, right - left, bottom - top],
            "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
        }
        for label, (left, top, right, bottom) in zip(
            target["labels"].tolist(), target["boxes"].tolist(), strict=True
        )
    ]  # fmt: skip
    processor = DetrImageProcessor(size={"shortest_edge": 64, "longest_edge": 96})
    inputs = processor(
        (image * 255).byte(), annotations={"image_id": 1, "annotations": annotations},
        return_tensors="pt", return_segmentation_masks=True,
    )  # fmt: skip
    torch.manual_seed(1)
    theirs = detector().train()(**inputs).loss
    boxes = corners_to_center_format(target["boxes"]) / 64
    label = {"class_labels": target["labels"] - 1, "boxes": boxes, "masks": inputs["labels"][0]["masks"]}
    torch.manual_seed(1)
    ours = detector().train()(inputs["pixel_values"], labels=[label]).loss
    torch.testing.assert_close(theirs, ours)


def is_exact(boxes):
    return boxes.dtype == torch.float32 and not torch.equal(boxes, boxes.bfloat16().float())


@torch.no_grad()
def test_in_half_precision_boxes_keep_their_digits(model, tmp_path):
    pixels = torch.rand(1, 3, 64, 96)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert is_exact(model(pixels).pred_boxes)
    model.save_pretrained(tmp_path)
    rough = MaskRcnnForObjectDetection.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert rough.dtype == torch.bfloat16
    assert is_exact(rough(pixels.bfloat16()).pred_boxes)


def test_it_starts_from_a_classifier_of_ours(tmp_path):
    config = MaformerConfig(**SIZES, use_token_labels=True, num_labels=5, drop_path_rate=0.1)
    classifier = MaformerForImageClassification(config)
    classifier.save_pretrained(tmp_path)
    model = MaskRcnnForObjectDetection.from_backbone(tmp_path, id2label=NAMES, drop_path_rate=0.3)
    own, loaded = classifier.backbone.encoder.state_dict(), model.backbone.encoder.encoder.state_dict()
    torch.testing.assert_close(loaded, own, rtol=0, atol=0)
    assert model.backbone.config.drop_path_rate == 0.3


def test_stochastic_depth_can_be_changed_on_a_checkpoint(model, tmp_path):
    model.save_pretrained(tmp_path)
    deeper = MaskRcnnForObjectDetection.from_pretrained(tmp_path, drop_path_rate=0.4)
    assert deeper.backbone.config.drop_path_rate == 0.4
    deeper.save_pretrained(tmp_path)
    assert MaskRcnnForObjectDetection.from_pretrained(tmp_path).backbone.config.drop_path_rate == 0.4


@pytest.mark.parametrize(
    "backbone_config",
    [
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], layer_type="basic"),
        pytest.param(
            GlamSwinConfig(embed_dim=8, depths=(1, 1), num_heads=(1, 2), window_size=4, num_global_tokens=2),
            marks=pytest.mark.slow,
        ),
    ],
    ids=["resnet", "glam_swin"],
)
def test_any_backbone_detects(backbone_config, tmp_path):
    model = detector(backbone_config=backbone_config)
    model.train()(**batch((64, 64))[0]).loss.backward()
    model.save_pretrained(tmp_path)
    opened = MaskRcnnForObjectDetection.from_pretrained(tmp_path)
    inputs = torch.rand(1, 3, 50, 70)
    with torch.no_grad():
        torch.testing.assert_close(opened(inputs).logits, model.eval()(inputs).logits)


# -- mistakes


def wrong(**changes):
    inputs, _ = batch((64, 64))
    inputs["labels"] = [{**inputs["labels"][0], **changes}]
    return inputs


@each(
    ("inputs", "message"),
    [
        ({"pixel_values": torch.rand(1, 3, 64, 64)}, "got no labels in training mode"),
        ({**batch((64, 64))[0], "labels": []}, "got labels of 0 images"),
        (wrong(class_labels=torch.tensor([0, 2])), r"contains \[0, 2\]; 0 to 1 are required"),
        (wrong(boxes=torch.zeros(2, 4)), "a box without area"),
        (wrong(masks=torch.zeros(2, 32, 32)), r"shape \(2, 32, 32\); \(2, 64, 64\) is required"),
    ],
)
def test_wrong_labels_are_explained(inputs, message):
    with pytest.raises(ValueError, match=message):
        detector().train()(**inputs)


def test_labels_without_masks_are_refused():
    inputs, _ = batch((64, 64))
    del inputs["labels"][0]["masks"]
    with pytest.raises(ValueError, match=r"labels\[0\] has no 'masks'"):
        detector().train()(**inputs)


@each(
    ("options", "message"),
    [
        ({"detector_options": {"min_size": 64}}, "detector_options has no option 'min_size'"),
        ({"use_cascad": True}, "no option 'use_cascad', did you mean 'use_cascade'"),
        ({"backbone_config": ResNetConfig(), "drop_path_rate": 0.1}, "'resnet' has no stochastic depth"),
    ],
)
def test_wrong_options_are_explained(options, message):
    with pytest.raises(ValueError, match=message):
        MaskRcnnConfig(**options)
