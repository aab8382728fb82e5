import errno
import os
import re
import shutil
import signal
import struct

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image, ImageFile
from tiny_runs import run_options

from contextseg.processing.fonts import drawable
from contextseg.processing.heat_pictures import heat_overlay, heat_picture, with_cross
from contextseg.processing.image_reading import decode_once
from contextseg.processing.legends import class_entries, is_background, swatches
from contextseg.processing.orientation import TURNS, turn_upright
from contextseg.processing.overlays import image_grid, mask_image, mask_overlay
from contextseg.processing.palettes import class_colors, default_palette
from contextseg.processing.prediction import Predictor
from contextseg.processing.prediction_files import find_jobs
from contextseg.processing.prediction_maps import ProbabilityFile, entropy, mask_beside_maps
from contextseg.scripts.predict import main
from contextseg.scripts.train import main as train
from contextseg.training import plots
from contextseg.training.option_texts import byte_count, parse_position
from contextseg.training.plots import plot_confusion, plot_curves

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "streets"
    train([*run_options(data, output), "--steps", "20", "--eval-interval", "20", "--learning-rate", "1e-2"])
    return output


@pytest.fixture
def photo(tmp_path):
    """An image whose left half is another class than the right."""
    pixels = np.zeros((30, 50, 3), dtype=np.uint8)
    pixels[:, :25], pixels[:, 25:] = (200, 60, 60), (60, 200, 60)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_a_mask_is_a_palette_png_of_the_files_size(run, photo, tmp_path):
    assert main([str(run), str(photo), "--output", str(tmp_path / "masks")]) == 0
    mask = Image.open(tmp_path / "masks" / "photo.png")
    assert (mask.mode, mask.size) == ("P", (50, 30))
    assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}


def test_the_mask_of_a_rotated_photograph_fits_the_stored_pixels(run, photo, tmp_path):
    upright = Image.open(photo)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn clockwise to look at it
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    stored.save(tmp_path / "turned.png", exif=exif)
    main([str(run), str(photo), str(tmp_path / "turned.png"), "--output", str(tmp_path / "masks")])
    mask, turned = (np.asarray(Image.open(tmp_path / "masks" / name)) for name in ("photo.png", "turned.png"))
    assert np.array_equal(turned, np.rot90(mask))
    assert len(np.unique(mask)) > 1


def test_folders_keep_their_structure(run, photo, tmp_path):
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    photo.rename(folder / "photo.png")
    main([str(run), str(tmp_path / "in"), "--output", str(tmp_path / "masks")])
    assert (tmp_path / "masks" / "deep" / "photo.png").is_file()


def test_unreadable_and_missing_files_are_reported_and_the_rest_goes_on(run, photo, tmp_path, capsys):
    (tmp_path / "broken.jpg").write_bytes(photo.read_bytes()[:60])
    images = [str(tmp_path / name) for name in ("broken.jpg", "missing.jpg", "photo.png")]
    assert main([str(run), *images, "--output", str(tmp_path / "masks")]) == 1
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["photo.png"]
    shown = capsys.readouterr()
    assert "1 of 3 images" in shown.out
    assert "broken.jpg" in shown.err
    assert "missing.jpg" in shown.err


@each(
    "error",
    [
        RuntimeError("CUDA out of memory. Tried to allocate 9 GiB"),
        *(MemoryError(), RecursionError("too deep"), struct.error("short"), KeyError("band")),
        *(Image.DecompressionBombError("a bomb"), OSError("disk error"), AssertionError("wrong\nshape")),
    ],
)
def test_whatever_happens_to_one_image_the_others_are_segmented(
    run, photo, tmp_path, error, capsys, monkeypatch
):
    names = ("a.png", "b.png", "c.png")
    for name in names:
        shutil.copy(photo, tmp_path / name)
    stage = ("load", "predict", "write")[len(str(error)) % 3]
    plain = getattr(Predictor, stage)

    def fails_at_b(self, job, *before):
        if job.source.name == "b.png":
            raise error
        return plain(self, job, *before)

    monkeypatch.setattr(Predictor, stage, fails_at_b)
    assert (
        main([str(run), *(str(tmp_path / name) for name in names), "--output", str(tmp_path / "masks")]) == 1
    )
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["a.png", "c.png"]
    shown = capsys.readouterr()
    assert "2 of 3 images" in shown.out
    assert [line for line in shown.err.splitlines() if line.startswith(f"{tmp_path / 'b.png'}: ")]


