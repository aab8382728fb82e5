import json
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from cases import each
from golden_cases import golden_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import SegformerConfig
from transformers.models.segformer.modeling_segformer import SegformerDecodeHead

from contextseg.modeling.context_mining import ContextAttention, LowRankExternalAttention
from contextseg.modeling.decoder_segdeformer import NECKS, ContextMining, SegDeformerDecoder

CHANNELS = (4, 6, 8, 10)
DIM = 8
FEW, MANY = 5, 11  # fewer and more labels than channels
SDPA, EAGER = SimpleNamespace(_attn_implementation="sdpa"), SimpleNamespace(_attn_implementation="eager")

STRUCTURES = {
    "whole": {},
    "two heads": {"num_heads": 2},
    "two layers": {"internal_depth": 2},
    "MLP": {"internal_mlp": True},
    "two layers with MLP": {"internal_depth": 2, "internal_mlp": True},
    "external only": {"use_internal": False},
    "internal only": {"use_external": False},
    "neither": {"use_internal": False, "use_external": False},
    "one token set": {"decouple_tokens": False},
    "X_mid added": {"use_external_attention": False},
    "X_mid of one token set, alone": {
        "use_internal": False, "use_external_attention": False, "decouple_tokens": False,
    },
    "momentum tokens": {"external_tokens": "momentum"},
    "reduced": {"reduction_ratio": 2},
    "reduced by 3, two layers": {"reduction_ratio": 3, "internal_depth": 2},
}  # fmt: skip
each_structure = each("structure", STRUCTURES)


def build(neck="conv", num_labels=FEW, config=SDPA, **structure):
    torch.manual_seed(0)
    decoder = SegDeformerDecoder(
        config, CHANNELS, DIM, num_labels, ContextMining(neck=neck, **structure), 0.0
    )
    for module in decoder.modules():  # nothing at its neutral value
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    if decoder.external is not None:
        for tokens in decoder.external.tokens.state_dict().values():
            nn.init.normal_(tokens)
    return decoder.double()


