"""README.md and docs/: their Python runs, their commands are read by our parsers, and the reference is complete."""

import contextlib
import io
import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from accelerate.commands.config.config_args import ClusterConfig
from accelerate.commands.launch import launch_command_parser
from command_parsers import commands, parse, parser_of
from mask_checkpoints import SPLIT, tiny_eomt
from PIL import Image
from tiny import tiny_nnformer
from tiny_runs import write_data
from torch.distributed.run import get_args_parser
from transformers import (
    Dinov2Config,
    Dinov2Model,
    EomtImageProcessor,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerImageProcessor,
    SwinConfig,
    SwinModel,
    Swinv2Config,
    Swinv2Model,
)

import contextseg
from contextseg import (
    GlamSwinConfig,
    GlamSwinForSemanticSegmentation,
    SegmentationImageProcessor,
    VolumeImageProcessor,
    write_label_volume,
)
from contextseg.processing.volumes.volume_geometry import VolumeGeometry

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if "_build" not in page.parts
}
# With a Hub and an endpoint, by tests/hub/test_hub_journey.py and test_serving.py.
RUN_ELSEWHERE = {"docs/how-to/publish.md", "docs/how-to/serve.md"}
SLOW = {"docs/how-to/export.md"}  # torch.export takes half a minute, several times
LONG = pytest.mark.slow, pytest.mark.long
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CONFIGS = [getattr(contextseg, name) for name in contextseg.__all__ if name.endswith("Config")]
NOT_OURS = (
    "cd ",
    "git clone ",
    "hf auth login",
    "hf upload ",
    "python streets-space/app.py",
    "source .venv/bin/activate",
)


def blocks(page, kind):
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", PAGES[page], re.DOTALL | re.MULTILINE)


def command_lines():
    """All of README and docs, and those of ours that stand on lines of their own in the pages of measurements."""
    scripts = [block for page in PAGES for block in blocks(page, "sh")]
    for page in (ROOT / "benchmarks").glob("*.md"):
        scripts += re.findall(
            r"^`?(contextseg-(?:.*\\\n)*[^`\n]*)`?$", page.read_text(encoding="utf-8"), re.MULTILINE
        )
    return [line for script in scripts for line in script.replace("\\\n", "").splitlines()]


def all_options():
    parsers = [parser_of(command) for command in commands()]
    ours = {option for parser in parsers for action in parser._actions for option in action.option_strings}
    return ours.union(*(parser.known_elsewhere for parser in parsers))


def with_python():
    pages = [page for page in PAGES if blocks(page, "python") and page not in RUN_ELSEWHERE]
    return [pytest.param(page, marks=LONG if page in SLOW else ()) for page in pages]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    """Where the examples run: data, a trained model, files to segment, and small models under the names of large ones."""
    folder = tmp_path_factory.mktemp("docs")
    write_data(folder / "data", classes=["road", "car", "tree"])
    names = {0: "road", 1: "car", 2: "tree"}
    GlamSwinForSemanticSegmentation(GlamSwinConfig.preset("nano", id2label=names)).save_pretrained(
        folder / "runs/streets/best"
    )
    SegmentationImageProcessor().save_pretrained(folder / "runs/streets/best")
    tiny_nnformer(num_channels=1).save_pretrained(folder / "runs/hippocampus/best")
    VolumeImageProcessor().save_pretrained(folder / "runs/hippocampus/best")
    grid = VolumeGeometry((16, 12, 6), np.diag([-1.0, 1.0, 3.0, 1.0]))
    write_label_volume(folder / "case.nii.gz", np.arange(6 * 12 * 16).reshape(6, 12, 16), grid)
    for name in ("photo.jpg", "aerial.tif"):
        Image.new("RGB", (84, 60), "gray").save(folder / name)
    swin = SwinConfig(embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 2, 4, 8])
    SwinModel(swin).save_pretrained(folder / "microsoft/swin-tiny-patch4-window7-224")
    swinv2 = Swinv2Config(
        embed_dim=8, depths=[2, 1, 1, 1], num_heads=[1, 2, 4, 8], image_size=64, window_size=4
    )
    Swinv2Model(swinv2).save_pretrained(folder / "microsoft/swinv2-tiny-patch4-window8-256")
    sizes = {"hidden_sizes": [8, 8, 8, 8], "num_attention_heads": [1, 1, 1, 1], "depths": [1, 1, 1, 1]}
    segformer = folder / "nvidia/segformer-b0-finetuned-ade-512-512"
    SegformerForSemanticSegmentation(SegformerConfig(**sizes, decoder_hidden_size=8)).save_pretrained(
        segformer
    )
    SegformerImageProcessor().save_pretrained(segformer)
    eomt = folder / "tue-mps/ade20k_semantic_eomt_large_512"
    tiny_eomt().save_pretrained(eomt)
    EomtImageProcessor(**SPLIT).save_pretrained(eomt)
    dinov2 = Dinov2Config(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, image_size=28)
    Dinov2Model(dinov2).save_pretrained(folder / "facebook/dinov2-small")
    return folder


class SlideStandIn:
    """What docs/how-to/own-rasters.md uses of OpenSlide, on a slide of noise with one reduced level."""

    dimensions, level_downsamples = (400, 300), (1.0, 2.0)

    def __init__(self, path):
        self.path = path

    def get_best_level_for_downsample(self, factor):
        return int(factor >= 2)

    def read_region(self, place, level, size):
        return Image.effect_noise(size, place[0] + level + 1).convert("RGBA")


