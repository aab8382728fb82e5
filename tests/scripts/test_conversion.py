"""Conversion: the engine accepts no leftovers, and Swin checkpoints of every layout compute the same here."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from cases import each
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    PreTrainedModel,
    SwinBackbone,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)

from contextseg.configuration.configuration_glam_swin import GlamSwinConfig
from contextseg.modeling.modeling_glam_swin import (
    GlamSwinBackbone,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
)
from contextseg.modeling.renaming import RenamingTable, fill
from contextseg.modeling.swin_checkpoints import resize_bias_table
from contextseg.scripts.conversion.glam_official import glam_swin_from_official
from contextseg.scripts.conversion.glam_position_tables import center_rows, num_global_positions
from contextseg.scripts.convert_weights import main

SIZES = [
    (64, 64),
    (61, 90),
    (9, 23),
]  # square; odd; with grids smaller than the window from the first stage on
STAGES = ["stage1", "stage2", "stage3", "stage4"]
NAMES = {0: "road", 1: "sky", 2: "tree"}


def swin_config(**options) -> SwinConfig:
    return SwinConfig(
        embed_dim=8, depths=[2, 2, 1, 1], num_heads=[1, 2, 2, 4], window_size=4, image_size=32, **options
    )


def randomized(model: PreTrainedModel) -> PreTrainedModel:
    """Every parameter and buffer away from its neutral value: biases, norms, relative positions, running statistics."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.randn(tensor.shape, generator=generator) * 0.2
                tensor.copy_(1 + noise.abs() if re.search(r"norm\w*\.(weight|running_var)$", name) else noise)
    return model.eval()


