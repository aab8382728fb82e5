"""Rasters to rasters: results lie where the scene lies, in bands that can be stopped, continued and divided."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image

from contextseg import Inference, SegmentationImageProcessor, segment_raster
from contextseg.processing.rasters.files import RasterFile
from contextseg.processing.rasters.geotiff import BandContent, write_geotiff
from contextseg.processing.rasters.layers import Validity, layer_rows
from contextseg.processing.rasters.part_files import Layer, PartFiles
from contextseg.processing.rasters.raster import ArrayRaster
from contextseg.processing.rasters.segmentation import (
    WHOLE_PIXELS,
    RasterSegmentation,
    RasterTargets,
    runs,
    with_windows,
)

rasterio = pytest.importorskip("rasterio")
Affine = pytest.importorskip("affine").Affine

UTM = "EPSG:32632"
NORTH_UP = Affine(10, 0, 500_000, 0, -10, 5_400_000)
TURNED = Affine(2 * 0.8, 3 * 0.6, 500_000, 2 * 0.6, -3 * 0.8, 5_400_000)  # pixels of 2 x 3 m
WINDOWS = Inference(window=16, overlap=0.5)


class PixelClassifier(torch.nn.Module):
    """Logits of each pixel from its channels, so that windows change nothing."""

    def __init__(self, num_labels=3, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.classifier = torch.nn.Conv2d(3, num_labels, 1)
        names = {index: f"class {index}" for index in range(num_labels)}
        self.config = SimpleNamespace(num_labels=num_labels, id2label=names, logits_stride=1)
        self.calls, self.calls_before_a_kill = 0, None

    device, dtype = torch.device("cpu"), torch.float32

    def forward(self, pixel_values):
        self.calls += 1
        if self.calls == self.calls_before_a_kill:
            raise KeyboardInterrupt
        return SimpleNamespace(logits=self.classifier(pixel_values))


def pixels(height=50, width=40, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (3, height, width), dtype=np.uint8)


def write_scene(path, values=None, **reference):
    values = pixels() if values is None else values
    profile = {
        "count": len(values),
        "height": values.shape[1],
        "width": values.shape[2],
        "dtype": values.dtype,
    }
    gcps = reference.pop("gcps", None)
    rpcs = reference.pop("rpcs", None)
    with rasterio.open(path, "w", driver="GTiff", **profile, **reference) as file:
        file.write(values)
        if gcps:
            file.gcps = gcps
        if rpcs:
            file.rpcs = rpcs
    return path


def work_on(scene, target, model=None, inference=WINDOWS, processor=None, **targets):
    return RasterSegmentation(
        model or PixelClassifier(),
        processor or SegmentationImageProcessor(),
        scene,
        RasterTargets(target, **targets),
        inference,
    )


def read(path):
    with rasterio.open(path) as file:
        return file.read(1)


@pytest.fixture
def scene(tmp_path):
    return write_scene(tmp_path / "scene.tif", crs=UTM, transform=NORTH_UP, nodata=0)


def control_points():
    points = [(r, c, 9 + c / 1000 + r / 9000, 48 - r / 1000) for r in (0, 25, 50) for c in (0, 40)]
    return [rasterio.control.GroundControlPoint(*point, 100.0) for point in points]


def coefficients():
    line, sample = [0.0, 0, -1] + [0.0] * 17, [0.0, 1] + [0.0] * 18
    one = [1.0] + [0.0] * 19
    values = {"line_num_coeff": line, "line_den_coeff": one, "samp_num_coeff": sample, "samp_den_coeff": one}
    offsets = {"height_off": 0.0, "height_scale": 1.0, "lat_off": 48.0, "lat_scale": 0.1, "long_off": 9.0}
    return rasterio.rpc.RPC(
        **values,
        **offsets,
        long_scale=0.1,
        line_off=25.0,
        line_scale=25.0,
        samp_off=20.0,
        samp_scale=20.0,
        err_bias=0.0,
        err_rand=0.0,
    )


REFERENCES = {
    "north up": lambda: {"crs": UTM, "transform": NORTH_UP},
    "turned": lambda: {"crs": UTM, "transform": TURNED},
    "transform alone": lambda: {"transform": NORTH_UP},
    "control points": lambda: {"gcps": (control_points(), rasterio.crs.CRS.from_epsg(4326))},
    "control points of an unknown system": lambda: {"gcps": (control_points(), rasterio.crs.CRS())},
    "coefficients": lambda: {"rpcs": coefficients()},
    "none": dict,
}


@each("reference", REFERENCES)
def test_a_mask_lies_where_its_scene_lies(tmp_path, reference):
    scene = write_scene(tmp_path / "scene.tif", **reference())
    segment_raster(
        PixelClassifier(),
        SegmentationImageProcessor(),
        scene,
        tmp_path / "m.tif",
        confidence=tmp_path / "c.tif",
    )
    with rasterio.open(scene) as given:
        for name in ("m.tif", "c.tif"):
            with rasterio.open(tmp_path / name) as file:
                assert (file.crs, file.gcps[1]) == (given.crs, given.gcps[1])
                assert file.transform.almost_equals(given.transform, 1e-9)
                places = [
                    [(p.row, p.col, p.x, p.y, p.z) for p in points]
                    for points in (file.gcps[0], given.gcps[0])
                ]
                assert places[0] == places[1]
                assert (file.rpcs and file.rpcs.to_dict()) == (given.rpcs and given.rpcs.to_dict())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.tif", "m.tif", "scene.tif"]


@each("num_labels", [3, 255, 300])
def test_pixels_without_data_have_a_value_that_is_no_class(tmp_path, num_labels):
    values = pixels(300, 280)
    values[:, :, :7] = 0
    scene = write_scene(tmp_path / "scene.tif", values, crs=UTM, transform=NORTH_UP, nodata=0)
    paths = {name: tmp_path / f"{name}.tif" for name in ("confidence", "entropy")}
    segment_raster(
        PixelClassifier(num_labels), SegmentationImageProcessor(), scene, tmp_path / "m.tif", **paths
    )
    nothing = (values == 0).all(0)
    with rasterio.open(tmp_path / "m.tif") as file:
        mask = file.read(1)
        assert (file.nodata, file.dtypes[0]) == ((255, "uint8") if num_labels <= 255 else (65535, "uint16"))
        assert np.array_equal(mask == file.nodata, nothing)
        assert (file.profile["tiled"], file.profile["compress"], file.overviews(1)) == (True, "deflate", [2])
        colors = file.colormap(1)  # slow: 65536 entries
        assert len({colors[label] for label in range(num_labels)}) == num_labels
        assert file.tags(1)["class_1"] == "class 1"
    for path in paths.values():
        with rasterio.open(path) as file:
            assert np.array_equal(file.read_masks(1) == 0, nothing)
            assert 0 < (file.read(1) * file.scales[0])[~nothing].min() <= 1


def test_layers_of_logits_are_those_of_their_probabilities():
    logits, valid = torch.randn(3, 4, 5), np.arange(20).reshape(4, 5) % 3 > 0
    names = ["mask", "confidence", "entropy", "probabilities"]
    of_logits = layer_rows(names, logits, valid, are_logits=True)
    for name, rows in layer_rows(names, logits.softmax(0), valid).items():
        np.testing.assert_array_equal(of_logits[name], rows, name)
    alone = layer_rows(["mask"], logits, valid, are_logits=True)
    np.testing.assert_array_equal(alone["mask"], of_logits["mask"])


@each("dtype", ["uint8", "float32"])
def test_only_rasters_that_may_lack_data_are_read_to_know_where_they_have_some(dtype, monkeypatch):
    raster, reads = ArrayRaster(pixels().astype(dtype)), []
    monkeypatch.setattr(raster, "_stored", lambda *window: reads.append(window) or raster.array)
    assert Validity(raster).rows(0, 50).all()
    assert bool(reads) == (dtype == "float32")


@each(("opacity", "may_lack_data"), [((255, 255, 255), False), ((0, 0, 255), True)])
def test_a_palette_with_transparent_colors_may_lack_data(tmp_path, opacity, may_lack_data):
    picture = Image.fromarray(pixels()[0] % 3, "P")
    picture.putpalette([9, 9, 9, 200, 0, 0, 0, 200, 0])
    picture.save(tmp_path / "palette.png", transparency=bytes(opacity))
    raster = RasterFile(tmp_path / "palette.png")
    assert not raster.bands.masked
    assert raster.may_lack_data == may_lack_data
    assert raster.valid((0, 50), (0, 40)).all() != may_lack_data


def test_a_mask_is_that_of_the_array_by_inference(tmp_path):
    model, processor, values = PixelClassifier(), SegmentationImageProcessor(), pixels()
    segment_raster(model, processor, values, tmp_path / "m.tif", inference=WINDOWS)
    assert np.array_equal(
        read(tmp_path / "m.tif"), WINDOWS(model, processor, np.moveaxis(values, 0, -1)).numpy()
    )


# -- bands -----------------------------------------------------------------------------------------------------------


def test_a_killed_run_continues_at_the_last_finished_band(scene, tmp_path):
    model = PixelClassifier()
    work = work_on(scene, tmp_path / "whole.tif", model, confidence=tmp_path / "whole_c.tif")
    work.begin()
    work.segment(work.parts.to_do())
    work.finish()
    whole, model.calls, model.calls_before_a_kill = model.calls, 0, 4
    with pytest.raises(KeyboardInterrupt):
        segment_raster(
            model,
            SegmentationImageProcessor(),
            scene,
            tmp_path / "m.tif",
            inference=WINDOWS,
            confidence=tmp_path / "c.tif",
        )
    assert not (tmp_path / "m.tif").exists()
    assert not list(tmp_path.rglob("*.writing"))
    killed, model.calls, model.calls_before_a_kill = model.calls, 0, None
    segment_raster(
        model,
        SegmentationImageProcessor(),
        scene,
        tmp_path / "m.tif",
        inference=WINDOWS,
        confidence=tmp_path / "c.tif",
    )
    assert killed < whole
    assert model.calls < whole
    for part, all_at_once in (("m.tif", "whole.tif"), ("c.tif", "whole_c.tif")):
        assert np.array_equal(read(tmp_path / part), read(tmp_path / all_at_once))
    assert not list(tmp_path.glob("*.parts"))


def other_scene(scene, tmp_path):
    return work_on(write_scene(scene, pixels(seed=1), crs=UTM, transform=NORTH_UP), tmp_path / "m.tif")


OTHER_WORK = {
    "weights": lambda scene, at: work_on(scene, at / "m.tif", PixelClassifier(seed=1)),
    "options": lambda scene, at: work_on(scene, at / "m.tif", inference=Inference(window=16, flip=True)),
    "windows": lambda scene, at: work_on(scene, at / "m.tif", inference=Inference(window=20)),
    "processor": lambda scene, at: work_on(
        scene, at / "m.tif", processor=SegmentationImageProcessor(image_mean=[0.1, 0.2, 0.3])
    ),
    "results": lambda scene, at: work_on(scene, at / "m.tif", entropy=at / "e.tif"),
    "content of the scene": other_scene,
}


@each("other", OTHER_WORK)
def test_work_on_anything_else_starts_anew(tmp_path, other):
    scene = write_scene(tmp_path / "scene.tif", crs=UTM, transform=NORTH_UP)
    first = work_on(scene, tmp_path / "m.tif")
    first.begin()
    first.segment([0])
    again = work_on(scene, tmp_path / "m.tif")
    again.begin()
    assert again.parts.to_do() == first.parts.to_do() == list(range(1, len(first.parts.bands)))
    changed = other(scene, tmp_path)
    changed.begin()
    assert len(changed.parts.to_do()) == len(changed.parts.bands)


def test_bands_in_any_division_give_the_same_bits(scene, tmp_path):
    works = [work_on(scene, tmp_path / f"{name}.tif") for name in "ab"]
    for work in works:
        work.begin()
    todo = works[0].parts.to_do()
    assert len(todo) > 3
    works[0].segment(todo)
    works[1].segment(todo[1::2])
    assert works[1].parts.to_do() == todo[::2]
    works[1].segment(todo[::2])
    for work in works:
        work.finish()
    assert np.array_equal(read(tmp_path / "a.tif"), read(tmp_path / "b.tif"))


def test_runs_are_of_consecutive_numbers():
    assert list(runs([4, 0, 1, 6, 5])) == [[0, 1], [4, 5, 6]]
    assert list(runs([])) == []


def test_rows_are_read_across_bands_and_a_cut_file_is_not_finished(tmp_path):
    values = np.arange(40, dtype=np.uint16).reshape(10, 4)
    parts = PartFiles(tmp_path / "parts", {"mask": Layer("uint16", (4,))}, 10, [0, 3, 7])
    parts.begin({})
    for band, (start, stop) in enumerate(parts.bands):
        with parts.writing(band) as writer:
            for row in range(start, stop):
                writer.add({"mask": values[row : row + 1]})
    assert np.array_equal(parts.read("mask", 2, 9), values[2:9])
    file = parts.folder / "000001.mask"
    file.write_bytes(file.read_bytes()[:-1])
    assert parts.to_do() == [1]


def test_results_that_do_not_fit_on_the_disk_are_refused_before_any_work(tmp_path):
    parts = PartFiles(tmp_path / "parts", {"mask": Layer("uint8", (10**9,))}, 10**9, [0])
    with pytest.raises(ValueError, match="MB are free"):
        parts.begin({})


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    parts = PartFiles(tmp_path / "parts", {"mask": Layer("uint8", (4,))}, 10, [0])
    parts.folder.mkdir()
    (parts.folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds other files"):
        parts.begin({})
    assert [path.name for path in parts.folder.iterdir()] == ["notes.txt"]


def test_two_runs_do_not_write_the_same_results_at_once(tmp_path):
    pytest.importorskip("fcntl")
    parts = PartFiles(tmp_path / "parts", {"mask": Layer("uint8", (4,))}, 10, [0, 5])
    parts.begin({"model": 1})
    hold = "import fcntl; f = open('lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB); print(flush=True); input()"
    held = {"cwd": parts.folder, "text": True, "stdout": subprocess.PIPE}
    command = [sys.executable, "-S", "-c", hold]
    quiet = {"stdin": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
    assert subprocess.run(command, **held | quiet).stdout == ""
    parts.begin({"model": 2})  # the same process may begin again
    parts.remove()
    parts.folder.mkdir()
    with subprocess.Popen(command, **held, stdin=subprocess.PIPE) as other:
        other.stdout.readline()
        with pytest.raises(ValueError, match="another run"):
            parts.begin({"model": 2})
        other.communicate("\n")
    parts.begin({"model": 2})
    assert parts.to_do() == [0, 1]


# -- targets ---------------------------------------------------------------------------------------------------------


def linked(scene, tmp_path):
    (tmp_path / "link.tif").symlink_to(scene)
    return tmp_path / "link.tif"


def hard_linked(scene, tmp_path):
    os.link(scene, tmp_path / "hard.tif")
    return tmp_path / "hard.tif"


SAME = {
    "path": lambda scene, _: scene,
    "other path": lambda scene, _: scene.parent / ".." / scene.parent.name / scene.name,
    "symbolic link": linked,
    "hard link": hard_linked,
}


@each("target", SAME)
@pytest.mark.parametrize("result", ["target", "confidence", "polygons"])
def test_a_scene_is_never_overwritten(tmp_path, target, result):
    scene = write_scene(tmp_path / "scene.tif", crs=UTM, transform=NORTH_UP)
    before, files = scene.read_bytes(), {"target": tmp_path / "m.tif"}
    files[result] = target(scene, tmp_path)
    there = sorted(tmp_path.iterdir())
    with pytest.raises(ValueError, match="is the source"):
        segment_raster(PixelClassifier(), SegmentationImageProcessor(), scene, **files)
    assert (scene.read_bytes(), sorted(tmp_path.iterdir())) == (before, there)


def test_a_part_of_a_mosaic_is_never_overwritten(scene, tmp_path):
    (tmp_path / "mosaic.vrt").write_text(
        '<VRTDataset rasterXSize="40" rasterYSize="50">'
        + "".join(
            f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename relativeToVRT="1">scene.tif'
            f"</SourceFilename><SourceBand>{band}</SourceBand></SimpleSource></VRTRasterBand>"
            for band in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    with pytest.raises(ValueError, match="is the source, or a file of it"):
        segment_raster(PixelClassifier(), SegmentationImageProcessor(), tmp_path / "mosaic.vrt", scene)


def test_a_write_that_fails_leaves_the_former_file(tmp_path):
    (tmp_path / "m.tif").write_text("former")

    def rows(start, stop):
        if start:
            raise OSError("disk error")
        return np.zeros((stop, 20), np.uint8)

    with pytest.raises(OSError, match="disk error"):
        write_geotiff(tmp_path / "m.tif", rows, (600, 20), BandContent("uint8", 255, "ids"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["m.tif"]
    assert (tmp_path / "m.tif").read_text() == "former"


@each(
    ("given", "config", "size", "expected"),
    {
        "small": ({}, {}, (2048, 2048), (None, 0.5)),
        "large": ({}, {}, (2048, 2049), (512, 0.5)),
        "large, of a run": ({}, {}, (4000, 4000), ((96, 96), 0.5)),
        "crop size": ({}, {"crop_size": 300}, (4000, 4000), (300, 0.5)),
        "given": ({"window": 64, "overlap": 0.1}, {"crop_size": 300}, (4000, 4000), (64, 0.1)),
        "two scales": ({}, {"crop_size": 256, "context_ratio": 4}, (90, 90), (256, 0.0)),
    },
)
def test_large_rasters_have_windows(given, config, size, expected):
    model = SimpleNamespace(config=SimpleNamespace(**config))
    window = (96, 96) if expected[0] == (96, 96) else None
    inference = with_windows(Inference(**given), model, size, window)
    assert (inference.window, inference.overlap) == expected
    assert WHOLE_PIXELS == 2048 * 2048


# -- polygons --------------------------------------------------------------------------------------------------------


def area(ring):
    x, y = np.asarray(ring).T
    return (x[:-1] * y[1:] - x[1:] * y[:-1]).sum() / 2


def polygons_of(tmp_path, polygons_crs, **reference):
    """The GeoJSON of a scene with fields of 5 pixels, and its mask."""
    values = np.kron(pixels(10, 8), np.ones((1, 5, 5), np.uint8))
    values[:, :, :4] = 0
    scene = write_scene(tmp_path / "scene.tif", values, nodata=0, **reference)
    targets = {"polygons": tmp_path / "p.geojson", "polygons_crs": polygons_crs}
    work = work_on(scene, tmp_path / "m.tif", **targets)
    work.begin()
    work.segment(work.parts.to_do())
    work.finish()
    return json.loads((tmp_path / "p.geojson").read_text()), read(tmp_path / "m.tif")


@each(
    ("reference", "size"),
    {
        "north up": ({"crs": UTM, "transform": NORTH_UP}, 100),
        "south up": ({"crs": UTM, "transform": Affine(10, 0, 500_000, 0, 10, 5_400_000)}, 100),
        "turned": ({"crs": UTM, "transform": TURNED}, 6),
        "transform alone": ({"transform": NORTH_UP}, 100),
        "none": ({}, 1),
    },
)
def test_polygons_have_the_area_of_their_classes_and_turn_as_geojson_says(tmp_path, reference, size):
    found, mask = polygons_of(tmp_path, "scene", **reference)
    areas = dict.fromkeys(range(3), 0)
    for feature in found["features"]:
        outer, *holes = feature["geometry"]["coordinates"]
        assert area(outer) > 0
        assert all(area(hole) < 0 for hole in holes)
        assert feature["properties"]["class"] == f"class {feature['properties']['class_id']}"
        areas[feature["properties"]["class_id"]] += area(outer) + sum(map(area, holes))
    for label, found_area in areas.items():
        assert found_area == pytest.approx(size * (mask == label).sum(), rel=1e-6)
    named = found["crs"] and found["crs"]["properties"]["name"]
    assert named == ("urn:ogc:def:crs:EPSG::32632" if "crs" in reference else None)


@each(
    ("reference", "box"),
    {
        "transform": (REFERENCES["north up"](), (9.0, 48.74, 9.006, 48.754)),
        "control points": (REFERENCES["control points"](), (9.0, 47.94, 9.05, 48.001)),
        "across the antimeridian": (
            {"crs": "EPSG:32660", "transform": Affine(10, 0, 828_900, 0, -10, 1_106_000)},
            (179.998, 9.985, 180.003, 9.992),
        ),
    },
)
def test_polygons_are_in_longitude_and_latitude_by_default(tmp_path, reference, box):
    found, _ = polygons_of(tmp_path, "wgs84", **reference)
    assert "crs" not in found
    points = np.concatenate([ring for f in found["features"] for ring in f["geometry"]["coordinates"]])
    points[:, 0] %= 360
    assert (points.min(0) >= np.array(box[:2]) - 1e-6).all()
    assert (points.max(0) <= np.array(box[2:]) + 1e-3).all()  # the box is rounded
    assert all(0 < area(f["geometry"]["coordinates"][0]) < 1 for f in found["features"])


def test_a_crs_without_longitude_and_latitude_is_refused_before_any_work(tmp_path):
    local = 'LOCAL_CS["site",UNIT["metre",1]]'
    scene = write_scene(tmp_path / "scene.tif", crs=local, transform=NORTH_UP)
    with pytest.raises(ValueError, match="--polygons-crs scene"):
        work_on(scene, tmp_path / "m.tif", polygons=tmp_path / "p.geojson")
