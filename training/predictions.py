"""Predictions for image files by command: masks, classes or objects."""

import sys
import traceback
from pathlib import Path

from accelerate import Accelerator

from ..processing.class_prediction import ClassPredictor
from ..processing.failures import concerns_every_file, reason, telling
from ..processing.prediction import Predictor
from ..processing.prediction_files import FilePredictor, Job, find_jobs
from ..processing.prediction_maps import MAPS
from ..processing.progress import progress
from ..processing.raster_files import INSTALL, RASTER_SUFFIXES, is_raster_file, load_rasterio
from ..processing.raster_prediction import RasterPredictor
from .explaining import chosen_explanations
from .inference_options import check_task
from .models import CLASSIFIER, open_model, task_of_model
from .option_texts import byte_count
from .prediction_options import PredictArguments
from .stored_reading import crop_of_run, rgb_reading, set_reading


def predict(arguments: PredictArguments) -> list[str]:
    """Predicts all images and writes the results. Returns which files could not be predicted, and why."""
    failures: list[str] = []
    task = task_of_model(arguments.model)
    check_task(arguments, task)
    jobs = find_jobs(
        arguments.images,
        arguments.output,
        lambda error: failures.append(f"{error.filename}: {error.strerror}"),
        is_raster_file if task == "segmentation" else None,
    )
    if task == "segmentation":
        tell_without_rasterio(jobs)
    predictor = PREDICTORS[task](arguments)
    done = run_all(predictor, jobs, failures, arguments)
    place = f"; the results are in {arguments.output}" if done else ""
    print(f"{done} of {len(jobs)} images {predictor.done}{place}")
    return failures


def segmenter(arguments: PredictArguments) -> FilePredictor:
    inference = arguments.inference()
    if arguments.polygons and load_rasterio() is None:
        raise ImportError(f"--polygons needs rasterio. {INSTALL}")
    model, processor, _ = open_model(arguments.model)
    set_reading(arguments, model, processor)
    model.to(Accelerator(cpu=arguments.cpu).device)
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
        tell=print,
    )


def tell_without_rasterio(jobs: list[Job]) -> None:
    """Says what files of rasters lose if rasterio is not installed."""
    if load_rasterio() is None and any(job.source.suffix.lower() in RASTER_SUFFIXES for job in jobs):
        print(
            "Without rasterio, TIFF and JPEG 2000 files are read as a whole, and their masks are PNGs without "
            f"coordinates. {INSTALL}",
            file=sys.stderr,
        )


def classifier(arguments: PredictArguments) -> FilePredictor:
    model, processor, _ = open_model(arguments.model, CLASSIFIER)
    model.to(Accelerator(cpu=arguments.cpu).device)
    reading = rgb_reading(arguments, arguments.model, model)
    return ClassPredictor(model, processor, Path(arguments.output), reading)


def detector(arguments: PredictArguments) -> FilePredictor:
    from ..processing.object_prediction import ObjectPredictor
    from .detection import DETECTOR

    model, processor, _ = open_model(arguments.model, DETECTOR)
    model.to(Accelerator(cpu=arguments.cpu).device)
    return ObjectPredictor(
        model,
        processor,
        Path(arguments.output),
        rgb_reading(arguments, arguments.model, model),
        threshold=arguments.threshold,
        overlay=arguments.overlay,
    )


# What a model does -> how it is opened for prediction.
PREDICTORS = {"segmentation": segmenter, "classification": classifier, "detection": detector}


def run_all(
    predictor: FilePredictor, jobs: list[Job], failures: list[str], arguments: PredictArguments
) -> int:
    """Predicts the images of all jobs; adds an error of one to `failures` and goes on. Returns how many are done.

    Raises OSError if no further file can be written, because the disk is full or read-only.
    """
    done = 0

    def state() -> str:
        named = "".join(f"\n{message}" for message in failures)
        return (
            f"{done} of {len(jobs)} images are {predictor.done}; the results in {arguments.output} are complete. "
            f"Run the command again for all; a large raster goes on where it stopped.{named}"
        )

    try:
        with telling(state), progress(jobs, unit="image", disable=len(jobs) == 1) as bar:
            for job in bar:
                try:
                    predictor.run(job)
                    done += 1
                except Exception as error:
                    if concerns_every_file(error):
                        raise
                    if arguments.traceback:
                        traceback.print_exc()
                    failures.append(reason(error, str(job.source)))
    finally:
        predictor.close()
    return done
