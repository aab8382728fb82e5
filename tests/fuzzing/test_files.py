"""Damaged images and masks of every format: each entry gives a result, or one sentence that names the file."""

from pathlib import Path
from random import Random

import pytest
from fuzzing.images import HEIGHT, IDS, WIDTH, all_images, npy
from fuzzing.limits import Outcomes, check_message
from fuzzing.mutations import damaged

from contextseg import SegmentationImageProcessor
from contextseg.processing.data.datasets import open_data
from contextseg.processing.data.report import check_data
from contextseg.processing.image_files import is_image_name
from contextseg.processing.image_opening import ImageReadError, read_frames, read_orientation
from contextseg.processing.image_reading import read_channels, read_image
from contextseg.processing.label_maps import LabelMap
from contextseg.processing.mask_reading import read_mask

PIXEL_LIMIT = 4096  # ten times the pixels of the images
SECONDS, MEGABYTES = 5, 96  # of a case; 16 bytes for each pixel of the limit are 64 KB
TABLE = LabelMap({index: index for index in range(6)} | {"#005a5a": 0}, 255)
COLORS = [[index * 40, 10, 90] for index in range(6)]
PROCESSOR = SegmentationImageProcessor(pixel_limit=PIXEL_LIMIT, palette=COLORS)
RANGE = {"value_range": (0, 255), "pixel_limit": PIXEL_LIMIT}
ENTRIES = {
    "read_image": lambda file: read_image(file, pixel_limit=PIXEL_LIMIT),
    "read_image with a range": lambda file: read_image(file, **RANGE),
    "read_channels": lambda file: read_channels(file, None, **RANGE),
    "read_channels of 5": lambda file: read_channels(file, 5, **RANGE),
    "read_mask": lambda file: read_mask(file, pixel_limit=PIXEL_LIMIT),
    "read_mask with a table": lambda file: read_mask(file, table=TABLE, pixel_limit=PIXEL_LIMIT),
    "read_orientation": lambda file: read_orientation(file, PIXEL_LIMIT),
    "read_frames": read_frames,
    "processor": lambda file: PROCESSOR(file, return_tensors="pt"),
    "processor with a mask": lambda file: PROCESSOR(IDS[..., None].repeat(3, -1), file, return_tensors="pt"),
}
IMAGES = all_images()
CHANNELS = {
    "five-bands.tif": 5,
    "planes.tif": 5,
    "bands.npy": 5,
    "signed.tif": 2,
}  # of those that cannot become RGB


class Folder:
    """A dataset of one pair, of which a case damages the image or the mask."""

    def __init__(self, path: Path) -> None:
        self.path = path
        for folder in ("images", "masks"):
            (path / folder).mkdir(parents=True)
        (path / "classes.json").write_text('["a", "b", "c", "d", "e", "f"]')

    def put(self, folder: str, suffix: str, data: bytes) -> Path:
        for old in self.path.glob("*/*"):
            old.unlink()
        other = "masks" if folder == "images" else "images"
        (self.path / other / "pair.npy").write_bytes(npy(IDS))
        path = self.path / folder / f"pair{suffix}"
        path.write_bytes(data)
        return path


def content(number: int) -> tuple[str, bytes]:
    """The ending and the content of the file of a case."""
    rng = Random(f"files {number}")
    names = sorted(IMAGES)
    name, other = names[number % len(names)], rng.choice(names)
    data = damaged(IMAGES[name], IMAGES[other], rng)
    return Path(other if rng.random() < 0.1 else name).suffix, data


def outcome_of(entry, source, name: str) -> str:
    """What an entry ends with; fails for anything but a result and one sentence."""
    try:
        entry(source)
    except ImageReadError as error:
        check_message(str(error), name)
        return "refused"
    except ValueError as error:  # of the classes: values without one, contradicting colors, another size
        check_message(str(error), name, "mask")
        return "refused"
    return "read"


def case(folder: Folder, number: int) -> str:
    suffix, data = content(number)
    role = ("images", "masks")[number // len(IMAGES) % 2]
    path = folder.put(role, suffix, data)
    found = []
    for name, entry in ENTRIES.items():
        try:
            found.append(outcome_of(entry, path, path.name))
        except Exception as error:
            error.add_note(name)
            raise
    outcome_of(ENTRIES["read_image"], data, f"{len(data)} bytes")
    dataset = open_data(folder.path, pixel_limit=PIXEL_LIMIT)
    outcome_of(lambda _: dataset[0], path, "pair")
    for problem in check_data(dataset).problems:
        check_message(problem)
    return "read by some or all entries" if "read" in found else "refused by every entry"


def run(numbers: range, path: Path) -> None:
    folder = Folder(path / "data")
    Outcomes("files", SECONDS, MEGABYTES).run(lambda number: case(folder, number), numbers)


def test_the_images_are_of_every_ending_and_whole(tmp_path):
    folder = Folder(tmp_path / "data")
    for name, data in IMAGES.items():
        path = folder.put("images", Path(name).suffix, data)
        assert is_image_name(name)
        pixels = read_channels(path, CHANNELS.get(name), **RANGE)
        assert pixels.shape[:2] in ((HEIGHT, WIDTH), (WIDTH, HEIGHT)), name


def test_one_damaged_file_of_each_kind_is_read_or_refused(tmp_path):
    run(range(len(IMAGES)), tmp_path)


@pytest.mark.slow
def test_1500_damaged_files_are_read_or_refused(tmp_path):
    run(range(1500), tmp_path)
