import os
import unicodedata

import pytest
from cases import each

from contextseg.processing.image_files import IMAGE_SUFFIXES, image_files


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def found(folder):
    return [path.relative_to(folder).as_posix() for path in image_files(folder)]


def test_images_of_every_ending_are_found_in_upper_and_lower_case(tmp_path):
    touch(tmp_path, *(f"a{suffix}" for suffix in IMAGE_SUFFIXES), "b.PNG", "c.Tif", "d.txt", "e", "Thumbs.db")
    assert found(tmp_path) == sorted([*(f"a{suffix}" for suffix in IMAGE_SUFFIXES), "b.PNG", "c.Tif"])


@each(
    "place",
    [
        *("._a.png", ".a.png", ".git/a.png", ".ipynb_checkpoints/a-checkpoint.png", ".thumbnails/a.png"),
        *("__MACOSX/._a.png", "__MACOSX/a.png", "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/a.png"),
        *("lost+found/a.png", "$RECYCLE.BIN/a.png", "deep/.hidden/deeper/a.png"),
    ],
)
def test_hidden_files_and_those_that_tools_make_are_left_out(tmp_path, place):
    touch(tmp_path, place, "seen/a.png")
    assert found(tmp_path) == ["seen/a.png"]


def test_a_hidden_folder_that_is_given_itself_is_searched(tmp_path):
    touch(tmp_path, ".cache/a.png")
    assert found(tmp_path / ".cache") == ["a.png"]


def test_linked_folders_are_followed_and_two_links_to_one_count_both(tmp_path):
    touch(tmp_path, "disk/day/a.png", "images/b.png")
    for name in ("one", "two"):
        (tmp_path / "images" / name).symlink_to(tmp_path / "disk")
    assert found(tmp_path / "images") == ["b.png", "one/day/a.png", "two/day/a.png"]


@each("target", [".", "..", "../..", "deep"])
def test_a_link_that_leads_back_is_not_followed(tmp_path, target):
    touch(tmp_path, "data/images/a.png", "data/masks/a.png", "data/images/deep/b.png")
    link = tmp_path / "data/images" / ("deep/link" if target == "deep" else "link")
    link.symlink_to(os.path.normpath(tmp_path / "data/images" / target))
    assert found(tmp_path / "data/images") == ["a.png", "deep/b.png"]


def test_folders_that_link_to_each_other_end(tmp_path):
    touch(tmp_path, "x/a.png", "y/b.png")
    (tmp_path / "x/to_y").symlink_to(tmp_path / "y")
    (tmp_path / "y/to_x").symlink_to(tmp_path / "x")
    assert found(tmp_path / "x") == ["a.png", "to_y/b.png"]


def test_links_that_multiply_are_refused(tmp_path):
    for level in range(20):
        (tmp_path / str(level)).mkdir()
        for name in ("left", "right"):
            (tmp_path / str(level) / name).symlink_to(tmp_path / str(level + 1))
    touch(tmp_path, "20/a.png")
    with pytest.raises(ValueError, match="in more than 100 ways"):
        image_files(tmp_path / "0")


def test_what_is_called_like_an_image_is_found_even_if_it_is_a_pipe_or_a_link_to_nothing(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "lost.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    assert found(tmp_path) == ["loop.png", "lost.png", "pipe.png"]


def test_a_link_to_a_missing_folder_is_an_error_or_is_told(tmp_path):
    (tmp_path / "day2").symlink_to(tmp_path / "not_mounted")
    touch(tmp_path, "a.png")
    with pytest.raises(FileNotFoundError, match="day2"):
        image_files(tmp_path)
    errors = []
    assert [path.name for path in image_files(tmp_path, errors.append)] == ["a.png"]
    assert errors[0].filename.endswith("day2")


def test_the_order_does_not_depend_on_the_disk(tmp_path, monkeypatch):
    touch(tmp_path, "b/1.png", "a.png", "b.png", "a/2.png")
    scandir = os.scandir
    before = image_files(tmp_path)

    class Reversed:
        def __init__(self, folder):
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self):
            return iter(self.entries)

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Reversed)
    assert image_files(tmp_path) == before


def test_names_are_not_changed_on_the_way(tmp_path):
    name = unicodedata.normalize("NFD", "é.png")
    touch(tmp_path, name)
    assert found(tmp_path) == [name]
