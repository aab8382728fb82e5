"""The page of `contextseg-app` in a real Chromium that reaches nothing but this machine: one server, two models."""

import base64
import contextlib
import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import LABELS, tiny_glam_swin
from transformers import SegformerConfig, SegformerForSemanticSegmentation

import contextseg
from contextseg import SegmentationImageProcessor
from contextseg.processing.data.scenes import write_scenes
from contextseg.processing.heat_pictures import colors_of
from contextseg.scripts.predict import main as predict

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
NO_CHROMIUM = "no Chromium: `make test-browser` installs it on Debian as root; else: apt-get install chromium"
ROOT = Path(contextseg.__file__).parent
pytestmark = [pytest.mark.browser, pytest.mark.skipif(CHROMIUM is None, reason=NO_CHROMIUM)]

# Any other name than that of this machine is not found, so that a request to elsewhere is an error in the console.
OPTIONS = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
SECONDS = 240  # that a step may take at most, on a busy machine
NAMES = list(LABELS.values())
RUN = os.environ.get("CONTEXTSEG_PICTURES")
VIEWER, PICTURES = "#viewer [data-shown]", "#evidence img"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two small models, and images: an example, a photograph with an EXIF rotation, and a file that is not an image."""
    folder = tmp_path_factory.mktemp("page")
    save(tiny_glam_swin(), folder / "glam")
    sizes = {"hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "depths": [1] * 4}
    ids = {name: label for label, name in LABELS.items()}
    config = SegformerConfig(**sizes, decoder_hidden_size=8, id2label=LABELS, label2id=ids)
    save(SegformerForSemanticSegmentation(config), folder / "segformer")
    (folder / "examples").mkdir()
    random = np.random.default_rng(0)
    cells = random.integers(0, 256, (6, 9, 3), dtype=np.uint8)
    Image.fromarray(cells).resize((90, 60), Image.Resampling.BICUBIC).save(folder / "examples" / "cells.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(cells[::-1]).resize((72, 48)).save(folder / "turned.jpg", exif=exif)
    (folder / "page.jpg").write_text("<html>404</html>")
    Image.fromarray(cells).resize((1800, 1200)).save(folder / "large.jpg")
    options = ["--output", str(folder / "masks"), "--confidence", "--entropy", "--overlay", "--cpu"]
    images = [str(folder / "examples"), str(folder / "turned.jpg")]
    for model in ("glam", "segformer"):
        options[1] = str(folder / "masks" / model)
        assert predict([str(folder / model), *images, *options]) == 0
    return folder


def save(model, folder):
    """Saves a model whose classes differ from pixel to pixel, unlike those of small random weights."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            parameter.data.mul_(4)
    model.save_pretrained(folder)
    SegmentationImageProcessor(palette=[[200, 60, 60], [60, 200, 60], [60, 60, 200]]).save_pretrained(folder)


@pytest.fixture(scope="module")
def address(folder, browser):
    """The command, from its start to Ctrl-C while a model is at work, which leaves no file behind."""
    models = [str(folder / "glam"), str(folder / "segformer")]
    with served(folder, [*models, "--examples", str(folder / "examples")]) as address:
        yield address
        page = browser.new_page()
        page.goto(address)
        upload(page, folder / "large.jpg")
        page.get_by_text("Segmenting - ").wait_for()


@contextlib.contextmanager
def served(folder, options, cwd=None):
    """The command with these options; yields the address of its page."""
    temporary, log = folder / "temporary", folder / "server.log"
    temporary.mkdir(exist_ok=True)
    command = [sys.executable, "-u", "-m", "contextseg.scripts.app", *options, "--cpu"]
    environment = {**os.environ, "TMPDIR": str(temporary)}
    with log.open("w") as file:
        server = subprocess.Popen(command, stdout=file, stderr=file, env=environment, cwd=cwd)
    try:
        yield wait_for_address(server, log)
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(timeout=SECONDS) == 130
    assert [*temporary.glob("contextseg-app-*"), *temporary.glob("gradio*")] == []
    assert "Traceback" not in log.read_text()


