"""Plans the training on volumes from their sizes and voxel spacings, before any voxel is read.

The rules for spacing and anisotropy are those of nnU-Net (Isensee et al. 2021). The geometry of the network
follows from them: cells of the embedding are about as thick as wide, a crop has at most as many cells as the
published configurations of nnFormer, and the coarse stages attend to their whole grid.

Legend: D, H, W slices, rows and columns; all tuples are in this order, spacings in millimeters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2, prod

import numpy as np

Sides = tuple[int, int, int]
Spacing = tuple[float, float, float]

ANISOTROPIC = 3.0  # ratio of spacings from which slices are resampled apart, as in nnU-Net
CELLS = 32**3  # of a crop at the finest stage: 64 x 128 x 128 voxels in patches of 2 x 4 x 4
VOXELS = 2**21  # of a crop: 128 x 128 x 128
WIDEST_PATCH, FEWEST_CELLS = 4, 8  # along an axis of the embedding
NUM_STAGES = 4
THICK_CELLS = 2.5  # a cell this many times as thick as others is halved later
LEAST_GRID = 4  # cells along an axis that is halved, after it is halved
WINDOWS = (4, 5, 3)  # usual sides of a window, the preferred one first
WHOLE_GRID = 8**3  # cells of a grid that one window covers
BATCH_SIZES = (2, 8)  # the smallest and the largest that is planned
AXES = ("z", "y", "x")  # from which the canonical axes (D, H, W) come


@dataclass(frozen=True)
class VolumePlan:
    """What a run on volumes is planned to do; see `plan_volumes`."""

    slice_axis: str  # body axis of the slices, which comes first: "z", "y" or "x"
    target_spacing: Spacing
    size: Sides  # median size of a volume at the target spacing
    crop_size: Sides
    patch_size: Sides
    strides: tuple[Sides, ...]  # of the downsampling after each stage but the last
    window_size: tuple[Sides, ...]  # of each stage
    batch_size: int

    @property
    def step(self) -> Sides:
        """Voxels per cell of the coarsest stage; crops are multiples of it."""
        return coarsest_cell(self.patch_size, self.strides)

    def grids(self) -> list[Sides]:
        """Cells of a crop at each stage."""
        return stage_grids(self.crop_size, self.patch_size, self.strides)

    def lines(self) -> list[str]:
        """Returns the plan in words, one line for each decision."""
        strides, grids, windows = (
            ", ".join(map(times, sides)) for sides in (self.strides, self.grids(), self.window_size)
        )
        return [
            f"spacing: {times(self.target_spacing)} mm, slices along {self.slice_axis}; a typical volume then has "
            f"{times(self.size)} voxels",
            f"crops: {times(self.crop_size)} voxels, {self.batch_size} in a batch",
            f"network: patches of {times(self.patch_size)} voxels; strides {strides}; grids {grids}; windows {windows}",
        ]

    def record(self) -> dict[str, object]:
        """Returns the plan for `run.json`."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}


def times(sides: Sequence[float]) -> str:
    """Returns sides with crosses between them: "64x128x128"."""
    return "x".join(f"{side:.4g}" if isinstance(side, float) else str(side) for side in sides)


@dataclass(frozen=True, kw_only=True)
class Given:
    """What is not to be planned, because it is given; the names are those of `VolumePlan`."""

    slice_axis: str | None = None
    target_spacing: Spacing | None = None
    crop_size: Sides | None = None
    patch_size: Sides | None = None
    strides: tuple[Sides, ...] | None = None
    window_size: tuple[Sides, ...] | None = None
    batch_size: int | None = None


