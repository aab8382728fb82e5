"""Volumes are read in one orientation whatever their storage order, and masks go back to the file's own grid."""

import os
from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoImageProcessor

from contextseg import VolumeImageProcessor, read_label_volume, read_volume, write_label_volume
from contextseg.processing.volumes.volume_opening import VolumeReadError
from contextseg.processing.volumes.volume_reading import read_volume_geometry, volume_name
from contextseg.processing.volumes.volume_resampling import resample_labels

nibabel = pytest.importorskip("nibabel")
MISC = Path(os.environ.get("CONTEXTSEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / "volumes-misc"
SCANS = sorted(path.parent for path in MISC.glob("*/image.nii.gz"))
AFFINE = np.array([[1.0, 0.02, 0, -20], [0, 1.5, 0.03, 30], [0, -0.1, 2, 5], [0, 0, 0, 1]])


def scan(kind=np.int16):
    return np.arange(5 * 6 * 7, dtype=kind).reshape(5, 6, 7)


def save(path, values, affine=AFFINE, edit=None):
    image = nibabel.Nifti1Image(values, affine, dtype=values.dtype)
    if edit:
        edit(image.header)
    nibabel.save(image, path)
    return path


def test_all_48_storage_orders_give_one_volume_and_masks_go_back(tmp_path):
    base = nibabel.Nifti1Image(scan(), AFFINE)
    expected = scan().transpose(2, 1, 0)
    for order, signs in product(permutations(range(3)), product((1, -1), repeat=3)):
        stored = base.as_reoriented(np.array(list(zip(order, signs, strict=True))))
        volume = read_volume(stored)
        np.testing.assert_array_equal(volume.values[0], expected)
        np.testing.assert_array_equal(volume.geometry.to_file(volume.values[0]), stored.get_fdata())
        write_label_volume(tmp_path / "mask.nii", expected, volume.geometry)
        written = nibabel.load(tmp_path / "mask.nii")
        np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(stored.dataobj))
        np.testing.assert_allclose(written.affine, stored.affine, atol=1e-6)


def test_a_mask_carries_both_forms_codes_and_voxel_sizes(tmp_path):
    turned = np.diag([1.0, 1.5, 2, 1])

    def edit(header):
        header.set_qform(turned, 1)
        header.set_sform(AFFINE, 3)
        header["pixdim"][1:4] = 0.683594, 1.5, 6.3

    path = save(tmp_path / "scan.nii.gz", scan()[..., None], edit=edit)
    write_label_volume(tmp_path / "mask.nii.gz", np.full((7, 6, 5), 300), read_volume_geometry(path))
    mask, image = (nibabel.load(tmp_path / name) for name in ("mask.nii.gz", "scan.nii.gz"))
    for name in ("qform_code", "sform_code", "srow_x", "quatern_b", "xyzt_units"):
        assert (mask.header[name] == image.header[name]).all(), name
    assert (mask.header["pixdim"][:4] == image.header["pixdim"][:4]).all()
    assert (mask.shape, mask.get_data_dtype()) == ((5, 6, 7), np.uint16)


@pytest.mark.parametrize("size", [0.0, np.nan])
def test_a_sound_sform_counts_where_pixdim_is_wrong(tmp_path, size):
    path = save(tmp_path / "scan.nii", scan(), edit=lambda header: header.set_sform(AFFINE, 1))
    raw = bytearray(path.read_bytes())
    raw[80:92] = np.full(3, size, "<f4").tobytes()
    path.write_bytes(raw)
    np.testing.assert_allclose(read_volume(path).geometry.affine, AFFINE, atol=1e-6)
    raw[254:256] = raw[252:254] = b"\0\0"  # neither form has a code
    path.write_bytes(raw)
    with pytest.raises(VolumeReadError, match="spacing"):
        read_volume(path)


def test_values_are_scaled_and_big_endian_is_read(tmp_path):
    path = save(tmp_path / "a.nii.gz", scan(), edit=lambda header: header.set_slope_inter(0.5, -3))
    image = nibabel.Nifti1Image(scan(), AFFINE, nibabel.Nifti1Header(endianness=">"))
    assert image.header.endianness == ">"
    nibabel.save(image, tmp_path / "b.nii")
    np.testing.assert_allclose(read_volume(path).values, read_volume(tmp_path / "b.nii").values * 0.5 - 3)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (np.zeros((4, 4, 4), [("R", "u1"), ("G", "u1"), ("B", "u1")]), "RGB"),
        (np.zeros((4, 4, 4), np.complex64), "complex64"),
        (np.zeros((4, 4, 4, 4), np.int16), "4 channels"),
    ],
)
def test_what_is_no_scan_of_one_channel_is_refused_by_name(tmp_path, values, words):
    with pytest.raises(VolumeReadError, match=f"scan.nii.*{words}"):
        read_volume(save(tmp_path / "scan.nii", values), num_channels=1)


