import numpy as np
import pytest
from PIL import Image
from tiny_runs import run_options

from contextseg.scripts.pictures import (
    grid_of_pictures,
    mask_overlay,
    mask_picture,
    overlay,
    plot_curves,
    with_cross,
)
from contextseg.scripts.predict import main
from contextseg.scripts.prediction import find_jobs, parse_position
from contextseg.scripts.train import main as train

PALETTE = [[255, 0, 0], [0, 255, 0], [0, 0, 255]]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "streets"
    train([*run_options(data, output), "--steps", "20", "--eval-interval", "20", "--learning-rate", "1e-2"])
    return output


@pytest.fixture
def photo(tmp_path):
    """A picture of which the left half is another class than the right."""
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


def test_a_mask_never_overwrites_an_image(run, photo, tmp_path):
    before = photo.read_bytes()
    with pytest.raises(SystemExit, match="would overwrite the image"):
        main([str(run), str(photo), "--output", str(tmp_path)])
    assert photo.read_bytes() == before


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
    assert [job.source.name for job in find_jobs([str(tmp_path)], str(tmp_path / "masks"))] == ["a.jpg"]


def test_overlay_and_explanation_are_pictures_of_the_images_size(run, photo, tmp_path):
    options = ["--output", str(tmp_path / "masks"), "--overlay", "--explain", "40,10", "--flip"]
    assert main([str(run), str(photo), *options]) == 0
    for kind in ("overlays", "attention"):
        picture = Image.open(tmp_path / "masks" / kind / "photo.png")
        assert (picture.mode, picture.size) == ("RGB", (50, 30))
    assert Image.open(tmp_path / "masks/attention/photo.png").getpixel((40, 10)) == (0, 255, 255)


def test_a_position_is_two_numbers():
    assert parse_position("120,45") == (120, 45)
    with pytest.raises(ValueError, match="Write X,Y"):
        parse_position("120")


def test_a_mask_picture_has_the_palettes_colours_and_black_where_ignored():
    picture = mask_picture(np.array([[0, 2, 255]]), PALETTE, ignore_index=255)
    assert np.array(picture).tolist() == [[[255, 0, 0], [0, 0, 255], [0, 0, 0]]]


def test_an_overlay_of_strength_zero_is_the_photograph():
    image = Image.effect_noise((8, 6), 50).convert("RGB")
    assert mask_overlay(image, np.ones((6, 8), dtype=int), PALETTE, strength=0.0) == image


def test_heat_is_brightest_where_it_is_highest():
    heat = np.zeros((6, 8))
    heat[2, 3] = 1.0
    brightness = np.array(overlay(Image.new("RGB", (8, 6), "grey"), heat)).sum(-1)
    assert np.unravel_index(brightness.argmax(), brightness.shape) == (2, 3)


def test_even_heat_is_an_even_picture():
    picture = overlay(Image.new("RGB", (8, 6), "grey"), np.full((6, 8), 0.3))
    assert len(picture.getcolors()) == 1


def test_a_cross_marks_its_place_and_leaves_the_given_picture_as_it_was():
    image = Image.new("RGB", (40, 40))
    assert with_cross(image, (30, 10)).getpixel((30, 10)) == (0, 255, 255)
    assert image.getbbox() is None


def test_a_grid_holds_its_pictures_titles_and_legend():
    red, blue = Image.new("RGB", (30, 20), "red"), Image.new("RGB", (30, 20), "blue")
    bare = grid_of_pictures([[red, blue], [blue, red]], cell_width=60, gap=5)
    assert bare.size == (2 * 65 + 5, 2 * 45 + 5)
    assert (bare.getpixel((10, 10)), bare.getpixel((75, 10))) == ((255, 0, 0), (0, 0, 255))
    full = grid_of_pictures([[red, blue]], ["image", "truth"], {"road": (1, 2, 3)}, cell_width=60)
    assert full.height > 2 * 45
    assert (1, 2, 3) in [colour for _, colour in full.getcolors(1 << 16)]


def test_curves_are_drawn_from_a_log(tmp_path):
    log = [{"step": step, "loss": 1 / step} for step in range(1, 30)] + [{"step": 29, "mean_iou": 0.5}]
    plot_curves(log, tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (1050, 600)
