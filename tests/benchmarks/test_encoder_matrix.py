"""The page of encoders names every kind of the versions that it is about, and says of each what still holds."""

from importlib.metadata import version
from pathlib import Path

import pytest
from cases import each

from contextseg.benchmarks import encoder_matrix
from contextseg.benchmarks.encoder_configs import timm_families, transformers_types
from contextseg.benchmarks.encoder_matrix import Row, kept_rows, page, read_rows

PAGE = Path(encoder_matrix.__file__).parents[1] / "docs" / "reference" / "encoders.md"
ROWS = [
    Row("transformers", "resnet", "resnet", "works", "4, 8", ""),
    Row("timm", "beit", "beit_base_patch16_224", "one size only", "16, 16", "Images are padded to 224x224."),
]
# One of each kind: any size, one size, refused; those that once failed.
SAMPLE = {"transformers": ("dinat", "vitpose_backbone", "pp_lcnet_v4"), "timm": ("efficientvim", "convit")}


@pytest.fixture
def rows():
    return read_rows(PAGE.read_text(encoding="utf-8"))


@each("library", ("transformers", "timm"))
def test_the_page_has_every_kind_of_the_versions_that_it_names(rows, library):
    try:
        kept_rows(PAGE)
    except ValueError:
        pytest.skip(f"the page is not about {library} {version(library)}")
    known = {"transformers": transformers_types, "timm": timm_families}[library]()
    assert [row.kind for row in rows if row.library == library] == known


def test_no_encoder_fails_and_whatever_does_not_work_says_why(rows):
    assert {row.result for row in rows} == {"works", "one size only", "refused"}
    assert [row.kind for row in rows if row.result != "works" and not row.remark] == []


def test_a_page_is_read_as_it_was_written(tmp_path):
    file = tmp_path / "encoders.md"
    file.write_text(page(ROWS))
    assert kept_rows(file) == ROWS


def test_rows_of_other_versions_are_not_kept(tmp_path):
    file = tmp_path / "encoders.md"
    file.write_text(page(ROWS).replace(version("timm"), "0.1"))
    with pytest.raises(ValueError, match="Write it anew, without --only"):
        kept_rows(file)


@pytest.mark.slow
@pytest.mark.processes
def test_rows_of_the_page_hold_today(rows, tmp_path):
    file = tmp_path / "encoders.md"
    file.write_text(page(ROWS))
    names = [name for sample in SAMPLE.values() for name in sample]
    assert encoder_matrix.main(["--only", ",".join(names), "--output", str(file)]) == 0
    assert [row for row in kept_rows(file) if row.kind in names] == [row for row in rows if row.kind in names]
    assert len(kept_rows(file)) == len(ROWS) + len(names)
