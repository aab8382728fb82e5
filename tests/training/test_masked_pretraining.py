import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from tiny import LABELS, tiny_caswit, tiny_glam_swin
from tiny_runs import TINY_MODEL, TINY_RUN, write_data
from transformers import AutoModelForMaskedImageModeling

from contextseg import GlamSwinForMaskedImageModeling, GlamSwinForSemanticSegmentation
from contextseg.hub.card_sections import use
from contextseg.processing.data.augmentation import JointAugmentation
from contextseg.processing.data.batches import collate
from contextseg.processing.data.unlabeled_images import UnlabeledImages
from contextseg.scripts.train import main
from contextseg.training.inference_options import check_task
from contextseg.training.masked_pretraining import (
    MaskedCrops,
    MaskedPretrainingTask,
    MaskedSamples,
    score_reconstructions,
)
from contextseg.training.options import MaskedPretrainingArguments
from contextseg.training.records import read_json
from contextseg.training.segmentation import processor_of

CROPS = JointAugmentation((16, 16), (1.0, 1.0), flip_probability=0.0, use_photometric_distortion=False)


@pytest.fixture
def folder(tmp_path):
    random = np.random.default_rng(0)
    for name, size in (("a.png", (12, 20)), ("below/b.jpg", (40, 30))):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / name)
    return tmp_path


def test_the_images_below_a_folder_have_one_class_everywhere(folder):
    data = UnlabeledImages(folder)
    samples = [data[index] for index in range(len(data))]
    assert [sample["name"] for sample in samples] == ["a.png", "below/b.jpg"]
    assert [sample["mask"].shape for sample in samples] == [(12, 20), (40, 30)]
    assert not any(sample["mask"].any() for sample in samples)


def test_of_a_folder_for_segmentation_only_the_images_are_read(tmp_path):
    write_data(tmp_path)
    assert len(UnlabeledImages(tmp_path / "train")) == 5


@pytest.mark.parametrize(("name", "message"), [("gone", "is not a folder"), ("", "has no images; it holds")])
def test_a_folder_without_images_is_refused(tmp_path, name, message):
    with pytest.raises(ValueError, match=message):
        UnlabeledImages(tmp_path / name)


def test_padding_of_a_crop_is_not_predicted(folder):
    data = UnlabeledImages(folder)
    sample = MaskedSamples(data, CROPS, processor_of(data))[0, 0]
    assert set(sample) == {"pixel_values", "pixel_mask", "name", "unreadable"}
    assert sample["pixel_mask"][:12].all()
    assert not sample["pixel_mask"][12:].any()


def test_crops_of_a_model_with_two_scales_come_with_their_contexts(folder):
    data = UnlabeledImages(folder)
    pairs = dataclasses.replace(CROPS, context_ratio=2, fill=(123.675, 116.28, 103.53))
    sample = MaskedSamples(data, pairs, processor_of(data))[0, 1]
    assert sample["context_values"].shape == sample["pixel_values"].shape
    assert "context_labels" not in sample
    model = AutoModelForMaskedImageModeling.from_config(tiny_caswit().config)
    assert (
        model(**{name: sample[name][None] for name in ("pixel_values", "context_values", "pixel_mask")}).loss
        > 0
    )


def test_every_evaluation_masks_the_same(folder):
    data, config = UnlabeledImages(folder), SimpleNamespace(patch_size=4)
    first, again = (MaskedCrops(data, CROPS, processor_of(data), config)[1] for _ in range(2))
    for name in ("pixel_values", "bool_masked_pos"):
        assert torch.equal(first[name], again[name])
    assert first["bool_masked_pos"].shape == (4, 4)


def test_the_score_is_the_mean_error_of_all_masked_pixels_in_any_batches(folder):
    data = UnlabeledImages(folder)
    model = GlamSwinForMaskedImageModeling(tiny_glam_swin().config).train()
    crops = MaskedCrops(data, CROPS, processor_of(data), model.config)
    one, two = (
        score_reconstructions(
            model, [collate([crops[index] for index in batch]) for batch in batches], Accelerator(cpu=True)
        )
        for batches in ([[0, 1]], [[0], [1]])
    )
    assert one["val_loss"] == pytest.approx(two["val_loss"])
    assert (one["images"], one["negative_loss"]) == (2, -one["val_loss"])
    assert model.training


def test_a_task_without_windows_prepares_its_model(folder):
    task = MaskedPretrainingTask(MaskedPretrainingArguments(train=str(folder), output="run", steps=1))
    model = GlamSwinForMaskedImageModeling(tiny_glam_swin().config)
    task.prepare(model, task.open("train"))
    samples = task.new_samples(task.new_processor())
    assert samples.augmentation.cat_max_ratio == 1  # no crop is drawn again for its single class
    assert task.config is model.config


def test_a_pretrained_model_is_refused_where_classes_are_needed():
    with pytest.raises(ValueError, match="no classes to predict.*--init-from"):
        check_task(dataclasses.make_dataclass("Options", [])(), "masked_pretraining")


def test_the_card_opens_the_model_by_its_own_auto_class():
    config = {"architectures": ["GlamSwinForMaskedImageModeling"]}
    assert "AutoModelForMaskedImageModeling.from_pretrained" in use(
        config, "image-feature-extraction", "me/swin"
    )


@pytest.mark.slow
def test_a_segmenter_starts_from_a_pretraining_run(tmp_path):
    data = write_data(tmp_path / "data")
    pretraining = [
        "--task",
        "masked_pretraining",
        "--train",
        f"{data}/train",
        "--val",
        f"{data}/val",
        "--cpu",
    ]
    assert main([*pretraining, "--output", f"{tmp_path}/masked", *TINY_MODEL, *TINY_RUN]) == 0
    scores = read_json(tmp_path / "masked/run.json")["scores"]
    assert 0 < scores["val_loss"] < 3
    start = [
        "--init-from",
        f"{tmp_path}/masked",
        "--train",
        f"{data}/train",
        "--cpu",
        "--learning-rate",
        "1e-9",
    ]
    assert (
        main(
            [*start, "--output", f"{tmp_path}/segmenter", *TINY_RUN[:6], "--steps", "1", "--tracker", "none"]
        )
        == 0
    )
    masked = GlamSwinForMaskedImageModeling.from_pretrained(tmp_path / "masked/best").state_dict()
    segmenter = GlamSwinForSemanticSegmentation.from_pretrained(tmp_path / "segmenter/last")
    assert list(segmenter.config.id2label.values()) == ["wall", "grass", "sky"]
    assert len(LABELS) == segmenter.config.num_labels
    for name, weight in segmenter.state_dict().items():
        if name.startswith("backbone.encoder."):
            torch.testing.assert_close(weight, masked[name])
