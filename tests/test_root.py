"""What `import contextseg` promises: it costs next to nothing, and transformers knows our types from then on."""

import subprocess
import sys
from pathlib import Path

import pytest

import contextseg

ROOT = Path(contextseg.__file__).parent


def run(*lines):
    """What a fresh Python prints."""
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.processes
def test_importing_contextseg_loads_neither_torch_nor_transformers():
    loaded = run("import sys, contextseg", "print(*{name.partition('.')[0] for name in sys.modules})")
    assert not {"torch", "torchvision", "transformers", "timm", "accelerate", "datasets"} & set(loaded)


@pytest.mark.processes
@pytest.mark.parametrize(
    "lines",
    [
        ["import contextseg", "from transformers import AutoConfig"],
        ["from transformers import AutoConfig, AutoModelForSemanticSegmentation", "import contextseg"],
        ["import contextseg", "import torch, torchvision", "from transformers import AutoConfig, PreTrainedModel"],
        ["from contextseg.modeling.modeling_segdeformer import SegDeformerConfig", "from transformers import AutoConfig"],
        ["import contextseg", "from transformers import SegformerForSemanticSegmentation, AutoConfig"],
        ["import contextseg", "from transformers import DetrImageProcessor, AutoConfig"],
    ],
    ids=["contextseg first", "transformers first", "between", "a module of ours first", "a model first", "a processor first"],
)  # fmt: skip
def test_auto_classes_know_our_models_whatever_is_imported_first(lines):
    names = run(
        *lines,
        "config = AutoConfig.for_model('glam_swin', depths=(1, 1), num_heads=(1, 2), embed_dim=8)",
        "from transformers import AutoModelForSemanticSegmentation as Auto",
        "model = Auto.from_config(config)",
        "print(type(config).__name__, type(model).__name__, model.save_pretrained.__module__)",
        "from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING as known",
        "print(*(kind.__name__ for kind in known[type(config)].values()))",
    )
    assert names == [
        "GlamSwinConfig",
        "GlamSwinForSemanticSegmentation",
        "contextseg.modeling.pretrained",
        "SegmentationImageProcessor",
        "SegmentationImageProcessorPil",
    ]


def test_every_public_name_can_be_imported():
    assert [name for name in contextseg.__all__ if getattr(contextseg, name, None) is None] == []


def test_a_missing_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="GlamSwinn"):
        _ = contextseg.GlamSwinn


def test_the_stub_and_the_marker_of_types_are_part_of_the_package():
    assert (ROOT / "py.typed").is_file()
    assert (ROOT / "__init__.pyi").is_file()
