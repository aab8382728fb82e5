"""Front matter of a model card: what the Hub uses to find, filter and try models."""

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

EXAMPLE_NAME = "example.png"
PREDICTION_NAME = "example_prediction.png"  # the example with its predicted classes
HANDLER_NAME = "handler.py"  # what an Inference Endpoint runs
SEGMENTATION, CLASSIFICATION, DETECTION, FEATURES = (
    "image-segmentation",
    "image-classification",
    "object-detection",
    "image-feature-extraction",
)
# Score in evaluation.json -> the metric's identifier on the Hub, and its name.
METRICS = {
    "mean_iou": ("mean_iou", "Mean IoU"),
    "mean_accuracy": ("mean_accuracy", "Mean accuracy"),
    "pixel_accuracy": ("accuracy", "Pixel accuracy"),
    "boundary_iou": ("boundary_iou", "Boundary IoU"),
    "boundary_f": ("boundary_f", "Boundary F"),
    "top_1": ("accuracy", "Top-1 accuracy"),
    "top_5": ("top_5_accuracy", "Top-5 accuracy"),
    "box_ap": ("box_ap", "Box AP"),
    "mask_ap": ("mask_ap", "Mask AP"),
}
SPLITS = ("train", "training", "val", "validation", "test")
OWN_DATA = "imagefolder"  # the Hub's identifier for a user's own images


def front_matter(
    config: Mapping[str, Any],
    scores: Mapping[str, Any],
    run: Mapping[str, Any],
    tags: Sequence[str],
    example: str | None,
) -> dict[str, Any]:
    """Returns task, license, tags, data, base model and scores; links only to data and models on the Hub."""
    names = run.get("hub_names") or {}
    base_model = names.get("base_model")
    said = (run.get("arguments") or {}).get("license")
    fields = {"library_name": "transformers", "pipeline_tag": task_of(config), "license": said}
    fields |= {"datasets": names.get("datasets") or None, "base_model": base_model}
    if example:
        fields["widget"] = [{"src": EXAMPLE_NAME, "example_title": example}]
    if results := eval_results(task_of(config), scores, run):
        metrics = dict.fromkeys(result.metric_type for result in results)
        fields |= {
            "metrics": list(metrics),
            "eval_results": results,
            "model_name": config["architectures"][0],
        }
    return ModelCardData(**fields, tags=[*card_tags(config), *tags]).to_dict()


def eval_results(task: str, scores: Mapping[str, Any], run: Mapping[str, Any]) -> list[EvalResult]:
    """Returns one result for each score that the Hub has a metric for."""
    data = str(scores.get("data", "unnamed data"))
    published = published_name(data, run)
    return [
        EvalResult(
            task_type=task,
            dataset_type=published or OWN_DATA,
            dataset_name=data.partition(":")[0],
            dataset_split=split_of(data),
            metric_type=identifier,
            metric_name=name,
            metric_value=round(scores[score], 6),
        )
        for score, (identifier, name) in METRICS.items()
        if isinstance(scores.get(score), float | int)
    ]


def published_name(data: str, run: Mapping[str, Any]) -> str | None:
    """Returns the Hub's name of the evaluation data if it is the data of the run, else None."""
    arguments, names = run.get("arguments") or {}, run.get("hub_names") or {}
    sources = {str(arguments.get(split)).partition(":")[0] for split in ("train", "val")}
    datasets = names.get("datasets") or []
    return datasets[0] if len(datasets) == 1 and data.partition(":")[0] in sources else None


def split_of(data: str) -> str | None:
    """ "cityscapes:val" -> "val", "streets/test" -> "test"."""
    last = data.replace(":", "/").rstrip("/").rpartition("/")[2]
    return last if last in SPLITS else None


def card_tags(config: Mapping[str, Any]) -> list[str]:
    task = task_of(config)
    return ["contextseg", config["model_type"], task] + ["semantic-segmentation"] * (task == SEGMENTATION)


def task_of(config: Mapping[str, Any]) -> str:
    architecture = config["architectures"][0]
    named = {
        "ForSemanticSegmentation": SEGMENTATION,
        "ForImageClassification": CLASSIFICATION,
        "ForObjectDetection": DETECTION,
    }
    return next((task for ending, task in named.items() if architecture.endswith(ending)), FEATURES)
