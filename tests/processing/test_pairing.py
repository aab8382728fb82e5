import unicodedata

import pytest
from cases import each
from PIL import Image

from contextseg.processing.data.coco import stored_file
from contextseg.processing.data.labeled_images import ClassFolders
from contextseg.processing.data.pairing import files_by_name, pair_files

NAME = "stra\u00dfe_caf\u00e9"


def form(form, name=NAME):
    return unicodedata.normalize(form, name)


@pytest.fixture
def touch(tmp_path):
    def touched(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (2, 2)).save(tmp_path / name, format="PNG")

    return touched


@each("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")])
def test_names_are_matched_in_one_normal_form(tmp_path, forms):
    for kind, one in zip(("images", "masks"), forms, strict=True):
        (tmp_path / kind / form(one, "dé")).mkdir(parents=True)
        Image.new("L", (2, 2)).save(tmp_path / kind / form(one, "dé") / f"{form(one)}.png")
    (pair,) = pair_files(tmp_path).pairs
    assert pair.name == f"{form('NFC', 'dé')}/{NAME}"
    assert pair.image.is_file()
    assert pair.mask.is_file()


def test_one_name_in_two_normal_forms_is_an_error_that_shows_the_difference(touch, tmp_path):
    touch(f"images/{form('NFC')}.png", f"images/{form('NFD')}.png")
    with pytest.raises(ValueError, match=r"two Unicode normal forms, .*caf\\xe9.* cafe\\u0301|cafe\\u0301"):
        files_by_name(tmp_path / "images")


def test_two_suffixes_of_one_name_are_an_error_that_names_both(touch, tmp_path):
    touch("images/a.png", "images/a.jpg")
    with pytest.raises(ValueError, match=r"a\.png' and .*a\.jpg' have the same name"):
        files_by_name(tmp_path / "images")


def test_names_that_differ_in_case_are_not_matched_but_shown(touch, tmp_path):
    touch("images/P1.PNG", "masks/p1.png", "images/b.png", "masks/b.png")
    problems = pair_files(tmp_path).problems
    assert all(
        "'images/P1.PNG' and 'masks/p1.png' differ in upper and lower case" in text for text in problems
    )


def test_names_in_different_subfolders_are_not_said_to_differ_in_case(touch, tmp_path):
    touch("images/day/p.png", "masks/p.png")
    with pytest.raises(ValueError, match="p.png' lie in different subfolders: move one"):
        pair_files(tmp_path)


def test_a_link_to_a_missing_folder_is_not_passed_over(touch, tmp_path):
    touch("images/a.png", "masks/a.png")
    for kind in ("images", "masks"):
        (tmp_path / kind / "day2").symlink_to(tmp_path / "not_mounted")
    with pytest.raises(FileNotFoundError, match="day2"):
        pair_files(tmp_path)


def test_class_names_have_one_normal_form_and_tools_make_no_class(touch, tmp_path):
    touch(f"{form('NFD')}/a.png", "dog/a.png", ".ipynb_checkpoints/a.png", "@eaDir/a.png")
    assert ClassFolders(tmp_path).classes == ["dog", NAME]
    touch(f"{form('NFC')}/b.png")
    with pytest.raises(ValueError, match="two Unicode normal forms"):
        ClassFolders(tmp_path)


def test_an_annotated_file_is_found_in_the_other_normal_form(touch, tmp_path):
    touch(f"images/{form('NFD')}.png")
    assert stored_file(tmp_path / "images", f"{form('NFC')}.png").is_file()
    assert not stored_file(tmp_path / "images", "other.png").exists()


def test_a_folder_for_segmentation_is_no_folder_of_classes(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match="is for segmentation: .* Give a folder of images per class"):
        ClassFolders(tmp_path)
