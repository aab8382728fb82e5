"""Puts the tiles of FLAIR-HUB together again: one virtual mosaic (VRT) per area, for context beyond a tile.

    D004-2021_AERIAL_RGBI/AREA/AERIAL_RGBI_D004-2021_AREA_1.tif                 512 x 512 pixels, four bands
    D004-2021_AERIAL_LABEL-COSIA/AREA/AERIAL_LABEL-COSIA_D004-2021_AREA_1.tif   their class ids

A mosaic holds no pixels, but where each tile lies. Gaps have no data, and no label.
"""

import csv
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

from ..atomic_write import atomic_write
from ..image_opening import ImageReadError
from ..progress import progress as progress_of
from ..rasters.gdal import gdal_explained, open_dataset
from ..rasters.georeferences import TOLERANCE
from .official_classes import FLAIR_HUB, FLAIR_HUB_IGNORED

IMAGES, MASKS = "AERIAL_RGBI", "AERIAL_LABEL-COSIA"
GDAL_TYPES = {"uint8": "Byte", "uint16": "UInt16", "int16": "Int16", "float32": "Float32"}


class Tile(NamedTuple):
    """Where a tile lies, and what its pixels are."""

    path: Path
    crs: str
    step: tuple[float, float]
    corner: tuple[float, float]
    size: tuple[int, int]
    bands: tuple[str, ...]


def write_flair_mosaics(
    root: Path, target: Path, split_file: Path | None = None, *, progress: bool = False
) -> int:
    """Writes a folder with images/, masks/ and classes.json: a mosaic for each area of FLAIR-HUB.

    Args:
        root: Folder of FLAIR-HUB, which holds folders such as D004-2021_AERIAL_RGBI.
        target: Folder to write.
        split_file: CSV or text file that names the tiles to use: in each row the path or name of a tile, or its
            name without the kind of data, such as D004-2021_AREA_1. Default: all tiles.
        progress: Whether to show a progress bar.

    Returns:
        Number of areas.

    Raises:
        ImageReadError: If a tile cannot be read.
        ValueError: If there are no tiles, a tile has no labels, or the tiles of an area are not on one grid.
    """
    areas = areas_of(root, None if split_file is None else tiles_in(split_file), split_file)
    for name, tiles in progress_of(areas.items(), unit="area", desc="merging", disable=not progress):
        for folder, paths in (("images", tiles), ("masks", [label_of(tile) for tile in tiles])):
            path = target / folder / f"{name}.vrt"
            path.parent.mkdir(parents=True, exist_ok=True)
            content = mosaic([read_tile(tile) for tile in paths], path.parent)
            with atomic_write(path) as temporary:
                temporary.write_text(content, encoding="utf-8")
    classes = {
        "classes": FLAIR_HUB,
        "label_map": {index: index for index in range(len(FLAIR_HUB))}
        | dict.fromkeys(FLAIR_HUB_IGNORED, "ignore"),
    }
    with atomic_write(target / "classes.json") as temporary:
        temporary.write_text(json.dumps(classes, indent=1), encoding="utf-8")
    return len(areas)


def tiles_in(split_file: Path) -> set[str]:
    """The names without the kind of data that a split file may mean by its cells."""
    with split_file.open(newline="", encoding="utf-8-sig") as file:
        cells = [cell.strip() for row in csv.reader(file) for cell in row]
    return {bare_name(Path(cell)) for cell in cells if cell}


def bare_name(path: Path) -> str:
    """ "AERIAL_RGBI_D004-2021_AREA_1.tif" -> "D004-2021_AREA_1", the same for all kinds of data of a tile."""
    name = path.name.removesuffix(".tif")
    return next(
        (name.removeprefix(f"{kind}_") for kind in (IMAGES, MASKS) if name.startswith(f"{kind}_")), name
    )


