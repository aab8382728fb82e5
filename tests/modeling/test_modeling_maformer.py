"""MAFormer: the claims of its parts, and its classifier with token labels."""

import pytest
import torch
import torch.nn.functional as F
from cases import each
from tiny import tiny_maformer
from transformers import AutoBackbone, AutoConfig, AutoModel, AutoModelForImageClassification

from contextseg import (
    MaformerBackbone,
    MaformerConfig,
    MaformerForImageClassification,
    MaformerForSemanticSegmentation,
    MaformerModel,
)
from contextseg.modeling.cross_shaped import CrossShapedAttention
from contextseg.modeling.global_learning import (
    FusionAttention,
    GlobalConvolution,
    GlobalLearning,
    MafBlock,
    ShiftedWindowBlock,
    average_of_unpadded,
    average_to,
)
from contextseg.modeling.pyramid_encoder import PreNormBlock
from contextseg.modeling.swin_stages import StageSizes

SIZES = {"hidden_sizes": (8, 16, 16), "depths": (1, 2, 1), "num_heads": (2, 4, 2), "drop_path_rate": 0.0}
GRIDS = [(56, 56), (28, 28), (57, 29), (8, 8), (3, 40), (1, 1)]


def config(**options) -> MaformerConfig:
    return MaformerConfig(**{**SIZES, **options})


def randomized(module: torch.nn.Module) -> torch.nn.Module:
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


def gld() -> GlobalLearning:
    return GlobalLearning(dim=6, grid_size=14, ratio=0.5)


# -- Global Learning with Down-sampling ----------------------------------------------------------------------------------


@each("grid", GRIDS)
def test_gld_of_a_constant_map_follows_from_its_row_sums(grid):
    module = gld()
    tokens = module(torch.full((1, *grid, 6), 0.7))
    expected = 0.7 * (module.fc.weight.sum(dim=1) + 1) + module.fc.bias
    torch.testing.assert_close(tokens, expected[None, :, None].expand(1, 49, 6))


@each("grid", [(56, 56), (28, 28), (28, 56)])
def test_gld_without_weights_is_average_pooling(grid):
    module, features = gld(), torch.randn(2, *grid, 6)
    torch.nn.init.zeros_(module.fc.weight)
    torch.nn.init.zeros_(module.fc.bias)
    pooled = F.adaptive_avg_pool2d(features.movedim(-1, 1), 7).flatten(2).transpose(1, 2)
    torch.testing.assert_close(module(features), pooled)


def test_gld_is_affine():
    module, one, two = gld(), torch.randn(1, 19, 30, 6), torch.randn(1, 19, 30, 6)
    origin = module(torch.zeros_like(one))
    torch.testing.assert_close(
        module(2 * one + two) - origin, 2 * (module(one) - origin) + module(two) - origin
    )


def test_gld_treats_every_channel_alike():
    module, features, order = gld(), torch.randn(1, 19, 30, 6), torch.randperm(6)
    torch.testing.assert_close(module(features[..., order]), module(features)[..., order])


@each("grid", GRIDS)
def test_gld_hears_every_place(grid):
    features = torch.randn(1, *grid, 6, requires_grad=True)
    (gld()(features) * torch.randn(1, 49, 6)).sum().backward()
    assert features.grad.all()


@each("grid", GRIDS)
def test_averages_of_equal_areas_keep_the_mean(grid):
    features = torch.randn(2, *grid, 3)
    torch.testing.assert_close(average_to(features, 14).mean(dim=(1, 2)), features.mean(dim=(1, 2)))


def test_gld_does_not_read_padding():
    module, features = gld(), torch.randn(1, 28, 28, 6)
    padding_mask = torch.zeros(1, 28, 28, dtype=torch.bool)
    padding_mask[:, :20, :25] = True
    changed = torch.where(padding_mask[..., None], features, torch.randn_like(features))
    torch.testing.assert_close(module(changed, padding_mask), module(features, padding_mask))
    torch.testing.assert_close(module(features, torch.ones_like(padding_mask)), module(features))


@each(("ratio", "tokens"), [(0.25, 16), (0.5, 49), (1.0, 196)])
def test_the_ratio_is_one_of_sides(ratio, tokens):
    assert GlobalLearning(dim=6, grid_size=14, ratio=ratio)(torch.randn(1, 9, 9, 6)).shape == (1, tokens, 6)


# -- fusion and blocks -----------------------------------------------------------------------------------------------------


def test_equal_global_tokens_add_one_vector_to_every_place():
    attention = randomized(FusionAttention(config(), dim=8, num_heads=2))
    answers, _ = attention(torch.randn(2, 30, 8), torch.randn(2, 1, 8).expand(2, 49, 8))
    torch.testing.assert_close(answers, answers[:, :1].expand_as(answers))


def test_without_its_global_paths_a_block_is_cswins():
    block = randomized(MaformerBackbone(config()).encoder.stages[1][0])
    cswin = PreNormBlock(CrossShapedAttention(config(), 16, 4, width=2), 16, 4.0, 0.0, 1e-6).eval()
    cswin.load_state_dict(block.local.state_dict())
    for module in (block.fusion.attention.v_proj, block.fusion.mlp.fc2):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    features = torch.randn(2, 7, 9, 16)
    torch.testing.assert_close(block(features), cswin(features))


