"""`contextseg-check` finds what would break a training, and says nothing against a sound dataset."""

import json
import os
import signal

import numpy as np
import pytest
import tifffile
from cases import each
from PIL import ExifTags, Image, ImageFile

from contextseg.processing.data import report
from contextseg.processing.data.datasets import SegmentationFolder
from contextseg.processing.data.report import check_data
from contextseg.scripts import check


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path):
    """Four sound pairs of 10x10: a quarter class 0, half class 1, a quarter ignored; class 2 never occurs."""
    mask = np.ones((10, 10))
    mask[:5, :5], mask[5:, :5] = 0, 255
    for index in range(4):
        save(tmp_path / "train" / "images" / f"{index}.png", np.zeros((10, 10, 3)))
        save(tmp_path / "train" / "masks" / f"{index}.png", mask)
    (tmp_path / "classes.json").write_text('["sky", "road", "car"]')
    return tmp_path / "train"


def report_of(folder, sample=None):
    return check_data(SegmentationFolder(folder, needs_all_pairs=False), sample)


def test_a_sound_data_set_has_no_problems(folder, capsys):
    assert check.main([str(folder)]) == 0
    assert "ready to train" in capsys.readouterr().out


def test_shares_are_of_labeled_pixels(folder):
    report = report_of(folder)
    assert report.shares() == pytest.approx([1 / 3, 2 / 3, 0])
    assert (report.ignored_pixels, report.images[1]) == (100, 4)


def test_a_class_that_never_occurs_is_a_warning(folder):
    report = report_of(folder)
    assert (report.warnings, report.problems) == (["1 class never occurs: car."], [])


def test_a_sample_does_not_show_which_classes_never_occur(folder):
    report = report_of(folder, sample=2)
    assert (report.num_checked, report.warnings) == (2, [])


def test_an_unreadable_file_is_a_problem_with_its_name(folder, capsys):
    (folder / "images" / "2.png").write_bytes(b"damaged")
    assert check.main([str(folder)]) == 1
    assert "2.png" in capsys.readouterr().out


@each("error", [MemoryError(), RecursionError("too deep"), RuntimeError("odd"), KeyError("band")])
def test_whatever_happens_to_one_pair_the_others_are_checked(folder, error, monkeypatch):
    plain = SegmentationFolder.read_image

    def fails_at_two(self, source):
        if source.name == "2.png":
            raise error
        return plain(self, source)

    monkeypatch.setattr(SegmentationFolder, "read_image", fails_at_two)
    found = report_of(folder)
    assert (found.num_checked, found.sizes.total()) == (4, 3)
    assert found.unreadable[0].startswith("2: ")