def areas_of(root: Path, wanted: set[str] | None, split_file: Path | None) -> dict[str, list[Path]]:
    """The image tiles of each area, "D004-2021_AREA", sorted by name."""
    areas: dict[str, list[Path]] = {}
    tiles = sorted(root.glob(f"*_{IMAGES}/*/{IMAGES}_*.tif"))
    if not tiles:
        raise ValueError(
            f"'{root}' has no tiles such as D004-2021_{IMAGES}/AREA/{IMAGES}_D004-2021_AREA_1.tif. Unpack FLAIR-HUB's aerial images "
            "and labels there."
        )
    for tile in tiles:
        if wanted is None or bare_name(tile) in wanted:
            domain = tile.parent.parent.name.removesuffix(f"_{IMAGES}")
            areas.setdefault(f"{domain}_{tile.parent.name}", []).append(tile)
    if not areas:
        raise ValueError(
            f"'{split_file}' names none of the {len(tiles)} tiles of '{root}', such as {bare_name(tiles[0])}. Check the file: it "
            "must have the path or name of a tile in each row."
        )
    return areas


def label_of(tile: Path) -> Path:
    """The label of an image tile. Raises ValueError if there is none."""
    domain, area, name = tile.parts[-3:]
    label = tile.parents[2] / domain.replace(IMAGES, MASKS) / area / name.replace(IMAGES, MASKS)
    if not label.is_file():
        raise ValueError(f"'{tile}' has no label: '{label}' does not exist. Unpack FLAIR-HUB's labels, too.")
    return label


def read_tile(path: Path) -> Tile:
    """Reads where a tile lies. Raises ImageReadError if it does not say."""
    with gdal_explained(f"'{path}'"), open_dataset(str(path)) as dataset:
        place = dataset.transform
        if dataset.crs is None or place.b or place.d or dataset.dtypes[0] not in GDAL_TYPES:
            raise ImageReadError(
                f"'{path}' has no coordinates along its rows and columns, or pixels of type {dataset.dtypes[0]}. Download it again."
            )
        corner, step = (place.c, place.f), (place.a, place.e)
        return Tile(path, dataset.crs.to_wkt(), step, corner, (dataset.width, dataset.height), dataset.dtypes)


def mosaic(tiles: Sequence[Tile], folder: Path) -> str:
    """The VRT of tiles on one grid, for a file in `folder`. Raises ValueError if they are not on one grid."""
    first = tiles[0]
    left, top = (
        min(tile.corner[axis] / first.step[axis] for tile in tiles) * first.step[axis] for axis in (0, 1)
    )
    places = [tuple((tile.corner[a] - (left, top)[a]) / first.step[a] for a in (0, 1)) for tile in tiles]
    for tile, place in zip(tiles, places, strict=True):
        offset = max(abs(position - round(position)) for position in place)
        if (
            (tile.crs, tile.bands) != (first.crs, first.bands)
            or offset > TOLERANCE
            or not same_step(tile, first)
        ):
            raise ValueError(
                f"'{tile.path}' is not on the grid of '{first.path}', or has other bands. Take it out of the split file."
            )
    width, height = (
        max(round(place[a]) + tile.size[a] for tile, place in zip(tiles, places, strict=True)) for a in (0, 1)
    )
    bands = "".join(
        f'<VRTRasterBand dataType="{GDAL_TYPES[kind]}" band="{band}">'
        + "".join(source(tile, place, band, folder) for tile, place in zip(tiles, places, strict=True))
        + "</VRTRasterBand>"
        for band, kind in enumerate(first.bands, 1)
    )
    transform = f"{left!r}, {first.step[0]!r}, 0, {top!r}, 0, {first.step[1]!r}"
    return (
        f'<VRTDataset rasterXSize="{width}" rasterYSize="{height}"><SRS>{escape(first.crs)}</SRS>'
        f"<GeoTransform>{transform}</GeoTransform>{bands}</VRTDataset>\n"
    )


def same_step(tile: Tile, other: Tile) -> bool:
    """Whether the pixels of two tiles have the same size, up to a part of a pixel over a whole tile."""
    return all(
        abs(one / two - 1) * side < TOLERANCE
        for one, two, side in zip(tile.step, other.step, tile.size, strict=True)
    )


def source(tile: Tile, place: Sequence[float], band: int, folder: Path) -> str:
    """A tile as a source of a band of a VRT."""
    width, height = tile.size
    relative = escape(os.path.relpath(tile.path, folder))
    size = f'xSize="{width}" ySize="{height}"'
    return (
        f'<SimpleSource><SourceFilename relativeToVRT="1">{relative}</SourceFilename><SourceBand>{band}</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" {size}/>'
        f'<DstRect xOff="{round(place[0])}" yOff="{round(place[1])}" {size}/></SimpleSource>'
    )


__all__ = ["write_flair_mosaics"]
