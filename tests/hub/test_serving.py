"""What contextseg-export writes to serve a model: the handler of an Inference Endpoint, and a Space."""

import base64
import io
import json
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from cases import each
from huggingface_hub import ModelCard, RepoCard
from PIL import ExifTags, Image
from task_models import save_segformer
from tiny import tiny_glam_swin
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, pipeline

from contextseg import GlamSwinForImageClassification, SegmentationImageProcessor
from contextseg.hub import serving
from contextseg.hub.card_sections import about_serving
from contextseg.hub.endpoint_handler import EndpointHandler, image_of, threshold_of
from contextseg.scripts.export import main
from contextseg.training.publishing import ExportArguments, check_serving

ROOT = Path(__file__).resolve().parents[2]
LABELS = {0: "road", 1: "tree", 2: "sky|cloud"}
PALETTE = [[1, 2, 3], [40, 50, 60], [255, 0, 9]]


def noise(*shape, dtype=np.uint8):
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def file_of(pixels, kind="PNG", **options):
    with io.BytesIO() as file:
        Image.fromarray(pixels).save(file, format=kind, **options)
        return file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose model has global tokens, and a license."""
    folder = tmp_path_factory.mktemp("run")
    tiny_glam_swin(id2label=LABELS).save_pretrained(folder / "best", license="cc-by-4.0")
    processor = SegmentationImageProcessor(size={"shortest_edge": 64}, palette=PALETTE)
    processor.save_pretrained(folder / "best")
    return folder


def exported(run, folder, *options):
    assert main([str(run), *options, "--no-proof"]) == 0
    return folder


# -- in another process, without contextseg


def in_a_fresh_python(program, *words):
    command = [sys.executable, "-I", str(ROOT / "tests" / program), *map(str, words)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def turned():
    """A photo whose file is to be turned by a quarter."""
    tags = Image.Exif()
    tags[ExifTags.Base.Orientation] = 6
    return file_of(noise(40, 90, 3), "JPEG", exif=tags, quality=95)


@pytest.fixture(scope="module")
def threshold(run, turned):
    """A threshold between the scores of the classes of that photo."""
    scores = [region["score"] for region in EndpointHandler(str(run / "best"))({"inputs": turned})]
    return (min(scores) + max(scores)) / 2


@pytest.fixture(scope="module")
def answers(run, turned, threshold, tmp_path_factory):
    """What an endpoint answers to requests of all kinds, by name."""
    folder = tmp_path_factory.mktemp("endpoint")
    exported(run, folder / "model", "--output", str(folder / "model"), "--handler")

    def as_json(inputs, **parameters):
        text = base64.b64encode(inputs).decode() if isinstance(inputs, bytes) else inputs
        return json.dumps({"inputs": text} | ({"parameters": parameters} if parameters else {})).encode()

    deep = file_of(noise(40, 90, dtype=np.uint16))
    asked = {
        "photo": ("image/jpeg", "", turned),
        "photo in JSON": ("application/json", "", as_json(turned)),
        "data URL": (
            "application/json",
            "",
            as_json(f"data:image/png;base64,{base64.b64encode(deep).decode()}"),
        ),
        "16 bits": ("application/json", "", as_json(deep)),
        "gray": ("image/png", "", file_of(noise(40, 90))),
        "alpha": ("image/png", "", file_of(noise(40, 90, 4))),
        "sure": ("application/json", "", as_json(turned, threshold=threshold)),
        "sure by query": ("image/jpeg", f"threshold={threshold}", turned),
        "damaged": ("application/json", "", as_json(b"no image")),
        "path": ("application/json", "", as_json("/etc/hostname")),
        "panoptic": ("application/json", "", as_json(turned, subtask="panoptic")),
    }
    texts = {
        name: [kind, query, base64.b64encode(body).decode()] for name, (kind, query, body) in asked.items()
    }
    (folder / "requests.json").write_text(json.dumps(texts))
    (folder / "photo.jpg").write_bytes(turned)
    in_a_fresh_python("endpoint_visitor.py", folder)
    return json.loads((folder / "answers.json").read_text())


def masks(answer):
    status, regions = answer
    assert status == 200, regions
    decoded = [Image.open(io.BytesIO(base64.b64decode(region["mask"]))) for region in regions]
    assert {mask.mode for mask in decoded} <= {"L"}
    return {region["label"]: np.asarray(mask) for region, mask in zip(regions, decoded, strict=True)}


def pipeline_masks(run, image):
    segment = pipeline("image-segmentation", model=str(run / "best"))
    return {region["label"]: np.asarray(region["mask"]) for region in segment(image)}


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[label], theirs[label]) for label in ours)


@pytest.mark.processes
def test_two_processes_an_endpoint_gives_the_masks_of_transformers_pipeline(run, turned, answers):
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(io.BytesIO(turned))), -1))
    expected = pipeline_masks(run, upright)
    assert len(expected) > 1
    assert same(masks(answers["photo"]), expected)
    assert same(masks(answers["photo in JSON"]), expected)
    assert same(masks(answers["gray"]), pipeline_masks(run, Image.fromarray(noise(40, 90)).convert("RGB")))
    assert same(
        masks(answers["alpha"]), pipeline_masks(run, Image.fromarray(noise(40, 90, 4)).convert("RGB"))
    )


@pytest.mark.processes
def test_two_processes_an_endpoint_scales_images_of_16_bits(run, answers):
    scaled = Image.fromarray((noise(40, 90, dtype=np.uint16) / 257).round().astype(np.uint8)).convert("RGB")
    assert same(masks(answers["16 bits"]), pipeline_masks(run, scaled))
    assert same(masks(answers["data URL"]), pipeline_masks(run, scaled))


@pytest.mark.processes
def test_two_processes_an_endpoint_leaves_out_classes_below_the_threshold(answers, threshold):
    scores = {region["label"]: region["score"] for region in answers["photo"][1]}
    sure = [label for label, score in scores.items() if score >= threshold]
    assert 0 < len(sure) < len(scores)
    assert [region["label"] for region in answers["sure"][1]] == sure
    assert answers["sure by query"] == answers["sure"]


@pytest.mark.processes
def test_two_processes_an_endpoint_says_what_is_wrong_with_a_request(answers):
    wrong = {name: answers[name] for name in ("damaged", "path", "panoptic")}
    assert {status for status, _ in wrong.values()} == {400}
    assert "not an image that this Pillow can read" in wrong["damaged"][1]["error"]
    assert "Addresses and paths are not opened" in wrong["path"][1]["error"]
    assert "subtask is 'panoptic'" in wrong["panoptic"][1]["error"]


@pytest.mark.processes
def test_two_processes_the_hubs_client_reads_the_answer_as_the_page_on_serving_says(answers):
    boxes = {label: Image.fromarray(mask).getbbox() for label, mask in masks(answers["photo"]).items()}
    assert answers["printed"] == "".join(f"{label} {box}\n" for label, box in boxes.items())


@pytest.mark.processes
def test_two_processes_a_space_runs_and_answers(run, space, turned, tmp_path):
    pytest.importorskip("gradio", reason="the page of a Space needs gradio")
    (tmp_path / "photo.jpg").write_bytes(turned)
    in_a_fresh_python("space_visitor.py", space, tmp_path / "photo.jpg", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["code"].startswith("transformers_modules.")
    with Image.open(tmp_path / "mask.png") as mask:
        ids, colors = np.asarray(mask), mask.getpalette()[:9]
    assert colors == sum(PALETTE, [])
    upright = Image.fromarray(np.rot90(np.asarray(Image.open(io.BytesIO(turned))), -1))
    expected = pipeline_masks(run, upright)
    assert report["legend"] == list(expected)
    assert same(
        {label: (ids == index) * np.uint8(255) for index, label in LABELS.items() if label in expected},
        expected,
    )
    shares = {label: share for label, share, _ in report["table"]}
    assert shares == {label: round(float(100 * (mask > 0).mean()), 2) for label, mask in expected.items()}
    assert "not an image that this Pillow can read" in report["complaint"]
    with Image.open(tmp_path / "looks.png") as looks:
        assert looks.size == (40, 90)
        assert looks.getpixel((3, 2)) == (0, 255, 255)  # the cross
        assert len(looks.getcolors(1 << 20)) > 20
    assert {"annotatedimage", "dataset"} <= set(report["components"])


@pytest.mark.slow
def test_a_space_shows_names_of_classes_in_one_short_line(tmp_path):
    pytest.importorskip("gradio", reason="the page of a Space needs gradio")
    from contextseg.hub.space_page import Page

    def segment(_content):
        return SimpleNamespace(mask=np.eye(4, dtype=np.uint8), scores={0: 0.5, 1: 0.75})

    segment.labels = ["very " * 80, "sky\nor cloud"]
    (tmp_path / "photo.png").write_bytes(file_of(noise(4, 4, 3)))
    (_, regions), _, rows = Page(segment, ["#000000", "#ffffff"]).segment(str(tmp_path / "photo.png"))
    names = [("very " * 80)[:39] + "…", "sky or cloud"]
    assert [name for _, name in regions] == names
    assert rows == [[names[0], 75.0, 0.5], [names[1], 25.0, 0.75]]


# -- what is written


@pytest.fixture(scope="module")
def space(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("spaces") / "streets"
    return exported(run, folder, "--space", str(folder), "--handler")


def test_a_space_has_what_the_hub_needs_to_run_it(run, space):
    card = RepoCard.load(space / "README.md").data.to_dict()
    expected = {"title": "streets", "sdk": "gradio", "app_file": "app.py", "license": "cc-by-4.0"}
    assert expected.items() <= card.items()
    assert card["sdk_version"] == serving.gradio_version()
    assert sorted(path.name for path in space.iterdir()) == [
        "README.md",
        "app.py",
        "model",
        "requirements.txt",
    ]
    app = (space / "app.py").read_text()
    compile(app, "app.py", "exec")
    assert '"#010203", "#28323c", "#ff0009",' in app
    assert not any(
        line.startswith(("from .", "import contextseg", "from contextseg")) for line in app.splitlines()
    )
    assert "Click a pixel" in (space / "README.md").read_text()
    with pytest.raises(SystemExit, match="already holds"):
        main([str(run), "--space", str(space), "--no-proof"])


def test_without_gradio_a_space_asks_for_the_least_version(monkeypatch):
    def missing(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr(serving, "version", missing)
    assert serving.gradio_version() == serving.LEAST_GRADIO


def test_the_model_of_a_space_can_be_linked():
    card = serving.front_matter(
        "streets", ModelCard("---\nlicense: other\nlicense_name: mine\n---\n").data, "me/streets"
    )
    assert card.models == ["me/streets"]
    assert (card.license, card.license_name) == ("other", "mine")


def test_a_handler_is_written_beside_the_model_and_named_on_its_card(space):
    assert "with `handler.py`, which is here" in (space / "model" / "README.md").read_text()
    handler = (space / "model" / "handler.py").read_text()
    assert "class EndpointHandler:" in handler
    assert "from ." not in handler


def test_requirements_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {*serving.REQUIRED, serving.TIMM} <= set(project["dependencies"])
    assert serving.GRADIO in project["optional-dependencies"]["app"]
    assert serving.GRADIO.startswith(f"gradio>={serving.LEAST_GRADIO.removesuffix('.0')},")
    assert f">={serving.PYTHON}" == project["requires-python"]
    on_timm = {"backbone_config": {"model_type": "timm_backbone"}}
    lines = serving.requirements(on_timm, "gradio").split()
    assert lines == [*serving.REQUIRED, serving.TIMM, "gradio"]


def test_what_is_no_segmenter_of_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not one"):
        serving.check_served("m", {"architectures": None}, "--handler")
    with pytest.raises(ValueError, match="m classifies masks. Leave it out: transformers'"):
        serving.check_served("m", {"model_type": "eomt"}, "--space")
    volumes = {"architectures": ["NnFormerForSemanticSegmentation"], "patch_size": [2, 4, 4]}
    with pytest.raises(ValueError, match="--handler is for segmenters of images, and m is not one"):
        serving.check_served("m", volumes, "--handler")
    bands = {"architectures": ["GlamSwinForSemanticSegmentation"], "num_channels": 5}
    serving.check_served("m", bands, "--handler")
    with pytest.raises(ValueError, match="takes 5 channels"):
        serving.check_served("m", bands, "--space", rgb=True)
    GlamSwinForImageClassification(tiny_glam_swin().config).save_pretrained(tmp_path / "m")
    SegmentationImageProcessor().save_pretrained(tmp_path / "m")
    with pytest.raises(SystemExit, match="--space is for segmenters of images"):
        main([str(tmp_path / "m"), "--space", str(tmp_path / "space")])
    with pytest.raises(ValueError, match="--handler adds a file to a repository"):
        check_serving(ExportArguments("m", handler=True))


def test_the_card_tells_what_of_the_hub_runs_a_model():
    config = {"architectures": ["GlamSwinForSemanticSegmentation"], "patch_size": 4}
    _, table = about_serving(config, "image-segmentation", "me/streets", has_handler=False)
    assert "| the widget of its page | no" in table
    assert "after `contextseg-export` with `--handler`" in table
    assert "`contextseg-export me/streets --space FOLDER`" in table
    assert about_serving(config, "image-feature-extraction", "me/streets", has_handler=False) == []


# -- requests


@each("inputs", [b"\x89PNG", bytearray(b"\x89PNG"), "iVBO\nRw==", "data:image/png;base64,iVBORw=="])
def test_bytes_and_base64_are_files(inputs):
    assert image_of(inputs).startswith(b"\x89PN")


@each(
    ("inputs", "complaint"),
    [
        ("", "is empty"),
        (b"", "is empty"),
        ("data:image/png;base64,", "is empty"),
        ("http://localhost/photo.jpg", "Addresses and paths are not opened"),
        ("photo.jpg", "not an image file in base64"),
        (None, "of type NoneType"),
        (["aGVsbG8="], "of type list"),
        ({"image": "aGVsbG8="}, "of type dict"),
    ],
)
def test_other_inputs_are_refused(inputs, complaint):
    with pytest.raises(ValueError, match=complaint):
        image_of(inputs)


@each(
    ("given", "threshold"),
    [(None, 0), ({}, 0), ({"threshold": None}, 0), ({"threshold": "0.25"}, 0.25), ({"threshold": 1}, 1)],
)
def test_a_threshold_may_be_text(given, threshold):
    assert threshold_of(given) == threshold


@each(
    ("given", "complaint"),
    [
        ({"treshold": 0.5}, "unknown parameter 'treshold'. Known: threshold, subtask"),
        ({"threshold": "high"}, "threshold is 'high'"),
        ({"threshold": float("nan")}, "threshold is nan"),
        ({"threshold": True}, "threshold is True"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"subtask": "instance"}, "subtask is 'instance'"),
        ([0.5], "of type list"),
    ],
)
def test_other_parameters_are_refused(given, complaint):
    with pytest.raises(ValueError, match=complaint):
        threshold_of(given)


def test_a_handler_serves_models_of_transformers_and_a_space_shows_them(tmp_path):
    folder = save_segformer(tmp_path / "model")
    space = exported(folder, tmp_path / "space", "--space", str(tmp_path / "space"))
    assert "license" not in RepoCard.load(space / "README.md").data.to_dict()
    assert "Click a pixel" not in (space / "README.md").read_text()
    handler, image = EndpointHandler(str(folder)), Image.fromarray(noise(40, 90, 3))
    assert same(masks((200, handler({"inputs": image}))), pipeline_of(folder, image))
    assert same(masks((200, handler({"inputs": file_of(noise(40, 90, 3))}))), pipeline_of(folder, image))
    with pytest.raises(ValueError, match="the image cannot be read"):
        handler({"inputs": b"no image"})
    with pytest.raises(ValueError, match='"inputs" is missing'):
        handler({"image": image})


def pipeline_of(folder, image):
    segment = pipeline(
        "image-segmentation",
        model=AutoModelForSemanticSegmentation.from_pretrained(folder),
        image_processor=AutoImageProcessor.from_pretrained(folder),
    )
    return {region["label"]: np.asarray(region["mask"]) for region in segment(image)}