def plan_volumes(
    sizes: Sequence[Sides], spacings: Sequence[Spacing], given: Given | None = None
) -> VolumePlan:
    """Plans a run on volumes; what is given stays as it is, and the rest is planned around it.

    Args:
        sizes: Size (D, H, W) of each volume, with slices along z.
        spacings: Spacing of each volume, in the same order of axes.
        given: Values that are not planned. Default: none.

    Raises:
        ValueError: If a given crop does not consist of whole cells of the coarsest stage that is planned.
    """
    given = given or Given()
    axis = given.slice_axis or coarsest_axis(spacings)
    sizes, spacings = (in_order(rows, axis) for rows in (sizes, spacings))
    spacing = given.target_spacing or typical_spacing(sizes, spacings)
    size = typical_size(sizes, spacings, spacing)
    shown = tuple(map(min, size, given.crop_size or size))  # of a volume, in a crop
    patch = given.patch_size or plan_patch(shown, spacing)
    crop = given.crop_size or plan_crop(size, spacing, patch, given.strides)
    strides = tuple(given.strides or plan_strides(crop, spacing, patch))
    if (
        given.strides is None
    ):  # a given network pads what is not whole cells, as that of nnFormer for ACDC does
        check_crop(crop, coarsest_cell(patch, strides))
    grids = stage_grids(crop, patch, strides)
    windows = tuple(given.window_size or map(plan_window, range(NUM_STAGES), grids))
    batch_size = given.batch_size or plan_batch(grids[0])
    return VolumePlan(axis, spacing, size, crop, patch, strides, windows, batch_size)


def coarsest_axis(spacings: Sequence[Spacing]) -> str:
    """Returns the body axis with the largest median spacing; "z" unless another one's is larger by 1 %."""
    medians = np.median(np.asarray(spacings, dtype=float), axis=0)
    coarsest = int(medians.argmax())
    return AXES[coarsest] if medians[coarsest] > 1.01 * medians[0] else AXES[0]


def in_order(rows: Sequence[Sequence[float]], slice_axis: str) -> np.ndarray:
    """Rows in the order (z, y, x) -> the same with the slice axis first; the others keep their order."""
    first = AXES.index(slice_axis)
    return np.asarray(rows)[:, [first, *(axis for axis in range(len(AXES)) if axis != first)]]


def typical_spacing(sizes: np.ndarray, spacings: np.ndarray) -> Spacing:
    """The median spacing; along strongly anisotropic slices, as in nnU-Net, the 10th percentile."""
    spacing = np.median(spacings, axis=0)
    size = np.median(sizes * spacings / spacing, axis=0)
    others = spacing[1:].max()
    if spacing[0] > ANISOTROPIC * others and ANISOTROPIC * size[0] < size[1:].min():
        spacing[0] = max(others, np.percentile(spacings[:, 0], 10))
    return tuple(float(f"{side:.6g}") for side in spacing)


def typical_size(sizes: np.ndarray, spacings: np.ndarray, target: Spacing) -> Sides:
    """The median size of the resampled volumes."""
    return tuple(
        int(max(1, round(side))) for side in np.median(sizes * spacings / np.asarray(target), axis=0)
    )


