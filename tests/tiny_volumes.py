"""A small nnU-Net folder, and options that make training on it take a moment."""

import json

import numpy as np

SHAPE, AFFINE = (16, 17, 12), np.array([[-1, 0.1, 0, 5], [0.1, 1, 0, -7], [0, 0, 1.5, 11], [0, 0, 0, 1]])
STORED = {"edema": 2, "core": 9, "ignore": 7}
LABELS = {
    "background": 0,
    "whole": [STORED["edema"], STORED["core"]],
    "core": STORED["core"],
    "ignore": STORED["ignore"],
}
NETWORK = [
    *("--model", "nnformer", "--preset", "nano"),
    *("--set", "depths=[1,1,1,1]", "embed_dim=16", "num_heads=[1,1,2,2]"),
]


def write_cases(root, names, *, seed=0):
    """Adds cases of two channels with a box in a box, brighter than the noise; the first row is ignored.

    The first channel has the outer box, the second the inner one.
    """
    import nibabel

    random = np.random.default_rng(seed)
    for folder in ("imagesTr", "labelsTr"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for name in names:
        label = np.zeros(SHAPE, np.uint8)
        at = [int(random.integers(1, side - 7)) for side in SHAPE]
        label[tuple(slice(start, start + 6) for start in at)] = STORED["edema"]
        label[tuple(slice(start + 1, start + 5) for start in at)] = STORED["core"]
        channels = [label > 0, label == STORED["core"]]
        label[0] = STORED["ignore"]
        for index, channel in enumerate(channels):
            values = (400 * channel + random.normal(0, 100, SHAPE)).astype(np.int16)
            nibabel.save(nibabel.Nifti1Image(values, AFFINE), root / f"imagesTr/{name}_{index:04d}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(label, AFFINE), root / f"labelsTr/{name}.nii.gz")


def write_volumes(root, train=6, val=3):
    """A folder with these numbers of cases; `:train` and `:val` are its splits."""
    splits = {
        "train": [f"case_{index}" for index in range(train)],
        "val": [f"held_out_{index}" for index in range(val)],
    }
    write_cases(root, [name for names in splits.values() for name in names])
    table = {"channel_names": {"0": "T1", "1": "T2"}, "labels": LABELS, "regions_class_order": [2, 9]}
    content = {**table, "numTraining": train + val, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(content))
    (root / "splits_final.json").write_text(json.dumps([splits]))
    return root


def volume_options(data, output, *changes):
    """Options of a run on the folder that `write_volumes` returns; later ones override earlier ones."""
    places = ["--train", f"{data}:train", "--val", f"{data}:val", "--output", str(output)]
    short = ["--steps", "4", "--eval-interval", "2", "--batch-size", "2", "--learning-rate", "3e-3"]
    return [*places, *NETWORK, *short, "--workers", "0", "--tracker", "none", "--cpu", *changes]
