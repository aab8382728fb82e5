"""Claims about what users of transformers expect of any model: options of the configuration, copies, clear errors."""

import copy
import io
import json
import pickle

import pytest
import torch
from cases import each
from tiny import LABELS, SEGMENTERS, pixels_for, tiny_glam_swin, tiny_segdeformer
from transformers import AutoModelForSemanticSegmentation

from contextseg import GlamSwinConfig, GlamSwinForImageClassification, GlamSwinModel
from contextseg.modeling.losses import segmentation_loss

FAMILIES = ("glam_swin", "maformer", "cswin", "segdeformer", "glam_nnformer")


def tiny_classifier():
    sizes = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "window_size": 4, "num_global_tokens": 1}
    return GlamSwinForImageClassification(GlamSwinConfig(**sizes, id2label=LABELS, drop_path_rate=0.0))


MODELS = {name: SEGMENTERS[name] for name in FAMILIES} | {"classifier": tiny_classifier}
each_model = each("build", MODELS)


@torch.no_grad()
def run(model, **options):
    return model.eval()(ones_for(model), **options)


def ones_for(model):
    return torch.ones_like(pixels_for(model, 1, 3, 20, 24))


@each_model
def test_outputs_that_the_configuration_asks_for_are_returned_unless_the_call_says_no(build):
    model = build()
    model.set_attn_implementation("eager")
    asked = run(model, output_hidden_states=True, output_attentions=True)
    assert run(model).hidden_states is run(model).attentions is None
    model.config.output_hidden_states = model.config.output_attentions = True
    configured = run(model)
    assert len(configured.hidden_states) == len(asked.hidden_states) > 1
    assert len(configured.attentions) == len(asked.attentions) > 1
    refused = run(model, output_hidden_states=False, output_attentions=False)
    assert refused.hidden_states is refused.attentions is None


@each_model
def test_return_dict_of_the_configuration_gives_tuples_unless_the_call_says_otherwise(build):
    model = build()
    logits = run(model).logits
    model.config.return_dict = False
    (first,) = run(model)
    torch.testing.assert_close(first, logits, rtol=0, atol=0)
    torch.testing.assert_close(run(model, return_dict=True).logits, logits, rtol=0, atol=0)


@each_model
def test_a_model_in_half_precision_takes_images_in_full_precision(build):
    model = build().to(torch.bfloat16).eval()
    with torch.no_grad():
        logits = model(ones_for(model).bfloat16()).logits
    torch.testing.assert_close(run(model).logits, logits, rtol=0, atol=0)


def test_an_encoder_alone_follows_the_configuration_too():
    encoder = GlamSwinModel(tiny_classifier().config)
    encoder.config.output_hidden_states = True
    assert len(run(encoder).hidden_states) == 3
    encoder.config.return_dict = False
    assert isinstance(run(encoder), tuple)


def test_a_list_of_names_in_config_json_is_read(tmp_path):
    SEGMENTERS["glam_swin"]().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(json.loads(path.read_text()) | {"id2label": ["a", "b", "c"], "label2id": None})
    )
    assert AutoModelForSemanticSegmentation.from_pretrained(tmp_path).config.label2id == {
        "a": 0,
        "b": 1,
        "c": 2,
    }
    fewer = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, id2label=["c", "d"])
    assert (fewer.config.id2label, fewer.classifier.out_channels) == ({0: "c", 1: "d"}, 2)