@each("workers", ["0", "2"])
def test_a_full_disk_ends_the_command(run, photo, tmp_path, workers, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Predictor, "write", full)
    with pytest.raises(SystemExit, match="Free some space"):
        main([str(run), str(photo), "--output", str(tmp_path / "masks"), "--workers", workers])


@pytest.mark.usefixtures("own_sigterm")
@each(("number", "workers"), [(signal.SIGINT, 0), (signal.SIGTERM, 0), (signal.SIGINT, 2)])
def test_an_interruption_says_what_is_done_and_leaves_complete_files(
    run, photo, tmp_path, number, workers, capsys, monkeypatch
):
    """It comes while the third mask is written, and twice. A thread that is writing may finish."""
    for name in "abcd":
        shutil.copy(photo, tmp_path / f"{name}.png")
    flush = os.fsync

    def interrupted(descriptor):
        flush(descriptor)
        if "c.png" in os.readlink(f"/proc/self/fd/{descriptor}"):
            try:
                os.kill(os.getpid(), number)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(os, "fsync", interrupted)
    images = [str(tmp_path / f"{name}.png") for name in "abcd"]
    options = ["--output", str(tmp_path / "masks"), "--confidence", "--workers", str(workers)]
    with pytest.raises(SystemExit) as stopped:
        main([str(run), *images, *options])
    assert stopped.value.code == 130
    (done,) = re.findall(r"(\d) of 4 images", capsys.readouterr().err)
    assert done in ("234" if workers else "2")
    written = [path.relative_to(tmp_path).as_posix() for path in (tmp_path / "masks").rglob("*.*")]
    names = "abcd"[: int(done)]
    assert sorted(written) == sorted(
        f"masks/{kind}{name}.png" for kind in ("", "confidence/") for name in names
    )
    os.kill(os.getpid(), signal.SIGTERM)  # while the program exits


def test_results_that_exist_are_skipped_if_all_that_are_requested_do(run, photo, tmp_path, capsys):
    for name in "ab":
        shutil.copy(photo, tmp_path / f"{name}.png")
    options = [str(run), str(tmp_path), "--output", str(tmp_path / "masks"), "--skip-existing"]
    assert main(options) == 0
    (tmp_path / "masks" / "a.png").unlink()
    assert main(options) == 0
    assert "1 of 3 images segmented, 2 skipped because their results exist" in capsys.readouterr().out
    assert main([*options, "--probabilities"]) == 0
    assert "3 of 3 images segmented;" in capsys.readouterr().out


def test_an_image_is_decoded_once_whatever_is_written(run, photo, tmp_path, monkeypatch):
    decodes, prepare = [], ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", lambda self: (decodes.append(self.format), prepare(self))
    )
    options = ["--overlay", "--explain", "4,4", "--scales", "0.5,1,1.5", "--flip", "--confidence"]
    assert main([str(run), str(photo), "--output", str(tmp_path / "masks"), *options]) == 0
    assert decodes == ["PNG"]


def test_the_mask_of_a_rotated_tiff_fits_the_stored_pixels(run, photo, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(photo).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.tif", exif=exif)
    files = [str(photo), str(tmp_path / "turned.tif")]
    assert main([str(run), *files, "--output", str(tmp_path / "masks"), "--confidence"]) == 0
    for folder in ("masks", "masks/confidence"):
        upright, turned = (
            np.asarray(Image.open(tmp_path / folder / f"{name}.png")) for name in ("photo", "turned")
        )
        assert np.array_equal(turned, np.rot90(upright))


@pytest.mark.parametrize("shape", [(33, 20, 5), (33, 20, 3)], ids=["five channels", "16-bit color"])
def test_the_orientation_of_a_file_that_pillow_cannot_hold_is_known(tmp_path, shape):
    """TIFF by tifffile."""
    tifffile = pytest.importorskip("tifffile")
    stored = np.random.default_rng(0).integers(0, 60_000, shape, dtype=np.uint16)
    tags = [(274, "H", 1, 6, True)]
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric="minisblack", planarconfig="contig", extratags=tags
    )
    image, orientation = decode_once(tmp_path / "a.tif", num_channels=shape[-1])
    assert (image.shape[:2], orientation) == ((20, 33), 6)