@pytest.fixture(scope="module")
def backbone_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin_backbone")
    randomized(SwinBackbone(swin_config(out_features=STAGES))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("swin_classifier")
    randomized(SwinForImageClassification(swin_config(id2label=NAMES))).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def upernet_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("upernet_swin")
    config = UperNetConfig(
        backbone_config=swin_config(out_features=STAGES),
        hidden_size=12,
        auxiliary_channels=10,
        id2label=NAMES,
        label2id={name: index for index, name in NAMES.items()},
    )
    randomized(UperNetForSemanticSegmentation(config)).save_pretrained(folder)
    return folder


def rewritten(source, target, rename, write=None):
    """A copy of a checkpoint folder under other tensor names, with the index buffers that old checkpoints hold."""
    tensors = {rename(name): tensor for name, tensor in load_file(source / "model.safetensors").items()}
    for name in [name for name in tensors if name.endswith("relative_position_bias_table")]:
        tensors[name.replace("bias_table", "index")] = torch.zeros(16, 16, dtype=torch.long)
    (target / "config.json").write_text((source / "config.json").read_text())
    if write is None:
        save_file(tensors, target / "model.safetensors")
    else:
        write(tensors)
    return target


OLD_NAMES = [
    (r"attention\.q_proj", "attention.self.query"),
    (r"attention\.k_proj", "attention.self.key"),
    (r"attention\.v_proj", "attention.self.value"),
    (r"attention\.o_proj", "attention.output.dense"),
    (r"attention\.relative_position_bias\.relative", "attention.self.relative"),
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
]
NEW_NAMES = [
    (r"attention\.self\.query", "attention.q_proj"),
    (r"attention\.self\.key", "attention.k_proj"),
    (r"attention\.self\.value", "attention.v_proj"),
    (r"attention\.output\.dense", "attention.o_proj"),
    (r"attention\.self\.relative", "attention.relative_position_bias.relative"),
    (r"intermediate\.dense", "mlp.fc1"),
    (r"output\.dense", "mlp.fc2"),
]


def substitute(pairs, prefix=""):
    def rename(name):
        for pattern, replacement in pairs:
            name = re.sub(pattern, replacement, name)
        return re.sub(r"^((?:backbone\.)?)(?:swin\.)?(embeddings|encoder|layernorm)", rf"\1{prefix}\2", name)

    return rename


OLD, NEW = substitute(OLD_NAMES), substitute(NEW_NAMES, prefix="swin.")


@each("size", [*SIZES])
@each("layout", ["written", "old", "in_memory"])
def test_backbone_of_every_layout_computes_what_transformers_computes(
    backbone_folder, tmp_path, layout, size
):
    theirs = SwinBackbone.from_pretrained(backbone_folder).eval()
    folder = backbone_folder
    if layout != "written":
        folder = rewritten(backbone_folder, tmp_path, OLD if layout == "old" else NEW)
    ours = GlamSwinBackbone.from_swin(folder, num_global_tokens=0)
    image = torch.randn(2, 3, *size)
    for mine, expected in zip(ours(image).feature_maps, theirs(image).feature_maps, strict=True):
        torch.testing.assert_close(mine, expected, rtol=0, atol=1e-5)


@each("size", [*SIZES])
@each("layout", ["written", "old", "in_memory"])
def test_upernet_of_every_layout_computes_what_transformers_computes(upernet_folder, tmp_path, layout, size):
    theirs = UperNetForSemanticSegmentation.from_pretrained(upernet_folder).eval()
    folder = upernet_folder
    if layout != "written":
        folder = rewritten(upernet_folder, tmp_path, OLD if layout == "old" else NEW)
    ours = GlamSwinForSemanticSegmentation.from_swin(folder, num_global_tokens=0)
    image = torch.randn(2, 3, *size)
    full = F.interpolate(ours(image).logits, size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, theirs(image).logits, rtol=0, atol=1e-5)
    auxiliary = F.interpolate(
        ours.auxiliary_head(ours.backbone(image).feature_maps[-2]), size, mode="bilinear"
    )
    expected = F.interpolate(
        theirs.auxiliary_head(theirs.backbone(image).feature_maps), size, mode="bilinear"
    )
    torch.testing.assert_close(auxiliary, expected, rtol=0, atol=1e-5)


def test_classifier_computes_what_transformers_computes_above_one_window(classifier_folder):
    # On a grid of one window transformers' classifier shrinks the window and does not shift; the backbones do.
    theirs = SwinForImageClassification.from_pretrained(classifier_folder).eval()
    ours = GlamSwinForImageClassification.from_swin(classifier_folder, num_global_tokens=0)
    image = torch.randn(2, 3, 150, 170)
    torch.testing.assert_close(ours(image).logits, theirs(image).logits, rtol=0, atol=1e-5)
    assert ours.config.id2label == NAMES


def test_model_folder_gives_the_last_hidden_state_of_transformers(tmp_path):
    theirs = randomized(SwinModel(swin_config()))
    theirs.save_pretrained(tmp_path)
    image = torch.randn(1, 3, 160, 140)
    ours = GlamSwinModel.from_swin(tmp_path, num_global_tokens=0)(image).last_hidden_state
    torch.testing.assert_close(ours, theirs(image).last_hidden_state, rtol=0, atol=1e-5)


def test_segmenter_from_a_classifier_takes_the_encoder_and_starts_the_rest_afresh(classifier_folder, caplog):
    model = GlamSwinForSemanticSegmentation.from_swin(
        classifier_folder, num_global_tokens=2, id2label=NAMES, decoder_hidden_size=8
    )
    assert not model.classifier.bias.any()
    stored = load_file(classifier_folder / "model.safetensors")
    query = model.backbone.encoder.stages[0].blocks[1].attention.q_proj.weight
    assert torch.equal(query, stored["swin.encoder.layers.0.blocks.1.attention.self.query.weight"])
    assert len(caplog.records) == 1
    for fresh in ("classifier", "decoder", "global_attention", "global_tokens", "norms"):
        assert fresh in caplog.text


def test_a_unet_from_a_classifier_starts_its_decoder_from_the_encoders_stages(classifier_folder):
    model = GlamSwinForSemanticSegmentation.from_swin(classifier_folder, num_global_tokens=0, decoder="unet")
    stages = model.backbone.encoder.stages[:-1]
    for step, stage in zip(model.decoder.steps, stages[::-1], strict=True):
        torch.testing.assert_close(step.stage.state_dict(), stage.state_dict(), rtol=0, atol=0)
    stored = load_file(classifier_folder / "model.safetensors")
    assert torch.equal(model.backbone.norms["stage4"].weight, stored["swin.layernorm.weight"])


def test_a_unet_from_upernet_leaves_the_heads_behind(upernet_folder):
    model = GlamSwinForSemanticSegmentation.from_swin(upernet_folder, decoder="unet")
    stored = load_file(upernet_folder / "model.safetensors")
    assert torch.equal(
        model.backbone.norms["stage4"].bias, stored["backbone.hidden_states_norms.stage4.bias"]
    )
    assert (model.config.decoder_hidden_size, model.auxiliary_head) == (8, None)


def test_new_labels_keep_the_rows_of_classes_with_equal_names(upernet_folder, caplog):
    model = GlamSwinForSemanticSegmentation.from_swin(upernet_folder, id2label={0: "car", 1: "tree"})
    stored = load_file(upernet_folder / "model.safetensors")
    assert torch.equal(model.classifier.weight[1], stored["decode_head.classifier.weight"][2])
    assert torch.equal(model.auxiliary_head.classifier.bias[1], stored["auxiliary_head.classifier.bias"][2])
    assert "1 of 2 classes" in caplog.text


def test_shards_and_pickled_weights_are_read(backbone_folder, tmp_path):
    expected = GlamSwinBackbone.from_swin(backbone_folder, num_global_tokens=0).state_dict()
    model = SwinBackbone.from_pretrained(backbone_folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="10KB")
    (tmp_path / "pickled").mkdir()
    write = lambda tensors: torch.save(tensors, tmp_path / "pickled" / "pytorch_model.bin")  # noqa: E731
    rewritten(backbone_folder, tmp_path / "pickled", OLD, write)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in ("shards", "pickled"):
        found = GlamSwinBackbone.from_swin(tmp_path / folder, num_global_tokens=0).state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_another_window_resizes_the_relative_positions(backbone_folder):
    model = GlamSwinBackbone.from_swin(backbone_folder, window_size=5)
    assert model.encoder.stages[0].blocks[0].position_bias.table.shape == (81, 1)
    constant = torch.full((49, 2), 3.0)
    torch.testing.assert_close(resize_bias_table(constant, 81), torch.full((81, 2), 3.0))


def test_resized_relative_positions_keep_rows_and_columns_apart():
    offsets = torch.arange(-3.0, 4.0)
    table = offsets[:, None].expand(7, 7).reshape(49, 1)  # the bias is the row offset
    image = resize_bias_table(table, 169).reshape(13, 13)
    assert image.std(dim=1).max() < 1e-5
    assert (image[:, 0].diff() > 0).all()


def test_missing_tensors_are_named(backbone_folder, tmp_path):
    folder = rewritten(
        backbone_folder,
        tmp_path,
        lambda name: re.sub(r"^.*0\.blocks\.1\.layernorm_after\.weight", "x.mask_token", name),
    )
    with pytest.raises(ValueError, match=r"has no encoder\.stages\.0\.blocks\.1\.norm2\.weight"):
        GlamSwinBackbone.from_swin(folder)


@each("name", ["encoder.layers.0.blocks.0.scale", "pooler.weight"])
def test_tensors_that_swin_does_not_have_are_named(backbone_folder, tmp_path, name):
    folder = rewritten(
        backbone_folder, tmp_path, lambda old: name if old.endswith("0.layernorm_after.bias") else old
    )
    with pytest.raises(ValueError, match=name.removeprefix("encoder.layers.")):
        GlamSwinBackbone.from_swin(folder)


def test_stages_that_are_not_built_are_left_out(backbone_folder):
    whole = GlamSwinBackbone.from_swin(backbone_folder, num_global_tokens=0)
    part = GlamSwinBackbone.from_swin(backbone_folder, num_global_tokens=0, out_features=["stage1", "stage2"])
    image = torch.randn(1, 3, 30, 40)
    for mine, expected in zip(part(image).feature_maps, whole(image).feature_maps[:2], strict=True):
        assert torch.equal(mine, expected)


def test_checkpoints_of_other_architectures_are_refused(tmp_path):
    UperNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'resnet'"):
        GlamSwinBackbone.from_swin(tmp_path)


def test_options_that_change_sizes_are_refused(upernet_folder):
    with pytest.raises(
        ValueError, match=r"has shape \(12,\) in the checkpoint and \(16,\) in the model. Leave out"
    ):
        GlamSwinForSemanticSegmentation.from_swin(upernet_folder, decoder_hidden_size=16)


def test_engine_splits_renames_and_drops():
    table = RenamingTable(
        renamed=((r"^old\.", "new."),), split=((r"\bqk\b", ("q", "k")),), dropped=(r"index$",)
    )
    converted = table.apply({"old.qk.weight": torch.arange(4), "old.index": torch.zeros(1)})
    assert {name: tensor.tolist() for name, tensor in converted.items()} == {
        "new.q.weight": [0, 1],
        "new.k.weight": [2, 3],
    }


def test_engine_refuses_two_tensors_of_one_name():
    with pytest.raises(ValueError, match="'b' is renamed to 'x'"):
        RenamingTable(renamed=((r"^[ab]$", "x"),)).apply({"a": torch.zeros(1), "b": torch.zeros(1)})


def test_engine_names_leftovers_on_both_sides_and_wrong_shapes():
    with pytest.raises(ValueError, match="does not fit") as error:
        fill(nn.Linear(2, 3), {"weight": torch.zeros(3, 4), "scale": torch.zeros(5)})
    message = str(error.value)
    assert "scale (5,)" in message
    assert "bias (3,)" in message
    assert "weight (3, 4), the model has (3, 2)" in message


@each("rows", [40, 41])
@each("kept", [20, 21])
def test_center_rows_serve_every_smaller_request_as_the_whole_table_does(rows, kept):
    table = torch.arange(rows)[:, None]
    for needed in range(1, kept + 1):
        cut = center_rows(table, kept).narrow(0, kept // 2 - needed // 2, needed)
        assert torch.equal(cut, table.narrow(0, rows // 2 - needed // 2, needed))


ARGUMENTS = {
    "embed_dim": 8,
    "depths": [2, 1],
    "num_heads": [1, 2],
    "window_size": 4,
    "mlp_ratio": 2.0,
    "gt_num": 3,
}


def official_weights() -> dict[str, torch.Tensor]:
    """A tiny backbone in the authors' names."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"patch_embed.proj.weight": (8, 3, 4, 4)}
    norms = {"patch_embed.norm": 8, "norm0": 8, "norm1": 16, "layers.0.downsample.norm": 32}
    linears = {"layers.0.downsample.reduction": (16, 32)}
    for stage, (dim, depth) in enumerate([(8, 2), (16, 1)]):
        shapes[f"layers.{stage}.global_token"] = (3, dim)
        shapes[f"layers.{stage}.pe"] = ((135 // 2**stage) ** 2, dim)
        for block in range(depth):
            prefix = f"layers.{stage}.blocks.{block}."
            norms.update({f"{prefix}norm1": dim, f"{prefix}norm2": dim})
            linears.update({f"{prefix}mlp.fc1": (2 * dim, dim), f"{prefix}mlp.fc2": (dim, 2 * dim)})
            for attention in ("attn", "gt_attn"):
                linears.update(
                    {f"{prefix}{attention}.qkv": (3 * dim, dim), f"{prefix}{attention}.proj": (dim, dim)}
                )
            shapes[f"{prefix}attn.relative_position_bias_table"] = (49, stage + 1)
    shapes.update({f"{name}.{part}": (size,) for name, size in norms.items() for part in ("weight", "bias")})
    shapes.update({f"{name}.weight": shape for name, shape in linears.items()})
    shapes.update({f"{name}.bias": shape[:1] for name, shape in linears.items() if "reduction" not in name})
    shapes["patch_embed.proj.bias"] = (8,)
    return {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}


def test_cutting_the_position_table_changes_no_smaller_image():
    weights = official_weights()
    whole = glam_swin_from_official(weights, ARGUMENTS)
    cut = glam_swin_from_official(weights, ARGUMENTS, max_image_size=(70, 100))
    assert cut.num_parameters() < whole.num_parameters() / 10
    for size in [(70, 100), (100, 70), (33, 64), (5, 9)]:
        image = torch.randn(1, 3, *size)
        for mine, expected in zip(cut(image).feature_maps, whole(image).feature_maps, strict=True):
            assert torch.equal(mine, expected)


def test_a_stage_of_one_block_has_no_global_attention():
    model = glam_swin_from_official(official_weights(), ARGUMENTS)
    assert model.encoder.stages[1].global_position is None
    assert model.config.global_position_rows[1] == 0


def test_the_largest_image_has_to_fit_the_table():
    with pytest.raises(ValueError, match="needs .* global positions, but the table has 18225"):
        glam_swin_from_official(official_weights(), ARGUMENTS, max_image_size=(2000, 2000))


def test_global_positions_are_the_windows_of_the_padded_grid_times_tokens():
    config = GlamSwinConfig(window_size=7, num_global_tokens=10)
    assert num_global_positions(config, 0, (512, 512)) == 3610
    assert num_global_positions(config, 0, (1024, 2048)) == 27380


def test_unknown_arguments_of_the_authors_are_refused():
    with pytest.raises(ValueError, match="'gt_nums'"):
        glam_swin_from_official(official_weights(), {**ARGUMENTS, "gt_nums": 3})
    with pytest.raises(ValueError, match="ape=True"):
        glam_swin_from_official(official_weights(), {**ARGUMENTS, "ape": True})


def test_command_writes_a_repository_that_from_pretrained_opens(tmp_path, capsys):
    torch.save({"state_dict": official_weights(), "meta": {"epoch": 1}}, tmp_path / "weights.pth")
    (tmp_path / "arguments.json").write_text(json.dumps(ARGUMENTS))
    main(
        [
            "--source",
            "glam-official",
            "--weights",
            str(tmp_path / "weights.pth"),
            "--max-image-size",
            "64x64",
        ]
        + ["--arguments", str(tmp_path / "arguments.json"), "--output", str(tmp_path / "out")]
    )
    expected = glam_swin_from_official(official_weights(), ARGUMENTS)
    image = torch.randn(1, 3, 48, 64)
    found = GlamSwinBackbone.from_pretrained(tmp_path / "out")(image).feature_maps
    assert all(torch.equal(a, b) for a, b in zip(found, expected(image).feature_maps, strict=True))
    assert "16 windows" in capsys.readouterr().out


def test_command_converts_swin_without_changing_it(upernet_folder, tmp_path):
    main(["--source", "swin", "--weights", str(upernet_folder), "--output", str(tmp_path)])
    theirs = UperNetForSemanticSegmentation.from_pretrained(upernet_folder).eval()
    ours = GlamSwinForSemanticSegmentation.from_pretrained(tmp_path)
    image = torch.randn(1, 3, 40, 56)
    full = F.interpolate(ours(image).logits, (40, 56), mode="bilinear", align_corners=False)
    torch.testing.assert_close(full, theirs(image).logits, rtol=0, atol=1e-5)


def test_command_says_what_to_do_about_a_missing_file(tmp_path):
    (tmp_path / "arguments.json").write_text(json.dumps(ARGUMENTS))
    with pytest.raises(SystemExit, match="there is no weights file"):
        main(
            ["--source", "glam-official", "--weights", str(tmp_path / "none.pth")]
            + ["--arguments", str(tmp_path / "arguments.json"), "--output", str(tmp_path / "out")]
        )
