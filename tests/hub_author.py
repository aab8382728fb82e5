"""Started by test_hub.py with a Hub of its own: publishes a saved model in the ways that users have.

python hub_author.py FOLDER OUTPUT
"""

import sys
from pathlib import Path

import torch
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, Trainer, TrainingArguments

import contextseg
from contextseg.training.publishing import ExportArguments, export


def train_and_push(model, processor, output):
    """Two steps of Trainer, with a push after each checkpoint and one at the end."""
    batch = {"pixel_values": torch.rand(3, 32, 32), "labels": torch.zeros(32, 32, dtype=torch.int64)}
    arguments = TrainingArguments(
        output_dir=str(output),
        hub_model_id="me/trained",
        push_to_hub=True,
        hub_always_push=True,
        max_steps=2,
        save_steps=1,
        save_only_model=True,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=[batch] * 8, processing_class=processor)
    trainer.train()
    trainer.push_to_hub()


def main(folder, output):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    assert isinstance(model, contextseg.GlamSwinForSemanticSegmentation)
    processor.push_to_hub("me/pushed")
    model.push_to_hub("me/pushed", tags=["streets"])
    model.save_pretrained(output / "saved-and-pushed", push_to_hub=True, repo_id="me/saved")
    export(ExportArguments(folder, output=str(output / "exported"), push="me/exported", proof=False))
    train_and_push(model, processor, output / "trained")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