def wait_for_address(server, log):
    for _ in range(10 * SECONDS):
        words = [word for word in log.read_text().split() if word.startswith("http://")]
        if words:
            return words[0]
        assert server.poll() is None, log.read_text()
        time.sleep(0.1)
    raise TimeoutError(log.read_text())


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture
def new_page(browser, address):
    """Opens the page in a window of its own; at the end, nothing may have been complained about or asked of elsewhere."""
    contexts, wrong = [], []

    def opened(**settings):
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **settings})
        context.set_default_timeout(1000 * SECONDS)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on(
            "request", lambda request: None if is_local(request.url, address) else wrong.append(request.url)
        )
        page.goto(address)
        page.locator("#examples button").first.wait_for()
        return page

    yield opened
    for context in contexts:
        context.close()
    assert wrong == []


def is_local(url, address):
    return url.startswith((address, "data:", "blob:", address.replace("http", "ws")))


@pytest.fixture
def page(new_page):
    """The page with the example shown."""
    page = new_page()
    page.locator("#examples button").click()
    page.locator(VIEWER).wait_for()
    return page


def upload(page, path):
    page.locator("#upload input[type=file]").set_input_files(path)


def masks_of(folder, name, kind=""):
    return [np.asarray(Image.open(folder / "masks" / model / kind / name)) for model in ("glam", "segformer")]


def point(page, x, y, size, click=False, panel=0):
    """Points at a pixel of the image, of (width, height)."""
    canvas = page.locator("canvas").nth(panel)
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    place = {"x": (x + 0.5) / size[0] * box["width"], "y": (y + 0.5) / size[1] * box["height"]}
    (canvas.click if click else canvas.hover)(position=place)


