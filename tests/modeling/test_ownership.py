"""Who uses a weight owns it: no module reads another one's parameters, so hooks, adapters and quantized layers act.

accelerate's hooks load a module's parameters for the time of its call, peft puts adapters around layers, and torchao replaces
their weights. Code that goes around the call gets tensors without data, or adapters that nothing reads.
"""

import ast
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from cases import slow_but
from peft import LoraConfig, get_peft_model
from tiny import REPRESENTATIVES, SEGMENTERS, labels_for, pixels_for, tiny_segdeformer
from torch import Tensor, nn
from transformers import PreTrainedModel

MODELING = Path(__file__).parents[2] / "modeling"
PARAMETERS = {
    "weight",
    "bias",
    "running_mean",
    "running_var",
    "table",
    "token_code",
    "class_tokens",
    "info_tokens",
}
# Reads of what is not a parameter, by file and source.
OTHER_READS = {
    ("losses.py", "pixels.weight"): "a field of a named tuple, the weight of each pixel",
    ("nonlocal_upsampling.py", "sizes.bias"): "a field of a named tuple, the name of a numbering",
}

# Besides the tiny ones, necks and options of SegDeformer that read weights in other ways.
BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {
    **SEGMENTERS,
    "segdeformer_segformer_neck": lambda: tiny_segdeformer(neck="segformer", reduction_ratio=2),
    "segdeformer_momentum": lambda: tiny_segdeformer(external_tokens="momentum", internal_mlp=True),
    "segdeformer_fpn": lambda: tiny_segdeformer(decoder="semantic_fpn", use_auxiliary_head=True),
}
each_builder = pytest.mark.parametrize(
    "name", slow_but(BUILDERS, *REPRESENTATIVES, "segdeformer_momentum", "nnformer")
)


def foreign_reads(tree: ast.AST, may_write: bool = False) -> Iterator[str]:
    """Reads of a parameter of anything but `self`, except where weights are initialized or converted."""
    for node in ast.iter_child_nodes(tree):
        inside = may_write
        if isinstance(node, ast.FunctionDef):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            inside = may_write or "torch.no_grad()" in decorators or node.name.startswith("reset_")
        is_foreign = (
            isinstance(node, ast.Attribute)
            and node.attr in PARAMETERS
            and isinstance(node.ctx, ast.Load)
            and ast.unparse(node.value) != "self"
        )
        if is_foreign and not inside:
            yield ast.unparse(node)
        yield from foreign_reads(node, inside)


def test_no_module_reads_the_parameters_of_another():
    found = {
        (path.name, read)
        for path in sorted(MODELING.glob("*.py"))
        for read in foreign_reads(ast.parse(path.read_text()))
    }
    assert found == OTHER_READS.keys()


def test_the_search_finds_what_decoders_once_did():
    code = """
class Decoder(nn.Module):
    def forward(self, x):
        return F.linear(x, self.child.weight, self.layers[0].bias) + self.weight
    def reset_own_weights(self, std):
        init.normal_(self.child.weight, std=std)
def convolve(block, x):
    return F.conv2d(x, block.convolution.weight)
"""
    assert [*foreign_reads(ast.parse(code))] == [
        "self.child.weight", "self.layers[0].bias", "block.convolution.weight",
    ]  # fmt: skip


def images_for(model: PreTrainedModel) -> Tensor:
    return pixels_for(model, 2, 3, 24, 32)


def build(name: str) -> PreTrainedModel:
    """A model in evaluation mode, whose random matrices let each layer change the logits."""
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model


@torch.no_grad()
def logits(model: nn.Module, images: Tensor) -> Tensor:
    return model.eval()(images).logits


def offloaded(model: PreTrainedModel, folder: Path) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Copies of a model with all, or one direct child, offloaded: a name, the copy, and what has no data in it."""
    whole = cpu_offload(deepcopy(model), torch.device("cpu"))
    yield "all in memory", whole, whole
    children = [child for child, module in model.named_children() if module is not None]
    for child in children:
        if not any(True for _ in model.get_submodule(child).parameters()):
            continue  # there is nothing to offload, such as in a decoder that passes its map on
        places = {other: "disk" if other == child else "cpu" for other in children}
        parts = dispatch_model(
            deepcopy(model), places, main_device="cpu", offload_dir=folder / child, force_hooks=True
        )
        yield f"{child} on disk", parts, parts.get_submodule(child)


@pytest.mark.slow
@each_builder
def test_offloading_any_part_gives_the_logits_of_the_whole_model(name, tmp_path):
    model = build(name)
    images = images_for(model)
    expected = logits(model, images)
    for place, parts, without_data in offloaded(model, tmp_path / name):
        assert all(parameter.is_meta for parameter in without_data.parameters()), (name, place)
        torch.testing.assert_close(logits(parts, images), expected, rtol=0, atol=1e-5, msg=f"{name}, {place}")


def adaptable_layers(model: nn.Module) -> list[str]:
    """Layers that peft's LoRA adapts and merges, convolutions included; it merges none of volumes with a kernel of 1."""
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        or (isinstance(module, nn.Conv2d) and module.groups == 1)
        or (isinstance(module, nn.Conv3d) and module.kernel_size[:2] != (1, 1))
    ]


@pytest.mark.parametrize("choose_targets", [lambda _: "all-linear", adaptable_layers], ids=["linear", "all"])
@each_builder
def test_every_adapter_of_peft_trains_and_merges_to_the_same_logits(name, choose_targets):
    model = build(name).double()  # so that merging shows errors, not rounding
    images = images_for(model).double()
    labels = labels_for(images)
    before, targets = logits(model, images), choose_targets(model)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapted.train()(images, labels=labels).loss.backward()
    adapters = {key: weight for key, weight in adapted.named_parameters() if "lora_" in key}
    assert any(".backbone." in key for key in adapters), name
    assert [key for key, weight in adapters.items() if weight.grad is None or not weight.grad.any()] == []
    expected = logits(adapted, images)
    assert (expected - before).abs().max() > 1e-3, name
    merged = logits(adapted.merge_and_unload(), images)
    torch.testing.assert_close(merged, expected, rtol=1e-8, atol=1e-8, msg=name)


@pytest.fixture
def torchao() -> ModuleType:
    return pytest.importorskip("torchao.quantization")


def with_rounded_weights(model: PreTrainedModel, rounded: PreTrainedModel) -> PreTrainedModel:
    """A plain copy that holds in floating point the weights to which another one's layers were rounded."""
    copy, count = deepcopy(model), 0
    for layer, other in zip(copy.modules(), rounded.modules(), strict=True):
        if hasattr(getattr(other, "weight", None), "dequantize") and type(other.weight) is not nn.Parameter:
            layer.weight.data = other.weight.dequantize()
            count += 1
    assert count
    return copy


@each_builder
def test_int8_weights_of_torchao_are_the_weights_rounded(name, torchao):
    model, int8 = build(name), build(name)
    images = images_for(model)
    torchao.quantize_(int8, torchao.Int8WeightOnlyConfig())
    expected = logits(with_rounded_weights(model, int8), images)
    assert (logits(int8, images) - expected).norm() < 1e-4 * expected.norm(), name


@pytest.mark.parametrize("kind", ["Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig"])
@each_builder
def test_int8_of_torchao_gives_the_logits_within_its_rounding(name, kind, torchao):
    model, int8 = build(name), build(name)
    images = images_for(model)
    torchao.quantize_(int8, getattr(torchao, kind)())
    expected = logits(model, images)
    error = logits(int8, images) - expected
    assert 0 < error.norm() < 0.1 * expected.norm(), name
