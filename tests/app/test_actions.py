"""What is behind the page of `contextseg-app`, without gradio: segmenting, the viewer's data, and where a model looks."""

import asyncio
import base64
import io
import os
import socket
import zlib

import numpy as np
import pytest
import torch
from cases import each
from PIL import Image
from tiny import FOREIGN_SEGMENTERS, SEGMENTERS, tiny_glam_swin, tiny_nnformer

from contextseg import Inference, SegmentationImageProcessor
from contextseg.app import evidence, segmenters
from contextseg.app.actions import ASK, FORGOTTEN, NOT_SHOWN, Actions
from contextseg.app.evidence import attention_heat, crop_around, enlarged, evidence_picture, views_of
from contextseg.app.examples import find_examples, open_examples
from contextseg.app.latest import Abandoned, Latest
from contextseg.app.options import AppArguments
from contextseg.app.segmenters import Segmenter, open_segmenters, shown_pixels, titles
from contextseg.app.server import address, free_port, is_loopback, prepare_gradio, trusted
from contextseg.app.view import view_of
from contextseg.processing.prediction_maps import confidence

SIZE = (24, 40)


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("images") / "photo.png"
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return tiny_glam_swin().eval()


def segmenter_of(model, inference=None, window=(16, 16)):
    return Segmenter("streets", model, SegmentationImageProcessor(), inference or Inference(), window)


@each(
    "inference",
    {"whole": Inference(), "windows": Inference(window=16), "views": Inference(scales=(0.5, 2.0), flip=True)},
)
def test_the_mask_and_the_confidence_are_those_of_the_engine(inference, model, photo):
    found, processor = segmenter_of(model, inference).segment(photo), SegmentationImageProcessor()
    assert found.mask.equal(inference(model, processor, photo))
    bands = inference.probabilities(model, inference.inputs(processor, photo), SIZE)
    with torch.no_grad():
        expected = confidence(torch.cat(list(bands), dim=1))
    assert np.abs(found.maps["confidence"] / 255 - expected.numpy()).max() <= 0.5 / 255 + 1e-6


def test_large_images_are_segmented_in_windows_with_progress(model, photo, monkeypatch):
    told = []
    monkeypatch.setattr(segmenters, "WHOLE_PIXELS", SIZE[0] * SIZE[1] - 1)
    monkeypatch.setattr("contextseg.processing.inference.BAND_VALUES", 3 * SIZE[1] * 6)  # bands of 6 rows
    found = segmenter_of(model).segment(photo, told.append)
    assert found.inference == Inference(window=(16, 16))
    assert told == [0.0, 0.25, 0.25, 0.5, 0.75, 1.0]  # at each batch of windows, and after each band
    assert found.mask.equal(Inference(window=16)(model, SegmentationImageProcessor(), photo))


def test_the_latest_request_of_a_visitor_counts_and_ends_the_work_for_an_earlier_one():
    latest = Latest()
    for visitor, request in [("me", "a"), ("me", "b"), ("you", "c")]:
        latest.ask(visitor, request)
    assert [latest.take("me"), latest.take("me")] == ["b", None]
    latest.check("me")  # what others ask for does not end it
    latest.ask("me", "d")
    with pytest.raises(Abandoned):
        latest.check("me")
    assert latest.take("me") == "d"
    latest.leave("me")
    with pytest.raises(Abandoned):
        latest.check("me")
    assert (latest.waiting, latest.working) == ({"you": "c"}, set())


def test_work_that_nobody_waits_for_ends_at_the_next_window(model, photo, tmp_path):
    told = []

    def tell(share):
        told.append(share)
        if len(told) == 3:
            raise Abandoned

    with pytest.raises(Abandoned):
        Actions([segmenter_of(model, Inference(window=16, batch_size=1))], tmp_path).segment(photo, tell)
    assert told == [0.0] * 3
    assert not model._forward_pre_hooks


def test_of_an_image_that_is_too_large_to_show_evenly_chosen_pixels_are_sent():
    for side in (1, 7, 1280):
        assert [line.tolist() for line in shown_pixels((side, side))] == [list(range(side))] * 2
    rows, columns = shown_pixels((4, 8), longest=4)
    assert (rows.tolist(), columns.tolist()) == ([1, 3], [1, 3, 5, 7])


def unpacked(text, kind):
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=kind)


def test_the_viewer_gets_ids_shares_and_names_that_cannot_be_markup(model, photo):
    segmenter = segmenter_of(model)
    segmenter.names = ["<b>road</b>\n", "background", "tree"]
    found = segmenter.segment(photo)
    found.mask = torch.zeros(SIZE, dtype=torch.int32)
    found.mask[0] = 1
    (sent,) = view_of("photo.png", [segmenter], [found])["models"]
    np.testing.assert_array_equal(unpacked(sent["ids"], "<u2").reshape(SIZE), found.mask)
    assert [(each["id"], each["share"], each["background"]) for each in sent["classes"]] == [
        (0, "96 %", False),
        (1, "4 %", True),
    ]
    assert sent["classes"][0]["name"] == "<b>road</b>"  # the viewer sets it as text
    np.testing.assert_array_equal(
        unpacked(sent["maps"]["entropy"], "u1").reshape(SIZE), found.maps["entropy"]
    )


