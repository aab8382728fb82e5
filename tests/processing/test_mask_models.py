"""Mask-classification models of transformers behind `Inference`: equal to transformers' own post-processing."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each, slow_but
from mask_checkpoints import MASK_MODELS, TILE, build, tiny_eomt
from PIL import Image
from transformers import EomtImageProcessor, OneFormerConfig
from transformers.utils import ModelOutput

from contextseg import Inference, MaskSegmenter, SegmentationImageProcessor, open_raster
from contextseg.processing.mask_models import CLIP_TASK, as_segmenter, task_tokens, tile_starts
from contextseg.processing.processor_inputs import decoded

OF_THE_MODEL = ("pixel_values", "patch_offsets")


def picture(height, width):
    """Flat squares of random colors."""
    colors = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return np.kron(colors, np.ones((13, 13, 1), dtype=np.uint8))[:height, :width]


@torch.no_grad()
def transformers_scores(model, processor, image):
    """The class scores (K, H, W) of transformers' `post_process_semantic_segmentation`, and its mask."""
    inputs = processor(image, return_tensors="pt")
    given = {name: inputs[name] for name in OF_THE_MODEL if name in inputs}
    if model.config.model_type == "oneformer":
        given["task_inputs"] = task_tokens(model.config)
    (result,) = processor.post_process_semantic_segmentation(
        model(**given), target_sizes=[image.shape[:2]], return_segmentation_scores=True
    )
    return result.segmentation_scores, result.segmentation


def probabilities(model, processor, image, **settings):
    inference = Inference(**settings)
    inputs = inference.inputs(processor, image)
    return torch.cat(list(inference.probabilities(model, inputs, image.shape[:2])), dim=1)


@pytest.mark.parametrize("kind", slow_but(MASK_MODELS, "eomt"))
@each("size", [(37, 61), (61, 37), (48, 48)])
def test_masks_and_probabilities_are_those_of_transformers(kind, size):
    (model, processor), image = build(kind), picture(*size)
    scores, mask = transformers_scores(model, processor, image)
    assert torch.equal(Inference()(model, processor, image), mask.int())
    torch.testing.assert_close(probabilities(model, processor, image), scores / scores.sum(0))


def test_scores_are_averaged_over_mirrored_views():
    (model, processor), image = build("eomt"), picture(37, 61)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    scores = transformers_scores(model, processor, image)[0]
    scores = scores + transformers_scores(model, processor, mirrored)[0].flip(-1)
    got = probabilities(model, processor, image, flip=True)
    torch.testing.assert_close(got, scores / scores.sum(0))
    assert torch.equal(Inference(flip=True)(model, processor, image), scores.argmax(0).int())


def test_windows_of_the_models_size_side_by_side_are_images_of_their_own():
    model, processor = build("eomt")
    segmenter, pixels = MaskSegmenter(model), torch.randn(1, 3, TILE, 2 * TILE)
    with torch.no_grad():
        parts = [segmenter(part).logits for part in pixels.split(TILE, dim=-1)]
    expected = torch.cat(parts, dim=-1)[0]
    inference = Inference(window=TILE, overlap=0.0)
    got = torch.cat(list(inference.probabilities(model, [pixels], pixels.shape[-2:])), dim=1)
    torch.testing.assert_close(got, expected / expected.sum(0))


def test_an_eomt_takes_images_of_any_size():
    model, _ = build("eomt")
    segmenter, image = MaskSegmenter(model), torch.randn(2, 3, TILE, TILE)
    image[..., 20:, :], image[..., 9:] = 0, 0  # what smaller images are padded with
    with torch.no_grad():
        whole = segmenter(image).logits
        torch.testing.assert_close(segmenter(image[..., :20, :9]).logits, whole[..., :20, :9])
        assert segmenter(torch.randn(1, 3, 70, 5)).logits.shape == (1, 3, 70, 5)


def test_tiles_lie_where_eomts_image_processor_cuts_patches():
    processor = EomtImageProcessor(do_split_image=True, do_resize=False, size={"shortest_edge": TILE})
    for length in (32, 33, 63, 64, 65, 100, 128, 150):
        image = np.zeros((TILE, length, 3), dtype=np.uint8)
        patches = processor(image, return_tensors="pt")["patch_offsets"]
        assert [int(start) for _, start, _ in patches] == tile_starts(length, TILE)


