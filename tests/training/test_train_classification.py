import os
import random
import signal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from cases import each
from digits import write_digits
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoImageProcessor, AutoModelForImageClassification
from transformers.modeling_outputs import ImageClassifierOutput

from contextseg import GlamSwinConfig, GlamSwinForImageClassification, MaformerConfig
from contextseg.modeling.modeling_maformer import MaformerModel
from contextseg.processing.data.image_augmentation import ImageAugmentation, View, seeded
from contextseg.processing.data.labeled_images import ClassFolders, LabeledRows, open_labeled_images
from contextseg.processing.data.token_labels import LabelMaps, MixToken, draw_rectangle, smoothed
from contextseg.scripts.train import main
from contextseg.training import loop
from contextseg.training.class_scores import score_classes
from contextseg.training.classification import SoftLabels, soft_cross_entropy
from contextseg.training.records import read_json, read_log

CLASSES = ["apple", "leaf", "sky"]
COLORS = {"apple": (200, 60, 60), "leaf": (60, 200, 60), "sky": (60, 60, 200)}
WHOLE = View(0.0, 0.0, 1.0, 1.0, is_mirrored=False)
GLAM = [
    *("--preset", "nano", "--set", "depths=[1,1]", "--set", "num_heads=[1,2]", "--set", "embed_dim=8"),
    *("--learning-rate", "1e-3"),
]
MAFORMER = [
    *("--model", "maformer", "--preset", "nano", "--set", "use_token_labels=true", "--set", "depths=[1,1]"),
    *("--set", "hidden_sizes=[8,16]", "--set", "num_heads=[2,4]", "--learning-rate", "1e-3"),
]
TINY_RUN = [
    *(
        "--task",
        "classification",
        "--crop-size",
        "24",
        "--batch-size",
        "4",
        "--steps",
        "4",
        "--eval-interval",
        "2",
    ),
    *("--workers", "0", "--tracker", "none", "--cpu"),
]


def write_images(folder, count, classes=CLASSES, size=(30, 24)):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.new("RGB", size, COLORS.get(name, (0, 0, 0))).save(folder / name / f"{index}.png")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_images(folder / "train", 3)
    write_images(folder / "val", 1)
    return folder


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    write_digits(folder)
    return folder


def options(data, output, model=GLAM):
    return ["--train", f"{data}/train", "--val", f"{data}/val", "--output", str(output), *model, *TINY_RUN]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("runs") / "fruit"
    assert main(options(data, output, MAFORMER)) == 0
    return output


def test_best_and_last_open_by_the_auto_classes(run):
    for checkpoint in (run / "best", run / "last"):
        model = AutoModelForImageClassification.from_pretrained(checkpoint)
        assert list(model.config.id2label.values()) == CLASSES
        pixels = AutoImageProcessor.from_pretrained(checkpoint)(
            Image.new("RGB", (50, 40)), return_tensors="pt"
        )
        assert pixels["pixel_values"].shape == (1, 3, 24, 24)
        assert model(**pixels).logits.shape == (1, 3)


def test_the_record_holds_top_1_top_5_and_loss(run):
    record = read_json(run / "run.json")
    assert record["status"] == "finished"
    assert record["scores"]["images"] == 3
    assert record["scores"]["top_5"] == 1.0
    assert [row["name"] for row in record["scores"]["per_class"]] == CLASSES
    entries = [entry for entry in read_log(run / "log.jsonl") if "top_1" in entry]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert all(entry["val_loss"] > 0 for entry in entries)