def test_a_view_of_each_stage_that_the_model_has_is_offered(model):
    assert views_of(segmenter_of(model)) == {"Global attention": [0, 1], "Grad-CAM": [0, 1]}
    assert views_of(segmenter_of(tiny_glam_swin(num_global_tokens=0).eval())) == {"Grad-CAM": [0, 1]}


def test_the_window_around_a_pixel_holds_it_and_lies_inside_the_image(model, photo):
    segmenter = segmenter_of(model, Inference(window=16))
    found = segmenter.segment(photo)
    pixels = np.asarray(found.photo)
    for at in [(0, 0), (39, 23), (20, 3), (7, 12)]:
        crop = crop_around(segmenter, found, at)
        assert crop.photo.size == (16, 16)
        assert crop.pixels.shape[-2:] == (16, 16)
        assert crop.photo.getpixel(crop.photo_at) == tuple(pixels[at[1], at[0]])
        assert crop.pixels[0, :, crop.at[1], crop.at[0]].equal(found.pixel_values[0, :, at[1], at[0]])


def test_a_small_image_is_enlarged_and_the_pixel_stays_under_the_cross(model, photo):
    found = segmenter_of(model).segment(photo)
    crop = crop_around(segmenter_of(model), found, (3, 5))
    picture, at = enlarged(crop)
    assert picture.size == (480, 288)
    assert picture.getpixel(at) == found.photo.getpixel((3, 5))


def test_where_a_model_looks_is_a_picture_of_each_model_or_the_reason_why_not(model, photo, tmp_path):
    plain = segmenter_of(tiny_glam_swin(num_global_tokens=0).eval())
    plain.name = "<plain>"
    actions = Actions([segmenter_of(model), plain], tmp_path)
    assert (actions.kinds, actions.stages) == (["Global attention", "Grad-CAM"], [1, 2])
    looked = actions.segment(photo)
    assert FORGOTTEN in actions.explain(None, "Grad-CAM", 1)
    assert ASK in actions.explain(looked, "Grad-CAM", 1)
    looked.at = (3, 5)
    attention, activation = (actions.explain(looked, kind, 2) for kind in actions.kinds)
    assert attention.count("<img") == 1
    assert (
        "&lt;plain&gt; cannot show Global attention of stage 2. It can show: Grad-CAM, stages 1, 2."
        in attention
    )
    assert activation.count("<img") == 2
    picture = activation.partition("base64,")[2].partition('"')[0]
    assert Image.open(io.BytesIO(base64.b64decode(picture))).width == 480
    looked.at = (40, 5)
    assert "the pixel 40, 5 is outside the image of 40 x 24" in actions.explain(looked, "Grad-CAM", 1)
    assert actions.view(looked)["looks"]


def test_the_evidence_is_that_of_the_stage_and_of_the_class_at_the_pixel(model, photo, monkeypatch):
    segmenter, heat, asked = segmenter_of(model), torch.rand(1, 6, 10), []
    found = segmenter.segment(photo)
    found.mask = torch.arange(SIZE[0] * SIZE[1]).view(SIZE) % 3
    monkeypatch.setattr(evidence, "class_activation", lambda *given: asked.append(given[2:]) or heat)
    monkeypatch.setattr(
        evidence, "global_attention_maps", lambda *given, stage: asked.append((given[2], stage)) or 7 * heat
    )
    crop = crop_around(segmenter, found, (5, 2))
    for stage in (0, 1):
        evidence_picture(segmenter, found, ("Grad-CAM", stage), (5, 2))
        label, region, level = asked.pop()
        assert (label, region.nonzero().tolist(), level) == (1, [[2, 5]], stage)
        shown, _, _ = attention_heat(segmenter, crop, stage, label)
        assert asked.pop() == ((5, 2), stage)
        torch.testing.assert_close(shown.mean(), torch.tensor(1.0))


def test_a_page_of_models_that_cannot_show_where_they_look_says_so_and_takes_no_clicks(
    model, photo, tmp_path
):
    actions = Actions([segmenter_of(model)], tmp_path)
    actions.views = [{}]
    looked = actions.segment(photo)
    assert not actions.view(looked)["looks"]
    assert NOT_SHOWN in actions.explain(looked, None, None)


def test_the_progress_of_two_models_is_that_of_both(model, photo, tmp_path):
    told = []
    Actions([segmenter_of(model)] * 2, tmp_path).segment(photo, told.append)
    assert told == [0.0, 0.5, 0.5, 1.0]


def test_models_of_the_same_name_are_numbered():
    assert titles(["streets", "other"]) == ["streets", "other"]
    assert titles(["streets", "streets"]) == ["streets (1)", "streets (2)"]