def flipped(file):
    return file[:5000] + bytes([file[5000] ^ 255]) + file[5001:]


@pytest.mark.parametrize(
    "damage", [lambda file: file[:3000], lambda file: file[:-8], lambda file: file[:-1], flipped]
)
def test_a_damaged_file_is_refused_by_name(tmp_path, damage):
    """Also where every voxel can still be read, and only the checksum is missing or wrong."""
    path = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).integers(0, 999, (20, 20, 20), np.int16))
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(VolumeReadError, match="scan.nii.gz"):
        read_volume(path)


def test_voxels_that_are_not_finite_are_the_smallest_value():
    values = np.ones((1, 2, 3, 4), np.float32)
    values[0, 0, 0, 0], values[0, 0, 0, 1], values[0, 0, 0, 2] = np.nan, np.inf, -5
    with pytest.warns(UserWarning, match="2 voxels"):
        assert read_volume(values).values[0, 0, 0].tolist() == [-5, -5, -5, 1]


def test_labels_are_whole_numbers_of_any_type_on_the_volumes_grid(tmp_path):
    labels = save(tmp_path / "label.nii", scan(np.float32) + 1e-5)
    volume = read_volume(save(tmp_path / "scan.nii", scan()))
    np.testing.assert_array_equal(read_label_volume(labels, volume), scan().transpose(2, 1, 0))
    assert read_label_volume(np.full((1, 1, 1), 1 << 40)).dtype == np.int64
    with pytest.raises(VolumeReadError, match="whole numbers"):
        read_label_volume(save(tmp_path / "soft.nii", np.full((5, 6, 7), 0.4, np.float32)), volume)
    moved = AFFINE + np.eye(4)[:, [1, 2, 3, 0]] * np.array([0, 0, 0, 5])[None]
    with pytest.raises(VolumeReadError, match="another grid"):
        read_label_volume(save(tmp_path / "moved.nii", scan(), moved), volume)


def test_names_keep_their_dots():
    assert volume_name("a/case.1.2.nii.gz") == "case.1.2"


def test_an_axis_of_one_slice_stays_and_linear_ties_fall_to_the_later_label():
    assert read_volume(np.zeros((1, 4, 5))).size == (1, 4, 5)
    pair = np.array([[[1, 2]]])
    assert resample_labels(pair, (1, 1, 1), (1, 1, 1), (1, 1, 2)).item() == 2


def test_options_survive_saving(tmp_path):
    processor = VolumeImageProcessor(
        target_spacing=(3, 1, 1), label_map={7: 0, 9: "ignore"}, regions={"all": (0,)}
    )
    processor.save_pretrained(tmp_path)
    assert AutoImageProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()


def test_pipelines_of_transformers_are_refused_in_one_sentence(tmp_path):
    VolumeImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="^transformers' pipelines take no volumes. Call Inference"):
        AutoImageProcessor.from_pretrained(tmp_path, _from_pipeline="image-segmentation", dtype="auto")


def test_a_damaged_file_of_options_is_named(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text("[1]")
    with pytest.raises(ValueError, match="preprocessor_config.json of .* is damaged"):
        VolumeImageProcessor.from_pretrained(tmp_path)


@pytest.mark.skipif(not SCANS, reason=f"no {MISC}; set CONTEXTSEG_DATA")
@pytest.mark.parametrize("folder", SCANS, ids=lambda path: path.name)
def test_labels_of_a_scan_come_back_on_its_own_grid(tmp_path, folder):
    volume, image = read_volume(folder / "image.nii.gz"), nibabel.load(folder / "image.nii.gz")
    mask = (volume.values[0] > volume.values.mean()).astype(np.int64)
    prepared = VolumeImageProcessor(crop_to_nonzero=True).prepare(volume, mask)
    write_label_volume(tmp_path / "m.nii.gz", prepared.frame.restore_mask(prepared.mask), volume.geometry)
    written = nibabel.load(tmp_path / "m.nii.gz")
    expected = image.get_fdata(dtype=np.float32) > volume.values.mean()
    np.testing.assert_array_equal(np.asarray(written.dataobj), expected)
    assert (written.affine == image.affine).all()
    assert (written.header["pixdim"][:4] == image.header["pixdim"][:4]).all()
