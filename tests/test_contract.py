"""What every public segmenter promises. A new model joins by its line in `tiny.py`."""

import dataclasses
from math import ceil

import pytest
import torch
from cases import each, slow_but
from tiny import LABELS, OTHER_VALUES, REPRESENTATIVES, SEGMENTERS, SHOWN_ELSEWHERE, UNET
from transformers import PreTrainedConfig

VARIANTS = [
    ("glam_swin", {}),
    ("glam_swin", {"num_global_tokens": 0}),
    ("glam_swin", {"use_global_attention": False}),
    ("glam_swin", {"global_position_embedding": "table"}),
    ("glam_swin", {"global_position_embedding": "sincos"}),
    ("glam_swin", {"depths": (1, 1), "global_position_embedding": "table"}),
    ("glam_swin", {"use_auxiliary_head": False}),
    ("glam_swin_fpn", {}),
    ("glam_swin_unet", {}),
    ("glam_swin_unet", {"upsampling": "expand"}),
    ("glam_swin_unet", {"upsampling": "nonlocal_global"}),
    ("glam_swin_unet", {"nonlocal_shortcut": "bilinear"}),
    ("glam_swin_unet", {"num_global_tokens": 0}),
    ("glam_swin_unet", {"use_auxiliary_head": True}),
    ("glam_swin_unet", {"pretrain_image_size": 16}),
    ("glam_swin_unet", {"global_position_embedding": "table"}),
    ("glam_swin_unet", {"depths": (1, 2, 1), "num_heads": (1, 2, 4), "global_position_embedding": "table"}),
    ("maformer", {}),
    ("maformer", {"local_attention": "shifted_window"}),
    ("maformer", {"global_branch": "conv"}),
    ("maformer", {"global_branch": "none"}),
    ("maformer", {"fusion": "local_enhanced"}),
    ("maformer_unet", {}),
    ("maformer_unet", {"upsampling": "expand"}),
    ("maformer_unet", {"upsampling": "nonlocal_global", "use_auxiliary_head": True}),
    ("maformer_unet", {"local_attention": "shifted_window", "fusion": "local_enhanced"}),
    ("cswin", {}),
    ("cswin", {"stripe_padding": "official"}),
    ("cswin_unet", {}),
    ("cswin_unet", {"upsampling": "nonlocal", "nonlocal_shortcut": "bilinear"}),
    ("cswin_unet", {"upsampling": "nonlocal_global", "stripe_padding": "official"}),
    ("glam_swin", {"decoder": "segdeformer"}),
    ("glam_swin", {"decoder": "one_step", "use_auxiliary_head": False}),
    ("maformer", {"decoder": "progressive", "use_auxiliary_head": False}),
    ("caswit", {}),
    ("caswit", {"gate": "channel", "tie_encoders": True, "context_loss_weight": 0}),
    ("caswit", {"gate": "scalar", "fusion_feeds_next_stage": False, "kv_pooling": (2, 1)}),
    ("caswit", {**UNET, "gate": "none"}),
    ("caswit", {"decoder": "segdeformer", "context_ratio": 3}),
    ("relay", {}),
    ("relay", {"num_relay_tokens": 0, "relay_update": "mean"}),
    ("relay", {"share_patch_embedding": True, "share_blocks": False}),
    ("relay", {"global_loss_weight": 0, "consistency_weight": 0}),
    ("relay", {"decoder": "progressive", "detach_consistency": True, "context_ratio": 3}),
    ("relay", {"decoder": "segdeformer"}),
    ("relay_swinv2", {}),
    ("relay_swinv2", {"relay_update": "mean", "decoder": "one_step"}),
    ("relay_swinv2", {"num_relay_tokens": 0, "decoder": "unet"}),
    ("nnformer", {}),
    ("nnformer", {"variant": "2021", "deep_supervision": False}),
    ("nnformer", {"depths": (1, 1), "num_global_tokens": 2}),
    (
        "nnformer",
        {"depths": (3, 2, 2), "num_heads": (1, 2, 4), "window_size": (2, 2, 2), "num_global_tokens": 1},
    ),
    ("nnformer", {"fixed_grid": True, "pad_last_downsample": False}),
    ("glam_nnformer", {}),
    ("glam_nnformer", {"global_block": "bare"}),
    ("glam_nnformer", {"global_block": "half", "global_clamp": 1.0, "global_position_embedding": "table"}),
    ("glam_nnformer", {"depths": (1, 2), "global_block": "half", "global_position_embedding": "sincos"}),
    ("segdeformer", {}),
    ("segdeformer", {"neck": "linear"}),
    ("segdeformer", {"neck": "segformer"}),
    ("segdeformer", {"neck": "upernet"}),
    ("segdeformer", {"neck": "semantic_fpn"}),
    ("segdeformer", {"use_internal_context": False}),
    ("segdeformer", {"use_external_context": False}),
    ("segdeformer", {"use_external_attention": False}),
    ("segdeformer", {"internal_depth": 2, "internal_mlp": True}),
    ("segdeformer", {"decouple_external_tokens": False}),
    ("segdeformer", {"external_tokens": "momentum"}),
    ("segdeformer", {"reduction_ratio": 2, "attention_loss_weight": 0}),
    ("segdeformer", {"decoder": "upernet"}),
    ("segdeformer_glam", {}),
    ("segdeformer_unet", {}),
    ("segdeformer_unet", {"use_auxiliary_head": True}),
]
# Sizes of volumes; images have the last two sides.
SIZES = [(1, 1, 1), (2, 1, 40), (3, 33, 3), (1, 17, 31), (4, 32, 32)]