def test_results_lie_beside_but_never_among_the_images(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.jpg").touch()
    assert len(find_jobs([str(tmp_path / "photos")], str(tmp_path))) == 1
    with pytest.raises(ValueError, match="the results would lie among the images"):
        find_jobs([str(tmp_path / "photos")], str(tmp_path / "photos/../photos"))


def test_an_output_folder_that_is_a_file_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "a.jpg").touch()
    with pytest.raises(ValueError, match="is a file. Choose another --output"):
        find_jobs([str(tmp_path / "a.jpg")], str(tmp_path / "a.jpg" / "masks"))


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path):
    (tmp_path / "a.jpg").touch()
    (tmp_path / "day2").symlink_to("not_mounted")
    errors = []
    assert len(find_jobs([str(tmp_path)], str(tmp_path / "masks"), errors.append)) == 1
    assert errors[0].filename.endswith("day2")


@pytest.mark.parametrize("folder", [".", "overlays", "attention", "grad-cam", "confidence", "entropy"])
def test_no_result_ever_overwrites_an_image(run, photo, tmp_path, folder):
    place = tmp_path / "data" / folder / photo.name
    place.parent.mkdir(parents=True)
    before = photo.rename(place).read_bytes()
    with pytest.raises(SystemExit, match="would overwrite the image"):
        main([str(run), str(place), "--output", str(tmp_path / "data"), "--confidence", "--entropy"])
    assert place.read_bytes() == before


def test_images_that_differ_in_their_suffix_alone_keep_it(tmp_path):
    for name in ("a.jpg", "a.png", "b.jpg"):
        (tmp_path / name).touch()
    jobs = find_jobs([str(tmp_path)], str(tmp_path / "masks"))
    assert [job.name for job in jobs] == ["a.jpg.png", "a.png.png", "b.png"]


def test_two_images_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="would both become"):
        find_jobs([str(tmp_path / "x" / "a.jpg"), str(tmp_path / "y" / "a.jpg")], "masks")


def test_the_output_folder_is_no_input(tmp_path):
    (tmp_path / "masks").mkdir()
    for path in ("a.jpg", "masks/a.png"):
        (tmp_path / path).touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for output in ("masks", "../" + tmp_path.name + "/masks", "link/masks"):
        found = find_jobs([str(tmp_path)], str(tmp_path / output))
        assert [job.source.name for job in found] == ["a.jpg"]


def test_overlay_and_explanation_keep_the_image_at_the_top_left(run, photo, tmp_path):
    options = ["--output", str(tmp_path / "masks"), "--overlay", "--explain", "40,10", "--flip"]
    assert main([str(run), str(photo), *options, "--grad-cam", "40,10"]) == 0
    for kind in ("overlays", "attention", "grad-cam"):
        image = Image.open(tmp_path / "masks" / kind / "photo.png")
        assert (image.mode, image.size) == ("RGB", (240, image.height))
        assert image.height > 30  # legend or scale
    for kind in ("attention", "grad-cam"):
        assert Image.open(tmp_path / f"masks/{kind}/photo.png").getpixel((40, 10)) == (0, 255, 255)


MAPS = ["--confidence", "--entropy", "--probabilities"]


def maps_of(folder, name="photo"):
    """Mask, confidence and entropy in 0..1, and probabilities, all as stored."""
    images = [
        np.asarray(Image.open(folder / kind / f"{name}.png")) for kind in (".", "confidence", "entropy")
    ]
    return (
        images[0],
        images[1] / 65535,
        images[2] / 65535,
        np.load(folder / f"probabilities/{name}.npy"),
    )


@pytest.mark.parametrize(
    "options", [[], ["--window", "16", "--flip", "--scales", "0.5,1"]], ids=["whole", "windows"]
)
def test_mask_confidence_and_entropy_are_those_of_the_probabilities(run, photo, tmp_path, options):
    assert main([str(run), str(photo), "--output", str(tmp_path / "masks"), *MAPS, *options]) == 0
    mask, confidence, entropy, probabilities = maps_of(tmp_path / "masks")
    assert (probabilities.shape, probabilities.dtype) == ((3, 30, 50), np.float16)
    exact = probabilities.astype(np.float64)
    np.testing.assert_allclose(exact.sum(0), 1, atol=2e-3)
    np.testing.assert_allclose(confidence, exact.max(0), atol=1e-3)
    np.testing.assert_allclose(entropy, -(exact * np.log(exact)).sum(0) / np.log(3), atol=3e-3)
    is_clear = np.sort(exact, 0)[-1] - np.sort(exact, 0)[-2] > 2e-3
    assert np.array_equal(mask[is_clear], exact.argmax(0)[is_clear])
    assert is_clear.mean() > 0.9
    main([str(run), str(photo), "--output", str(tmp_path / "alone"), *options])
    assert np.array_equal(mask, np.asarray(Image.open(tmp_path / "alone/photo.png")))


