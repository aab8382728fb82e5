"""Scores of segmented volumes: Dice, HD95 and normalized surface Dice of each case and class, and their means over cases.

Unlike the scores of images, which count the pixels of all images together, each case counts the same, as is usual for volumes.

Legend: G... the axes of a volume, such as (D, H, W); K classes; `ids` are integer class ids.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from torch import Tensor

from ..label_maps import default_ignore_index
from ..metrics import PADDING, ConfusionMatrix
from .surface_distances import (
    SurfaceDistances,
    checked_spacing,
    distances_between,
    ndimage,
    surface_of,
)

SurfaceRule = Literal["max", "pooled", "nnformer"]
SURFACE_RULES = ("max", "pooled", "nnformer")
SCORES = ("dice", "hd95", "nsd")
NAN = float("nan")


class Structure(NamedTuple):
    """What is scored: a class, or a region of several classes.

    Args:
        name: Its name.
        members: The class ids that belong to it.
        is_region: Whether it is a region.
    """

    name: str
    members: tuple[int, ...]
    is_region: bool = False


@dataclass(frozen=True)
class CaseScores:
    """Scores of one case: one number per structure of `VolumeScores.structures`.

    Args:
        name: Name of the case.
        dice: From 0 to 1; NaN for a structure that neither truth nor prediction has.
        hd95: Hausdorff distance, 95th percentile; NaN for a structure that either has not.
        nsd: Normalized surface Dice from 0 to 1; NaN for a structure that neither has.
        truth_voxels: Number of voxels in the truth.
        predicted_voxels: Number of voxels in the prediction.
    """

    name: str
    dice: list[float]
    hd95: list[float]
    nsd: list[float]
    truth_voxels: list[int]
    predicted_voxels: list[int]


class VolumeScores:
    """Scores of segmented volumes, case by case.

    Voxels labeled `ignore_index` take no part: they are removed from truth and prediction.

    HD95 and normalized surface Dice (NSD) need scipy. They are in millimeters on the grid of the masks, see
    `surface_distances`. A missed structure has Dice 0 and NSD 0, but no HD95.

    Args:
        classes: Class names by id. Class 0 is the background, which is not scored unless `averaged` names it.
        ignore_index: Label of voxels that are not counted. Default: 255, or 65535 where 255 is a class.
        regions: Name -> class ids whose union is scored too, such as {"whole tumor": (1, 2, 3)}. Default: none.
        averaged: Names of the classes that enter the means. Default: all but the background.
        surface_rule: "max": HD95 is the larger of the 95th percentiles of both directions, as in MONAI and Metrics Reloaded.
            "pooled": the 95th percentile of the distances of both directions together, as in medpy and nnU-Net's first version.
            "nnformer": as in nnFormer's evaluation: pooled, in voxels, HD95 0 if either mask is empty, Dice 1 if both are, no NSD.
        tolerance: Distance in millimeters up to which surfaces agree in NSD. Default: 1.
        with_surfaces: Whether to score HD95 and NSD at all. Default: True.

    Attributes:
        structures: What is scored: the classes, then the regions.
        cases: The `CaseScores` so far.

    Raises:
        ValueError: If a name or number does not fit.
    """

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int | None = None,
        *,
        regions: Mapping[str, Iterable[int]] | None = None,
        averaged: Iterable[str] | None = None,
        surface_rule: SurfaceRule = "max",
        tolerance: float = 1.0,
        with_surfaces: bool = True,
    ) -> None:
        self.classes, self.surface_rule, self.tolerance = list(classes), surface_rule, tolerance
        self.ignore_index = default_ignore_index(len(self.classes)) if ignore_index is None else ignore_index
        self.averaged = self.classes[1:] if averaged is None else list(dict.fromkeys(averaged))
        self.with_surfaces = with_surfaces
        self.cases: list[CaseScores] = []
        self._check()
        shown = [index for index, name in enumerate(self.classes) if index or name in self.averaged]
        self.structures = [Structure(self.classes[index], (index,)) for index in shown]
        for name, members in (regions or {}).items():
            self.structures.append(Structure(name, checked_members(name, members, len(self.classes)), True))

    def update(
        self,
        prediction: Tensor | np.ndarray,
        labels: Tensor | np.ndarray,
        spacing: Sequence[float] | None = None,
        name: str = "",
    ) -> CaseScores:
        """Scores one case, and adds it to `cases`.

        Args:
            prediction: Predicted class ids (D, H, W).
            labels: Class ids of the truth (D, H, W).
            spacing: Distance of voxel centers along each axis in millimeters. Default: 1.
            name: Name of the case.

        Returns:
            The scores of the case.

        Raises:
            ValueError: If shapes or spacing do not fit, or an id is neither a class nor ignored.
        """
        prediction, labels = (to_array(ids) for ids in (prediction, labels))
        steps = checked_spacing(None if self.surface_rule == "nnformer" else spacing, labels.ndim)
        confusion = ConfusionMatrix(len(self.classes), self.ignore_index)
        confusion.update(prediction, labels)
        matrix = confusion.matrix.numpy()
        both, truth, predicted = (
            [int(count(matrix, list(structure.members))) for structure in self.structures]
            for count in (shared_voxels, truth_voxels, predicted_voxels)
        )
        dice = [self._dice(*counts) for counts in zip(both, truth, predicted, strict=True)]
        hd95, nsd = [NAN] * len(dice), [NAN] * len(dice)
        if self.with_surfaces:
            distances = structure_distances(self, prediction, labels, steps)
            hd95, nsd = map(list, zip(*map(self._surface_scores, distances), strict=True))
        case = CaseScores(name, dice, hd95, nsd, truth, predicted)
        self.cases.append(case)
        return case

    def compute(self) -> dict[str, Any]:
        """Computes the means over cases, and then over classes.

        Returns:
            `mean_dice`, `mean_hd95` and `mean_nsd`, means over the classes of `averaged`, and the same names after
            `mean_region_` where there are regions; `per_class` and `per_region`, lists of dicts with `name`, the means
            over cases `dice`, `hd95` and `nsd`, and the numbers of cases `truth_cases` and `predicted_cases`, which
            have the class in truth and in prediction, and `hd95_cases`, which have an HD95. NaN where nothing is known.
        """
        rows = [self._row(index) for index in range(len(self.structures))]
        per_class = [
            row for row, structure in zip(rows, self.structures, strict=True) if not structure.is_region
        ]
        per_region = rows[len(per_class) :]
        in_mean = [row for row in per_class if row["name"] in self.averaged]
        scores = {f"mean_{score}": mean(row[score] for row in in_mean) for score in SCORES}
        if per_region:
            scores |= {f"mean_region_{score}": mean(row[score] for row in per_region) for score in SCORES}
        return scores | {"per_class": per_class, "per_region": per_region}

    def case_mean(self, case: CaseScores) -> float:
        """Returns the mean Dice of a case over the classes of `averaged`; NaN if it has none of them."""
        pairs = zip(self.structures, case.dice, strict=True)
        return mean(
            dice for structure, dice in pairs if not structure.is_region and structure.name in self.averaged
        )

    def _row(self, index: int) -> dict[str, Any]:
        """The means of one structure over cases."""
        row: dict[str, Any] = {"name": self.structures[index].name}
        row |= {score: mean(getattr(case, score)[index] for case in self.cases) for score in SCORES}
        for key in ("truth", "predicted"):
            row[f"{key}_cases"] = sum(getattr(case, f"{key}_voxels")[index] > 0 for case in self.cases)
        return row | {"hd95_cases": sum(not math.isnan(case.hd95[index]) for case in self.cases)}

    def _dice(self, both: int, truth: int, predicted: int) -> float:
        if truth + predicted == 0:
            return 1.0 if self.surface_rule == "nnformer" else NAN
        return 2 * both / (truth + predicted)

    def _surface_scores(self, distances: SurfaceDistances) -> tuple[float, float]:
        """HD95 and NSD of one structure."""
        hd95 = distances.hausdorff(pooled=self.surface_rule != "max")
        if self.surface_rule == "nnformer":
            return 0.0 if math.isnan(hd95) else hd95, NAN
        return hd95, distances.surface_dice(self.tolerance)

    def _check(self) -> None:
        """Raises ValueError if an option is wrong."""
        if self.surface_rule not in SURFACE_RULES:
            raise ValueError(f"surface_rule is '{self.surface_rule}'. Known: {', '.join(SURFACE_RULES)}.")
        if not (math.isfinite(self.tolerance) and self.tolerance >= 0):
            raise ValueError(
                f"tolerance is {self.tolerance}, but must be a distance in millimeters of 0 or more."
            )
        unknown = [name for name in self.averaged if name not in self.classes]
        if unknown or (not self.averaged and len(self.classes) > 1):
            raise ValueError(
                f"no class {', '.join(map(repr, unknown)) or 'is averaged'}. Classes: {', '.join(self.classes)}."
            )


def checked_members(name: str, members: Iterable[int], num_classes: int) -> tuple[int, ...]:
    """The class ids of a region. Raises ValueError if there are none, or one is not a class."""
    ids = tuple(sorted(set(members)))
    if not ids or ids[0] < 0 or ids[-1] >= num_classes:
        raise ValueError(
            f"region '{name}' has the class ids {list(ids)}, but must have some of 0..{num_classes - 1}."
        )
    return ids


def structure_distances(
    scores: VolumeScores, prediction: np.ndarray, labels: np.ndarray, steps: np.ndarray
) -> Iterable[SurfaceDistances]:
    """(G...) ids each -> the distances between the surfaces of each structure, one structure in memory at a time."""
    counted = (labels != scores.ignore_index) & (labels != PADDING)
    pair = [positive_ids(ids, counted, len(scores.classes)) for ids in (prediction, labels)]
    boxes = [class_boxes(ids, len(scores.classes)) for ids in pair]
    for structure in scores.structures:
        predicted, truth = (
            structure_surface(ids, box, structure.members) for ids, box in zip(pair, boxes, strict=True)
        )
        yield distances_between(predicted, truth, steps)


def positive_ids(ids: np.ndarray, counted: np.ndarray, num_classes: int) -> np.ndarray:
    """(G...) -> ids + 1 in the smallest type, 0 where not counted."""
    shifted = np.zeros(ids.shape, np.min_scalar_type(num_classes))
    return np.add(ids, 1, out=shifted, where=counted, casting="unsafe")


def class_boxes(shifted: np.ndarray, num_classes: int) -> list[tuple[slice, ...] | None]:
    """`positive_ids` (G...) -> the bounding box of each class; None for one that does not occur."""
    if ndimage is None:
        surface_of(shifted > 0)  # says what to install
    return ndimage.find_objects(shifted, num_classes)


def structure_surface(
    shifted: np.ndarray, boxes: Sequence[tuple[slice, ...] | None], members: Sequence[int]
) -> np.ndarray:
    """`positive_ids` (G...) -> (N, axes), the surface voxels of a structure."""
    found = [boxes[index] for index in members if boxes[index] is not None]
    if not found:
        return np.zeros((0, shifted.ndim), np.int32)
    box = tuple(
        slice(min(side.start for side in sides), max(side.stop for side in sides))
        for sides in zip(*found, strict=True)
    )
    mask = np.isin(shifted[box], [index + 1 for index in members])
    return surface_of(mask, [side.start for side in box])


def shared_voxels(matrix: np.ndarray, members: list[int]) -> int:
    """Voxels of a structure in both, from a confusion matrix of classes (K, K)."""
    return matrix[np.ix_(members, members)].sum()


def truth_voxels(matrix: np.ndarray, members: list[int]) -> int:
    """Voxels of a structure in the truth, from a confusion matrix of classes (K, K)."""
    return matrix[members].sum()


def predicted_voxels(matrix: np.ndarray, members: list[int]) -> int:
    """Voxels of a structure in the prediction, from a confusion matrix of classes (K, K)."""
    return matrix[:, members].sum()


def to_array(ids: Tensor | np.ndarray) -> np.ndarray:
    """Class ids as an array on the CPU."""
    return ids.cpu().numpy() if isinstance(ids, Tensor) else np.asarray(ids)


def mean(values: Iterable[float]) -> float:
    """The mean of the numbers that are not NaN; NaN if there are none."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else NAN