@pytest.fixture(params=SEGMENTERS)
def build(request):
    return SEGMENTERS[request.param]


# For what hardly depends on the decoder.
each_encoder = pytest.mark.parametrize("build", slow_but(SEGMENTERS, *REPRESENTATIVES), indirect=True)


def axes(model):
    return getattr(model.config, "num_axes", 2)


def images(model, count=2, size=(5, 21, 34)):
    """Images of the last two sides, or volumes."""
    return torch.randn(count, model.config.num_channels, *size[-axes(model) :])


def batch(model, count=2, size=(5, 21, 34)):
    pixels = images(model, count, size)
    return pixels, torch.randint(0, len(LABELS), (count, *pixels.shape[2:]))


def label_axis(model):
    """The axis of labels in the weight of the classifier, which is another one in transposed convolutions."""
    return model.classifier.label_axes.get("weight", 0)


def segment(model, *inputs, **options):
    with torch.no_grad():
        return model.eval()(*inputs, **options)


def test_any_image_size_gives_logits_at_the_stride(build):
    model = build()
    stride = model.config.logits_stride
    # Logits cover whole cells of the finest feature map; those of tiles and volumes are cut where the image ends.
    is_cut = hasattr(model.config, "context_ratio") or axes(model) == 3
    patch = stride if is_cut else model.backbone.strides[0]
    for size in SIZES:
        pixels = images(model, 2, size)
        logits = segment(model, pixels).logits
        sides = pixels.shape[2:]
        assert logits.shape == (2, len(LABELS), *(ceil(side / patch) * patch // stride for side in sides))
        assert logits.isfinite().all(), size


@pytest.mark.slow
@each(("name", "options"), VARIANTS)
def test_a_batch_of_one_gives_every_parameter_a_gradient(name, options):
    model = SEGMENTERS[name](**options).train()
    for size in [(1, 1, 1), (2, 17, 31)]:
        model.zero_grad()
        pixels, labels = batch(model, 1, size)
        model(pixels, labels=labels).loss.backward()
        assert [key for key, value in model.named_parameters() if value.grad is None] == [], size


def test_gradients_reach_every_parameter_with_a_value(build):
    model = build().train()
    pixels, labels = batch(model)
    model(pixels, labels=labels).loss.backward()
    # The softmax does not see a shift of all scores, which is what a key's bias adds: its gradient is zero.
    silent = [key for key, value in model.named_parameters() if not value.grad.any()]
    assert [key for key in silent if not key.endswith("k_proj.bias")] == []


@each_encoder
def test_an_all_ignored_batch_has_loss_zero_and_keeps_its_graph(build):
    model = build().train()
    pixels, labels = batch(model)
    loss = model(pixels, labels=torch.full_like(labels, 255)).loss
    loss.backward()
    assert loss.item() == 0.0
    assert all(value.grad is not None and not value.grad.any() for value in model.parameters())


@each_encoder
@each("dtype", [torch.bfloat16, torch.float16])
def test_the_loss_is_float32_and_finite_under_autocast(build, dtype):
    model = build().train()
    pixels, labels = batch(model)
    labels[:] = 255
    labels[0, ..., 3, 3] = 1
    with torch.autocast("cpu", dtype=dtype):
        loss = model(pixels, labels=labels).loss
    assert loss.dtype == torch.float32
    assert loss.isfinite()


@each_encoder
def test_a_label_out_of_range_is_named_and_counted(build):
    model = build()
    pixels, labels = batch(model)
    labels[0].view(-1)[:5] = 77
    with pytest.raises(ValueError, match="77.*5"):
        model(pixels, labels=labels)


@each_encoder
def test_new_labels_keep_the_rows_of_classes_with_equal_names(build, tmp_path):
    old = build()
    old.save_pretrained(tmp_path)
    new = type(old).from_pretrained(tmp_path, id2label={0: "sky", 1: "car", 2: "road", 3: "dog"})
    assert new.config.num_labels == 4
    rows, old_rows = (model.classifier.weight.movedim(label_axis(model), 0) for model in (new, old))
    torch.testing.assert_close(rows[[0, 2]], old_rows[[1, 0]])
    torch.testing.assert_close(new.backbone.state_dict(), old.backbone.state_dict())


@each_encoder
def test_new_labels_go_with_other_options(build, tmp_path):
    build().save_pretrained(tmp_path)
    model = type(build()).from_pretrained(tmp_path, num_labels=4, loss="dice")
    assert (model.config.num_labels, model.config.loss) == (4, "dice")


@each_encoder
def test_new_labels_are_announced_in_one_line(build, tmp_path, caplog):
    build().save_pretrained(tmp_path)
    type(build()).from_pretrained(tmp_path, num_labels=7)
    lines = [record.getMessage() for record in caplog.records if "classifier resized" in record.getMessage()]
    assert lines == [
        "classifier resized to 7 labels: 0 keep their weights by name, 7 are new and need training"
    ]


def test_gradient_checkpointing_changes_no_gradient(build):
    model = build().train()
    pixels, labels = batch(model)
    gradients = []
    for enabled in (False, True):
        if enabled:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(pixels, labels=labels).loss.backward()
        gradients.append({key: value.grad.clone() for key, value in model.named_parameters()})
    torch.testing.assert_close(*gradients)


def test_eager_and_sdpa_attention_are_equal(build):
    model = build()
    pixels = images(model)
    assert model.config._attn_implementation == "sdpa"
    sdpa = segment(model, pixels).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(segment(model, pixels).logits, sdpa)


def test_attentions_are_returned_by_eager_and_refused_by_sdpa(build):
    model = build()
    pixels = images(model)
    with pytest.raises(ValueError, match="eager"):
        segment(model, pixels, output_attentions=True)
    model.set_attn_implementation("eager")
    attentions = segment(model, pixels, output_attentions=True).attentions
    for probabilities in attentions:
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]))
    assert len(attentions) > 0