def test_a_file_that_cannot_be_read_is_named_without_the_folder_that_uploads_are_in(model, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("no image")
    with pytest.raises(ValueError, match=r"^'notes\.txt' is empty, damaged") as failure:
        Actions([segmenter_of(model)], tmp_path).segment(path)
    assert str(tmp_path) not in str(failure.value)


def test_examples_are_given_files_and_folders_or_validation_images_of_the_run(model, photo, tmp_path):
    assert find_examples([str(photo), str(photo.parent)], "no run") == [photo, photo]
    assert find_examples([], str(tmp_path)) == []
    (tmp_path / "run.json").write_text(f'{{"arguments": {{"val": "{tmp_path}/val"}}}}')
    (tmp_path / "val" / "images").mkdir(parents=True)
    broken = tmp_path / "val" / "images" / "a.png"
    broken.write_bytes(b"")
    assert find_examples([], str(tmp_path)) == [broken]
    examples, failures = open_examples([broken, photo], segmenter_of(model))
    assert [each.path for each in examples] == [photo]
    assert len(failures) == 1
    bands = SegmentationImageProcessor(do_convert_rgb=False, image_mean=[0.5] * 5, image_std=[0.5] * 5)
    examples, (complaint,) = open_examples([photo], Segmenter("bands", model, bands, Inference()))
    assert examples == []
    assert "has 3 channels, but 5 are needed" in complaint
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="there are no images in"):
        find_examples([str(tmp_path / "empty")], "no run")


def test_there_are_not_more_examples_than_fit(tmp_path):
    folder = tmp_path / "val" / "images"
    folder.mkdir(parents=True)
    for number in range(30):
        (folder / f"{number}.png").touch()
    (tmp_path / "run.json").write_text(f'{{"arguments": {{"val": "{tmp_path}/val"}}}}')
    assert len(find_examples([], str(tmp_path))) == 6
    assert len(find_examples([str(folder)], "no run")) == 24


def test_a_run_is_read_as_the_options_say_and_its_large_images_in_windows_of_its_crops(model, tmp_path):
    model.save_pretrained(tmp_path / "best")
    SegmentationImageProcessor().save_pretrained(tmp_path / "best")
    (tmp_path / "run.json").write_text('{"arguments": {"crop_size": "16x24"}}')
    arguments = AppArguments(models=[str(tmp_path)], pixel_limit=1000)
    (segmenter,) = open_segmenters(arguments, torch.device("cpu"))
    assert segmenter.processor.pixel_limit == 1000
    assert segmenter.inference_for((1000, 1000)).window is None
    assert segmenter.inference_for((3000, 1000)).window == (16, 24)


def test_gradio_reports_nothing_and_its_files_go_with_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr("os.environ", {})
    prepare_gradio(tmp_path)
    assert os.environ == {
        "GRADIO_ANALYTICS_ENABLED": "False",
        "GRADIO_RUN_HISTORY": "False",
        "GRADIO_TEMP_DIR": str(tmp_path / "uploads"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def test_what_the_page_cannot_show_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 models are given"):
        AppArguments(models=["a", "b", "c"])
    tiny_nnformer(num_channels=1).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="segmentation of volumes, and the page shows segmenters of images"):
        open_segmenters(AppArguments(models=[str(tmp_path)]), torch.device("cpu"))


def test_the_page_is_served_at_a_free_port_of_this_machine_unless_told():
    assert AppArguments(models=["a"]).host == "127.0.0.1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"cannot be served at port {port} of 127.0.0.1"):
            free_port("127.0.0.1", port)
    assert 7860 <= free_port("127.0.0.1", None) < 7960
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.7")] == [
        *[True] * 3,
        *[False] * 2,
    ]
    assert [address(host) for host in ("127.0.0.1", "::", "::1")] == ["127.0.0.1", "localhost", "[::1]"]


def test_on_localhost_only_its_own_names_are_answered():
    pytest.importorskip("starlette", reason="gradio brings it")
    for name in ("localhost:7860", "127.0.0.1", "[::1]:7860"):
        assert is_answered("127.0.0.1", name)
    assert is_answered("127.0.0.2", "127.0.0.2:7860")
    assert not is_answered("127.0.0.1", "elsewhere.example:7860")
    assert is_answered("0.0.0.0", "elsewhere.example:7860")


def is_answered(host, asked):
    """Whether a page served on `host` answers a request for the name `asked`."""
    kind, answers = trusted(host), []

    async def page(*_):
        answers.append(200)

    async def send(message):
        answers.append(message.get("status"))

    scope = {"type": "http", "path": "/", "headers": [(b"host", asked.encode())]}
    asyncio.run(kind.cls(page, *kind.args, **kind.kwargs)(scope, None, send))
    return answers[0] == 200


@pytest.mark.slow
@each(
    "name",
    [name for name in [*SEGMENTERS, *FOREIGN_SEGMENTERS] if "nnformer" not in name and "volumes" not in name],
)
def test_every_stage_that_is_offered_of_any_model_can_be_shown(name, photo, tmp_path):
    model = {**SEGMENTERS, **FOREIGN_SEGMENTERS}[name]().eval()
    actions = Actions([segmenter_of(model)], tmp_path)
    looked = actions.segment(photo)
    looked.at = (3, 5)
    assert "Grad-CAM" in actions.kinds
    for kind, stages in actions.views[0].items():
        for stage in stages:
            assert "<img" in actions.explain(looked, kind, stage + 1), (kind, stage)