def maps(height=7, width=5, batch=2):
    torch.manual_seed(1)
    sizes = [(height, width)]
    while len(sizes) < len(CHANNELS):
        sizes.append(tuple((side + 1) // 2 for side in sizes[-1]))
    return [
        torch.randn(batch, channels, *size, dtype=torch.double)
        for channels, size in zip(CHANNELS, sizes, strict=True)
    ]


class WrittenOut:
    """The paper's equations and the authors' variant, one by one, with every matrix held."""

    def __init__(self, decoder, mining):
        self.decoder, self.mining = decoder, mining
        self.use_batch_norm = mining.neck != "linear"

    def __call__(self, feature_maps):
        fused = self.fuse(feature_maps)
        self.size = fused.shape[-2:]
        x = fused.flatten(2).transpose(1, 2)
        summed, mid = x, None
        if self.mining.use_internal:
            for layer in self.decoder.internal.layers:
                summed = summed + self.attention(layer.attention, summed, summed, self.mining.num_heads)
                if self.mining.internal_mlp:
                    summed = summed + layer.mlp(layer.norm(summed))
        if self.mining.use_external:
            y, mid = self.external(x)
            summed = summed + y
            mid = self.as_map(mid)
        return self.as_map(summed), mid

    def as_map(self, tokens):
        return tokens.transpose(1, 2).unflatten(2, self.size)

    def fuse(self, feature_maps):
        neck = self.decoder.neck
        if self.mining.neck not in ("linear", "conv", "segformer"):
            return neck(feature_maps).feature_map
        levels = [self.project(p, m) for p, m in zip(neck.projections, feature_maps, strict=True)]
        size = feature_maps[0].shape[-2:]
        levels = [F.interpolate(level, size, mode="bilinear", align_corners=False) for level in levels]
        return self.project(neck.fusion, torch.cat(levels, dim=1))

    def project(self, layer, feature_map):
        if not hasattr(layer, "norm"):
            return F.linear(feature_map.movedim(1, -1), layer.weight, layer.bias).movedim(-1, 1)
        return F.relu(layer.norm(F.conv2d(feature_map, layer.convolution.weight)))

    def project_tokens(self, layer, tokens, size):
        return self.project(layer, tokens.transpose(1, 2).unflatten(2, size)).flatten(2).transpose(1, 2)

    def attention(self, block, asking, source, num_heads):
        size = self.size
        if self.mining.reduction_ratio > 1:
            source, size = self.reduce(block.reduction, source)
        q = self.project_tokens(block.q_proj, asking, self.size)
        k, v = (self.project_tokens(layer, source, size) for layer in (block.k_proj, block.v_proj))
        heads = []
        for part in zip(*(tokens.chunk(num_heads, dim=-1) for tokens in (q, k, v)), strict=True):
            query, key, value = part
            scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1])
            heads.append(scores.softmax(-1) @ value)
        y = torch.cat(heads, dim=-1)
        return self.project_tokens(block.o_proj, y, self.size) if self.use_batch_norm else y

    def reduce(self, convolution, source):
        ratio, (height, width) = self.mining.reduction_ratio, self.size
        size = math.ceil(height / ratio), math.ceil(width / ratio)
        whole = source.new_zeros(len(source), source.shape[-1], size[0] * ratio, size[1] * ratio)
        whole[:, :, :height, :width] = self.as_map(source)
        return F.conv2d(whole, convolution.weight, stride=ratio).flatten(2).transpose(1, 2), size

    def external(self, x):
        external, tokens = self.decoder.external, self.decoder.external.tokens
        x_class = x_info = tokens.class_tokens
        if self.mining.decouple_tokens and self.mining.external_tokens == "learned":
            x_info = tokens.info_tokens
        q, k = F.linear(x, external.q_proj.weight, external.q_proj.bias), external.k_proj(x_class)
        v = x_info if self.use_batch_norm else external.v_proj(x_info)
        attn_mid = q @ k.T / math.sqrt(DIM)
        x_mid = attn_mid.softmax(-1) @ v
        if not self.mining.use_external_attention:
            return x_mid, attn_mid
        return self.attention(external.attention, x, x_mid, 1), attn_mid


def both(decoder, mining, feature_maps):
    """Outputs, gradients of parameters and inputs, and buffers: ours and those written out."""
    results = []
    for forward in (lambda inputs: decoder(inputs)[:2], WrittenOut(decoder, mining)):
        state = {name: tensor.clone() for name, tensor in decoder.state_dict().items()}
        inputs = [feature_map.clone().requires_grad_() for feature_map in feature_maps]
        outputs = [output for output in forward(inputs) if output is not None]
        torch.manual_seed(2)
        loss = sum((output * torch.randn(output.shape)).sum() for output in outputs)
        gradients = torch.autograd.grad(loss, [*decoder.parameters(), *inputs])
        results.append([*outputs, *gradients, *(buffer.clone() for buffer in decoder.buffers())])
        decoder.load_state_dict(state)
    return results


@each_structure
@each("is_training", {"training": True, "evaluation": False})
@each(("neck", "num_labels"), [("linear", FEW), ("linear", MANY), ("conv", FEW)])
def test_the_decoder_is_the_equations_written_out(neck, num_labels, is_training, structure):
    decoder = build(neck, num_labels, **structure).train(is_training)
    ours, expected = both(decoder, ContextMining(neck=neck, **structure), maps())
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


@each(
    "is_training",
    {
        "training": True,
        "evaluation": False,
    },
)
@each("neck", ["segformer", "upernet", "semantic_fpn"])
def test_every_neck_carries_the_authors_mining(neck, is_training):
    decoder = build(neck).train(is_training)
    ours, expected = both(decoder, ContextMining(neck=neck), maps())
    torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-9)


