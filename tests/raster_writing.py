"""Writes small raster files for tests; a module that imports it is skipped where rasterio is missing."""

from pathlib import Path

import numpy as np
import pytest

rasterio = pytest.importorskip("rasterio")

UTM = "EPSG:32632"


def grid(x=500000.0, y=5400000.0, size=10.0):
    """A transform: the upper left corner, and the size of square pixels."""
    return rasterio.transform.from_origin(x, y, size, size)


def noise(*shape, dtype=np.uint8, seed=0):
    return np.random.default_rng(seed).integers(1, 200, shape).astype(dtype)


def write_raster(path, pixels, *, reference=True, valid=None, colors=None, interpretation=None, **options):
    """Writes pixels (C, H, W) or (H, W); `valid` becomes a mask band. Returns the path."""
    pixels = pixels if pixels.ndim == 3 else pixels[None]
    scales, offsets = options.pop("scales", None), options.pop("offsets", None)
    place = {"crs": UTM, "transform": grid()} if reference else {}
    size = {"count": len(pixels), "height": pixels.shape[1], "width": pixels.shape[2], "dtype": pixels.dtype}
    with rasterio.open(path, "w", **{"driver": "GTiff"} | size | place | options) as file:
        if interpretation:
            file.colorinterp = [rasterio.enums.ColorInterp[name] for name in interpretation]
        file.write(pixels)
        if colors is not None:
            file.write_colormap(1, {index: tuple(map(int, color)) for index, color in enumerate(colors)})
        if valid is not None:
            file.write_mask(valid)
        if scales:
            file.scales, file.offsets = scales, offsets
    return path


def write_mosaic(path, tiles, size, nodata=None):
    """Writes a virtual mosaic (VRT) of one band: files by their (left, top, width, height)."""
    sources = "".join(
        f'<SimpleSource><SourceFilename relativeToVRT="1">{Path(tile).name}</SourceFilename><SourceBand>1</SourceBand>'
        f'<SrcRect xOff="0" yOff="0" xSize="{w}" ySize="{h}"/><DstRect xOff="{x}" yOff="{y}" xSize="{w}" ySize="{h}"/></SimpleSource>'
        for tile, (x, y, w, h) in tiles.items()
    )
    value = "" if nodata is None else f"<NoDataValue>{nodata}</NoDataValue>"
    path.write_text(
        f'<VRTDataset rasterXSize="{size[1]}" rasterYSize="{size[0]}"><SRS>{UTM}</SRS>'
        "<GeoTransform>500000, 10, 0, 5400000, 0, -10</GeoTransform>"
        f'<VRTRasterBand dataType="Byte" band="1">{value}{sources}</VRTRasterBand></VRTDataset>'
    )
    return path
