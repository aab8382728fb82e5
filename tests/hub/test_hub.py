"""Repositories that carry their own code: saving, the model card, and what others can do with the result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import each
from huggingface_hub import ModelCard
from loopback_hub import loopback_hub
from PIL import Image
from transformers import AutoModelForSemanticSegmentation, modeling_utils
from transformers.dynamic_module_utils import get_relative_import_files
from transformers.modelcard import TrainingSummary

from contextseg import (
    GlamSwinConfig,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
    SegmentationImageProcessor,
)
from contextseg.hub.model_card import BEGIN, END, TRAINER_LOG, ask_for_license, write_model_card
from contextseg.hub.repositories import complete_card

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests"
LABELS = {0: "road", 1: "tree", 2: "sky|cloud"}
PALETTE = [[128, 64, 128], [107, 142, 35], [70, 130, 180]]


def nano(model_class=GlamSwinForSemanticSegmentation, **options):
    torch.manual_seed(0)
    return model_class(GlamSwinConfig.preset("nano", id2label=LABELS, **options)).eval()


def processor():
    return SegmentationImageProcessor(size={"height": 64, "width": 64}, palette=PALETTE)


def auto_map(folder, name="config.json"):
    return json.loads((folder / name).read_text())["auto_map"]


def contents(folder):
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    """A saved model with its processor, and a photo beside them."""
    folder = tmp_path_factory.mktemp("repository")
    nano().save_pretrained(folder)
    processor().save_pretrained(folder)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (60, 84, 3), dtype=np.uint8)).save(folder / "photo.jpg", quality=95)
    return folder


# -- saving --------------------------------------------------------------------------------------------------------------


def test_a_repository_holds_the_files_that_its_model_and_processor_need_and_no_others(repository):
    processors = auto_map(repository, "preprocessor_config.json")["AutoImageProcessor"].values()
    entries = {f"{name.partition('.')[0]}.py" for name in [*auto_map(repository).values(), *processors]}
    needed = {Path(file).name for entry in entries for file in get_relative_import_files(repository / entry)}
    assert {path.name for path in repository.glob("*.py")} == needed | entries
    others = {"README.md", "config.json", "model.safetensors", "photo.jpg", "preprocessor_config.json"}
    assert {path.name for path in repository.iterdir()} == needed | entries | others


def test_the_auto_map_names_the_saved_class_and_what_gives_features(repository):
    assert auto_map(repository) == {
        "AutoConfig": "configuration_glam_swin.GlamSwinConfig",
        "AutoModel": "modeling_glam_swin.GlamSwinModel",
        "AutoBackbone": "modeling_glam_swin.GlamSwinBackbone",
        "AutoModelForSemanticSegmentation": "modeling_glam_swin.GlamSwinForSemanticSegmentation",
    }


@pytest.mark.parametrize(
    ("model_class", "heads"),
    [(GlamSwinForImageClassification, ["AutoModelForImageClassification"]), (GlamSwinModel, [])],
)
def test_other_heads_name_their_own_auto_class(tmp_path, model_class, heads):
    nano(model_class).save_pretrained(tmp_path)
    assert sorted(auto_map(tmp_path)) == sorted(["AutoBackbone", "AutoConfig", "AutoModel", *heads])


def test_every_file_is_written_once_and_only_if_it_changes(tmp_path, monkeypatch):
    written = []
    replace = os.replace

    def counting_replace(source, target):
        written.append(Path(target).name)
        replace(source, target)

    def files_of(*things):
        written.clear()
        for thing in things:
            thing.save_pretrained(tmp_path)
        return sorted(written)

    monkeypatch.setattr(os, "replace", counting_replace)
    code = ["configuration_glam_swin.py", "modeling_glam_swin.py"]
    assert files_of(nano()) == sorted(["README.md", "config.json", "model.safetensors", *code])
    assert files_of(processor()) == [
        "README.md",
        "image_processing_segmentation.py",
        "preprocessor_config.json",
    ]
    assert files_of(nano(), processor()) == ["model.safetensors"]


def test_saving_twice_writes_the_same_bytes(repository, tmp_path):
    for _ in range(2):
        nano().save_pretrained(tmp_path)
        processor().save_pretrained(tmp_path)
    (tmp_path / "photo.jpg").write_bytes((repository / "photo.jpg").read_bytes())
    assert contents(tmp_path) == contents(repository)


def test_saving_leaves_the_live_configuration_alone(tmp_path):
    model = nano()
    before = model.config.to_dict()
    model.save_pretrained(tmp_path)
    changed = {name for name, value in model.config.to_dict().items() if before.get(name) != value}
    assert changed <= {"architectures", "dtype"}  # which transformers sets


def test_an_auto_map_from_an_earlier_life_is_replaced(tmp_path):
    model, image_processor = nano(), processor()
    model.config.auto_map = {"AutoModelForDepthEstimation": "gone.Gone"}
    image_processor.auto_map = {"AutoImageProcessor": "gone.Gone"}
    model.save_pretrained(tmp_path)
    image_processor.save_pretrained(tmp_path)
    written = (tmp_path / "config.json").read_text() + (tmp_path / "preprocessor_config.json").read_text()
    assert "gone" not in written


def test_a_class_of_the_users_own_is_saved_without_code_and_says_so(tmp_path, caplog):
    class Mine(GlamSwinForSemanticSegmentation):
        pass

    model = nano(Mine)
    model.config.auto_map = {"AutoModel": "gone.Gone"}
    model.save_pretrained(tmp_path)
    assert "Mine is not a class of contextseg" in caplog.text
    assert "auto_map" not in json.loads((tmp_path / "config.json").read_text())


def test_a_class_that_fsdp_wrapped_is_saved_as_itself(tmp_path):
    model = nano()
    model.__class__ = type("FSDPGlamSwinForSemanticSegmentation", (GlamSwinForSemanticSegmentation,), {})
    model.save_pretrained(tmp_path)
    saved = auto_map(tmp_path)["AutoModelForSemanticSegmentation"]
    assert saved == "modeling_glam_swin.GlamSwinForSemanticSegmentation"


def test_a_gathered_state_dict_is_what_is_saved(tmp_path):
    model = nano()
    gathered = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, is_main_process=True, state_dict=gathered, save_function=torch.save)
    assert not AutoModelForSemanticSegmentation.from_pretrained(tmp_path).classifier.weight.any()


def test_only_the_main_process_writes_code_and_card(tmp_path):
    nano().save_pretrained(tmp_path, is_main_process=False)  # older transformers write weights all the same
    assert {path.suffix for path in tmp_path.iterdir()} <= {".safetensors"}


def test_a_full_disk_leaves_the_earlier_save_as_it_was(tmp_path, monkeypatch):
    nano().save_pretrained(tmp_path)
    before = contents(tmp_path)

    def full_disk(_, filename, **__):
        Path(filename).write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr(modeling_utils, "safe_save_file", full_disk)
    with pytest.raises(OSError, match="No space left"):
        nano(num_global_tokens=2).save_pretrained(tmp_path)
    assert contents(tmp_path) == before


def test_weights_of_an_earlier_save_in_other_pieces_are_not_read_again(tmp_path):
    model = nano()
    model.save_pretrained(tmp_path)
    torch.nn.init.ones_(model.classifier.bias)
    for size in ("400KB", "50GB"):
        model.save_pretrained(tmp_path, max_shard_size=size)
        loaded = AutoModelForSemanticSegmentation.from_pretrained(tmp_path)
        assert torch.equal(loaded.classifier.bias, model.classifier.bias)
    assert len(list(tmp_path.glob("model*.safetensors*"))) == 1


def test_saving_a_processor_completes_a_configuration_that_was_copied_beside_it(repository, tmp_path):
    (tmp_path / "config.json").write_bytes((repository / "config.json").read_bytes())
    processor().save_pretrained(tmp_path)
    assert {path.name for path in repository.glob("*.py")} == {path.name for path in tmp_path.glob("*.py")}


# -- the card --------------------------------------------------------------------------------------------------------------


def test_the_card_names_task_and_library(repository):
    data = ModelCard.load(repository / "README.md").data
    assert (data.pipeline_tag, data.library_name) == ("image-segmentation", "transformers")
    assert {"contextseg", "glam_swin"} <= set(data.tags)


def test_the_card_lists_labels_in_the_processors_colors(repository):
    card = (repository / "README.md").read_text()
    assert "| 0 | road | #804080 |" in card
    assert "| 2 | sky\\|cloud | #4682b4 |" in card


def test_an_unmeasured_model_is_called_so(repository):
    assert "This folder holds no scores." in (repository / "README.md").read_text()


def test_scores_and_recipe_come_from_the_json_files_in_the_folder(tmp_path):
    nano().save_pretrained(tmp_path)
    rows = [{"name": "road", "iou": 0.5}, {"name": "tree", "iou": 0.25}, {"name": "sky|cloud", "iou": None}]
    scores = {"mean_iou": 0.375, "data": "/home/me/streets/val", "images": 101, "per_class": rows}
    (tmp_path / "evaluation.json").write_text(json.dumps(scores))
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"learning_rate": 0.001}}))
    write_model_card(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.eval_results[0].metric_value == 0.375
    assert "| 1 | tree | 0.2500 |" in card.text
    assert "| 2 | sky\\|cloud | - |" in card.text
    assert '"learning_rate": 0.001' in card.text
    assert "/home/me" not in card.content


def test_a_card_that_somebody_wrote_is_left_alone(tmp_path):
    (tmp_path / "README.md").write_text("# Mine\n")
    nano().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == "# Mine\n"


def test_no_license_is_put_on_weights_unasked(repository, tmp_path, caplog):
    assert ModelCard.load(repository / "README.md").data.license is None
    ask_for_license(repository)
    assert "names no license" in caplog.text
    caplog.clear()
    nano().save_pretrained(tmp_path, license="mit")
    ask_for_license(tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.license == "mit"
    assert caplog.text == ""


def test_a_named_license_replaces_the_cards(tmp_path):
    nano().save_pretrained(tmp_path, license="mit")
    write_model_card(tmp_path, license="cc-by-4.0", datasets=["me/streets"])
    nano().save_pretrained(tmp_path)
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.datasets) == ("cc-by-4.0", ["me/streets"])


def test_scores_do_not_outlive_their_weights(tmp_path):
    nano().save_pretrained(tmp_path)
    write_model_card(tmp_path, scores={"mean_iou": 0.9})
    assert "Mean IoU" in (tmp_path / "README.md").read_text()
    nano().save_pretrained(tmp_path)
    assert "Mean IoU" not in (tmp_path / "README.md").read_text()


def test_trainers_card_keeps_its_words_and_gains_ours(tmp_path):
    (tmp_path / "README.md").write_text(
        f"---\ntags: [generated_from_trainer]\n---\n<!-- {TRAINER_LOG} -->\nLoss: 1\n"
    )
    nano().save_pretrained(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    assert "Loss: 1" in card.text
    assert "## Labels" in card.text
    assert "## Training" not in card.text  # which is in Trainer's part
    assert card.data.pipeline_tag == "image-segmentation"
    assert card.data.tags[0] == "generated_from_trainer"


@each(
    ("base", "data", "sentence"),
    [
        (None, None, None),
        ("", None, None),
        ("/home/me/runs/streets", None, None),
        (None, "streets", "This model was trained on the streets dataset."),
        ("me/streets", None, "This model is a fine-tuned version of [me/streets](https://huggingface.co/me/streets)."),
        ("me/a", ["b", "c"], "This model is a fine-tuned version of [me/a](https://huggingface.co/me/a) on the b and the c datasets."),
    ],
)  # fmt: skip
def test_trainers_card_says_only_what_is_known(base, data, sentence, tmp_path):
    nano().save_pretrained(tmp_path)
    summary = TrainingSummary(
        "streets", finetuned_from=base, dataset=data, eval_results={"Loss": 1.0}, hyperparameters={"seed": 42}, license="mit"
    )  # fmt: skip
    (tmp_path / "README.md").write_text(summary.to_model_card())
    write_model_card(tmp_path)
    card = ModelCard.load(tmp_path / "README.md")
    said = [line for line in card.text.splitlines() if line.startswith("This model")]
    assert said == [sentence] * (sentence is not None)
    assert card.data.base_model == (base if base and base.startswith("me/") else None)
    assert "More information needed" not in card.text
    assert {"- Loss: 1.0", "- seed: 42", "## Labels"} <= set(card.text.splitlines())


@each("config", ["{}", '{"architectures": ["SegformerForSemanticSegmentation"]}'])
def test_trainers_card_is_corrected_without_a_model_of_ours_too(config, tmp_path):
    (tmp_path / "config.json").write_text(config)
    summary = TrainingSummary("streets", finetuned_from="/home/me/runs", hyperparameters={"seed": 42})
    (tmp_path / "README.md").write_text(summary.to_model_card())
    complete_card(tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "- seed: 42" in card
    assert not any(text in card for text in ("This model is", "More information needed", "## Labels"))


def test_a_model_of_others_gets_no_card(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["SegformerForSemanticSegmentation"]}))
    processor().save_pretrained(tmp_path)
    assert not (tmp_path / "README.md").exists()


def test_words_and_front_matter_around_our_part_are_kept(tmp_path):
    nano().save_pretrained(tmp_path, license="apache-2.0")
    path = tmp_path / "README.md"
    card = (
        path.read_text().replace("license: apache-2.0", "license: mit").replace("## Labels", "## Old words")
    )
    path.write_text(card.replace(BEGIN, f"Before.\n{BEGIN}") + "After.\n")
    nano().save_pretrained(tmp_path)
    card = path.read_text()
    assert "license: mit" in card
    assert f"Before.\n{BEGIN}" in card
    assert card.endswith(f"{END}\nAfter.\n")
    assert "## Labels" in card
    assert "## Old words" not in card


def test_front_matter_that_cannot_be_read_does_not_stop_a_save(tmp_path, caplog):
    broken = f"---\na: [\n---\n{BEGIN}{END}"
    (tmp_path / "README.md").write_text(broken)
    nano().save_pretrained(tmp_path)
    assert (tmp_path / "README.md").read_text() == broken
    assert "front matter cannot be read" in caplog.text


# -- other people ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(repository, tmp_path_factory):
    """A Hub to which hub_author.py has pushed the repository in three ways."""
    with loopback_hub() as hub:
        environment = os.environ | hub.environment(tmp_path_factory.mktemp("author_cache"))
        output = tmp_path_factory.mktemp("author")
        run([str(HERE / "hub_author.py"), str(repository), str(output)], environment, output)
        yield hub


@pytest.fixture(scope="module")
def stranger(repository, published, tmp_path_factory):
    """The output folder of hub_stranger.py, which ran isolated, with empty caches, away from the checkout."""
    output = tmp_path_factory.mktemp("stranger")
    environment = os.environ | published.environment(tmp_path_factory.mktemp("stranger_cache"))
    names = ["me/pushed", "me/trained"]
    run(
        ["-I", str(HERE / "hub_stranger.py"), str(ROOT), str(output), str(repository), *names],
        environment,
        output,
    )
    return output


def run(command, environment, folder):
    finished = subprocess.run(
        [sys.executable, *command], env=environment, cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert finished.returncode == 0, finished.stdout + finished.stderr


@pytest.fixture(scope="module")
def logits(repository):
    """What the model says about the photo in this process."""
    inputs = processor()(Image.open(repository / "photo.jpg"), return_tensors="pt")
    with torch.no_grad():
        return GlamSwinForSemanticSegmentation.from_pretrained(repository)(**inputs).logits.numpy()


@pytest.mark.processes
def test_two_processes_without_contextseg_the_folder_gives_the_same_bits(stranger, logits):
    report = json.loads((stranger / "report.json").read_text())
    assert report["importable"] is False
    assert report["from_checkout"] == []
    assert report["class"].startswith("transformers_modules.")
    assert np.array_equal(np.load(stranger / "0.npy"), logits)


@pytest.mark.processes
def test_two_processes_without_contextseg_both_backends_of_the_processor_open(stranger):
    report = json.loads((stranger / "report.json").read_text())
    assert report["processors"] == ["SegmentationImageProcessor", "SegmentationImageProcessorPil"]


@pytest.mark.processes
def test_two_processes_saved_again_without_contextseg_it_still_opens(stranger, logits):
    assert np.array_equal(np.load(stranger / "1.npy"), logits)


@pytest.mark.processes
def test_two_processes_pulled_from_the_hub_the_bits_are_the_same(stranger, logits):
    assert np.array_equal(np.load(stranger / "2.npy"), logits)


@pytest.mark.processes
def test_two_processes_a_model_that_trainer_pushed_opens(stranger, logits):
    trained = np.load(stranger / "3.npy")
    assert trained.shape == logits.shape
    assert np.isfinite(trained).all()
    assert not np.array_equal(trained, logits)


@pytest.mark.processes
def test_two_processes_the_cards_lines_run_and_the_pipeline_agrees_with_the_model(stranger):
    report = json.loads((stranger / "report.json").read_text())
    assert report["printed"].splitlines()
    assert report["pipeline_agrees"] == [True] * report["classes_found"]
    assert report["errors"] == []


@pytest.mark.processes
def test_two_processes_every_push_holds_the_code_that_it_names(published):
    for name, commits in published.repositories.items():
        for files in commits:
            named = json.loads(files.get("config.json", "{}")).get("auto_map", {})
            assert {f"{entry.partition('.')[0]}.py" for entry in named.values()} <= set(files), name
    assert len(published.repositories["me/trained"]) >= 3  # empty, checkpoints, end


@pytest.mark.processes
def test_two_processes_the_pushed_repository_is_the_saved_one_under_its_own_name(published, repository):
    pushed, saved = published.files("me/pushed"), contents(repository)
    for name in ("photo.jpg", ".gitattributes"):
        pushed.pop(name, None)
        saved.pop(name, None)
    card = ModelCard(pushed.pop("README.md").decode())
    saved.pop("README.md")
    assert pushed == saved
    assert 'model="me/pushed"' in card.text
    assert "| 0 | road | #804080 |" in card.text
    assert "streets" in card.data.tags


@pytest.mark.processes
def test_two_processes_trainers_card_names_the_task(published):
    card = ModelCard(published.files("me/trained")["README.md"].decode())
    assert {"contextseg", "image-segmentation", "generated_from_trainer"} <= set(card.data.tags)


@pytest.mark.parametrize("way", ["me/saved", "me/exported"])
@pytest.mark.processes
def test_two_processes_other_ways_to_push_bring_the_code_as_well(published, way):
    files = set(published.files(way))
    assert {"README.md", "config.json", "model.safetensors", "modeling_glam_swin.py"} <= files
