"""One training step of nnFormer on 64 x 128 x 128 voxels beside MONAI's SwinUNETR of equal width.

    python -m contextseg.benchmarks.volume_speed

Both run in turn in one process; times are medians, memory is what the forward pass keeps for the backward pass. MONAI
is needed. `benchmarks/volumes.md` tells the results.
"""

import statistics
import sys
import time

import torch
from torch import Tensor, nn

from ..configuration.configuration_nnformer import NnFormerConfig
from ..modeling.losses import segmentation_loss
from ..modeling.modeling_nnformer import NnFormerForSemanticSegmentation

SIZE, WIDTH, CLASSES, ROUNDS = (64, 128, 128), 48, 14, 3
TERMS = "cross_entropy+foreground_dice"


def networks() -> dict[str, nn.Module]:
    """Networks of equal width: 48, 96, 192 and 384 channels."""
    from monai.networks.nets import SwinUNETR

    options = {"embed_dim": WIDTH, "num_heads": (3, 6, 12, 24), "num_labels": CLASSES, "loss": TERMS}
    plain = NnFormerConfig.preset("synapse", **options)
    tokens = NnFormerConfig.preset("synapse", variant="2021", num_global_tokens=1, **options)
    checkpointed = NnFormerForSemanticSegmentation(plain)
    checkpointed.gradient_checkpointing_enable()
    return {
        "SwinUNETR": SwinUNETR(1, CLASSES, feature_size=WIDTH, spatial_dims=3),
        "nnFormer (2022)": NnFormerForSemanticSegmentation(plain),
        "GLAM-nnFormer (2021, 1 token)": NnFormerForSemanticSegmentation(tokens),
        "nnFormer (2022), checkpointed": checkpointed,
    }


def step(model: nn.Module, values: Tensor, labels: Tensor) -> tuple[float, float, float]:
    """One step -> seconds of the forward pass with the loss, of all, and GiB kept for the backward pass."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    started = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if hasattr(model, "config"):
            loss = model(pixel_values=values, labels=labels).loss
        else:
            loss = segmentation_loss(model(values), labels, terms=TERMS)
    forward = time.perf_counter() - started
    loss.backward()
    model.zero_grad()
    whole = time.perf_counter() - started
    return forward, whole, sum(size for place, size in kept.items() if place not in own) / 2**30


def main() -> int:
    torch.manual_seed(0)
    values = torch.randn(1, 1, *SIZE)
    labels = torch.randint(0, CLASSES, (1, *SIZE))
    models = networks()
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in models}
    for _ in range(ROUNDS):
        for name, model in models.items():
            measured[name].append(step(model.train(), values, labels))
    first = statistics.median(whole for _, whole, _ in measured["SwinUNETR"])
    print("| network | parameters | step | over SwinUNETR | kept for backward |\n|---|---|---|---|---|")
    for name, runs in measured.items():
        whole = statistics.median(whole for _, whole, _ in runs)
        parameters = sum(parameter.numel() for parameter in models[name].parameters())
        print(
            f"| {name} | {parameters / 1e6:.1f} M | {whole:.1f} s | {whole / first:.2f} | {runs[0][2]:.2f} GiB |"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
