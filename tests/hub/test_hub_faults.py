"""Pushes that fail: nothing half done is left on the Hub or here, the message says what to do, and the next push succeeds."""

from types import SimpleNamespace

import pytest
import torch
from cases import slow_but
from huggingface_hub.errors import OfflineModeIsEnabled
from loopback_hub import HANG_UP, LOSE_REPLY, Fault, loopback_hub

from contextseg import GlamSwinConfig, GlamSwinForSemanticSegmentation, SegmentationImageProcessor
from contextseg.hub.errors import HubError
from contextseg.hub.repositories import upload
from contextseg.training.command_line import CommandError
from contextseg.training.finetuning import push

NAME = "me/streets"
LARGE_FILE, COMMIT, CREATE = r"PUT /_lfs/", r"POST /api/models/.*/commit/", r"POST /api/repos/create"
CARD = r"HEAD /.*/resolve/.*/README.md"


@pytest.fixture(scope="module")
def hub():
    with loopback_hub() as hub:
        yield hub


@pytest.fixture
def pushing(hub, monkeypatch, tmp_path):
    """An empty Hub for this process."""
    hub.repositories.clear()
    hub.large_files.clear()
    hub.faults.clear()
    hub.requests.clear()
    hub.adopt_this_process(monkeypatch, tmp_path / "cache")
    return hub


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    GlamSwinForSemanticSegmentation(
        GlamSwinConfig.preset("nano", id2label={0: "road", 1: "tree"})
    ).save_pretrained(path)
    SegmentationImageProcessor().save_pretrained(path)
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


FAULTS = {
    "the connection ends in the middle of the weights": (LARGE_FILE, HANG_UP, "the connection was lost"),
    "the connection ends in the middle of the commit": (COMMIT, HANG_UP, "the connection was lost"),
    "the connection ends while the card is read": (CARD, HANG_UP, "the connection was lost"),
    "401 at the start": (
        CREATE,
        401,
        r"does not accept the token \(401: said\). Log in with `hf auth login`",
    ),
    "401 at the commit": (COMMIT, 401, "does not accept the token"),
    "403 at the start": (CREATE, 403, r"has no write access \(403: said\). Choose your own repository"),
    "403 at the commit": (COMMIT, 403, "has no write access"),
    "409 at the commit": (COMMIT, 409, r"another push changed the repository meanwhile \(409: said\)"),
    "429 at the start": (CREATE, 429, "rate limit reached"),
    "500 at the start": (CREATE, 500, r"a server error \(500: said\)"),
    "500 at the weights": (LARGE_FILE, 500, r"a server error \(500: said\)"),
    "500 at the commit": (COMMIT, 500, r"a server error \(500: said\)"),
    "500 while the front matter is checked": ("POST /api/validate-yaml", 500, "a server error"),
    "400": (COMMIT, 400, r"rejected the request \(400: said\)"),
}


@pytest.mark.parametrize(
    "fault",
    slow_but(
        FAULTS, "the connection ends in the middle of the weights", "401 at the start", "409 at the commit"
    ),
)
def test_a_push_that_fails_leaves_nothing_behind_and_the_next_one_succeeds(pushing, folder, fault):
    (request_, happens, message), before = FAULTS[fault], contents(folder)
    pushing.faults.append(Fault(request_, happens, message="said"))
    with pytest.raises(HubError, match=f"me/streets was not pushed: .*{message}.*, and push again"):
        upload(folder, NAME, commit_message="first")
    assert pushing.repositories.get(NAME, [{}]) == [{}]
    assert contents(folder) == before
    pushing.faults.clear()
    upload(folder, NAME, commit_message="second")
    assert set(pushing.files(NAME)) == set(before)
    assert pushing.files(NAME)["model.safetensors"] == before["model.safetensors"]


def test_a_short_fault_of_the_hub_is_overcome_without_the_user(pushing, folder):
    pushing.faults.append(Fault(LARGE_FILE, 500, times=2))
    upload(folder, NAME, commit_message="first")
    assert pushing.files(NAME)["model.safetensors"] == (folder / "model.safetensors").read_bytes()


def test_weights_that_arrived_are_not_sent_again(pushing, folder):
    pushing.faults.append(Fault(COMMIT, 500, times=1))
    with pytest.raises(HubError):
        upload(folder, NAME, commit_message="first")
    upload(folder, NAME, commit_message="second")
    assert sum(request.startswith("PUT") for request in pushing.requests) == 1