@pytest.mark.usefixtures("own_sigterm")
@each("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_check_says_how_far_it_came(folder, number, capsys, monkeypatch):
    plain = report.add_finding

    def interrupted(found, *arguments):
        plain(found, *arguments)
        if found.num_checked == 3:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(report, "add_finding", interrupted)
    with pytest.raises(SystemExit) as stopped:
        check.main([str(folder)])
    assert stopped.value.code == 130
    assert "3 of 4 pairs" in capsys.readouterr().err


def test_a_file_is_decoded_once(folder, monkeypatch):
    decodes, prepare = [], ImageFile.ImageFile.load_prepare
    monkeypatch.setattr(
        ImageFile.ImageFile, "load_prepare", lambda self: (decodes.append(self.format), prepare(self))
    )
    for index in range(4):
        save(folder / "images" / f"{index}.png", np.full((10, 10, 3), 200))
    report_of(folder)
    assert len(decodes) == 8
    decodes.clear()
    SegmentationFolder(folder)[0]
    assert len(decodes) == 2


def test_a_mask_of_another_size_is_a_problem_with_its_name(folder):
    save(folder / "masks" / "3.png", np.zeros((9, 10)))
    (problem,) = report_of(folder).problems
    assert "the mask of '3' is 10x9" in problem


def test_unknown_ids_are_a_problem_with_count_and_place(folder):
    save(folder / "masks" / "1.png", np.full((10, 10), 7))
    (problem,) = report_of(folder).problems
    assert "7 (100 pixels, first in '1')" in problem


def test_unpaired_files_are_a_problem(folder):
    (folder / "masks" / "0.png").unlink()
    (problem,) = report_of(folder).problems
    assert "1 images have no mask: images/0.png" in problem


def test_masks_of_0_and_255_alone_are_a_problem(folder):
    for index in range(4):
        save(folder / "masks" / f"{index}.png", np.eye(10) * 255)
    (problem,) = report_of(folder).problems
    assert '"label_map": {"0": 0, "255": 1}' in problem


def test_a_label_map_settles_masks_of_0_and_255(folder):
    for index in range(4):
        save(folder / "masks" / f"{index}.png", np.eye(10) * 255)
    (folder / "classes.json").write_text('{"classes": ["ground", "tree"], "label_map": {"0": 0, "255": 1}}')
    report = report_of(folder)
    assert (report.problems, report.shares()) == ([], [0.9, 0.1])


def test_colors_without_a_class_are_written_as_colors(folder):
    table = {"classes": ["sky", "road"], "palette": [[255, 0, 0], [0, 255, 0]]}
    (folder / "classes.json").write_text(json.dumps(table))
    for index in range(4):
        save(folder / "masks" / f"{index}.png", np.full((10, 10, 3), (255, 0, 0)))
    save(folder / "masks" / "0.png", np.full((10, 10, 3), (0, 0, 16)))
    report = report_of(folder)
    assert report.pixels[0] == 300
    assert "#000010 (100 pixels" in report.problems[0]


def test_a_folder_of_splits_is_checked_split_by_split(folder, capsys):
    assert check.main([str(folder.parent), "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)
    assert (report["data"], report["samples"]) == (str(folder), 4)
    assert report["sizes"] == [{"height": 10, "width": 10, "images": 4}]


def test_a_missing_folder_ends_with_one_line(tmp_path):
    with pytest.raises(SystemExit, match="contextseg-check: .*nothing' does not exist"):
        check.main([str(tmp_path / "nothing")])


def turned_photo(path, code, size=(10, 10)):
    exif = Image.Exif()
    exif[0x0112] = code
    Image.new("RGB", size).save(path, exif=exif)


@pytest.mark.parametrize(("code", "size"), [(6, (10, 10)), (3, (10, 20)), (2, (10, 20))])
def test_a_turn_by_exif_that_the_mask_does_not_have_is_a_warning(folder, code, size):
    turned_photo(folder / "images" / "0.png", code, size)
    save(folder / "masks" / "0.png", np.ones(size[::-1]))
    report = report_of(folder)
    assert "1 images are turned upright by their EXIF orientation, which their masks do not have" in " ".join(
        report.warnings
    )
    turned_photo(folder / "masks" / "0.png", code, size)
    Image.fromarray(np.ones(size[::-1], np.uint8)).save(
        folder / "masks" / "0.png", exif=Image.open(folder / "images" / "0.png").getexif()
    )
    assert "EXIF" not in report_of(folder).text()


@pytest.mark.parametrize(("code", "size"), [(8, (10, 10)), (4, (10, 20))])
def test_a_turn_by_exif_that_the_image_does_not_have_is_a_warning(folder, code, size):
    save(folder / "images" / "0.png", np.zeros((*size[::-1], 3)))
    exif = Image.Exif()
    exif[0x0112] = code
    Image.fromarray(np.ones(size[::-1], np.uint8)).save(folder / "masks" / "0.png", exif=exif)
    assert "1 masks are turned upright by an EXIF orientation that their images do not have" in " ".join(
        report_of(folder).warnings
    )


def test_transparent_pixels_of_a_mask_are_a_warning(folder):
    alpha = np.full((10, 10), 255, np.uint8)
    for count in (0, 1):
        alpha[:count] = 0
        mask = np.dstack([np.ones((10, 10), np.uint8), alpha])
        Image.fromarray(mask, "LA").save(folder / "masks" / "0.png")
        assert ("1 masks have transparent pixels" in " ".join(report_of(folder).warnings)) == count


def test_a_mask_of_1_bit_whose_zeros_are_shown_white_is_a_warning(folder):
    tifffile.imwrite(folder / "masks" / "0.png", np.eye(10, dtype=bool))
    report = report_of(folder)
    assert "1 masks are TIFF files of 1 bit in which 0 is shown white" in " ".join(report.warnings)
    assert report.pixels[1] == 3 * 50 + 10


@each(
    ("colors", "is_doubtful"),
    {
        "others": ([1, 2, 3, 4, 5, 6], True),
        "others beside black": ([0, 0, 0, 0, 1, 254], True),
        "those of the classes": ([0, 0, 0, 0, 0, 255], False),
        "grays": ([9, 9, 9, 99, 99, 99], False),
    },
)
def test_a_palette_without_the_colors_of_the_classes_is_a_warning(folder, colors, is_doubtful):
    (folder.parent / "classes.json").write_text(
        '{"classes": ["sky", "road"], "palette": [[0, 0, 0], [0, 0, 255]]}'
    )
    mask = Image.fromarray(np.eye(10, dtype=np.uint8))
    mask.putpalette(colors)
    mask.save(folder / "masks" / "0.png")
    report = report_of(folder)
    assert ("1 palette masks have none of the colors" in " ".join(report.warnings)) == is_doubtful
    assert report.problems == []


def test_a_mask_of_the_upright_photo_is_no_reason_for_a_warning(folder):
    turned_photo(folder / "images" / "0.png", 6, (20, 10))
    save(folder / "masks" / "0.png", np.ones((20, 10)))
    assert "EXIF" not in report_of(folder).text()
    save(folder / "masks" / "0.png", np.ones((10, 20)))
    assert "They would fit after a quarter turn" in report_of(folder).text()


def test_frames_beside_the_first_are_a_warning_for_images_and_a_problem_for_masks(folder):
    frames = [Image.new("RGB", (10, 10), (0, 0, level)) for level in (0, 99)]
    frames[0].save(folder / "images" / "0.png", save_all=True, append_images=frames[1:])
    assert "1 images have several frames, of which only the first is used: 0." in report_of(folder).warnings
    pages = [Image.fromarray(np.full((10, 10), level, np.uint8)) for level in (0, 1)]
    pages[0].save(folder / "masks" / "0.png", save_all=True, append_images=pages[1:])
    assert "has 2 frames, but a mask is one image" in " ".join(report_of(folder).problems)


def test_a_single_class_is_a_problem_and_one_that_occurs_alone_a_warning(folder):
    for path in (folder / "masks").iterdir():
        save(path, np.where(np.arange(100).reshape(10, 10) % 2, 0, 255))
    assert "only one class, sky, occurs in the masks" in " ".join(report_of(folder).warnings)
    (folder.parent / "classes.json").write_text('["sky"]')
    assert "there is only one class, sky, so there is nothing to tell apart" in " ".join(
        report_of(folder).problems
    )


def test_contradictions_of_index_and_color_are_problems_even_where_unreadable_files_are_left_out(folder):
    (folder.parent / "classes.json").write_text(
        '{"classes": ["sky", "road", "car"], "palette": [[0, 0, 0], [0, 0, 255], [255, 0, 0]]}'
    )
    mask = Image.fromarray(np.arange(100, dtype=np.uint8).reshape(10, 10) % 3)
    mask.putpalette([0, 0, 0, 255, 0, 0, 9, 99, 9])
    mask.save(folder / "masks" / "1.png")
    report = check_data(SegmentationFolder(folder), skip_unreadable=True)
    assert any("index 1 has color #ff0000 (of class 2)" in problem for problem in report.problems)


def test_ids_in_three_equal_channels_are_named_as_such(folder):
    for path in (folder / "masks").iterdir():
        save(path, np.repeat(np.asarray(Image.open(path))[..., None], 3, axis=2))
    assert "red, green and blue are equal in every pixel" in " ".join(report_of(folder).problems)


def test_every_pixel_of_300_classes_counts(folder):
    (folder.parent / "classes.json").write_text(json.dumps([f"class {index}" for index in range(300)]))
    for path in (folder / "masks").iterdir():
        Image.fromarray(np.arange(200, 300, dtype=np.uint16).reshape(10, 10)).save(path)
    report = report_of(folder)
    assert (report.ignored_pixels, report.pixels[255], report.problems) == (0, 4, [])


def test_the_mask_of_a_turned_image_can_be_npy(folder):
    for image in (folder / "images").iterdir():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 3
        Image.open(image).save(image, exif=exif)
        mask = folder / "masks" / image.name
        np.save(mask.with_suffix(".npy"), np.asarray(Image.open(mask)))
        mask.unlink()
    assert "are turned upright by their EXIF orientation" in " ".join(report_of(folder).warnings)