@each(("num_labels", "is_low_rank"), [(FEW, True), (DIM, False), (MANY, False)])
def test_the_papers_external_attention_is_as_wide_as_the_fewer_of_labels_and_channels(
    num_labels, is_low_rank
):
    attention = build("linear", num_labels).external.attention
    assert isinstance(attention, LowRankExternalAttention) == is_low_rank


@each("neck", [*NECKS])
@each_structure
def test_one_small_image_trains_every_parameter(neck, structure):
    decoder = build(neck, **structure).train()
    for size in ((1, 1), (3, 2)):
        decoder.zero_grad()
        decoded = decoder(maps(*size, batch=1))
        assert decoded.feature_map.shape == (1, DIM, *size)
        outputs = [output for output in decoded[:2] if output is not None]
        sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
        missing = [name for name, parameter in decoder.named_parameters() if parameter.grad is None]
        assert missing == []


@each("neck", ["linear", "conv"])
@each_structure
def test_eager_attention_is_sdpa_and_gives_its_probabilities(neck, structure):
    sdpa, eager = (build(neck, config=config, **structure).eval() for config in (SDPA, EAGER))
    ours, expected = sdpa(maps()), eager(maps())
    torch.testing.assert_close(ours[:2], expected[:2])
    mining = ContextMining(**structure)
    layers = mining.internal_depth if mining.use_internal else 0
    layers += mining.use_external and mining.use_external_attention
    assert (len(ours.attentions), len(expected.attentions)) == (0, layers)
    keys = math.ceil(7 / mining.reduction_ratio) * math.ceil(5 / mining.reduction_ratio)
    for probabilities in expected.attentions:
        assert probabilities.shape[-2:] == (35, keys)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(probabilities.shape[:-1]).double())