def test_rasters_get_the_same_probabilities_as_images():
    model, _ = build("eomt")
    processor = EomtImageProcessor(do_resize=False, do_split_image=True, size={"shortest_edge": TILE})
    image = picture(40, 70)
    settings = {"window": TILE, "overlap": 0.5}
    bands = Inference(**settings).raster_scores(
        model, processor, open_raster(np.ascontiguousarray(image.transpose(2, 0, 1)))
    )
    got = torch.cat([scores for _, scores in bands], dim=1)
    torch.testing.assert_close(got, probabilities(model, processor, image, **settings))


def test_where_every_score_is_zero_all_classes_are_as_probable():
    model, processor = build("maskformer")
    segmenter = MaskSegmenter(model)
    segmenter.scores = lambda _: torch.zeros(1, 3, 8, 8)
    got = probabilities(segmenter, processor, picture(32, 32))
    torch.testing.assert_close(got, torch.full((3, 32, 32), 1 / 3))


class Words:
    """A tokenizer of a text: the lengths of its words."""

    def __call__(self, text, *, padding, max_length, truncation):
        assert (padding, truncation) == ("max_length", True)
        ids = [len(word) for word in text.split()]
        rest = max_length - len(ids)
        return {"input_ids": ids + [7] * rest, "attention_mask": [1] * len(ids) + [0] * rest}


def test_a_oneformer_is_told_its_task_by_its_tokenizer_or_in_clips_tokens():
    config = OneFormerConfig(task_seq_len=9)
    assert task_tokens(config, Words()).tolist() == [[3, 4, 2, 8, 0, 0, 0, 0, 0]]
    assert task_tokens(config).tolist() == [[*CLIP_TASK, 0, 0]]
    with pytest.raises(ValueError, match="vocabulary of 99 tokens and no tokenizer"):
        task_tokens(OneFormerConfig(text_encoder_vocab_size=99))
    model, _ = build("oneformer")
    model.config.task_seq_len = 9
    processor = SimpleNamespace(tokenizer=Words())
    assert as_segmenter(model, processor).task.tolist() == task_tokens(config, Words()).tolist()


@each("kind", ["sam", "sam2", "sam2_video", "sam3", "sam3_tracker", "sam_hq", "edgetam"])
def test_models_that_segment_what_prompts_point_at_are_refused(kind):
    model = torch.nn.Identity()
    model.config = SimpleNamespace(model_type=kind)
    with pytest.raises(
        ValueError, match=f"the Identity is a model of type '{kind}', which segments what prompts"
    ):
        as_segmenter(model)


ROW = picture(3, 50)  # could be (C, H, W), too
PICTURES = {
    "gray": (Image.fromarray(ROW[..., 0]), ROW[..., [0, 0, 0]]),
    "with alpha": (Image.fromarray(ROW).convert("RGBA"), ROW),
    "with a palette": (Image.fromarray(ROW[..., 0] // 128).convert("P"), ROW[..., [0, 0, 0]] // 128),
    "gray array": (ROW[..., 0], ROW[..., [0, 0, 0]]),
    "array": (ROW, ROW),
    "array of 16 bits": (ROW.astype(np.uint16) * 257, ROW),
    "tensor": (torch.from_numpy(ROW.transpose(2, 0, 1).copy()), ROW),
}


@each(("image", "expected"), PICTURES)
def test_pictures_in_memory_become_rgb_for_processors_of_transformers(image, expected):
    processor = EomtImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    (pixels,) = Inference().inputs(processor, image)
    np.testing.assert_array_equal(pixels[0], expected.transpose(2, 0, 1))


def test_float_arrays_are_left_to_processors_of_transformers():
    array = ROW.astype(np.float32)[:, :40]
    assert decoded(EomtImageProcessor(), array) is array


def test_our_image_processor_refuses_outputs_of_models_that_classify_masks():
    outputs = ModelOutput(
        class_queries_logits=torch.zeros(1, 6, 4), masks_queries_logits=torch.zeros(1, 6, 8, 8)
    )
    with pytest.raises(ValueError, match="no logits of pixels: the model classifies masks"):
        SegmentationImageProcessor().post_process_semantic_segmentation(outputs)


def test_other_models_stay_as_they_are():
    model = torch.nn.Identity()
    model.config = SimpleNamespace(model_type="samara")
    assert as_segmenter(model) is model
    with pytest.raises(ValueError, match="Identity does not classify masks"):
        MaskSegmenter(model)
    segmenter = MaskSegmenter(tiny_eomt())
    assert as_segmenter(segmenter) is segmenter