def test_the_order_of_the_branches_is_all_that_the_fusions_differ_in():
    beside, behind = (MaformerModel(config(fusion=name)) for name in ("maf", "local_enhanced"))
    behind.load_state_dict(randomized(beside).state_dict())
    pixels = torch.randn(1, 3, 32, 32)
    difference = behind.eval()(pixels).last_hidden_state - beside(pixels).last_hidden_state
    assert difference.abs().max() > 1e-3


def test_without_global_branch_a_block_is_its_local_branch():
    block = MaformerBackbone(config(global_branch="none")).encoder.stages[0][0]
    assert isinstance(block, MafBlock)
    features = torch.randn(1, 5, 6, 8)
    torch.testing.assert_close(block(features), block.local(features))


def test_features_in_slices_are_the_same_features():
    block, features = randomized(MaformerBackbone(config()).encoder.stages[0][0]), torch.randn(3, 41, 43, 8)
    with torch.no_grad():
        sliced = block(features)
    torch.testing.assert_close(sliced, block(features))


def test_stages_without_stripes_are_plain_vit():
    backbone = randomized(MaformerBackbone(config()))
    block, features = backbone.encoder.stages[2][0], torch.randn(2, 3, 5, 16)
    tokens = block.norm1(features).flatten(1, 2)
    heads = [
        project(tokens).unflatten(-1, (2, 8)).transpose(1, 2)
        for project in (block.attention.q_proj, block.attention.k_proj, block.attention.v_proj)
    ]
    mixed = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
    after = features + block.attention.o_proj(mixed).reshape(features.shape)
    torch.testing.assert_close(block(features), after + block.mlp(block.norm2(after)))


def test_padding_of_the_batch_changes_nothing_in_the_image():
    model = randomized(MaformerModel(config(depths=(0, 0, 2), stripe_widths=())))
    image = torch.randn(1, 3, 32, 48)
    padded, mask = F.pad(image, (0, 16, 0, 32), value=7.0), F.pad(torch.ones(1, 32, 48), (0, 16, 0, 32))
    alone = model(image).last_hidden_state.unflatten(1, (2, 3))
    together = model(padded, pixel_mask=mask).last_hidden_state.unflatten(1, (4, 4))
    torch.testing.assert_close(together[:, :2, :3], alone, atol=1e-4, rtol=1e-4)


# -- models ------------------------------------------------------------------------------------------------------------------


def test_the_backbone_gives_the_maps_it_is_asked_for():
    backbone = MaformerBackbone(config(out_features=["stem", "stage2"])).eval()
    maps = backbone(torch.randn(1, 3, 30, 57)).feature_maps
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(8, 8, 15), (16, 4, 8)]
    assert (backbone.channels, len(backbone.encoder.stages)) == ([8, 16], 2)


def test_attentions_come_in_order_of_execution():
    model = MaformerModel(config(attn_implementation="eager")).eval()
    attentions = model(torch.randn(2, 3, 32, 48), output_attentions=True).attentions
    block = [
        (2 * 12, 1, 8, 8),
        (2 * 8, 1, 12, 12),
        (2, 2, 96, 49),
    ]  # columns, rows, places over global tokens
    assert [tuple(probabilities.shape) for probabilities in attentions[:3]] == block
    assert len(attentions) == 3 * 3 + 1
    assert attentions[-1].shape == (2, 2, 6, 6)


@each("auto_class", [AutoModel, AutoBackbone, AutoModelForImageClassification])
def test_auto_classes_know_the_family(auto_class, tmp_path):
    config().save_pretrained(tmp_path)
    model = auto_class.from_config(AutoConfig.from_pretrained(tmp_path))
    assert isinstance(model, (MaformerModel, MaformerBackbone, MaformerForImageClassification))


def test_a_segmenter_starts_from_a_trained_classifier(tmp_path):
    classifier = MaformerForImageClassification(config(num_labels=5))
    classifier.save_pretrained(tmp_path)
    segmenter = MaformerForSemanticSegmentation.from_pretrained(
        tmp_path, config=config(num_labels=3), ignore_mismatched_sizes=True
    )
    torch.testing.assert_close(
        segmenter.backbone.encoder.state_dict(), classifier.backbone.encoder.state_dict()
    )


def test_the_paper_s_decoder_is_the_default():
    assert MaformerConfig().decoder == "semantic_fpn"
    assert tiny_maformer(decoder="upernet")(torch.randn(1, 3, 16, 16)).logits.shape == (1, 3, 4, 4)


# -- token labels -------------------------------------------------------------------------------------------------------------


def classifier(**options) -> MaformerForImageClassification:
    torch.manual_seed(0)
    return randomized(MaformerForImageClassification(config(num_labels=4, use_token_labels=True, **options)))


def test_the_token_head_votes_with_its_highest_logits():
    model, pixels = classifier(), torch.randn(2, 3, 32, 48)
    features = model.backbone(pixels)
    votes = model.token_classifier(features.last_hidden_state).amax(dim=1)
    expected = model.classifier(features.pooler_output) + 0.5 * votes
    torch.testing.assert_close(model(pixels).logits, expected)


