"""The folders of published datasets, recognized by their contents.

    ADEChallengeData2016/  images/{training,validation}/*.jpg       annotations/{training,validation}/*.png
    cityscapes/            leftImg8bit/{train,val}/CITY/*_leftImg8bit.png
                           gtFine/{train,val}/CITY/*_gtFine_labelIds.png, or *_gtFine_labelTrainIds.png
    coco_stuff164k/        images/{train2017,val2017}/*.jpg
                           annotations/{train2017,val2017}/*.png, or *_labelTrainIds.png
    URUR/                  {train,val,test}/image/*.tif            {train,val,test}/label/*.png
    deepglobe/             {train,valid,test}/*_sat.jpg            {train,valid,test}/*_mask.png
    AerialImageDataset/    train/images/*.tif                      train/gt/*.tif (Inria; tiles 1 to 5 of a city: val)

The split is part of the source, as in "cityscapes:val"; training and evaluation add it by themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..image_files import subfolders
from . import official_classes
from .class_table import ClassTable, class_table
from .pairing import Pair, Pairing, contents, files_by_name, listed, volumes_for_images
from .volume_layouts import is_volume_folder


@dataclass(frozen=True)
class Layout:
    """Where a dataset keeps the images and masks of its splits.

    Args:
        title: Name of the dataset.
        hub_name: Its name in the `datasets` field of model cards.
        splits: "train", "val" and so on -> names of their folders.
        image_folder: Folder of the images of a split, with "{split}" for its name.
        image_suffix: Suffix of the image files.
        mask_folder: Folder of the masks of a split.
        masks: Suffix of the mask files -> meaning of their ids or colors. The first suffix that occurs is used.
        classes: Class names.
        palette: RGB color of each class.
        marks: Patterns of files or folders, of which each split has one. Default: the folders of images and of
            masks.
        takes: Whether a file of this name belongs to a split. Default: every file of its folder.
    """

    title: str
    hub_name: str
    splits: dict[str, str]
    image_folder: str
    image_suffix: str
    mask_folder: str
    masks: dict[str, official_classes.LabelIds]
    classes: list[str]
    palette: tuple[tuple[int, int, int], ...] | None = None
    marks: tuple[str, ...] | None = None
    takes: Callable[[str, str], bool] = lambda name, split: True  # noqa: ARG005

    def folders(self, root: Path, split: str) -> tuple[Path, Path]:
        """The folders of the images and of the masks of a split."""
        name = self.splits[split]
        return root / self.image_folder.format(split=name), root / self.mask_folder.format(split=name)

    def splits_in(self, root: Path) -> list[str]:
        marks = self.marks or (self.image_folder, self.mask_folder)
        return [
            split
            for split, name in self.splits.items()
            if any(next(root.glob(mark.format(split=name)), None) for mark in marks)
        ]

    def split_named(self, name: str | None, root: Path) -> str:
        """The split with this name or folder name. Raises ValueError if there is none."""
        for split, folder in self.splits.items():
            if name in (split, folder):
                return split
        given = f"has no split '{name}'" if name else "is given without a split"
        raise ValueError(
            f"'{root}' ({self.title}) {given}. Choose from {', '.join(self.splits)}, as in "
            f"'{root}:{next(iter(self.splits))}'."
        )

    def pair_files(self, root: Path, split: str) -> tuple[Pairing, ClassTable]:
        """The pairs of a split sorted by name, and its class table. Raises ValueError if there are none."""
        image_folder, mask_folder = self.folders(root, split)
        for place in (image_folder, mask_folder):
            if not place.is_dir():
                raise ValueError(
                    f"'{root}' looks like {self.title}, but has no {place.relative_to(root)}/; it holds {contents(root)}. "
                    "Unpack the images and the annotations into one folder."
                )
        images, *found = (
            {name: path for name, path in files_by_name(*place).items() if self.takes(name, split)}
            for place in (
                (image_folder, self.image_suffix),
                *((mask_folder, suffix) for suffix in self.masks),
            )
        )
        kinds = dict(zip(self.masks, found, strict=True))
        suffix = next((suffix for suffix, files in kinds.items() if files), None)
        masks = kinds[suffix] if suffix else {}
        names = sorted(images.keys() & masks.keys())
        if not names:
            raise ValueError(
                f"'{root}' has no pairs: {image_folder.relative_to(root)}/ holds {len(images)} files *{self.image_suffix} "
                f"({listed(sorted(images))}), and {mask_folder.relative_to(root)}/ {len(masks)} files "
                f"{' or '.join('*' + suffix for suffix in self.masks)} ({listed(sorted(masks))}). "
                f"Keep the file names of {self.title}."
            )
        pairing = Pairing(
            [Pair(images[name], masks[name], name) for name in names],
            sorted(str(path.relative_to(root)) for name, path in images.items() if name not in masks),
            sorted(str(path.relative_to(root)) for name, path in masks.items() if name not in images),
            tuple(f"{place.relative_to(root)}/" for place in (image_folder, mask_folder)),
        )
        return pairing, self.table(suffix)

    def table(self, suffix: str) -> ClassTable:
        content = {"classes": self.classes, "label_map": self.masks[suffix]}
        return class_table(content | ({"palette": self.palette} if self.palette else {}), None, self.title)


ADE20K = Layout(
    title="ADE20K",
    hub_name="scene_parse_150",
    splits={"train": "training", "val": "validation"},
    image_folder="images/{split}",
    image_suffix=".jpg",
    mask_folder="annotations/{split}",
    masks={".png": official_classes.ade20k_ids()},
    classes=official_classes.names(official_classes.ADE20K),
)
CITYSCAPES = Layout(
    title="Cityscapes",
    hub_name="cityscapes",
    splits={"train": "train", "val": "val"},
    image_folder="leftImg8bit/{split}",
    image_suffix="_leftImg8bit.png",
    mask_folder="gtFine/{split}",
    masks={
        "_gtFine_labelIds.png": official_classes.cityscapes_ids(),
        "_gtFine_labelTrainIds.png": official_classes.train_ids(len(official_classes.CITYSCAPES)),
    },
    classes=list(official_classes.CITYSCAPES),
    palette=tuple(color for _, color in official_classes.CITYSCAPES.values()),
)
COCO_STUFF = Layout(
    title="COCO-Stuff",
    hub_name="coco_stuff",
    splits={"train": "train2017", "val": "val2017"},
    image_folder="images/{split}",
    image_suffix=".jpg",
    mask_folder="annotations/{split}",
    masks={
        "_labelTrainIds.png": official_classes.train_ids(
            len(official_classes.names(official_classes.COCO_STUFF))
        ),
        ".png": official_classes.coco_stuff_ids(),
    },
    classes=official_classes.names(official_classes.COCO_STUFF),
)
URUR = Layout(
    title="URUR",
    hub_name="urur",
    splits={"train": "train", "val": "val", "test": "test"},
    image_folder="{split}/image",
    image_suffix=".tif",
    mask_folder="{split}/label",
    masks={".png": official_classes.color_ids(official_classes.URUR, official_classes.URUR_IGNORED)},
    classes=list(official_classes.URUR),
    palette=tuple(official_classes.URUR.values()),
)
DEEPGLOBE = Layout(
    title="DeepGlobe land cover",
    hub_name="deepglobe_land_cover",
    splits={"train": "train", "val": "valid", "test": "test"},
    image_folder="{split}",
    image_suffix="_sat.jpg",
    mask_folder="{split}",
    masks={
        "_mask.png": official_classes.color_ids(
            official_classes.DEEPGLOBE, official_classes.DEEPGLOBE_IGNORED
        )
    },
    classes=list(official_classes.DEEPGLOBE),
    palette=tuple(official_classes.DEEPGLOBE.values()),
    marks=("{split}/*_sat.jpg",),
)
INRIA = Layout(
    title="Inria aerial images",
    hub_name="inria_aerial_image_labeling",
    splits={"train": "train", "val": "train"},
    image_folder="{split}/images",
    image_suffix=".tif",
    mask_folder="{split}/gt",
    masks={".tif": {0: 0, 255: 1}},
    classes=["background", "building"],
    marks=("{split}/gt",),
    takes=official_classes.is_in_inria_split,
)
LAYOUTS = (ADE20K, CITYSCAPES, COCO_STUFF, URUR, DEEPGLOBE, INRIA)


def find_layout(root: Path) -> Layout | None:
    """The published dataset whose splits are in this folder. A folder with masks/ is never one."""
    if (root / "masks").is_dir():
        return None
    return next((layout for layout in LAYOUTS if layout.splits_in(root)), None)


def with_split(source: str, split: str) -> str:
    """ "cityscapes" -> "cityscapes:val" for a published dataset; other sources are unchanged."""
    return f"{source}:{split}" if find_layout(Path(source).expanduser()) else source


def sources_of_splits(source: str) -> list[str]:
    """ "cityscapes" -> ["cityscapes:train", "cityscapes:val"]; an empty list for other sources."""
    root = Path(source).expanduser()
    layout = find_layout(root)
    return [f"{source}:{split}" for split in layout.splits_in(root)] if layout else []


def check_place(folder: Path) -> None:
    """Raises ValueError if the folder has volumes, or a published dataset is in a parent folder or a subfolder of it."""
    if (folder / "images").is_dir() and (folder / "masks").is_dir():
        return
    if is_volume_folder(folder):
        raise ValueError(volumes_for_images(folder))
    inside = subfolders(folder) if folder.is_dir() else []
    for root in (*folder.absolute().parents[:3], *inside):
        if layout := find_layout(root):
            raise ValueError(
                f"'{folder}' is not the folder of {layout.title}, but '{root}' is. "
                f"Give '{root}:{next(iter(layout.splits))}', with the split after the colon."
            )