class LargestTensor(TorchDispatchMode):
    """The most elements in any tensor that an operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        tensors = output if isinstance(output, list | tuple) else [output]
        sizes = [tensor.numel() for tensor in tensors if isinstance(tensor, torch.Tensor)]
        self.elements = max([self.elements, *sizes])
        return output


def largest_tensor(config, neck, **structure):
    decoder = build(neck, config=config, **structure).train()
    with LargestTensor() as largest:
        decoded = decoder(maps(24, 24, batch=1))
        (decoded.feature_map.sum() + decoded.mid_logits.square().sum()).backward()
    return largest.elements


@each("neck", ["linear", "conv"])
def test_no_training_step_holds_positions_by_positions(neck):
    positions = 24 * 24
    assert largest_tensor(EAGER, neck) == positions**2
    joint_projection = 4 * DIM * positions
    assert largest_tensor(SDPA, neck) <= joint_projection


def test_parameters_are_as_many_as_the_authors():
    facts = json.loads(golden_file("segdeformer/facts.json").read_text())
    for sizes, expected in facts["official_head"].items():
        channels, dim = sizes.removeprefix("in_channels ").split(", channels ")
        with torch.device("meta"):
            decoder = SegDeformerDecoder(SDPA, json.loads(channels), int(dim), 150)
            classifier = nn.Conv2d(int(dim), 150, kernel_size=1)
        count = sum(value.numel() for module in (decoder, classifier) for value in module.parameters())
        assert count == expected


def test_the_papers_form_adds_nine_matrices_and_two_token_sets():
    def count(**structure):
        mining = ContextMining(neck="linear", **structure)
        with torch.device("meta"):
            decoder = SegDeformerDecoder(SDPA, (64, 128, 320, 512), 256, 150, mining)
        return sum(value.numel() for value in decoder.parameters())

    assert count() - count(use_internal=False, use_external=False) == 9 * 256**2 + 2 * 150 * 256


def test_reduction_by_four_adds_two_convolutions():
    plain, reduced = (build(reduction_ratio=ratio) for ratio in (1, 4))
    counts = [sum(value.numel() for value in decoder.parameters()) for decoder in (plain, reduced)]
    assert counts[1] - counts[0] == 2 * 16 * DIM**2


def test_without_mining_the_segformer_neck_is_segformers_head():
    torch.manual_seed(0)
    config = SegformerConfig(hidden_sizes=list(CHANNELS), decoder_hidden_size=DIM, num_labels=FEW)
    theirs = SegformerDecodeHead(config).eval().double()
    nn.init.uniform_(theirs.batch_norm.running_mean, -1, 1)
    ours = build("segformer", use_internal=False, use_external=False).eval()
    neck = ours.neck
    for projection, source in zip(neck.projections, theirs.linear_projections, strict=True):
        projection.load_state_dict(source.proj.state_dict())
    coarse_to_fine = theirs.linear_fuse.weight.data.chunk(len(CHANNELS), dim=1)
    neck.fusion.convolution.weight.data = torch.cat(coarse_to_fine[::-1], dim=1)
    neck.fusion.norm.load_state_dict(theirs.batch_norm.state_dict())
    feature_maps = maps()
    logits = theirs.classifier(ours(feature_maps).feature_map)
    torch.testing.assert_close(logits, theirs(feature_maps))


def test_maps_may_lie_in_memory_either_way():
    decoder = build().eval()
    last = [feature_map.contiguous(memory_format=torch.channels_last) for feature_map in maps()]
    torch.testing.assert_close(decoder(last)[:2], decoder(maps())[:2])


def test_half_precision_autocast_trains():
    decoder = build("linear").float().train()
    with torch.autocast("cpu", torch.bfloat16):
        decoded = decoder([feature_map.float() for feature_map in maps()])
    expected = decoder([feature_map.float() for feature_map in maps()])
    torch.testing.assert_close(decoded.feature_map.float(), expected.feature_map, rtol=0.05, atol=0.1)
    decoded.feature_map.float().sum().backward()


@each(
    ("structure", "complaint"),
    [
        ({"num_heads": 3}, "num_heads=3 does not divide the decoder's width 8"),
        ({"reduction_ratio": 0}, "reduction_ratio=0; 1 or more"),
        ({"internal_depth": 0}, "internal_depth=0; 1 or more"),
        ({"neck": "line"}, "no neck 'line', did you mean 'linear'"),
        ({"external_tokens": "learnt"}, "no kind of external tokens 'learnt', did you mean 'learned'"),
    ],
)
def test_a_structure_that_cannot_be_built_is_refused(structure, complaint):
    with pytest.raises(ValueError, match=complaint):
        build(**structure)


def test_norms_synchronized_over_gpus_evaluate_like_folded_ones():
    decoder = build().eval()
    expected = decoder(maps())[:2]
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(decoder)
    assert isinstance(synchronized.internal.layers[0].attention.q_proj.norm, nn.SyncBatchNorm)
    torch.testing.assert_close(synchronized(maps())[:2], expected)


def test_fresh_weights_are_the_authors():
    torch.manual_seed(0)
    decoder = SegDeformerDecoder(SDPA, (64, 128), 64, 100)
    # Children before parents, as transformers initializes a model.
    decoder.apply(lambda module: getattr(module, "reset_own_weights", lambda _: None)(0.5))
    external, convolution = decoder.external, decoder.external.attention.o_proj.convolution
    for tokens in (external.tokens.class_tokens, external.tokens.info_tokens):
        assert tokens.std().item() == pytest.approx(0.02, rel=0.05)
    assert convolution.weight.std().item() == pytest.approx(math.sqrt(2 / 64), rel=0.05)
    assert external.q_proj.weight.abs().max().item() == pytest.approx(64**-0.5, rel=0.01)
    assert external.q_proj.bias.abs().max().item() <= 64**-0.5


def test_a_reduced_position_is_visible_where_one_of_its_positions_is():
    padding_mask = torch.zeros(1, 5, 3, dtype=torch.bool)
    padding_mask[0, 4, 2] = True  # in a cell that zeros complete
    bias = ContextAttention(SDPA, DIM, use_batch_norm=False, reduction_ratio=2).key_bias(
        padding_mask, torch.float32
    )
    assert (bias == 0).flatten().tolist() == [False] * 5 + [True]
