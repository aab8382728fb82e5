"""Claims about SegDeformer as a whole model; its decoder, its backbones and the contract have files of their own."""

import pytest
import torch
from cases import each
from tiny import LABELS, tiny_mit, tiny_segdeformer
from torch import nn
from transformers import (
    SegformerConfig,
    SegformerForImageClassification,
    SegformerForSemanticSegmentation,
    SwinConfig,
    SwinForImageClassification,
)

from contextseg import SegDeformerForSemanticSegmentation
from contextseg.modeling.blocks import Decoded

PLAIN = {"use_internal_context": False, "use_external_context": False}


@pytest.fixture
def segformer(tmp_path):
    """A SegFormer with random weights and statistics, saved by transformers."""
    sizes = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 2, 4], "depths": [1, 2, 1, 1]}
    model = SegformerForSemanticSegmentation(
        SegformerConfig(**sizes, decoder_hidden_size=12, id2label=LABELS)
    )
    for value in [*model.parameters(), *model.decode_head.batch_norm.buffers()]:
        if value.is_floating_point():
            nn.init.uniform_(value, 0.1, 1.0) if value.ndim == 1 else nn.init.normal_(value, std=0.3)
    model.eval().save_pretrained(tmp_path)
    return model


@pytest.mark.parametrize("size", [(64, 64), (45, 70), (33, 130)], ids=str)
def test_without_context_it_is_the_segformer_that_it_was_loaded_from(segformer, tmp_path, size):
    model = SegDeformerForSemanticSegmentation.from_segformer(tmp_path, **PLAIN)
    pixels = torch.randn(2, 3, *size)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels).logits, segformer(pixels).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("segformer")
def test_new_context_starts_on_the_weights_of_segformer(tmp_path):
    model = SegDeformerForSemanticSegmentation.from_segformer(tmp_path)
    plain = SegDeformerForSemanticSegmentation.from_segformer(tmp_path, **PLAIN)
    stored, loaded = plain.state_dict(), model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert {name.split(".")[1] for name in loaded.keys() - stored.keys()} == {"internal", "external"}


def test_other_classes_keep_the_rows_of_equal_names(segformer, tmp_path):
    model = SegDeformerForSemanticSegmentation.from_segformer(tmp_path, id2label={0: "tree", 1: "car"})
    assert torch.equal(model.classifier.weight[0], segformer.decode_head.classifier.weight[2])
    assert not torch.equal(model.classifier.weight[1], segformer.decode_head.classifier.weight[1])


def test_a_classifier_checkpoint_gives_its_encoder_alone(tmp_path):
    source = SegformerForImageClassification(tiny_mit(num_labels=4))
    source.save_pretrained(tmp_path)
    model = SegDeformerForSemanticSegmentation.from_segformer(
        tmp_path, id2label=LABELS, decoder_hidden_size=8
    )
    torch.testing.assert_close(
        model.backbone.encoder.model.state_dict(), source.segformer.state_dict(), rtol=0, atol=0
    )
    assert model.config.neck == "conv"


def test_any_encoder_checkpoint_can_be_the_start(tmp_path):
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    source = SwinForImageClassification(SwinConfig(**sizes, image_size=32))
    source.save_pretrained(tmp_path)
    model = SegDeformerForSemanticSegmentation.from_backbone(tmp_path, id2label=LABELS, decoder_hidden_size=8)
    stored = {name: value for name, value in source.swin.state_dict().items() if name.startswith("enc")}
    loaded = {
        name.removeprefix("swin."): value for name, value in model.backbone.encoder.state_dict().items()
    }
    assert all(torch.equal(loaded[name], value) for name, value in stored.items())
    assert model(torch.randn(1, 3, 45, 70)).logits.shape == (1, 3, 12, 18)


def test_another_type_of_checkpoint_is_named(tmp_path):
    tiny_segdeformer().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a 'segdeformer'"):
        SegDeformerForSemanticSegmentation.from_segformer(tmp_path)


def test_new_labels_keep_the_tokens_of_classes_with_equal_names(tmp_path):
    old = tiny_segdeformer()
    old.save_pretrained(tmp_path)
    new = type(old).from_pretrained(tmp_path, id2label={0: "sky", 1: "car", 2: "road", 3: "dog"})
    for name in ("class_tokens", "info_tokens"):
        tokens, before = (getattr(model.decoder.external.tokens, name) for model in (new, old))
        assert tokens.shape == (4, 8)
        assert torch.equal(tokens[[0, 2]], before[[1, 0]])


def test_momentum_tokens_move_in_training_only():
    model = tiny_segdeformer(external_tokens="momentum")
    tokens = model.decoder.external.tokens.class_tokens
    pixels, labels = torch.randn(2, 3, 32, 32), torch.ones(2, 32, 32, dtype=torch.long)
    before = tokens.clone()
    model.eval()(pixels, labels=labels)
    assert torch.equal(tokens, before)
    model.train()(pixels, labels=labels)
    assert not torch.equal(tokens[1], before[1])  # the only class present
    assert torch.equal(tokens[[0, 2]], before[[0, 2]])


def test_the_mid_level_map_is_trained_with_the_weight_of_the_configuration():
    torch.manual_seed(0)
    model = tiny_segdeformer().eval()
    pixels, labels = torch.randn(2, 3, 32, 32), torch.randint(0, 3, (2, 32, 32))
    losses = []
    for weight in (0.0, 0.4, 0.8):
        model.config.attention_loss_weight = weight
        losses.append(model(pixels, labels=labels).loss)
    torch.testing.assert_close(losses[2] - losses[1], losses[1] - losses[0])
    assert losses[1] > losses[0]


@each("options", [{}, {"reduction_ratio": 2}, {"neck": "linear"}])
def test_padding_is_no_context(options):
    model = tiny_segdeformer(**options)
    maps = [torch.randn(2, 8, 8, 12), torch.randn(2, 16, 4, 6)]
    mask = torch.zeros(2, 32, 48)
    mask[:, :, :32] = 1
    noisy = [
        torch.cat([part[..., : 2 * part.shape[-1] // 3], 9 * part[..., -part.shape[-1] // 3 :]], -1)
        for part in maps
    ]
    decoder = model.eval().decoder
    decoder.neck = FinestMap()
    with torch.no_grad():
        clean, other = (decoder([part[0]], mask).feature_map for part in (maps, noisy))
        blind = decoder([noisy[0]]).feature_map
    torch.testing.assert_close(other[..., :8], clean[..., :8])
    assert (blind - clean)[..., :8].abs().max() > 1e-5


class FinestMap(nn.Module):
    """A neck that mixes nothing over places."""

    def forward(self, feature_maps):
        return Decoded(feature_maps[0])