@pytest.mark.usefixtures("own_sigterm")
def test_resume_after_sigterm_equals_the_uninterrupted_run_bit_for_bit(data, tmp_path, monkeypatch):
    changes = ["--accumulation", "2", "--ema", "0.9", "--set", "drop_path_rate=0.5"]
    whole, parts, steps, step = tmp_path / "whole", tmp_path / "parts", [], loop.optimizer_step
    assert main([*options(data, whole, MAFORMER), *changes]) == 0

    def stopping_step(*arguments):
        steps.append(None)
        if len(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(loop, "optimizer_step", stopping_step)
        assert main([*options(data, parts, MAFORMER), *changes]) == 128 + signal.SIGTERM
    torch.manual_seed(1)
    assert main(["--output", str(parts), "--resume"]) == 0
    one, other = (load_file(folder / "last" / "model.safetensors") for folder in (whole, parts))
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.slow
def test_digits_are_learnt_far_above_chance(digits, tmp_path):
    """Chance is 0.1; the whole of nano comes to more than 0.9 in a minute."""
    plain = [
        "--no-horizontal-flip",
        "--rand-augment",
        "none",
        "--random-erasing",
        "0",
        "--min-area",
        "0.6",
        "--no-mix-token",
    ]
    changes = ["--crop-size", "32", "--batch-size", "32", "--steps", "30", "--eval-interval", "30"]
    main(
        [
            *options(digits, tmp_path / "run", ["--preset", "nano", "--set", "depths=[1,1,1,1]"]),
            *plain,
            *changes,
            "--learning-rate",
            "1e-3",
        ]
    )
    assert read_json(tmp_path / "run" / "run.json")["best"]["top_1"] > 0.5


def test_any_classifier_of_transformers_trains(data, tmp_path):
    sizes = ["--model", "swin", "--set", "depths=[1,1]", "--set", "num_heads=[1,2]", "--set", "embed_dim=8"]
    assert (
        main([*options(data, tmp_path / "run", sizes), "--set", "window_size=3", "--set", "image_size=24"])
        == 0
    )


def test_label_maps_of_a_folder_are_learnt_from(data, tmp_path):
    for path in (data / "train").rglob("*.png"):
        place = tmp_path / "maps" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        torch.save(
            torch.stack([torch.ones(2, 4, 4), torch.tensor([0.0, 2.0])[:, None, None].expand(2, 4, 4)]),
            place / f"{path.stem}.pt",
        )
    losses = []
    for name, maps in (("own", []), ("maps", ["--token-labels", str(tmp_path / "maps")])):
        main([*options(data, tmp_path / name, MAFORMER), "--steps", "1", *maps])
        losses.append(read_log(tmp_path / name / "log.jsonl")[0]["loss"])
    assert losses[0] != losses[1]


# -- data


def test_classes_are_the_sorted_folder_names(data):
    images = ClassFolders(data / "train")
    assert images.classes == CLASSES
    assert len(images) == 9
    assert images[8]["image"].getpixel((0, 0)) == COLORS["sky"]
    assert (images[8]["label"], images[8]["name"]) == (2, "sky/2")


@each(
    "labels",
    {
        "indices": [1, 0, 1],
        "texts": ["owl", "cat", "owl"],
    },
)
def test_a_data_set_with_columns_of_images_and_labels_is_the_same(labels):
    import datasets

    samples = [Image.new("RGB", (8, 8), (index, 0, 0)) for index in range(3)]
    features = {"image": datasets.Image(), "label": datasets.Value("string")}
    if labels[0] == 1:
        features["label"] = datasets.ClassLabel(names=["cat", "owl"])
    rows = datasets.Dataset.from_dict({"image": samples, "label": labels}, datasets.Features(features))
    images = LabeledRows(rows, "birds")
    assert images.classes == ["cat", "owl"]
    assert [images[index]["label"] for index in range(3)] == [1, 0, 1]
    assert images[2]["image"].getpixel((0, 0)) == (2, 0, 0)


def broken(folder):
    (folder / "train" / "leaf" / "0.png").write_bytes(b"not an image")


def without_sky(folder):
    for path in (folder / "val" / "sky").iterdir():
        path.unlink()
    (folder / "val" / "sky").rmdir()


def without_leaves(folder):
    for path in (folder / "train" / "leaf").iterdir():
        path.unlink()


FAULTS = {
    "unreadable": (broken, [], r"leaf/0.png.*Repair or remove these files"),
    "missing class": (without_sky, [], r"val lacks 1 of the classes of .*train: sky. Both need the same"),
    "empty class": (without_leaves, [], r"has no images of leaf"),
    "no maps": (None, [*MAFORMER, "--token-labels", "./maps"], r"there is no label map maps/apple/0.pt"),
    "no token head": (None, ["--token-labels", "./maps"], r"needs a model with a token classifier"),
    "bad notation": (None, ["--rand-augment", "strong"], r"--rand-augment strong is not in timm's notation"),
    "whole dataset": (None, ["--train", "{folder}"], r"holds splits, not classes. Give one of them"),
    "no folder": (None, ["--train", "./nowhere/train"], r"nowhere/train' is not a folder"),
    "unknown model": (None, ["--model", "glam_swim"], r"no model 'glam_swim' for image classification"),
    "high floor": (
        None,
        ["--min-learning-rate", "1"],
        r"--min-learning-rate 1.0 is larger than --learning-rate",
    ),
}


@each(("change", "changes", "message"), FAULTS)
def test_an_error_says_what_to_do_and_leaves_no_run_behind(change, changes, message, tmp_path):
    for split in ("train", "val"):
        write_images(tmp_path / split, 2)
    if change:
        change(tmp_path)
    changes = [word.format(folder=tmp_path) for word in changes]
    with pytest.raises(SystemExit, match=message):
        main([*options(tmp_path, tmp_path / "run", [] if "--model" in changes else GLAM), *changes])
    assert not (tmp_path / "run").exists()


# -- augmentation


def gradient(size=(64, 48)):
    """Red encodes the column, green the row."""
    columns, rows = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    return Image.fromarray(np.stack([columns, rows, 0 * rows], -1).astype(np.uint8))


def test_a_sample_depends_on_seed_epoch_and_index_alone():
    augment = ImageAugmentation((16, 16), seed=3)
    first = np.asarray(augment(gradient(), epoch=1, index=5)[0])
    augment(gradient(), epoch=0, index=0)
    assert np.array_equal(first, augment(gradient(), epoch=1, index=5)[0])
    assert not np.array_equal(first, augment(gradient(), epoch=2, index=5)[0])
    assert not np.array_equal(first, ImageAugmentation((16, 16), seed=4)(gradient(), epoch=1, index=5)[0])


def test_augmentation_leaves_the_global_generators_as_they_were():
    with seeded(0):
        expected = random.random(), np.random.rand(), torch.rand(())
    with seeded(0):
        augment = ImageAugmentation((16, 16), erasing_probability=1.0)
        augment.erase(torch.zeros(3, 16, 16), epoch=0, index=augment(gradient(), epoch=0, index=0)[1].top > 2)
        assert (random.random(), np.random.rand(), torch.rand(())) == expected


def test_the_view_describes_what_a_sample_shows():
    augment = ImageAugmentation((32, 32), rand_augment="none", color_jitter=0.0)
    for index in range(8):
        image, view = augment(gradient(), epoch=0, index=index)
        red, green, _ = np.asarray(image, dtype=float).mean((0, 1)) / 255
        assert abs(red - (view.left + view.right) / 2) < 0.02
        assert abs(green - (view.top + view.bottom) / 2) < 0.02
        assert view.is_mirrored == (image.getpixel((0, 0))[0] > image.getpixel((31, 0))[0])


def test_erasing_puts_noise_into_a_rectangle():
    erased = ImageAugmentation((32, 32), erasing_probability=1.0).erase(
        torch.ones(3, 32, 32), epoch=0, index=1
    )
    changed = (erased != 1).all(0)
    assert 0.02 <= changed.float().mean() <= 0.34
    assert changed.any(0).sum() * changed.any(1).sum() == changed.sum()


def test_without_augmentation_the_central_square_remains():
    augment = ImageAugmentation((24, 24), (1.0, 1.0), (1.0, 1.0), 0.0, "none", 0.0, 0.0)
    image, view = augment(gradient((32, 24)), epoch=0, index=0)
    assert view == View(4 / 32, 0.0, 28 / 32, 1.0, False)
    assert np.array_equal(image, np.asarray(gradient((32, 24)))[:, 4:28])


# -- token labels


@pytest.fixture
def maps(tmp_path):
    """A map of 4 x 4 places with 5 of 12 classes each, as LV-ViT writes them; and its dense logits (12, 4, 4)."""
    logits, ids = torch.randn(12, 4, 4).topk(5, 0)
    (tmp_path / "n01").mkdir()
    torch.save(torch.stack([logits, ids.float()]).half(), tmp_path / "n01" / "picture.pt")
    return LabelMaps(tmp_path, 12, (4, 4)), torch.zeros(12, 4, 4).scatter_(0, ids, logits.half().float())


def test_a_label_map_at_its_own_grid_is_the_softmax_of_its_logits(maps):
    read, dense = maps
    torch.testing.assert_close(read("n01/picture", WHOLE), dense.softmax(0))


def test_a_label_map_follows_crop_and_mirror(maps):
    read, dense = maps
    corner = LabelMaps(read.folder, 12, (2, 2))("n01/picture", View(0.5, 0.0, 1.0, 0.5, is_mirrored=False))
    torch.testing.assert_close(corner, dense[:, :2, 2:].softmax(0))
    torch.testing.assert_close(
        read("n01/picture", WHOLE._replace(is_mirrored=True)), dense.flip(-1).softmax(0)
    )


@pytest.mark.parametrize("content", [torch.zeros(5, 4, 4), {"map": 1}, torch.full((2, 5, 4, 4), 12.0)])
def test_a_file_that_is_no_label_map_is_named(maps, content):
    torch.save(content, maps[0].folder / "other.pt")
    with pytest.raises(ValueError, match=r"the label map .*other.pt contains (\(5, 4, 4\)|dict|class 12)"):
        maps[0]("other", WHOLE)


def test_without_maps_every_token_has_its_images_label():
    labels = SoftLabels(4, 0.1, (2, 3))(1, "any", WHOLE)
    assert labels["token_labels"].shape == (4, 2, 3)
    assert torch.equal(labels["token_labels"][:, 1, 2], labels["labels"])
    assert "token_labels" not in SoftLabels(4, 0.1)(1, "any", WHOLE)


def mixed(cell, size, count=4):
    """Images that are their class all over, and their labels, after MixToken."""
    labels = torch.eye(count)
    tokens = labels[:, :, None, None].repeat(1, 1, -(-size // cell), -(-size // cell))
    batch = {"labels": labels, "token_labels": tokens}
    batch["pixel_values"] = torch.arange(count)[:, None, None, None].repeat(1, 3, size, size).float()
    return [MixToken(cell, seed=0)(batch, (0, key)) for key in range(20)]


def test_mix_token_labels_each_token_by_the_image_that_it_shows():
    for batch in mixed(cell=4, size=16):
        shown = batch["pixel_values"][:, 0].unflatten(1, (4, 4)).unflatten(3, (4, 4)).movedim(2, 3).flatten(3)
        assert (shown == shown[..., :1]).all()  # a patch is of one image
        assert torch.equal(batch["token_labels"].argmax(1), shown[..., 0].long())


def test_mix_token_mixes_class_labels_by_the_share_of_tokens():
    shares = []
    for batch in mixed(cell=4, size=18):  # the last patches are cut off
        torch.testing.assert_close(batch["labels"], batch["token_labels"].mean((2, 3)))
        shares.append(batch["labels"][0, 3].item())
    assert min(shares) < 0.1
    assert max(shares) > 0.5


def test_exchanged_pixels_are_exchanged_patches():
    model = MaformerModel(MaformerConfig.preset("nano")).eval()
    embed = model.encoder.embeds[0]
    images = torch.randn(2, 3, 32, 32)
    batch = MixToken(8, seed=0)({"pixel_values": images, "labels": torch.eye(2)}, (0, 1))
    rows, columns = draw_rectangle((4, 4), np.random.default_rng((0, 0, 1, 2)))
    patches = embed(images)
    place = (slice(None), slice(2 * rows.start, 2 * rows.stop), slice(2 * columns.start, 2 * columns.stop))
    expected = patches.clone()
    expected[place] = patches.flip(0)[place]
    assert not torch.equal(expected, patches)
    torch.testing.assert_close(embed(batch["pixel_values"]), expected)


# -- loss and scores


def test_the_loss_of_a_mixed_label_is_the_mixed_loss():
    model = GlamSwinForImageClassification(GlamSwinConfig.preset("nano", num_labels=3)).eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.tensor([0, 2])
    plain = model(pixel_values=pixels, labels=labels).loss
    flipped = model(pixel_values=pixels, labels=labels.flip(0)).loss
    model.loss_function = soft_cross_entropy
    shares = F.one_hot(labels, 3).float()
    soft = model(pixel_values=pixels, labels=shares.lerp(shares.flip(0), 0.3)).loss
    torch.testing.assert_close(soft, 0.7 * plain + 0.3 * flipped)


def test_smoothing_spreads_a_share_over_all_classes():
    assert smoothed(1, 4, 0.2).tolist() == pytest.approx([0.05, 0.85, 0.05, 0.05])


class Answers(torch.nn.Module):
    """Gives its input as logits."""

    def __init__(self, num_classes):
        super().__init__()
        self.config = GlamSwinConfig(num_labels=num_classes)

    def forward(self, pixel_values):
        return ImageClassifierOutput(logits=pixel_values)


def test_scores_count_first_and_first_five_places():
    logits, labels = torch.randn(40, 8), torch.randint(0, 7, (40,))  # class 7 does not occur
    batches = [
        {"pixel_values": part, "labels": label}
        for part, label in zip(logits.split(16), labels.split(16), strict=True)
    ]
    scores = score_classes(Answers(8), batches, Accelerator(cpu=True))
    places = (logits > logits.gather(1, labels[:, None])).sum(1)
    assert scores["top_1"] == pytest.approx((places == 0).float().mean().item())
    assert scores["top_5"] == pytest.approx((places < 5).float().mean().item())
    assert scores["val_loss"] == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-5)
    assert np.isnan(scores["per_class"][7]["top_1"])
    assert sum(row["images"] for row in scores["per_class"]) == scores["images"] == 40


def test_a_split_is_named_behind_a_colon(data):
    assert open_labeled_images(f"{data}:val").path == data / "val"