def test_bfloat16_weights_stay_close_to_float32(build):
    model = build()
    pixels = images(model)
    exact = segment(model, pixels).logits
    rough = segment(model.to(torch.bfloat16), pixels.bfloat16()).logits
    torch.testing.assert_close(rough.float(), exact, atol=0.04, rtol=0.1)


@pytest.mark.parametrize("build", slow_but(SEGMENTERS, "glam_swin_fpn"), indirect=True)
def test_compiles_without_graph_breaks(build):
    model = build().train()
    pixels, labels = batch(model)
    torch.manual_seed(2)
    expected = model(pixels, labels=labels).loss
    torch.manual_seed(2)
    torch.compiler.reset()  # families share code, of which torch keeps eight versions
    compiled = torch.compile(model, fullgraph=True, backend="eager")(pixels, labels=labels).loss
    torch.testing.assert_close(compiled, expected)


def exported_size(model, *size):
    """A size, or whole patches of all stages for Swin V2 of transformers, whose code asks whether sides need padding."""
    is_foreign = getattr(getattr(model.config, "backbone_config", None), "model_type", "") == "glam"
    return tuple(64 + side // 16 * 16 for side in size) if is_foreign else size


@pytest.mark.parametrize(
    "build", slow_but(SEGMENTERS, "relay", short=("glam_swin", "cswin", "nnformer")), indirect=True
)
def test_exports_with_free_batch_and_sides(build):
    model, free = build().eval(), torch.export.Dim.AUTO
    pixels = images(model, 2, exported_size(model, 9, 37, 53))
    sizes = {"pixel_values": {0: free, **dict.fromkeys(range(2, pixels.dim()), free)}}
    exported = torch.export.export(model, (pixels,), dynamic_shapes=sizes, strict=False).module()
    for count, size in [(1, (6, 64, 64)), (3, (5, 37, 70)), (2, (12, 128, 100))]:
        pixels = images(model, count, exported_size(model, *size))
        torch.testing.assert_close(exported(pixels).logits, segment(model, pixels).logits)


def test_results_do_not_depend_on_earlier_inputs(build):
    model = build()
    pixels = images(model)
    first = segment(model, pixels).logits
    segment(model, images(model, 1, (2, 5, 7)))
    assert torch.equal(segment(model, pixels).logits, first)


def test_results_do_not_depend_on_batch_neighbors(build):
    model = build()
    pixels = images(model, 3)
    together = segment(model, pixels).logits
    torch.testing.assert_close(segment(model, pixels[1:2]).logits, together[1:2])


def test_a_mask_of_ones_changes_nothing(build):
    model = build()
    pixels = images(model)
    masked = segment(model, pixels, pixel_mask=torch.ones(pixels[:, 0].shape)).logits
    torch.testing.assert_close(masked, segment(model, pixels).logits)


@each_encoder
def test_a_saved_model_loads_to_the_same_bits(build, tmp_path):
    model = build()
    pixels = images(model)
    model.save_pretrained(tmp_path)
    poison = [torch.full((1 << 20,), 77777.0) for _ in range(4)]  # freed memory that a lost buffer would show
    del poison
    first, second = (type(model).from_pretrained(tmp_path) for _ in range(2))
    assert {key for key, _ in first.named_buffers()} == {key for key, _ in model.named_buffers()}
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in first.state_dict().items())
    # Bits of logits depend on where in memory the weights lie, so those of two loaded models are compared.
    assert torch.equal(segment(first, pixels).logits, segment(second, pixels).logits)
    torch.testing.assert_close(segment(first, pixels).logits, segment(model, pixels).logits)