def test_a_commit_whose_answer_was_lost_is_not_made_twice(pushing, folder):
    pushing.faults.append(Fault(COMMIT, LOSE_REPLY, times=1))
    with pytest.raises(HubError, match="does not upload files twice or commit twice"):
        upload(folder, NAME, commit_message="first")
    upload(folder, NAME, commit_message="second")
    assert len(pushing.repositories[NAME]) == 2  # the empty one, and ours


def test_what_somebody_else_pushed_meanwhile_is_not_overwritten(pushing, folder, monkeypatch):
    upload(folder, NAME, commit_message="first")
    theirs = {**pushing.files(NAME), "README.md": b"# Theirs\n"}

    def interfere(*_, **__):
        pushing.repositories[NAME].append(theirs)

    monkeypatch.setattr("contextseg.hub.repositories.complete_card", interfere)
    with pytest.raises(
        HubError, match="another push changed the repository meanwhile .412: A commit has happened since"
    ):
        upload(folder, NAME, commit_message="second")
    assert pushing.files(NAME) == theirs


def test_without_a_token_it_says_how_to_log_in(pushing, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(HubError, match="no token was found, and the Hub requires one .401.*hf auth login"):
        upload(folder, NAME, commit_message="first")
    assert pushing.repositories == {}


def test_a_wrong_token_is_distinguished_from_a_missing_one(pushing, folder):
    assert pushing.repositories == {}
    with pytest.raises(HubError, match="does not accept the token"):
        upload(folder, NAME, commit_message="first", token="hf_other")


def test_offline_it_says_which_variable_to_unset(pushing, folder, monkeypatch):  # noqa: ARG001
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="Unset HF_HUB_OFFLINE"):
        upload(folder, NAME, commit_message="first")


def test_a_push_of_trainer_that_fails_names_the_command_that_needs_no_training():
    def push_to_hub(**_):
        raise OfflineModeIsEnabled

    trainer = SimpleNamespace(
        hub_model_id="me/tuned", args=SimpleNamespace(output_dir="runs/tuned"), push_to_hub=push_to_hub
    )
    with pytest.raises(
        CommandError, match="Unset HF_HUB_OFFLINE.*contextseg-export runs/tuned --push me/tuned"
    ):
        push(trainer)


def test_an_error_that_is_not_of_the_hub_stays_what_it_is(pushing, folder, monkeypatch):  # noqa: ARG001
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("contextseg.hub.repositories.complete_card", fail)
    with pytest.raises(RuntimeError, match="^out of memory$"):
        upload(folder, NAME, commit_message="first")


def test_front_matter_that_the_hub_refuses_is_quoted(pushing, folder, tmp_path):
    for name, content in contents(folder).items():
        (tmp_path / name).write_bytes(content)
    card = (tmp_path / "README.md").read_text()
    (tmp_path / "README.md").write_text(card.replace("---\n", "---\nbase_model: no name\n", 1))
    with pytest.raises(HubError, match='"base_model" has no valid name: .no name.*Correct its front matter'):
        upload(tmp_path, NAME, commit_message="first")
    assert pushing.files(NAME) == {}


def test_weights_in_other_pieces_take_the_place_of_those_on_the_hub(pushing, folder):
    upload(folder, NAME, commit_message="whole")
    GlamSwinForSemanticSegmentation.from_pretrained(folder).push_to_hub(NAME, max_shard_size="400KB")
    weights = [file for file in pushing.files(NAME) if file.startswith("model")]
    assert "model.safetensors.index.json" in weights
    assert "model.safetensors" not in weights


def test_scores_on_the_hub_do_not_outlive_their_weights(pushing, folder, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"mean_iou": 0.9}')
    for name, content in contents(folder).items():
        (tmp_path / name).write_bytes(content)
    upload(tmp_path, NAME, commit_message="with scores")
    assert b"0.9" in pushing.files(NAME)["README.md"]
    GlamSwinForSemanticSegmentation.from_pretrained(folder).push_to_hub(NAME)
    SegmentationImageProcessor().push_to_hub(NAME)
    assert "evaluation.json" not in pushing.files(NAME)
    assert b"0.9" not in pushing.files(NAME)["README.md"]