@each("orientation", range(1, 9))
def test_maps_of_a_photograph_lie_as_its_stored_pixels(run, tmp_path, orientation):
    """However it is stored, what is seen is the same photograph."""
    seen = np.random.default_rng(0).integers(0, 256, (20, 33, 3), dtype=np.uint8)
    swapped, flipped = TURNS[orientation]
    stored = np.flip(seen, flipped)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(seen).save(tmp_path / "upright.png")
    Image.fromarray(np.ascontiguousarray(stored.swapaxes(0, 1) if swapped else stored)).save(
        tmp_path / "turned.png", exif=exif
    )
    files = [str(tmp_path / name) for name in ("upright.png", "turned.png")]
    assert main([str(run), *files, "--output", str(tmp_path / "masks"), *MAPS]) == 0
    for upright, turned in zip(
        *(maps_of(tmp_path / "masks", name) for name in ("upright", "turned")), strict=True
    ):
        rows_first = np.moveaxis(turned, 0, -1) if turned.ndim == 3 else turned
        assert np.array_equal(
            turn_upright(rows_first, orientation),
            np.moveaxis(upright, 0, -1) if upright.ndim == 3 else upright,
        )


def test_entropy_is_one_when_all_classes_are_alike_and_zero_when_one_is_certain():
    even, certain, only = torch.full((7, 1, 1), 1 / 7), torch.eye(7)[:, :1, None], torch.ones(1, 1, 1)
    assert [entropy(p).item() for p in (even, certain, only)] == pytest.approx([1, 0, 0])


def test_probabilities_that_do_not_fit_on_the_disk_are_refused_before_a_file_is_made(tmp_path):
    with pytest.raises(ValueError, match="leave out --probabilities"):
        ProbabilityFile(tmp_path / "maps" / "p.npy", 10**6, (10**6, 10**6), orientation=1)
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_prediction_that_fails_leaves_no_half_file(tmp_path):
    def channels():
        yield torch.full((3, 2, 5), 1 / 3)
        raise RuntimeError("out of memory")

    maps = [ProbabilityFile(tmp_path / "p.npy", 3, (4, 5), orientation=1)]
    with pytest.raises(RuntimeError, match="out of memory"):
        mask_beside_maps(channels(), (4, 5), maps)
    assert list(tmp_path.iterdir()) == []


def test_pixels_of_one_by_one_and_windows_larger_than_the_image_are_fine(run, tmp_path):
    Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
    options = ["--window", "64", "--scales", "0.5,1,2", "--flip", *MAPS]
    assert main([str(run), str(tmp_path / "dot.png"), "--output", str(tmp_path / "masks"), *options]) == 0
    assert [part.shape for part in maps_of(tmp_path / "masks", "dot")] == [(1, 1), (1, 1), (1, 1), (3, 1, 1)]