@each_encoder
def test_nothing_missing_or_unexpected_when_loading(build, tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    _, info = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())


@each_encoder
def test_parameters_missing_in_a_checkpoint_are_initialized(build):
    model = build()
    fresh = type(model).from_pretrained(None, config=model.config, state_dict={})
    for key, value in fresh.named_parameters():
        assert value.abs().max() < 10, key
        is_constant = value.dim() == 1 or key.endswith("logit_scale")
        assert is_constant or value.std() > 1e-3, key


@each_encoder
def test_tuples_are_returned_on_request(build):
    model = build()
    pixels, labels = batch(model)
    loss, logits = model(pixels, labels=labels, return_dict=False)[:2]
    assert loss.dim() == 0
    assert logits.dim() == pixels.dim()


def test_hidden_states_are_the_patches_and_every_stage(build):
    model = build()
    pixels = images(model)
    states = segment(model, pixels, output_hidden_states=True).hidden_states
    encoder = getattr(model.config, "backbone_config", model.config)
    encoder = getattr(encoder, "backbone_config", encoder)  # that of GLAM
    has_patches = encoder.model_type != "segformer"  # of which transformers gives the stages alone
    is_plain = getattr(encoder, "encoder_type", None) == "vit"  # whose blocks all have the same grid
    assert len(states) == has_patches + (sum if is_plain else len)(encoder.depths)
    assert segment(model, pixels).hidden_states is None


