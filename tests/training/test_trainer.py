"""Claims about SegmentationTrainer: every option of Trainer that touches labels and predictions works on maps."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import tiny_glam_swin, tiny_segformer
from transformers import Trainer, TrainingArguments

from contextseg import (
    SegmentationCollator,
    SegmentationImageProcessor,
    SegmentationTrainer,
    TrainerScores,
    reduce_logits,
)
from contextseg.training.trainer import smoothed_loss

SIZES = [(16, 20), (16, 20), (24, 12)]


def pairs(sizes=SIZES):
    numbers = np.random.default_rng(0)
    return [
        {"image": numbers.integers(0, 256, (*size, 3), np.uint8), "mask": numbers.integers(0, 3, size)}
        for size in sizes
    ]


def new_trainer(folder, trainer_class=SegmentationTrainer, model=None, data=None, scores=None, **options):
    defaults = {
        "per_device_eval_batch_size": 2,
        "remove_unused_columns": False,
        "report_to": "none",
        "use_cpu": True,
    }
    arguments = TrainingArguments(str(folder), disable_tqdm=True, **{**defaults, **options})
    hooks = {} if trainer_class is SegmentationTrainer else {"preprocess_logits_for_metrics": reduce_logits}
    return trainer_class(
        model or tiny_glam_swin(), arguments, data_collator=SegmentationCollator(SegmentationImageProcessor()),
        eval_dataset=data or pairs(), compute_metrics=scores or TrainerScores(3), **hooks,
    )  # fmt: skip


def test_label_smoothing_of_a_cross_entropy_is_that_of_torch():
    logits, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 8, 10))
    labels[0, :3] = 255
    upsampled = F.interpolate(logits, (8, 10), mode="bilinear")
    expected = F.cross_entropy(upsampled, labels, ignore_index=255, label_smoothing=0.3)
    loss = F.cross_entropy(upsampled, labels, ignore_index=255)
    torch.testing.assert_close(smoothed_loss(loss, logits, labels, 0.3, 255), expected)


@each("build", [tiny_glam_swin, tiny_segformer])
def test_trainers_option_of_label_smoothing_smooths_over_the_classes(build, tmp_path):
    model = build().eval()
    for name, weights in model.named_parameters():
        weights.data *= 1000 if "classifier" in name else 1  # new weights are all but uniform already
    trainer = new_trainer(tmp_path, model=model, label_smoothing_factor=0.3)
    batch = trainer.data_collator(pairs(SIZES[:2]))
    if not hasattr(model.config, "loss"):
        batch.pop("pixel_mask", None)
    outputs = model(**batch)
    expected = smoothed_loss(outputs.loss, outputs.logits, batch["labels"], 0.3, 255)
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected)
    assert not torch.allclose(outputs.loss, expected)


@pytest.mark.parametrize("in_batches", [True, False])
def test_predict_returns_every_image_at_its_own_size_padded(in_batches, tmp_path):
    trainer = new_trainer(tmp_path, batch_eval_metrics=in_batches)
    output, (height, width) = trainer.predict(pairs()), (24, 20)
    assert output.predictions.shape == output.label_ids.shape == (3, height, width)
    for prediction, labels, pair in zip(output.predictions, output.label_ids, pairs(), strict=True):
        rows, columns = pair["mask"].shape
        assert (labels[:rows, :columns] == pair["mask"]).all()
        assert set(np.unique(labels[rows:])) | set(np.unique(labels[:, columns:])) <= {-100}
        assert set(np.unique(prediction[:rows, :columns])) <= {0, 1, 2}
    assert output.metrics["test_mean_iou"] == trainer.evaluate()["eval_mean_iou"]


BATCHING = [
    {"batch_eval_metrics": each_batch, "eval_do_concat_batches": one_array}
    for each_batch in (True, False)
    for one_array in (True, False)
]


@pytest.mark.parametrize(
    ("trainer_class", "sizes"), [(SegmentationTrainer, SIZES), (Trainer, [(16, 20)] * 3)]
)
def test_scores_are_the_same_however_trainer_batches_its_evaluation(trainer_class, sizes, tmp_path):
    model, found = tiny_glam_swin(), []
    for options in BATCHING:
        trainer = new_trainer(tmp_path, trainer_class, model, pairs(sizes), **options)
        found.append(trainer.evaluate()["eval_mean_iou"])
        assert trainer.args.eval_do_concat_batches is options["eval_do_concat_batches"]
    assert len(set(found)) == 1


def test_other_metrics_get_one_array_as_from_trainer(tmp_path):
    shapes = []
    trainer = new_trainer(tmp_path, scores=lambda given: shapes.append(given.predictions.shape) or {})
    trainer.evaluate()
    assert shapes == [(3, 24, 20)]


def test_a_checkpoint_with_other_names_is_loaded_whole(tmp_path):
    model = tiny_segformer()
    model.save_pretrained(tmp_path / "checkpoint-1")
    expected = {name: weight.clone() for name, weight in model.state_dict().items()}
    trainer = new_trainer(tmp_path, model=model)
    trainer.state.best_model_checkpoint = str(tmp_path / "checkpoint-1")
    for load in (
        trainer._load_best_model,
        lambda: trainer._load_from_checkpoint(str(tmp_path / "checkpoint-1")),
    ):
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(1)
        load()
        assert all(torch.equal(weight, expected[name]) for name, weight in model.state_dict().items())