def test_rasters_and_photographs_of_a_folder_have_results_of_their_kind(run, photo, tmp_path):
    rasterio = pytest.importorskip("rasterio")
    folder = tmp_path / "in" / "deep"
    folder.mkdir(parents=True)
    shutil.copy(photo, tmp_path / "in" / "photo.png")
    pixels = np.asarray(Image.open(photo))
    profile = {"count": 3, "height": 30, "width": 50, "dtype": "uint8", "crs": "EPSG:32632"}
    place = rasterio.transform.from_origin(500_000, 5_400_000, 10, 10)
    with rasterio.open(folder / "scene.tif", "w", **profile, transform=place) as file:
        file.write(np.moveaxis(pixels, -1, 0))
    Image.open(photo).save(tmp_path / "in" / "plain.tif")
    output = tmp_path / "masks"
    options = ["--confidence", "--probabilities", "--overlay", "--polygons", "--grad-cam", "4,4"]
    assert main([str(run), str(tmp_path / "in"), "--output", str(output), *options, "--memory", "300MB"]) == 0
    assert sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*")) == [
        *("confidence/deep/scene.tif", "confidence/photo.png", "confidence/plain.tif", "deep/scene.tif"),
        *("grad-cam/deep/scene.png", "grad-cam/photo.png", "grad-cam/plain.png"),
        *("overlays/deep/scene.png", "overlays/photo.png", "overlays/plain.png", "photo.png", "plain.tif"),
        *("polygons/deep/scene.geojson", "polygons/photo.geojson", "polygons/plain.geojson"),
        *("probabilities/deep/scene.npy", "probabilities/photo.npy", "probabilities/plain.npy"),
    ]
    with rasterio.open(output / "plain.tif") as plain, rasterio.open(output / "deep/scene.tif") as scene:
        assert np.array_equal(plain.read(1), np.asarray(Image.open(output / "photo.png")))
        assert (scene.crs, scene.transform, plain.crs) == ("EPSG:32632", place, None)
        found = np.load(output / "probabilities/deep/scene.npy").argmax(0)
        assert (scene.read(1) == found).mean() > 0.99  # float16 has ties


def test_an_amount_of_memory_has_a_unit():
    amounts = {"500MB": 5e8, "2GB": 2e9, "1.5GiB": 1.5 * 2**30, "300000000": 3e8, "1 tb": 1e12, "4g": 4e9}
    assert {text: byte_count(text) for text in amounts} == amounts
    for text in ("2 apples", "GB", "-2GB", "nan", "1e9", "10MB", "9999999TB"):
        with pytest.raises(ValueError, match="--memory"):
            byte_count(text)


def test_a_position_is_two_numbers():
    assert parse_position("120,45") == (120, 45)
    with pytest.raises(ValueError, match="Write X,Y"):
        parse_position("120")


def test_a_mask_image_has_the_palettes_colors_and_black_where_ignored():
    image = mask_image(np.array([[0, 2, 255]]), PALETTE, ignore_index=255)
    assert np.array(image).tolist() == [[[255, 0, 0], [0, 0, 255], [0, 0, 0]]]


def test_an_overlay_of_strength_zero_is_the_photograph():
    image = Image.effect_noise((8, 6), 50).convert("RGB")
    assert mask_overlay(image, np.ones((6, 8), dtype=int), PALETTE, strength=0.0) == image


def test_a_named_background_keeps_the_photograph_and_others_are_tinted():
    image, mask = Image.effect_noise((300, 20), 50).convert("RGB"), np.zeros((20, 300), dtype=int)
    mask[:, 200:], mask[:5] = 1, 255
    picture = mask_overlay(
        image, mask, PALETTE, ignore_index=255, names=["Background", "road", "$x^2$ | <b>\n=1+1 \x1b[31m"]
    )
    pixels, photo = np.array(picture)[:20], np.array(image)
    assert (pixels[:, :200] == photo[:, :200]).all()
    assert (pixels[:5] == photo[:5]).all()
    assert np.abs(pixels[5:, 200:] - (photo[5:, 200:] / 2 + [0, 127.5, 0])).max() <= 1
    assert picture.width == 300
    assert (0, 255, 0) in [color for _, color in picture.crop((0, 20, *picture.size)).getcolors(1 << 16)]


@each("name", ["_background_", "BG", "Unlabelled", "no label", "void"])
def test_background_is_told_by_its_name(name):
    assert is_background(name)
    assert not is_background(f"{name} car")


def test_a_legend_names_the_most_frequent_classes_and_counts_the_rest():
    names = [f"class {index}" for index in range(1000)]
    entries = class_entries([0, 5, 90, 5, *[0] * 996], names, default_palette(1000))
    assert entries[0] == ("class 2 90 %", default_palette(3)[2])
    assert [text for text, _ in entries[1:]] == ["class 1 5 %", "class 3 5 %"]
    everything = class_entries([1] * 1000, ["long name " * 20] * 1000, default_palette(1000))
    assert swatches(everything, 640).size == (640, swatches(everything[:8], 640).height)