@each("pixels", {"3-d": torch.randn(3, 8, 8), "5 channels": torch.randn(1, 5, 8, 8)})
def test_images_of_a_wrong_shape_are_refused(build, pixels):
    with pytest.raises(ValueError, match=r"pixel_values has shape .* is required"):
        build()(pixels)


def test_unknown_options_fail_with_a_suggestion(build):
    with pytest.raises(ValueError, match="no option 'loss_reducton', did you mean 'loss_reduction'"):
        type(build().config)(loss_reducton="all")


def test_the_configuration_survives_a_round_trip(build, tmp_path):
    config = build(label_smoothing=0.25, class_weights=[1.0, 2.0, 0.5]).config
    config.save_pretrained(tmp_path)
    stored = type(config).from_pretrained(tmp_path).to_dict()
    assert {**stored, "_name_or_path": ""} == {**config.to_dict(), "_name_or_path": ""}


def own_options(name):
    config = type(SEGMENTERS[name]().config)
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    return [
        field.name
        for field in dataclasses.fields(config)
        if field.name not in inherited | {"logits_stride"} | SHOWN_ELSEWHERE.get(name, set())  # no choice
        and not field.name.startswith("_")
    ]


def fingerprint(model):
    """Shapes of all weights and the training loss of a fixed batch: what any option must change."""
    torch.manual_seed(0)
    pixels, labels = batch(model)
    labels[:, :4] = 255
    with torch.no_grad():
        for key in sorted(model.state_dict()):
            if key.endswith(("table", "initial", "token_code")):
                model.state_dict()[key].normal_()
        loss = model.train()(
            pixels, labels=torch.where(labels == 255, model.config.semantic_loss_ignore_index, labels)
        ).loss
    return {key: value.shape for key, value in model.state_dict().items()}, loss.item()


def changed(name, option):
    value = OTHER_VALUES[name][option]
    return value if isinstance(value, dict) else {option: value}


# Two configuration classes that share little; the others have the same fields under other encoders and decoders.
each_configuration = pytest.mark.parametrize("name", slow_but(SEGMENTERS, "glam_swin", "segdeformer"))


@each_configuration
def test_no_option_leaves_a_parameter_unused(name):
    """DistributedDataParallel would wait for its gradient."""
    unused = {}
    for option in own_options(name):
        model = SEGMENTERS[name](**changed(name, option)).train()
        pixels, labels = batch(model)
        model(pixels, labels=labels).loss.backward()
        unused[option] = [key for key, value in model.named_parameters() if value.grad is None]
    assert {option: keys for option, keys in unused.items() if keys} == {}


@each_configuration
def test_every_option_changes_the_model(name):
    def print_of(overrides):
        torch.manual_seed(0)
        return fingerprint(SEGMENTERS[name](**overrides))

    plain, without_effect = print_of({}), []
    for option in own_options(name):
        change = changed(name, option)
        base = {key: setting for key, setting in change.items() if key != option}
        if print_of(change) == (print_of(base) if base else plain):
            without_effect.append(option)
    assert without_effect == []


def test_a_wrong_loss_is_refused_when_the_model_is_built(build):
    with pytest.raises(ValueError, match="no loss 'dyce'.*did you mean 'dice'"):
        build(loss="cross_entropy+dyce")
