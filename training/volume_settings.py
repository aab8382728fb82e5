"""What the options, the plan and the data of a run on volumes set: network, processor and augmentation."""

from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset
from transformers import PreTrainedConfig

from ..processing.data.volume_datasets import VolumeData
from ..processing.data.volume_statistics import volume_statistics
from ..processing.image_processing_volume import VolumeImageProcessor
from ..processing.volumes.volume_augmentation import VolumeAugmentation
from .checkpoints import model_folder
from .model_files import load_processor
from .option_texts import parse_overrides, spacing, volume_size
from .volume_planning import Given, Sides, VolumePlan

if TYPE_CHECKING:
    from .options import SegmentationArguments

PLANNED_PRESETS = (None, "nano")  # the others are published networks, whose geometry stays
GEOMETRY = {"patch_size": "patch_size", "downsample_strides": "strides", "window_size": "window_size"}
CT = ("ct",)  # channel names that stand for computed tomography, as in nnU-Net


def given_values(arguments: "SegmentationArguments", config: PreTrainedConfig | None = None) -> Given:
    """Returns what options, and the network `config` where it is not planned, leave no choice about."""
    crop = arguments.crop_size and volume_size(arguments.crop_size, "--crop-size")
    target = arguments.target_spacing and spacing(arguments.target_spacing)
    network: dict[str, Any] = {}
    if config is not None:
        overrides = parse_overrides(arguments.set)
        crop = crop or (overrides.get("crop_size") and tuple(overrides["crop_size"]))
        network = {
            GEOMETRY[name]: stages(config, name)
            for name in GEOMETRY
            if has_geometry(arguments, config) or name in overrides
        }
        if has_geometry(arguments, config):
            crop = crop or getattr(config, "crop_size", None)
    processor = processor_to_continue(arguments)
    if processor is not None:
        target, axis = target or processor.target_spacing, arguments.slice_axis or processor.slice_axis
    else:
        axis = arguments.slice_axis
    return Given(
        slice_axis=axis,
        target_spacing=target and tuple(target),
        crop_size=crop and tuple(crop),
        batch_size=arguments.batch_size,
        **network,
    )


def has_geometry(arguments: "SegmentationArguments", config: PreTrainedConfig) -> bool:
    """Whether patches, strides and windows are those of the network, and not planned from the training data."""
    is_published = arguments.preset not in PLANNED_PRESETS
    has_no_strides = not hasattr(config, "downsample_strides")
    return is_published or has_no_strides or bool(arguments.init_from) or not arguments.train


def stages(config: PreTrainedConfig, name: str) -> Any:
    """Returns a field of the network's geometry as `Given` takes it: three numbers for each stage."""
    if name == "patch_size":
        return tuple(config.patch_size)
    count = len(config.depths) - (name == "downsample_strides")
    entries = getattr(config, name, (2,) * count)
    if len(entries) != count:  # one window for all stages
        entries = (entries,) * count
    return tuple(triple(entry) for entry in entries)


def triple(entry: Any) -> Sides:
    """One number per axis, from a number for all of them or a list."""
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,) * 3


def network_fields(plan: VolumePlan, config: PreTrainedConfig, is_fixed: bool) -> dict[str, Any]:
    """Returns the fields of the configuration that a plan sets; the geometry of some networks stays as it is."""
    fields = {} if is_fixed else {name: getattr(plan, field) for name, field in GEOMETRY.items()}
    return fields | ({"crop_size": plan.crop_size} if hasattr(config, "crop_size") else {})


def processor_to_continue(arguments: "SegmentationArguments") -> VolumeImageProcessor | None:
    """Returns the processor of the checkpoint that a run starts from, if there is one for volumes."""
    if not arguments.init_from:
        return None
    processor = load_processor(model_folder(arguments.init_from))
    return processor if isinstance(processor, VolumeImageProcessor) else None


def processor_of(arguments: "SegmentationArguments", data: Dataset) -> VolumeImageProcessor:
    """Builds the processor of a run: its spacing and axes are planned, its intensities measured on the data."""
    before = processor_to_continue(arguments)
    target = arguments.target_spacing and spacing(arguments.target_spacing)
    normalization, intensity = intensities_of(arguments, data, before)
    return VolumeImageProcessor(
        target_spacing=target,
        slice_axis=arguments.slice_axis or "z",
        normalization=normalization,
        intensity=intensity,
        crop_to_nonzero=arguments.crop_to_nonzero,
        label_map=data.label_map,
        ignore_index=data.ignore_index,
        palette=data.palette,
        regions=data.regions,
    )


def intensities_of(
    arguments: "SegmentationArguments", data: Dataset, before: VolumeImageProcessor | None
) -> tuple[Any, Any]:
    """Returns the normalization of each channel, and for "ct" the measured intensities of labeled voxels."""
    if before is not None and arguments.normalization is None:
        return before.normalization, before.intensity
    names = list(data.channel_names) or [""] * data.num_channels
    rules = [arguments.normalization or ("ct" if name.lower() in CT else "zscore") for name in names]
    if "ct" not in rules or not isinstance(data, VolumeData):
        rules = ["zscore" if rule == "ct" else rule for rule in rules]
        return (rules[0] if len(set(rules)) == 1 else rules), None
    return (rules[0] if len(set(rules)) == 1 else rules), volume_statistics(data).intensity


def augmentation_of(arguments: "SegmentationArguments") -> VolumeAugmentation:
    """Returns nnFormer's augmentation, or with --no-augmentation none."""
    if arguments.augmentation:
        return VolumeAugmentation() if arguments.horizontal_flip else VolumeAugmentation(mirrored_axes=())
    return VolumeAugmentation.none()