@pytest.mark.parametrize("page", with_python())
def test_the_python_of_a_page_runs_and_prints_what_its_comments_say(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    monkeypatch.setitem(sys.modules, "openslide", SimpleNamespace(OpenSlide=SlideStandIn))
    names, printed = {"__name__": page}, io.StringIO()
    code = "\n".join(blocks(page, "python"))
    with contextlib.redirect_stdout(printed):
        exec(compile(code, page, "exec"), names)
    said = re.findall(r"^print\(.*\)  # (.+?)(?:: .+)?$", code, re.MULTILINE)
    lines = iter(printed.getvalue().splitlines())
    assert [line for line in said if line not in lines] == []  # in this order


def test_every_block_is_of_a_kind_that_is_tested():
    for page, text in PAGES.items():
        kinds = re.findall(r"^```([^\s{]+)$", text, re.MULTILINE)
        assert set(kinds) <= {"python", "sh", "json", "text", "bibtex"}, (
            page
        )  # text: output of a command, tree of files
        directives = re.findall(r"^```\{", text, re.MULTILINE)
        assert len(re.findall(r"^```$", text, re.MULTILINE)) == len(kinds) + len(directives), page


def test_every_command_line_is_one_that_its_program_accepts():
    for line in command_lines():
        check_command(line)


def check_command(line):
    words = shlex.split(line, comments=True)
    if line.startswith("accelerate launch "):
        launch = launch_command_parser().parse_args(words[2:])
        assert ClusterConfig.from_yaml_file(ROOT / launch.config_file).num_machines == 1
        assert launch.module
        check_module(launch.training_script, launch.training_script_args)
    elif words[0] == "torchrun":
        launch = get_args_parser().parse_args(words[1:])
        check_module(launch.training_script, launch.training_script_args)
    elif words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    elif words[:2] == ["pip", "install"]:
        extras = {extra for word in words[2:] for extra in re.findall(r"[a-z]+", word)}
        assert extras <= set(SETTINGS["project"]["optional-dependencies"]), line
    else:
        assert words[0] in commands() or line.startswith(NOT_OURS), line
        check_ours(words[0], words[1:])


def check_module(module, words):
    check_ours(next(name for name, place in commands().items() if place.startswith(f"{module}:")), words)


def check_ours(command, words):
    """Parses the words, and looks up what the parser leaves to the program: recipes and configuration fields."""
    if command not in commands() or words == ["--help"]:
        return
    given = vars(parse(command, words))
    if given.get("recipe"):
        assert (ROOT / "scripts" / "recipes" / f"{given['recipe']}.yaml").is_file(), given["recipe"]
    for setting in given.get("set") or []:
        name = setting.partition("=")[0]
        assert any(name in config.__dataclass_fields__ for config in CONFIGS), setting


def test_every_option_named_in_the_text_exists():
    elsewhere = {"--num_machines", "--machine_rank", "--num_processes"}  # accelerate's
    known = all_options() | elsewhere
    for page, text in PAGES.items():
        prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
        named = {
            option
            for code in re.findall(r"`([^`\n]+)`", prose)
            for option in re.findall(r"(?<!\S)--[a-z0-9_-]+", code)
        }
        assert named <= known, page


def test_json_blocks_are_class_tables(tmp_path):
    path = tmp_path / "classes.json"
    pixels = np.zeros((4, 4), dtype=np.uint8)
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
        Image.fromarray(pixels).save(tmp_path / part / "0.png")
    tables = [block for page in PAGES for block in blocks(page, "json")]
    assert len(tables) >= 8
    for table in tables:
        path.write_text(table)
        content = json.loads(table)
        rows = content.get("classes", content) if isinstance(content, dict) else content
        assert len(contextseg.open_data(tmp_path).classes) == len(rows)


def test_the_reference_has_every_public_name_and_no_other():
    text = "\n".join(text for page, text in PAGES.items() if page.startswith("docs/reference/"))
    documented = re.findall(
        r"^\.\. auto\w+:: contextseg\.(\w+)$|^```\{config-fields\} (\w+)$", text, re.MULTILINE
    )
    assert sorted(max(names, key=len) for names in documented) == sorted(contextseg.__all__)


def test_the_reference_has_every_command():
    page = PAGES["docs/reference/commands.md"]
    assert sorted(re.findall(r"^```\{command-options\} (\S+)$", page, re.MULTILINE)) == sorted(commands())


def test_everything_that_readme_and_docs_import_is_at_the_root():
    assert [page for page, text in PAGES.items() if re.search(r"\b(from|import) contextseg\.", text)] == []


def test_links_of_the_readme_lead_somewhere():
    readme = PAGES["README.md"]
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", readme) if not target.startswith("http")]
    headings = {
        f"#{title.lower().replace(' ', '-')}" for title in re.findall(r"^## (.*)$", readme, re.MULTILINE)
    }
    assert [target for target in targets if target not in headings and not (ROOT / target).exists()] == []


def test_every_make_target_named_in_the_text_exists():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page, text in PAGES.items():
        assert set(re.findall(r"`make ([a-z-]+)`", text)) <= targets, page


def test_the_readme_names_the_two_commands_for_newcomers():
    assert {"make demo", "make test"} <= set(re.findall(r"`(make [a-z]+)`", PAGES["README.md"]))


def test_the_readme_has_at_most_120_lines():
    assert len(PAGES["README.md"].splitlines()) <= 120