def drawn(page, panel=0):
    """What a panel shows, (H, W, 3)."""
    uri = page.locator("canvas").nth(panel).evaluate("(canvas) => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("RGB"))


def set_opacity(page, percent):
    page.get_by_label("Opacity").fill(str(percent))


def test_an_example_is_segmented_by_both_models_with_a_legend(page, folder):
    assert (
        page.locator("#status")
        .inner_text()
        .startswith("cells.png, 90 x 60 pixels, segmented by 2 models in ")
    )
    for panel, mask in enumerate(masks_of(folder, "cells.png")):
        legend = page.locator(".classes").nth(panel).inner_text()
        counts = np.bincount(mask.ravel(), minlength=3)
        present = [name for name, count in zip(NAMES, counts, strict=True) if count]
        assert len(present) > 1
        assert [name for name in NAMES if name in legend] == present


def test_pointing_tells_class_confidence_and_entropy_in_both_panels(page, folder):
    masks, shares = masks_of(folder, "cells.png"), masks_of(folder, "cells.png", "confidence")
    entropies = masks_of(folder, "cells.png", "entropy")
    for x, y in [(0, 0), (45, 30), (89, 59)]:
        point(page, x, y, (90, 60))
        for panel, said in enumerate(page.locator(".readout").all_inner_texts()):
            place, told = said.split(": ")
            name, confidence, entropy = told.split(", ")
            assert (place, name) == (f"x {x}, y {y}", NAMES[masks[panel][y, x]])
            assert abs(number(confidence) - shares[panel][y, x] / 655.35) < 1
            assert abs(number(entropy) - entropies[panel][y, x] / 655.35) < 1


def number(text):
    return float(text.split()[-2])


def test_opacity_and_toggles_change_what_is_drawn(page):
    half = drawn(page)
    set_opacity(page, 0)
    photo = drawn(page)
    set_opacity(page, 100)
    full = drawn(page)
    assert {tuple(color) for color in full.reshape(-1, 3)} <= {(200, 60, 60), (60, 200, 60), (60, 60, 200)}
    assert np.abs(half.astype(int) - (photo.astype(int) + full) / 2).max() <= 2
    for box in page.locator(".classes").first.get_by_role("checkbox").all():
        box.uncheck()
    np.testing.assert_array_equal(drawn(page), photo)
    states = {
        (box.input_value(), box.is_checked())
        for box in page.locator(".classes").nth(1).get_by_role("checkbox").all()
    }
    assert not {name for name, is_checked in states if is_checked} & set(
        page.locator(".classes")
        .first.get_by_role("checkbox")
        .evaluate_all("(boxes) => boxes.map((box) => box.value)")
    )


def test_confidence_and_entropy_are_shown_in_the_colors_of_their_scale(page, folder):
    set_opacity(page, 100)
    for kind in ("confidence", "entropy"):
        page.get_by_label(kind.capitalize()).check()
        (values, _), shown = masks_of(folder, "cells.png", kind), drawn(page)
        factor = shown.shape[0] // values.shape[0]
        level = np.rint(values / 257).astype(int)
        expected = colors_of("viridis")[level].astype(int)
        assert np.abs(shown[::factor, ::factor] - expected).max() <= 6  # a level more or less


def test_a_click_shows_where_each_model_looks_by_stage(page):
    assert page.locator(PICTURES).count() == 0
    point(page, 20, 30, (90, 60), click=True)
    page.locator(PICTURES).wait_for()
    assert "Global attention, stage 1, from x 20, y 30" in page.locator("figcaption").inner_text()
    assert "segformer cannot show Global attention" in page.locator("#evidence").inner_text()
    seen = {page.locator(PICTURES).get_attribute("src")}
    for change, text in [
        (
            lambda: point(page, 80, 5, (90, 60), click=True, panel=1),
            "Global attention, stage 1, from x 80, y 5",
        ),
        (lambda: page.get_by_label("2", exact=True).check(), "Global attention, stage 2, from x 80, y 5"),
        (lambda: page.get_by_label("Grad-CAM").check(), "Grad-CAM, stage 2, from x 80, y 5"),
    ]:
        change()
        page.locator("figcaption", has_text=text).first.wait_for()
        seen.add(page.locator(PICTURES).first.get_attribute("src"))
    assert len(seen) == 4
    assert page.locator(PICTURES).count() == 2


def test_of_quick_clicks_and_uploads_the_last_one_counts(page, folder):
    for x in (10, 30, 50, 70):
        point(page, x, 30, (90, 60), click=True)
    page.locator("figcaption", has_text="from x 70, y 30").wait_for()
    upload(page, folder / "large.jpg")
    page.locator("#status", has_text="large.jpg is being segmented.").wait_for()
    upload(page, folder / "turned.jpg")
    page.locator('#viewer [data-shown="turned.jpg"]').wait_for()
    with page.expect_download() as download:
        page.get_by_text(f"Download mask of {folder / 'glam'}").click()
    assert download.value.suggested_filename == "turned-model1-mask.png"
    page.wait_for_timeout(500)
    assert page.locator('#viewer [data-shown="turned.jpg"]').count() == 1


def test_the_downloads_are_the_files_of_contextseg_predict(page, folder):
    upload(page, folder / "turned.jpg")
    page.locator('#viewer [data-shown="turned.jpg"]').wait_for()
    for number, model in enumerate(("glam", "segformer"), 1):
        for kind, place in (("mask", ""), ("overlay", "overlays")):
            with page.expect_download() as download:
                page.get_by_role("link", name=f"Download {kind} of {folder / model}").or_(
                    page.get_by_role("button", name=f"Download {kind} of {folder / model}")
                ).first.click()
            assert download.value.suggested_filename == f"turned-model{number}-{kind}.png"
            ours = Image.open(download.value.path())
            theirs = Image.open(folder / "masks" / model / place / "turned.png")
            assert (ours.mode, ours.size) == (theirs.mode, theirs.size)
            np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_a_file_that_is_not_an_image_gives_a_sentence_and_leaves_the_page_as_it_was(page, folder):
    before = drawn(page)
    upload(page, folder / "page.jpg")
    page.locator("#status [role=alert]").wait_for()
    said = page.locator("#status").inner_text()
    assert said.startswith("'page.jpg' is empty, damaged at its start, or not an image")
    assert str(folder) not in said
    np.testing.assert_array_equal(drawn(page), before)
    upload(page, folder / "turned.jpg")  # the page goes on
    page.locator('#viewer [data-shown="turned.jpg"]').wait_for()
    assert page.locator("#status [role=alert]").count() == 0


def test_the_keyboard_alone_does_everything(new_page, folder):
    page = new_page()
    opened_by_keyboard(page, "#upload button").set_files(folder / "turned.jpg")
    page.locator('#viewer [data-shown="turned.jpg"]').wait_for()
    tab_to(page, "#examples button")
    page.keyboard.press("Enter")
    page.locator('#viewer [data-shown="cells.png"]').wait_for()
    tab_to(page, "input[type=range]")
    page.keyboard.press("End")
    assert page.locator("output").inner_text() == "100 %"
    tab_to(page, "#viewer canvas")
    for key in ("ArrowRight", "Shift+ArrowRight", "ArrowDown"):
        page.keyboard.press(key)
    assert page.locator(".readout").first.inner_text().startswith("x 56, y 31: ")
    page.keyboard.press("Enter")
    page.locator("figcaption", has_text="from x 56, y 31").wait_for()
    tab_to(page, ".classes input")
    before = drawn(page)
    page.keyboard.press("Space")
    assert (drawn(page) != before).any()


def opened_by_keyboard(page, selector):
    """The dialog of files that Enter on a button opens; a page that is still being built may miss the first key."""
    choosers = []
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    for _ in range(10):
        tab_to(page, selector)
        page.keyboard.press("Enter")
        page.wait_for_timeout(500)
        if choosers:
            return choosers[0]
    raise AssertionError(f"Enter on {selector} opens no dialog")


def tab_to(page, selector):
    """Presses Tab until the focus is on an element."""
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("(selector) => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"Tab does not reach {selector}")


def test_a_screen_of_360_pixels_has_no_horizontal_scroll_and_works_by_touch(new_page):
    page = new_page(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    page.locator("#examples button").tap()
    page.locator(VIEWER).wait_for()
    page.locator("canvas").first.tap(position={"x": 100, "y": 50})
    page.locator(PICTURES).wait_for()
    assert ": " in page.locator(".readout").first.inner_text()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    for element in ("canvas", PICTURES, "#upload", "#examples", ".classes"):
        box = page.locator(element).first.bounding_box()
        assert box["x"] >= 0, element
        assert box["x"] + box["width"] <= 360, element


def test_everything_that_can_be_used_has_a_name(page):
    silent = page.evaluate(
        """() => [...document.querySelectorAll("button, input, canvas[tabindex], img")].filter((each) => {
            if (!each.offsetParent) return false;
            const labels = [...(each.labels ?? [])].map((label) => label.textContent).join("");
            return !(each.getAttribute("aria-label") || each.alt || each.textContent || labels || each.title).trim();
        }).map((each) => each.outerHTML.slice(0, 200))"""
    )
    assert silent == []


def test_the_server_listens_on_localhost_alone(address):
    port = int(address.rsplit(":", 1)[1])
    listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    hosts = {
        row[1].partition(":")[0] for row in listening if row[1].endswith(f":{port:04X}") and row[3] == "0A"
    }
    assert hosts == {"0100007F"}


@pytest.mark.skipif(
    RUN is None, reason="draws docs/images/app.png with the run in CONTEXTSEG_PICTURES, that of `make demo`"
)
def test_the_picture_in_the_documentation(browser, tmp_path):
    write_scenes(tmp_path / "scenes", 6, 5, size=128, distance=64)
    run = Path(RUN).absolute()
    options = [f"{run.parent.name}/{run.name}", "--examples", str(tmp_path / "scenes" / "images")]
    with served(tmp_path, options, run.parents[1]) as address:
        page = browser.new_context(viewport={"width": 1280, "height": 1000}).new_page()
        page.goto(address)
        page.locator("#examples button").nth(1).click()
        page.locator(VIEWER).wait_for()
        set_opacity(page, 75)
        page.get_by_label("3", exact=True).check()
        point(page, 96, 100, (128, 128), click=True)
        page.locator("figcaption", has_text="stage 3, from").wait_for()
        picture = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    target = ROOT / "docs" / "images" / "app.png"
    target.parent.mkdir(exist_ok=True)
    picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(target, optimize=True)
    assert target.stat().st_size < 300_000
