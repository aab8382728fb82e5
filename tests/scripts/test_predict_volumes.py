"""contextseg-predict on volumes: ids in mask files, interruptions, full disks, and options that are refused."""

import errno
import gzip
import re

import numpy as np
import pytest
from cases import each
from tiny import tiny_nnformer

from contextseg import VolumeImageProcessor
from contextseg.processing.volumes.volume_prediction import VolumePredictor
from contextseg.scripts.predict import main

nibabel = pytest.importorskip("nibabel")
IDS = {"0": 0, "7": 1, "1000": 2}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A model in model/, three volumes in scans/."""
    root = tmp_path_factory.mktemp("volumes")
    tiny_nnformer().save_pretrained(root / "model")
    VolumeImageProcessor(label_map=IDS).save_pretrained(root / "model")
    (root / "scans").mkdir()
    for index, name in enumerate(("a", "b.1", "c")):
        values = np.random.default_rng(index).integers(-100, 100, (18, 17, 5)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(values, np.diag([-1, 2, 3, 1])), root / f"scans/{name}.nii.gz")
    return root


def predicted(place, output, *options):
    return main([str(place / "model"), str(place / "scans"), "--output", str(output), "--cpu", *options])


def written(output):
    return sorted(path.relative_to(output).as_posix() for path in output.rglob("*.*"))


def test_mask_files_have_the_ids_of_the_training_labels(place, tmp_path):
    assert predicted(place, tmp_path) == 0
    assert written(tmp_path) == ["a.nii.gz", "b.1.nii.gz", "c.nii.gz"]
    mask = nibabel.load(tmp_path / "b.1.nii.gz")
    assert mask.get_data_dtype() == np.uint16
    assert set(np.unique(mask.dataobj)) <= set(map(int, IDS))
    assert mask.shape == (18, 17, 5)


@each("workers", ["0", "2"])
def test_an_interruption_leaves_complete_files_and_the_next_run_goes_on(
    place, tmp_path, workers, capsys, monkeypatch
):
    """It comes while the bands of the second volume are added to its maps."""
    predict, seen = VolumePredictor.mask_beside_maps, []

    def stopped(self, bands, size, box, maps):
        def until(bands):
            yield next(bands)
            if len(seen) == 2:
                raise KeyboardInterrupt
            yield from bands

        seen.append(maps)
        return predict(self, until(bands), size, box, maps)

    monkeypatch.setattr(VolumePredictor, "mask_beside_maps", stopped)
    options = ["--skip-existing", "--probabilities", "--workers", workers]
    with pytest.raises(SystemExit) as stop:
        predicted(place, tmp_path, *options)
    told = capsys.readouterr().err
    assert stop.value.code == 130
    assert re.search("1 of 3 volumes are segmented; .* are complete. Run the command again with", told)
    assert "raster" not in told
    assert written(tmp_path) == ["a.nii.gz", "probabilities/a.npy"]
    assert predicted(place, tmp_path, *options) == 0
    assert "2 of 3 volumes segmented, 1 skipped" in capsys.readouterr().out


def test_a_full_disk_is_told_with_the_file_that_did_not_fit(place, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gzip.GzipFile, "write", full)
    with pytest.raises(SystemExit, match=r"No space left on device: '.*a\.nii\.gz'\. Free some space"):
        predicted(place, tmp_path / "out")
    assert written(tmp_path / "out") == []


@each(
    ("options", "words"),
    [
        (["--num-channels", "2"], r"--num-channels is 2, but the model takes 1 channel\."),
        (["--overlay"], "--overlay has no effect"),
        (["--window", "16x16"], "volumes have three axes"),
    ],
)
def test_options_that_do_not_fit_are_refused(place, tmp_path, options, words):
    with pytest.raises(SystemExit, match=words):
        predicted(place, tmp_path, *options)
