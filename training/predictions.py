"""Predictions for image files by command: masks, classes or objects."""

import sys
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from transformers import PreTrainedConfig

from ..modeling.input_channels import channels_of
from ..processing.class_prediction import ClassPredictor
from ..processing.prediction import Predictor
from ..processing.prediction_files import FilePredictor, Job, find_jobs
from ..processing.prediction_maps import MAPS
from ..processing.raster_library import RASTER_SUFFIXES
from ..processing.rasters.files import is_raster_file
from ..processing.rasters.gdal import INSTALL_GEO, load_rasterio
from ..processing.rasters.part_files import locks_released
from ..processing.rasters.prediction import RasterPredictor
from ..processing.volumes.volume_inference import takes_volumes
from ..processing.volumes.volume_jobs import find_volume_jobs
from ..processing.volumes.volume_prediction import VolumePredictor
from .explaining import chosen_explanations
from .file_run import RASTERS_CONTINUE, FileRun
from .inference_options import VOLUMES, check_task
from .models import CLASSIFIER, config_of_model, open_model, task_of_config
from .option_texts import byte_count
from .prediction_options import PredictArguments
from .processes import explained_loss_of_a_peer, quiet_unless_first
from .sharing import decided_by_first, open_accelerator, said_once, tell_and_leave
from .stored_reading import check_channels, crop_of_run, rgb_reading, set_reading

PROGRAM = "contextseg-predict"


def predict(arguments: PredictArguments) -> list[str]:
    """Predicts all images, in any number of processes, and writes the results.

    Returns:
        Which files could not be predicted, and why; the same in every process. They have been printed.
    """
    accelerator = open_accelerator(arguments.cpu)
    quiet_unless_first(accelerator)
    with explained_loss_of_a_peer(accelerator, RASTERS_CONTINUE), locks_released():
        with said_once(accelerator, PROGRAM, arguments.traceback):
            config = config_of_model(arguments.model)
            task = VOLUMES if takes_volumes(config) else task_of_config(config)
            check_task(arguments, task)
        with said_once(accelerator, PROGRAM, arguments.traceback):
            jobs, failures = decided_by_first(accelerator, lambda: found_jobs(arguments, task, config))
        with said_once(accelerator, PROGRAM, arguments.traceback):
            predictor = PREDICTORS[task](arguments, accelerator)
        earlier: dict[Job, Any] = {}
        if arguments.skip_existing:
            with said_once(accelerator, PROGRAM, arguments.traceback):
                earlier = decided_by_first(accelerator, lambda: predictor.earlier(jobs))
        run = FileRun(predictor, jobs, earlier, arguments, accelerator)
        failures += run.predict()
        if accelerator.is_main_process:
            print(run.summary())
        tell_and_leave(accelerator, failures)
    return failures


def found_jobs(
    arguments: PredictArguments, task: str, config: PreTrainedConfig
) -> tuple[list[Job], list[str]]:
    """Finds the images for a task, and the folders that cannot be listed, with the reasons."""
    failures: list[str] = []

    def note(error: OSError) -> None:
        failures.append(f"{error.filename}: {error.strerror}")

    what = arguments.images, arguments.output
    if task == VOLUMES:
        return find_volume_jobs(*what, channels_of(config), note), failures
    jobs = find_jobs(*what, note, is_raster_file if task == "segmentation" else None)
    if task == "segmentation":
        tell_without_rasterio(jobs)
    return jobs, failures


def segmenter(arguments: PredictArguments, accelerator: Accelerator) -> FilePredictor:
    inference = arguments.inference()
    if arguments.polygons and load_rasterio() is None:
        raise ImportError(f"--polygons needs rasterio. {INSTALL_GEO}")
    model, processor, _ = open_model(arguments.model)
    set_reading(arguments, model, processor)
    model.to(accelerator.device)
    plain = Predictor(
        model,
        processor,
        inference,
        maps=[name for name in MAPS if getattr(arguments, name)],
        overlay=arguments.overlay,
        explanations=chosen_explanations(model, inference, arguments.explain, arguments.grad_cam),
    )
    return RasterPredictor(
        plain,
        polygons_crs=arguments.polygons_crs if arguments.polygons else None,
        memory=byte_count(arguments.memory),
        window=crop_of_run(arguments.model),
        tell=print if accelerator.is_main_process else lambda _: None,
    )


def volume_segmenter(arguments: PredictArguments, accelerator: Accelerator) -> FilePredictor:
    inference = arguments.inference()
    model, processor, _ = open_model(arguments.model)
    check_channels(arguments, model)
    model.to(accelerator.device)
    maps = [name for name in MAPS if getattr(arguments, name)]
    return VolumePredictor(model, processor, inference, maps=maps)


def tell_without_rasterio(jobs: list[Job]) -> None:
    """Says what files of rasters lose if rasterio is not installed."""
    if load_rasterio() is None and any(job.source.suffix.lower() in RASTER_SUFFIXES for job in jobs):
        print(
            "Without rasterio, TIFF and JPEG 2000 files are read as a whole, and their masks are PNGs without "
            f"coordinates. {INSTALL_GEO}",
            file=sys.stderr,
        )


def classifier(arguments: PredictArguments, accelerator: Accelerator) -> FilePredictor:
    model, processor, _ = open_model(arguments.model, CLASSIFIER)
    model.to(accelerator.device)
    reading = rgb_reading(arguments, arguments.model, model)
    return ClassPredictor(model, processor, Path(arguments.output), reading)


def detector(arguments: PredictArguments, accelerator: Accelerator) -> FilePredictor:
    from ..processing.object_prediction import ObjectPredictor
    from .detection import DETECTOR

    model, processor, _ = open_model(arguments.model, DETECTOR)
    model.to(accelerator.device)
    return ObjectPredictor(
        model,
        processor,
        Path(arguments.output),
        rgb_reading(arguments, arguments.model, model),
        threshold=arguments.threshold,
        overlay=arguments.overlay,
    )


# What a model does -> how it is opened for prediction.
PREDICTORS = {
    "segmentation": segmenter,
    VOLUMES: volume_segmenter,
    "classification": classifier,
    "detection": detector,
}
