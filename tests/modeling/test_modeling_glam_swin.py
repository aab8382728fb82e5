import pytest
import torch
from cases import each
from tiny import tiny_glam_swin
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    SwinBackbone,
    SwinConfig,
)

from contextseg import (
    GlamSwinBackbone,
    GlamSwinConfig,
    GlamSwinForImageClassification,
    GlamSwinForSemanticSegmentation,
    GlamSwinModel,
)
from contextseg.modeling.swin_checkpoints import convert_swin_state_dict

SIZES = {"embed_dim": 8, "depths": (2, 2, 2), "num_heads": (1, 2, 4), "window_size": 4}


def config(**options):
    return GlamSwinConfig(**{**SIZES, "num_global_tokens": 2, "drop_path_rate": 0.0, **options})


@each("size", [(32, 32), (61, 90), (33, 7), (5, 70), (64, 16)])
def test_zero_global_tokens_is_transformers_swin(size):
    torch.manual_seed(0)
    swin = SwinBackbone(SwinConfig(**SIZES, out_features=["stage1", "stage2", "stage3"])).eval()
    for parameter in swin.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = GlamSwinBackbone(config(num_global_tokens=0)).eval()
    weights = convert_swin_state_dict(swin.state_dict())
    ours.load_state_dict({key: value for key, value in weights.items() if not key.startswith("norm.")})
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = zip(ours(pixels).feature_maps, swin(pixels).feature_maps, strict=True)
        assert max((map_ - expected).abs().max() for map_, expected in maps) < 1e-5


@each("path", [("bare", 1.0), ("transformer", 0.02)])
def test_global_tokens_start_at_the_scale_of_their_path(path):
    global_block, std = path
    torch.manual_seed(0)
    backbone = GlamSwinBackbone(config(num_global_tokens=64, global_block=global_block))
    initial = backbone.encoder.stages[2].global_tokens.initial
    assert initial.std().item() == pytest.approx(std, rel=0.1)


def test_the_backbone_gives_the_maps_it_is_asked_for():
    backbone = GlamSwinBackbone(config(out_features=["stem", "stage2"])).eval()
    maps = backbone(torch.randn(1, 3, 32, 48)).feature_maps
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(8, 8, 12), (16, 4, 6)]
    assert backbone.channels == [8, 16]


def test_stages_after_the_last_map_are_not_built():
    backbone = GlamSwinBackbone(config(out_features=["stage1"]))
    assert (len(backbone.encoder.stages), len(backbone.encoder.merges)) == (1, 0)
    backbone(torch.randn(1, 3, 16, 16)).feature_maps[0].sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


def test_the_model_pools_the_last_stage():
    outputs = GlamSwinModel(config())(torch.randn(2, 3, 32, 48), output_hidden_states=True)
    assert outputs.last_hidden_state.shape == (2, 2 * 3, 32)
    torch.testing.assert_close(outputs.pooler_output, outputs.last_hidden_state.mean(dim=1))
    assert [tuple(state.shape[1:]) for state in outputs.hidden_states] == [
        (8, 8, 12),
        (8, 8, 12),
        (16, 4, 6),
        (32, 2, 3),
    ]


def test_the_classifier_trains_every_parameter():
    model = GlamSwinForImageClassification(config(num_labels=3)).train()
    outputs = model(torch.randn(2, 3, 32, 32), labels=torch.tensor([0, 2]))
    outputs.loss.backward()
    assert outputs.logits.shape == (2, 3)
    assert [key for key, value in model.named_parameters() if value.grad is None] == []


@each("pretrained", [GlamSwinModel, GlamSwinBackbone, GlamSwinForImageClassification])
def test_a_segmenter_starts_from_any_trained_encoder(pretrained, tmp_path):
    source = pretrained(config(num_labels=2))
    source.save_pretrained(tmp_path)
    segmenter = GlamSwinForSemanticSegmentation.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True
    )
    encoder = source.backbone.encoder if hasattr(source, "backbone") else source.encoder
    assert segmenter.config.num_labels == 5
    torch.testing.assert_close(segmenter.backbone.encoder.state_dict(), encoder.state_dict())


def test_auto_classes_know_the_type(tmp_path):
    config().save_pretrained(tmp_path)
    known = AutoConfig.from_pretrained(tmp_path)
    assert type(known) is GlamSwinConfig
    assert type(AutoModel.from_config(known)) is GlamSwinModel
    assert type(AutoBackbone.from_config(known)) is GlamSwinBackbone
    assert type(AutoModelForImageClassification.from_config(known)) is GlamSwinForImageClassification


def test_attentions_are_those_of_windows_and_of_global_tokens_in_turn():
    model = tiny_glam_swin(attn_implementation="eager").eval()
    attentions = model(torch.randn(1, 3, 32, 32), output_attentions=True).attentions
    # Two stages of two blocks with 4 and 1 windows of 16 patches and 2 tokens; the last block asks for patches only.
    shapes = [(4, 1, 18, 18), (1, 1, 8, 8), (4, 1, 16, 18), (1, 2, 18, 18), (1, 2, 2, 2), (1, 2, 16, 18)]
    assert [tuple(probabilities.shape) for probabilities in attentions] == shapes


def test_a_segmenter_on_a_single_feature_map_is_refused():
    with pytest.raises(ValueError, match="returns 1 feature map; decoders need two or more"):
        GlamSwinForSemanticSegmentation(config(out_features=["stage3"]))