def plan_patch(size: Sides, spacing: Spacing) -> Sides:
    """The smallest patches with which a whole volume has few enough cells; for large ones, 4 voxels wide.

    A patch is thinner along thick slices, and along axes that would have only a few cells.
    """
    for width in (2, WIDEST_PATCH):
        thickness = thinner(width, relative_thickness(spacing))
        patch = tuple(
            fewer(side, voxels) for side, voxels in zip((thickness, width, width), size, strict=True)
        )
        if prod(-(-voxels // side) for voxels, side in zip(size, patch, strict=True)) <= CELLS:
            break
    return patch


def relative_thickness(spacing: Spacing) -> float:
    """Ratio of the thickness of a crop in voxels to its width.

    The square root of the ratio of spacings lies between equal voxels and equal millimeters: both crops and
    patches of nnFormer's published configurations have it.
    """
    return float((max(spacing[1:]) / spacing[0]) ** 0.5)


def thinner(width: int, ratio: float) -> int:
    """The power of two next to `width` times `ratio`, from 1 to `width`."""
    return min(width, 2 ** max(0, round(log2(width * ratio))))


def fewer(side: int, voxels: int) -> int:
    """The largest power of two up to `side` that leaves enough cells."""
    while side > 1 and voxels < FEWEST_CELLS * side:
        side //= 2
    return side


def plan_crop(size: Sides, spacing: Spacing, patch: Sides, strides: Sequence[Sides] | None = None) -> Sides:
    """The largest crop with at most `CELLS` cells and the shape of the volumes, rounded to whole cells."""
    budget = min(CELLS * prod(patch), VOXELS)
    wished = scaled_to(budget, (relative_thickness(spacing), 1.0, 1.0), size)
    crop = tuple(ceil(side / cells) * cells for side, cells in zip(wished, patch, strict=True))
    step = coarsest_cell(patch, strides or plan_strides(crop, spacing, patch))
    crop = [
        max(1, ceil(side / cells - (0.02 if side >= voxels else 0.25))) * cells
        for side, voxels, cells in zip(wished, size, step, strict=True)
    ]
    while prod(crop) > 1.25 * budget and any(side > cells for side, cells in zip(crop, step, strict=True)):
        largest = max(range(len(crop)), key=lambda axis: (crop[axis] > step[axis]) * crop[axis] / size[axis])
        crop[largest] -= step[largest]
    while True:  # other strides may follow from the rounded crop
        step = coarsest_cell(patch, strides or plan_strides(tuple(crop), spacing, patch))
        if not any(side % cells for side, cells in zip(crop, step, strict=True)):
            return tuple(crop)
        crop = [ceil(side / cells) * cells for side, cells in zip(crop, step, strict=True)]


def scaled_to(budget: float, shape: Sequence[float], limits: Sequence[int]) -> list[float]:
    """Sides of a box of this shape with `budget` voxels; what exceeds a limit is given to the other axes."""
    free = set(range(len(shape)))
    sides = [0.0] * len(shape)
    while free:
        rest = budget / prod(sides[axis] for axis in range(len(shape)) if axis not in free)
        factor = (rest / prod(shape[axis] for axis in free)) ** (1 / len(free))
        full = {axis for axis in free if factor * shape[axis] >= limits[axis]}
        for axis in full or free:
            sides[axis] = limits[axis] if full else factor * shape[axis]
        free -= full or free
    return sides


def plan_strides(crop: Sides, spacing: Spacing, patch: Sides) -> tuple[Sides, ...]:
    """Halves, after each stage, the axes that have enough cells; of thick cells, the others first."""
    grid = [-(-side // cells) for side, cells in zip(crop, patch, strict=True)]
    cell = [side * cells for side, cells in zip(spacing, patch, strict=True)]
    strides = []
    for _ in range(NUM_STAGES - 1):
        can_be_halved = [cells >= 2 * LEAST_GRID for cells in grid]
        if not any(can_be_halved):
            can_be_halved = [cells == max(grid) for cells in grid]
        finest = min(side for side, halved in zip(cell, can_be_halved, strict=True) if halved)
        stride = tuple(
            2 if halved and side < THICK_CELLS * finest else 1
            for side, halved in zip(cell, can_be_halved, strict=True)
        )
        strides.append(stride)
        grid = [-(-cells // step) for cells, step in zip(grid, stride, strict=True)]
        cell = [side * step for side, step in zip(cell, stride, strict=True)]
    return tuple(strides)


def coarsest_cell(patch: Sides, strides: Sequence[Sides]) -> Sides:
    """Voxels per cell of the coarsest stage along each axis."""
    return tuple(side * prod(steps) for side, steps in zip(patch, zip(*strides, strict=True), strict=True))


def stage_grids(crop: Sides, patch: Sides, strides: Sequence[Sides]) -> list[Sides]:
    """Cells of a crop at each stage."""
    grids = [tuple(-(-side // cells) for side, cells in zip(crop, patch, strict=True))]
    for stride in strides:
        grids.append(tuple(-(-cells // step) for cells, step in zip(grids[-1], stride, strict=True)))
    return grids


def plan_window(stage: int, grid: Sides) -> Sides:
    """The whole grid in the coarse stages, if it is small enough; else windows that need little padding."""
    if stage >= NUM_STAGES // 2 and prod(grid) <= WHOLE_GRID:
        return grid
    return tuple(
        cells if cells <= max(WINDOWS) else min(WINDOWS, key=lambda side: -(-cells // side) * side)
        for cells in grid
    )


def plan_batch(grid: Sides) -> int:
    """As many crops as have the cells of two large ones, from 2 to 8."""
    least, most = BATCH_SIZES
    return min(most, max(least, 2 * CELLS // prod(grid)))


def check_crop(crop: Sides, step: Sides) -> None:
    """Raises ValueError if a crop does not consist of whole cells of the coarsest stage."""
    if any(side % cells for side, cells in zip(crop, step, strict=True)):
        near = tuple(max(1, round(side / cells)) * cells for side, cells in zip(crop, step, strict=True))
        raise ValueError(
            f"--crop-size {times(crop)} does not consist of whole cells of the coarsest stage, which are {times(step)} "
            f"voxels. Use multiples of them, such as {times(near)}."
        )
