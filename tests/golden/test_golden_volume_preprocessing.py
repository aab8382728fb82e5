"""Resampling and CT normalization equal the authors' preprocessing."""

import numpy as np
import pytest
from golden_cases import cases_of_kind

from contextseg import VolumeImageProcessor
from contextseg.processing.volumes.volume_reading import read_volume


@pytest.mark.parametrize("case", cases_of_kind("nnformer", "ct_preprocessing"))
def test_prepared_volumes_and_labels_equal_the_authors(case):
    pytest.importorskip("scipy")
    settings = case.description["constructor"]
    intensity = {("std" if name == "sd" else name): value for name, value in settings["intensity"].items()}
    for name, scan in settings["cases"].items():
        processor = VolumeImageProcessor(
            target_spacing=scan["target_spacing"], normalization="ct", intensity=intensity
        )
        volume = read_volume(case.tensors[f"image_{name}"], spacing=scan["spacing"])
        prepared = processor.prepare(volume, case.tensors[f"label_{name}"][0].numpy())
        expected = case.tensors[f"out.image_{name}"].numpy()
        np.testing.assert_allclose(prepared.values, expected, rtol=0, atol=case.tolerance)
        np.testing.assert_array_equal(prepared.mask, case.tensors[f"out.label_{name}"][0].numpy())