def by_torch(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@each(
    "duplicate",
    {"deepcopy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m)), "torch.save": by_torch},
)
@each("build", [tiny_glam_swin, tiny_segdeformer])
def test_a_copy_of_a_fresh_and_of_a_used_model_works_as_the_model_does(build, duplicate):
    model = build()
    model.set_attn_implementation("eager")
    fresh = duplicate(model)
    expected = run(model, output_attentions=True)
    for one in (fresh, duplicate(model), model):
        outputs = run(one, output_attentions=True)
        torch.testing.assert_close(outputs.logits, expected.logits, rtol=0, atol=0)
        assert len(outputs.attentions) == len(expected.attentions)


def inputs(**changes):
    pixels, labels = torch.ones(2, 3, 16, 24), torch.zeros(2, 16, 24, dtype=torch.long)
    return {"pixel_values": pixels, "labels": labels} | {
        name: change({"pixel_values": pixels, "labels": labels}.get(name)) for name, change in changes.items()
    }


WRONG_INPUTS = {
    "array": ({"pixel_values": lambda p: p.numpy()}, "pixel_values is of type ndarray; a tensor"),
    "list": ({"pixel_values": list}, "pixel_values is of type list; a tensor"),
    "bytes": ({"pixel_values": lambda p: p.to(torch.uint8)}, "pixel_values are torch.uint8; floating point"),
    "one image": ({"pixel_values": lambda p: p[0]}, r"\(3, 16, 24\); \(batch, 3, height, width\)"),
    "gray": ({"pixel_values": lambda p: p[:, :1]}, r"\(2, 1, 16, 24\); \(batch, 3, height, width\)"),
    "empty": ({"pixel_values": lambda p: p[:0], "labels": lambda y: y[:0]}, "holds no pixels"),
    "no rows": ({"pixel_values": lambda p: p[:, :, :0]}, "holds no pixels"),
    "mask of numpy": ({"pixel_mask": lambda _: torch.ones(2, 16, 24).numpy()}, "pixel_mask is a ndarray"),
    "label array": ({"labels": lambda y: y.numpy()}, "labels are of type ndarray; a tensor"),
    "label list": ({"labels": lambda y: y.tolist()}, "labels are of type list; a tensor"),
    "small labels": ({"labels": lambda y: y[:, ::4, ::4]}, r"labels are 4x6, but the images are 16x24"),
    "label channel": ({"labels": lambda y: y[:, None]}, r"squeeze\(1\)"),
    "float labels": ({"labels": lambda y: y.float()}, r"pass labels.long\(\)"),
    "labels of one image": ({"labels": lambda y: y[0]}, r"must be \(2, height, width\)"),
}  # fmt: skip


@each(("changes", "message"), WRONG_INPUTS)
@pytest.mark.parametrize("build", [tiny_glam_swin, tiny_segdeformer])
def test_wrong_inputs_are_answered_in_one_sentence(build, changes, message):
    with pytest.raises(ValueError, match=message):
        build()(**inputs(**changes))


def test_a_loaded_model_keeps_the_weights_of_classes_by_name_in_every_spelling(tmp_path):
    model = tiny_glam_swin()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSemanticSegmentation.from_pretrained(
        tmp_path, id2label={"0": "sky", "1": "new"}, label2id={"sky": "0", "new": "1"}
    )
    assert (loaded.config.id2label, loaded.config.label2id) == ({0: "sky", 1: "new"}, {"sky": 0, "new": 1})
    assert torch.equal(loaded.classifier.weight[0], model.classifier.weight[1])
    assert loaded.classifier.out_channels == 2
    model.replace_labels(["sky", "road"])
    assert (model.config.label2id, model.classifier.out_channels) == ({"sky": 0, "road": 1}, 2)


def test_a_class_that_is_the_ignore_index_is_told():
    logits, labels = torch.randn(1, 300, 2, 2), torch.tensor([[[255, 299], [0, 1]]])
    with pytest.warns(UserWarning, match="class 255 is not learned.*semantic_loss_ignore_index"):
        segmentation_loss(logits, labels)
    segmentation_loss(logits, labels, ignore_index=65535)
    segmentation_loss(logits[:, :255], labels.clamp(max=254))


def test_training_with_one_class_warns_that_nothing_is_learned():
    model = tiny_glam_swin(id2label={0: "road"})
    with pytest.warns(UserWarning, match="only one class.*nothing is learned"):
        loss = model(**inputs()).loss
    assert loss == 0
