"""Training crops of raster files and memory maps: the same as those of decoded images, without decoding them."""

import json
import pickle

import numpy as np
import pytest
from cases import each
from PIL import Image

from contextseg.processing.crop_images import RasterImage
from contextseg.processing.data.augmentation import JointAugmentation
from contextseg.processing.data.datasets import open_data
from contextseg.processing.image_reading import ImageReadError

rasterio = pytest.importorskip("rasterio")
MEAN = (123.675, 116.28, 103.53)
IDS = np.random.default_rng(0).integers(0, 3, (12, 16), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
PIXELS = np.random.default_rng(1).integers(0, 256, (*IDS.shape, 3), dtype=np.uint8)


def write_tiff(path, pixels, **options):
    """A GeoTIFF of (H, W, C) pixels."""
    profile = {"driver": "GTiff", "count": pixels.shape[2], "dtype": pixels.dtype, "crs": "EPSG:32632"}
    size = {"height": pixels.shape[0], "width": pixels.shape[1]}
    grid = {"transform": rasterio.transform.from_origin(5e5, 5e6, 1, 1)}
    with rasterio.open(path, "w", **profile | size | grid | options) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def folder(root, kind, image=PIXELS, mask=IDS, **options):
    for part in ("images", "masks"):
        (root / part).mkdir(parents=True)
    (root / "classes.json").write_text(json.dumps({"classes": ["a", "b", "c"]}))
    for part, array in (("images", image), ("masks", mask)):
        if kind == "tif":
            write_tiff(root / part / "one.tif", np.atleast_3d(array), **options)
        elif kind == "npy":
            np.save(root / part / "one.npy", array)
        else:
            Image.fromarray(array).save(root / part / "one.png")
    return open_data(root)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    return {kind: folder(tmp_path_factory.mktemp(kind) / "data", kind) for kind in ("png", "tif", "npy")}


@each("kind", ["tif", "npy"])
@each(
    "options",
    [
        {},
        {"rotation": 70},
        {"base_size": (64, 48)},
        {"crop_size": (200, 30)},
        {"context_ratio": 4, "rotation": 30},
        {"context_ratio": 3, "context_sampling": "point"},
    ],
)
def test_crops_of_rasters_equal_those_of_pictures(datasets, kind, options):
    augmentation = JointAugmentation(**{"crop_size": (24, 24), "fill": MEAN} | options)
    pictures, windows = datasets["png"].windowed(0), datasets[kind].windowed(0)
    assert isinstance(windows["image"], RasterImage)
    for index in range(3):
        expected, found = (augmentation.crop(s, epoch=1, index=index) for s in (pictures, windows))
        for name in found.keys() - {"name", "value_range"}:
            np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(expected[name]))


def test_only_the_windows_of_crop_and_context_are_read(datasets, monkeypatch):
    sample, areas = datasets["tif"].windowed(0), []
    read = type(sample["image"].raster).read_with_validity

    def watched(raster, rows, columns, scale=1.0):
        areas.append((rows[1] - rows[0]) * (columns[1] - columns[0]))
        return read(raster, rows, columns, scale)

    monkeypatch.setattr(type(sample["image"].raster), "read_with_validity", watched)
    JointAugmentation((8, 8), scale_range=(1, 1), context_ratio=4).crop(sample, epoch=0, index=0)
    assert areas
    assert max(areas) <= 32 * 32
    assert min(areas) <= 8 * 8


@each("ratio", [None, 4])
def test_pixels_without_data_are_the_mean_and_have_no_label(tmp_path, ratio):
    image = PIXELS.clip(1)
    image[:, 64:] = 0
    data = folder(tmp_path / "data", "tif", image=image, nodata=0)
    options = {"scale_range": (1, 1), "flip_probability": 0, "use_photometric_distortion": False}
    augmentation = JointAugmentation(IDS.shape, fill=(7, 8, 9), context_ratio=ratio, **options)
    crop = augmentation.crop(data.windowed(0) | {"mask": IDS.astype(int)}, epoch=0, index=0)
    pixels = np.asarray(crop["image"])
    assert (crop["mask"][:, 64:] == 255).all()
    assert (pixels[:, 64:] == (7, 8, 9)).all()
    np.testing.assert_array_equal(crop["mask"][:, :64], IDS[:, :64])
    np.testing.assert_array_equal(pixels[:, :64], image[:, :64])


def test_of_a_mask_that_is_decoded_as_a_whole_only_the_labels_of_the_crop_are_looked_up(tmp_path):
    folder(tmp_path / "data", "tif")
    colors = np.array([[9, 9, 9], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)[IDS]
    colors[0, 0] = 1, 2, 3  # not in the table
    (tmp_path / "data/masks/one.tif").unlink()
    Image.fromarray(colors).save(tmp_path / "data/masks/one.png")
    names = {"a": [9, 9, 9], "b": [0, 200, 0], "c": [0, 0, 200]}
    table = [{"name": name, "color": color} for name, color in names.items()]
    (tmp_path / "data/classes.json").write_text(json.dumps({"classes": table}))
    mask = open_data(tmp_path / "data").windowed(0)["mask"]
    rows, columns = np.arange(50, 90)[:, None], np.arange(100, 140)[None]
    found, inside = mask(rows, columns), (rows < IDS.shape[0]) & (columns < IDS.shape[1])
    np.testing.assert_array_equal(found[inside], IDS[rows.clip(0, 95), columns.clip(0, 127)][inside])
    assert (found[~inside] == 255).all()
    with pytest.raises(ValueError, match="#010203"):
        mask(rows - 50, columns - 100)


def test_files_are_opened_by_each_process_and_samples_can_be_pickled(datasets):
    data = pickle.loads(pickle.dumps(datasets["tif"]))
    augmentation = JointAugmentation((16, 16), context_ratio=2)
    crops = [augmentation.crop(source.windowed(0), epoch=0, index=5) for source in (data, datasets["tif"])]
    np.testing.assert_array_equal(crops[0]["context"], crops[1]["context"])


def test_a_mask_on_another_grid_is_refused(tmp_path):
    data = folder(tmp_path / "data", "tif")
    moved = rasterio.transform.from_origin(5e5 + 30, 5e6, 1, 1)
    write_tiff(tmp_path / "data/masks/one.tif", IDS[..., None], transform=moved)
    with pytest.raises(ValueError, match="another grid"):
        data.windowed(0)


def test_a_damaged_window_names_the_file(tmp_path):
    data = folder(tmp_path / "data", "tif", compress="deflate")
    path = tmp_path / "data/images/one.tif"
    content = bytearray(path.read_bytes())
    content[-len(content) // 2 :] = bytes(len(content) // 2)  # pixels lie behind the header
    path.write_bytes(content)
    with pytest.raises(ImageReadError, match="one.tif"):
        JointAugmentation((16, 16)).crop(data.windowed(0), epoch=0, index=0)


def test_a_raster_of_400_megapixels_is_cropped_though_it_is_above_the_pixel_limit(tmp_path):
    side = 20_000
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        bands = 3 if part == "images" else 1
        with rasterio.open(
            tmp_path / part / "wide.tif",
            "w",
            driver="GTiff",
            count=bands,
            height=side,
            width=side,
            dtype="uint8",
            tiled=True,
            sparse_ok=True,
        ):
            pass
    (tmp_path / "classes.json").write_text(json.dumps({"classes": ["a", "b"]}))
    sample = open_data(tmp_path).windowed(0)
    crop = JointAugmentation((64, 64), context_ratio=4).crop(sample, epoch=0, index=0)
    assert crop["context"].shape == (64, 64, 3)
    assert sample["mask"].shape == (side, side)