@each("weight", [0.5, 1.0])
def test_token_labels_add_their_weighted_cross_entropy(weight):
    model, pixels = classifier(token_label_loss_weight=weight), torch.randn(2, 3, 32, 48)
    labels, shares = torch.tensor([1, 3]), torch.rand(2, 4, 2, 3).softmax(dim=1)
    tokens = model.token_classifier(model.backbone(pixels).last_hidden_state)
    scores = tokens.log_softmax(dim=-1).transpose(1, 2).unflatten(2, (2, 3))
    token_loss = -(shares * scores).sum(dim=1).mean()
    loss = model(pixels, labels=labels, token_labels=shares).loss
    torch.testing.assert_close(loss, model(pixels, labels=labels).loss + weight * token_loss)
    torch.testing.assert_close(model(pixels, token_labels=shares).loss, weight * token_loss)


def test_class_indices_are_token_labels_of_one_class():
    model, pixels, indices = classifier(), torch.randn(2, 3, 32, 48), torch.randint(0, 4, (2, 2, 3))
    shares = F.one_hot(indices, 4).movedim(-1, 1).float()
    by_index, by_share = (model(pixels, token_labels=labels).loss for labels in (indices, shares))
    torch.testing.assert_close(by_index, by_share)


def test_token_labels_train_every_parameter():
    model = MaformerForImageClassification(config(num_labels=4, use_token_labels=True)).train()
    labels, token_labels = torch.tensor([1, 3]), torch.randint(0, 4, (2, 2, 2))
    model(torch.randn(2, 3, 32, 32), labels=labels, token_labels=token_labels).loss.backward()
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


def test_token_labels_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"token_labels has shape \(2, 7, 7\).*\(2, 4, 3\)"):
        classifier()(torch.randn(2, 3, 64, 40), token_labels=torch.zeros(2, 7, 7, dtype=torch.long))


def test_token_labels_without_a_head_are_refused():
    model = MaformerForImageClassification(config(num_labels=4))
    with pytest.raises(ValueError, match="use_token_labels=True"):
        model(torch.randn(1, 3, 16, 16), token_labels=torch.zeros(1, 1, 1, dtype=torch.long))


# -- configuration ------------------------------------------------------------------------------------------------------------


@each(
    ("options", "message"),
    [
        ({"local_attention": "cross_shape"}, "did you mean 'cross_shaped'"),
        ({"global_branch": "glds"}, "did you mean 'gld'"),
        ({"fusion": "mav"}, "did you mean 'maf'"),
        ({"num_heads": (1, 4, 2)}, "even number"),
        ({"num_heads": (2, 4)}, "one entry per stage"),
        ({"num_heads": (2, 4, 3)}, "3 heads do not divide"),
        ({"stripe_widths": (1, 2, 2, 2)}, "each MAF stage"),
        ({"stripe_widths": (1, 0)}, "each MAF stage"),
        ({"gld_ratio": 0.01}, "at least one global token"),
    ],
)
def test_settings_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        config(**options)


def test_shifted_windows_take_any_number_of_heads():
    backbone = MaformerBackbone(config(num_heads=(1, 1, 1), local_attention="shifted_window"))
    assert backbone(torch.randn(1, 3, 16, 16)).feature_maps[0].shape == (1, 8, 4, 4)


def test_the_average_of_what_is_visible_of_a_constant_map_is_that_constant():
    padding_mask = torch.zeros(1, 28, 28, dtype=torch.bool)
    padding_mask[:, :20, :25] = True  # ends in the middle of a column of cells
    averages = average_of_unpadded(torch.full((1, 28, 28, 2), 0.7), padding_mask, 14)
    seen = torch.zeros(1, 14, 14, 2)
    seen[:, :10, :13] = 0.7
    torch.testing.assert_close(averages, seen)


def test_the_stride_of_the_ablation_is_the_nearest_whole_number():
    branch = GlobalConvolution(dim=6, grid_size=14, ratio=0.6)
    assert branch(torch.randn(1, 9, 9, 6)).shape == (1, 49, 6)


@pytest.mark.parametrize("is_serial", [False, True])
def test_the_global_branch_reads_the_input_or_after_the_local_branch_its_output(is_serial):
    features = torch.randn(1, 3, 4, 8)
    block = MafBlock(lambda given, _: given + 1, lambda _, source, __: source, is_serial)
    torch.testing.assert_close(block(features), features + is_serial)


def test_a_shifted_window_at_the_border_does_not_see_the_opposite_border():
    sizes = StageSizes(8, depth=1, num_heads=2, window=(4, 4), mlp_ratio=2.0, drop_path_rates=(0.0,))
    block = randomized(ShiftedWindowBlock(config(), sizes, 0.0, shifted=True))
    features = torch.randn(1, 8, 8, 8)
    changed = features.clone()
    changed[:, 0, 0] = torch.randn(8)
    differs = (block(features) != block(changed)).any(-1)[0]
    assert differs[:2, :2].all()  # its window
    assert differs.sum() == 4
