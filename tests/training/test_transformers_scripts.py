"""What transformers' own example scripts for segmentation do with a folder of ours: with Trainer, and with accelerate.

They read the size, the normalization and `do_reduce_labels` of the image processor, pass ids as text, train on crops of one
size, and save model and processor again.
"""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from datasets import Dataset, Features, Image
from tiny import tiny_glam_swin, tiny_segdeformer
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import functional as transforms
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from contextseg import ConfusionMatrix, SegmentationImageProcessor

NAMES = {0: "road", 1: "car", 2: "tree"}
HUB = {"cache_dir": None, "revision": "main", "token": None, "trust_remote_code": False}


@pytest.fixture(params=[tiny_glam_swin, tiny_segdeformer])
def folder(request, tmp_path):
    request.param(id2label=["background", "car"]).save_pretrained(tmp_path / "model")
    SegmentationImageProcessor(size={"height": 32, "width": 48}, do_resize=False).save_pretrained(
        tmp_path / "model"
    )
    return tmp_path / "model"


def data(processor):
    """Images of different sizes, transformed lazily to what the model takes."""
    numbers = np.random.default_rng(0)
    sizes = [(40, 50), (32, 48), (60, 49), (33, 90)]
    rows = {
        "image": [numbers.integers(0, 256, (*size, 3), np.uint8) for size in sizes],
        "label": [numbers.integers(0, 3, size, np.uint8) for size in sizes],
    }
    if "shortest_edge" in processor.size:
        size = [processor.size["shortest_edge"]] * 2
    else:
        size = [processor.size["height"], processor.size["width"]]

    def prepared(batch):
        images, labels = [], []
        for image, label in zip(batch["image"], batch["label"], strict=True):
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0) / 255
            pixels = transforms.normalize(pixels, processor.image_mean, processor.image_std)
            images.append(transforms.crop(pixels, 0, 0, *size))
            labels.append(transforms.crop(torch.from_numpy(np.array(label)), 0, 0, *size))
        return {"pixel_values": torch.stack(images).float(), "labels": torch.stack(labels).long()}

    dataset = Dataset.from_dict(rows, features=Features({"image": Image(), "label": Image()}))
    return dataset.with_transform(prepared)


def opened(folder):
    label2id = {name: str(index) for index, name in NAMES.items()}
    config = AutoConfig.from_pretrained(folder, label2id=label2id, id2label=NAMES, **HUB)
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, config=config, **HUB)
    return model, AutoImageProcessor.from_pretrained(folder, do_reduce_labels=False, **HUB)


def check_saved(folder):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    assert model.config.id2label == NAMES
    assert model.config.label2id == {name: index for index, name in NAMES.items()}
    assert AutoImageProcessor.from_pretrained(folder).size == {"height": 32, "width": 48}


@pytest.mark.slow
def test_the_sequence_of_the_script_with_trainer(folder, tmp_path):
    model, processor = opened(folder)

    def compute_metrics(evaluation):
        logits = F.interpolate(
            torch.from_numpy(evaluation.predictions), evaluation.label_ids.shape[-2:], mode="bilinear"
        )
        confusion = ConfusionMatrix(len(NAMES), ignore_index=255)
        labels = evaluation.label_ids
        confusion.update(logits.argmax(1), labels - 1 if processor.do_reduce_labels else labels)
        return {"mean_iou": confusion.compute()["mean_iou"]}

    dataset, output = data(processor), tmp_path / "run"
    arguments = TrainingArguments(
        str(output), max_steps=2, per_device_train_batch_size=2, remove_unused_columns=False, report_to="none", use_cpu=True,
        eval_strategy="steps", eval_steps=1, save_steps=1, load_best_model_at_end=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = Trainer(
        model, arguments, train_dataset=dataset, eval_dataset=dataset, compute_metrics=compute_metrics,
        processing_class=processor, data_collator=default_data_collator,
    )  # fmt: skip
    trainer.train()
    trainer.save_model()
    trainer.save_state()
    assert 0 <= trainer.evaluate()["eval_mean_iou"] <= 1
    trainer.create_model_card(
        finetuned_from=str(folder), dataset="streets", tags=["image-segmentation", "vision"]
    )
    check_saved(output)


@pytest.mark.slow
def test_the_sequence_of_the_script_without_trainer(folder, tmp_path):
    model, processor = opened(folder)
    accelerator = Accelerator(cpu=True)
    loader = DataLoader(data(processor), shuffle=True, collate_fn=default_data_collator, batch_size=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    confusion = ConfusionMatrix(len(NAMES), ignore_index=255)
    for batch in loader:
        model.train()
        with accelerator.accumulate(model):
            outputs = model(**batch)
            accelerator.backward(outputs.loss)
            optimizer.step()
            optimizer.zero_grad()
        upsampled = F.interpolate(
            outputs.logits, batch["labels"].shape[-2:], mode="bilinear", align_corners=False
        )
        confusion.update(*accelerator.gather_for_metrics((upsampled.argmax(1), batch["labels"])))
    accelerator.save_state(tmp_path / "state")
    output = tmp_path / "output"
    accelerator.wait_for_everyone()
    accelerator.unwrap_model(model).save_pretrained(
        output, is_main_process=accelerator.is_main_process, save_function=accelerator.save
    )
    processor.save_pretrained(output)
    (output / "all_results.json").write_text(json.dumps({"mean_iou": confusion.compute()["mean_iou"]}))
    check_saved(output)