def test_a_thousand_classes_have_colors_of_their_own():
    assert len({tuple(color) for color in class_colors([[1, 2, 3]], 1000)}) == 1000
    image = mask_overlay(
        Image.new("RGB", (9, 4)), np.full((4, 9), 999), default_palette(1000), names=["x"] * 1000
    )
    assert image.getpixel((0, 0)) == tuple((np.array(default_palette(1000)[999]) + 1) // 2)


def test_an_overlay_refuses_other_sizes_and_ids_without_a_color():
    with pytest.raises(ValueError, match="3 colors. Give one color per class"):
        mask_overlay(Image.new("RGB", (8, 4)), np.full((4, 8), 3), PALETTE)
    with pytest.raises(ValueError, match="of 8 x 4 does not fit an image of 4 x 8"):
        mask_overlay(Image.new("RGB", (8, 4)), np.ones((8, 4), dtype=int), PALETTE)


def test_a_heat_picture_shows_the_photograph_where_little_is_and_has_a_scale():
    image, heat = Image.effect_noise((320, 60), 90).convert("RGB"), np.zeros((60, 320))
    heat[:, 300:] = 4
    picture = heat_picture(image, heat, "attention")
    low = np.array(picture)[:60, :300].astype(float).mean(-1)
    assert np.corrcoef(low.ravel(), np.array(image)[:, :300].mean(-1).ravel())[0, 1] > 0.99
    assert low.std() > 0.6 * np.array(image)[:, :300].std()
    assert (picture.width, picture.height > 60) == (320, True)


def test_heat_is_brightest_where_it_is_highest():
    heat = np.zeros((6, 8))
    heat[2, 3] = 1.0
    brightness = np.array(heat_overlay(Image.new("RGB", (8, 6), "gray"), heat)).sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (2, 3)


def test_even_heat_is_an_even_image():
    image = heat_overlay(Image.new("RGB", (8, 6), "gray"), np.full((6, 8), 0.3))
    assert len(image.getcolors()) == 1


def test_a_cross_marks_its_place_and_leaves_the_given_image_as_it_was():
    image = Image.new("RGB", (40, 40))
    assert with_cross(image, (30, 10)).getpixel((30, 10)) == (0, 255, 255)
    assert image.getbbox() is None


def test_a_grid_holds_its_images_titles_and_legend():
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    bare = image_grid([[red, blue], [blue, red]], cell_width=60, gap=5)
    assert bare.size == (2 * 65 + 5, 2 * 45 + 5)
    assert (bare.getpixel((10, 10)), bare.getpixel((75, 10))) == ((255, 0, 0), (0, 0, 255))
    full = image_grid([[red, blue]], ["image", "truth"], {"road": (1, 2, 3)}, cell_width=60)
    assert full.height > 2 * 45
    assert (1, 2, 3) in [color for _, color in full.getcolors(1 << 16)]


def test_curves_are_drawn_from_a_log(tmp_path):
    log = [{"step": step, "loss": 1 / step} for step in range(1, 30)] + [{"step": 29, "mean_iou": 0.5}]
    plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1050, 600)


@each("count", [1, 3, 28, 60])
def test_a_confusion_matrix_keeps_room_for_every_name(count, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "MAX_CLASSES", 28)
    counts = np.diag(np.arange(count))  # nothing is labeled as the first class
    plot_confusion(counts, [f"class {index}" for index in range(count)], tmp_path / "confusion.png", "mIoU")
    width, height = Image.open(tmp_path / "confusion.png").size
    assert (width, height) == (height + 150, max(600, 150 * (2.5 + (0.5, 0.11)[count > 25] * min(28, count))))


def test_names_in_plots_are_no_formulas_and_unknown_scripts_are_boxes(tmp_path):
    plot_confusion(np.eye(2, dtype=int), [r"$\\frac{$ _", "a\U0001e030"], tmp_path / "confusion.png", "$^")
    assert drawable("a\U0001e030") == "a□"
    assert drawable("Straße, дорога") == "Straße, дорога"


def test_the_scale_of_a_heat_map_begins_where_it_is_told():
    heat = np.linspace(0.5, 1, 256, dtype=np.float32).reshape(16, 16)
    gray = Image.new("RGB", (16, 16), (128, 128, 128))
    fitted, fixed = (np.asarray(heat_overlay(gray, heat, strength=1, low=low)) for low in (None, 0.0))
    halfway = np.asarray(heat_overlay(gray, heat - 0.5, strength=1))[
        8, 0
    ]  # the color of the middle of the scale
    assert np.abs(fixed[0, 0].astype(int) - halfway).max() <= 6
    assert np.abs(fitted[0, 0].astype(int) - halfway).max() > 20
