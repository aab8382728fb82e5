import pytest
from cases import each

from contextseg.training.checkpoints import model_folder
from contextseg.training.model_names import explained_absence


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    (tmp_path / "runs/streets/best").mkdir(parents=True)
    (tmp_path / "runs/streets/best/config.json").write_text("{}")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photo.jpg").touch()
    monkeypatch.chdir(tmp_path)


@each(
    ("name", "said"),
    [
        ("runs/streetz", "there is no folder runs/streetz, did you mean runs/streets"),
        ("runs/nothing", "there is no folder runs/nothing; .*runs holds streets"),
        ("runs/streets/last", "there is no folder runs/streets/last; .* holds best"),
        ("./nothing", "there is no folder nothing; .* holds photos, runs"),
        ("nowhere/at/all", "there is no folder nowhere/at/all"),
        ("~/nothing", "there is no folder ~/nothing"),
        ("runs\\nothing", "there is no folder"),
        ("photo.jpg", "photo.jpg is a file"),
        ("photos", "has no config.json, no best/ and no last/"),
    ],
)
def test_a_run_that_does_not_exist_is_a_missing_folder(name, said):
    with pytest.raises(ValueError, match=said):
        model_folder(name)


def test_the_last_checkpoint_is_never_taken_in_silence_for_a_damaged_best_one(tmp_path):
    for name in ("best", "last"):
        (tmp_path / name).mkdir()
    (tmp_path / "last" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="best lacks its config.json.*such as .*last"):
        model_folder(str(tmp_path))
    (tmp_path / "best").rmdir()
    assert model_folder(str(tmp_path)) == str(tmp_path / "last")


@each("name", ["me/model", "gpt2", "photos/model"])
def test_a_name_that_can_be_one_of_the_hub_is_left_to_it(name):
    assert model_folder(name) == name


def test_a_folder_is_missing_too_where_the_hub_does_not_answer():
    with (
        pytest.raises(
            ValueError, match="there is no folder me/model; .* holds photos, runs.*does not answer"
        ),
        explained_absence("me/model"),
    ):
        raise OSError("We couldn't connect to 'https://huggingface.co' to load the files.")


def test_an_error_of_a_folder_that_exists_stays():
    with pytest.raises(OSError, match="disk"), explained_absence("runs/streets"):
        raise OSError("disk")
