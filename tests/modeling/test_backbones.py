"""Every encoder under our decoders: one tiny configuration a row, and the same promises for each."""

import importlib
import linecache
import os
import subprocess
import sys
import tempfile
from math import ceil
from pathlib import Path

import pytest
import torch
from cases import each, slow_but
from transformers import (
    BeitConfig,
    BertConfig,
    ConvNextConfig,
    ConvNextV2Config,
    DinatConfig,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    DINOv3ConvNextConfig,
    DINOv3ViTConfig,
    FocalNetConfig,
    HieraConfig,
    PvtConfig,
    PvtV2Config,
    ResNetConfig,
    ResNetForImageClassification,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    SegformerModel,
    SwinConfig,
    SwinForImageClassification,
    SwinModel,
    Swinv2Config,
    TimmBackboneConfig,
    VitDetConfig,
    VitPoseBackboneConfig,
)

from contextseg import GlamSwinConfig, GlamSwinModel
from contextseg.configuration.configuration_segdeformer import SegDeformerConfig
from contextseg.modeling.backbones import build_backbone
from contextseg.modeling.modeling_segdeformer import SegDeformerForSemanticSegmentation
from contextseg.modeling.pretrained_backbones import encoder_normalization, load_pretrained_backbone

SWIN = {"embed_dim": 8, "depths": [1, 1, 2, 1], "num_heads": [1, 1, 2, 2], "window_size": 4}
CONV = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 1, 1]}
SHALLOW_VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2}
VIT = {"hidden_size": 8, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 16}


def timm(name, **model_kwargs):
    return TimmBackboneConfig(backbone=name, model_kwargs=model_kwargs)


CONFIGS = {
    "glam_swin": lambda: GlamSwinConfig(**SWIN, num_global_tokens=2),
    "segformer": lambda: SegformerConfig(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    ),
    "swin": lambda: SwinConfig(**SWIN),
    "swinv2": lambda: Swinv2Config(**SWIN),
    "convnext": lambda: ConvNextConfig(**CONV),
    "convnextv2": lambda: ConvNextV2Config(**CONV),
    "resnet": lambda: ResNetConfig(**CONV, embedding_size=8, layer_type="basic"),
    "pvt_v2": lambda: PvtV2Config(
        hidden_sizes=[8, 12, 16, 24], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2]
    ),
    "focalnet": lambda: FocalNetConfig(embed_dim=8, hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1]),
    "hiera": lambda: HieraConfig(
        embed_dim=8, depths=[1, 1, 2, 1], num_heads=[1, 1, 2, 2], image_size=[96, 96]
    ),
    "dinov2": lambda: Dinov2Config(**VIT, image_size=56),
    "dinov2_with_registers": lambda: Dinov2WithRegistersConfig(**VIT, image_size=64),
    "dinov3_vit": lambda: DINOv3ViTConfig(**VIT),
    "dinov3_convnext": lambda: DINOv3ConvNextConfig(**CONV),
    "beit": lambda: BeitConfig(**VIT, image_size=64, use_relative_position_bias=True),
    "vitdet": lambda: VitDetConfig(**VIT, image_size=64, window_size=2, window_block_indices=[0]),
    "timm resnet": lambda: timm("resnet18", layers=(1, 1, 1, 1), channels=(8, 8, 16, 16)),
    "timm vit": lambda: timm("vit_tiny_patch16_224", embed_dim=12, depth=4, num_heads=2),
    "timm deit": lambda: timm("deit_tiny_patch16_224", embed_dim=12, depth=4, num_heads=2),
    "timm swin": lambda: timm(
        "swin_tiny_patch4_window7_224", embed_dim=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm davit": lambda: timm(
        "davit_tiny", embed_dims=(8, 16, 24, 32), depths=(1, 1, 1, 1), num_heads=(1, 2, 2, 2)
    ),
    "timm maxvit": lambda: timm("maxvit_rmlp_pico_rw_256", embed_dim=(32, 32, 32, 32), depths=(1, 1, 1, 1)),
    "timm pvt_v2": lambda: timm(
        "pvt_v2_b0", embed_dims=(8, 8, 16, 16), depths=(1, 1, 1, 1), num_heads=(1, 1, 2, 2)
    ),
    "timm shvit": lambda: timm("shvit_s1", embed_dim=(16, 24, 32), depth=(1, 1, 1), partial_dim=(8, 8, 8)),
    "timm tnt": lambda: timm(
        "tnt_s_legacy_patch16_224", embed_dim=12, inner_dim=8, depth=4, num_heads_outer=2
    ),
    "timm halonet": lambda: timm("halonet26t"),
    "dinat": lambda: DinatConfig(
        embed_dim=8,
        depths=[1, 1, 1, 1],
        num_heads=[1, 1, 2, 2],
        kernel_size=3,
        dilations=[[1], [2], [1], [1]],
    ),
    "vitpose": lambda: VitPoseBackboneConfig(**SHALLOW_VIT, image_size=[96, 128]),
    # Two branches, of strides that do not divide each other; shared modules; a buffer for each size; a fixed parameter.
    "timm crossvit": lambda: timm(
        "crossvit_tiny_240", embed_dim=(12, 16), num_heads=(1, 1), depth=((1, 1, 0),) * 3
    ),
    "timm coat": lambda: timm(
        "coat_tiny", embed_dims=(16, 16, 16, 16), serial_depths=(1, 1, 1, 1), parallel_depth=1
    ),
    "timm convit": lambda: timm("convit_tiny", embed_dim=12, depth=4, num_heads=2),
    "timm efficientvim": lambda: timm("efficientvim_m1", embed_dim=(16, 16, 16), depths=(1, 1, 1)),
}
SIZES = [(1, 1), (33, 3), (45, 70)]


LABELS = {0: "road", 1: "sky", 2: "tree"}
# A user's module: one file that imports torch and transformers only.
CUSTOM = """
import torch
from torch import nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.backbone_utils import BackboneConfigMixin, BackboneMixin
from transformers.modeling_outputs import BackboneOutput


class BlocksConfig(BackboneConfigMixin, PreTrainedConfig):
    model_type = "blocks_of_a_user"

    def __init__(self, widths=(8, 16), out_features=None, out_indices=None, **kwargs):
        super().__init__(**kwargs)
        self.widths = list(widths)
        self.stage_names = [f"stage{index + 1}" for index in range(len(widths))]
        self.set_output_features_output_indices(out_features=out_features, out_indices=out_indices)


class BlocksBackbone(BackboneMixin, PreTrainedModel):
    config_class = BlocksConfig

    def __init__(self, config):
        super().__init__(config)
        self.num_features = config.widths
        widths = [3, *config.widths]
        self.stages = nn.ModuleList(
            nn.Conv2d(narrow, wide, 4, 4) for narrow, wide in zip(widths, config.widths)
        )
        self.forgotten = nn.Linear(2, 2)
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)
        self.first_stage = self.stages[0]  # one module under two names
        self.register_buffer("scale", torch.full((1,), 3.0), persistent=False)
        self.post_init()

    def forward(self, pixel_values):
        assert min(pixel_values.shape[-2:]) >= 1
        maps, pixel_values = {}, pixel_values * self.scale * self.fixed
        for name, stage in zip(self.stage_names, self.stages):
            pixel_values = maps[name] = stage(pixel_values)
        return BackboneOutput(feature_maps=tuple(maps[name] for name in self.out_features))


AutoConfig.register("blocks_of_a_user", BlocksConfig)
AutoBackbone.register(BlocksConfig, BlocksBackbone)
"""


def custom_config():
    """The configuration of a user's backbone, from a module that is written and imported once."""
    name = "module_of_a_user"
    if name not in sys.modules:
        folder = Path(tempfile.mkdtemp())
        (folder / f"{name}.py").write_text(CUSTOM)
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
    return importlib.import_module(name).BlocksConfig()


CONFIGS["custom"] = custom_config


# One of each kind of encoder; the others are its relatives.
ALWAYS = ("glam_swin", "segformer", "swin", "convnext", "resnet", "hiera", "dinov2", "beit", "custom")
ALWAYS_OF_TIMM = ("timm resnet", "timm vit", "timm swin")


@pytest.fixture(params=slow_but(CONFIGS, *ALWAYS, *ALWAYS_OF_TIMM))
def config(request):
    torch.manual_seed(0)
    return CONFIGS[request.param]()


def segmenter(backbone_config, **options):
    return SegDeformerForSemanticSegmentation(
        SegDeformerConfig(
            **{
                "backbone_config": backbone_config,
                "decoder_hidden_size": 8,
                "id2label": LABELS,
                **options,
            }
        )
    )


@each("size", SIZES)
def test_maps_of_any_image_size_have_the_stated_widths_and_strides(config, size):
    backbone = build_backbone(config).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, *size)).feature_maps
    expected = [
        (1, channels, *(ceil(side / stride) for side in size))
        for channels, stride in zip(backbone.channels, backbone.strides, strict=True)
    ]
    assert [tuple(feature_map.shape) for feature_map in maps] == expected
    assert list(backbone.strides) == sorted(backbone.strides)


def test_a_single_image_gives_every_parameter_a_gradient(config):
    backbone = build_backbone(config).train()
    sum(
        feature_map.square().sum() for feature_map in backbone(torch.randn(1, 3, 1, 1)).feature_maps
    ).backward()
    assert [name for name, value in backbone.named_parameters() if value.grad is None] == []


def test_a_saved_segmenter_loads_to_the_same_bits(config, tmp_path):
    model = segmenter(config).eval()
    model.save_pretrained(tmp_path)
    loaded, info = SegDeformerForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    pixels = torch.randn(1, 3, 33, 45)
    with torch.no_grad():
        torch.testing.assert_close(loaded.eval()(pixels).logits, model(pixels).logits)
    state = dict([*model.named_parameters(), *model.named_buffers()])
    assert {
        name
        for name, value in [*loaded.named_parameters(), *loaded.named_buffers()]
        if not torch.equal(value, state[name])
    } == set()
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in model.named_parameters()]


def test_a_segmenter_trains_on_one_image(config):
    model = segmenter(config).train()
    model(torch.randn(1, 3, 33, 45), labels=torch.randint(0, 3, (1, 33, 45))).loss.backward()
    assert [name for name, value in model.named_parameters() if value.grad is None] == []
    assert model.config.logits_stride == model.backbone.strides[0]


@each("name", ["dinov2", "timm vit", "beit"])
def test_flat_maps_become_a_pyramid_on_request(name):
    config = CONFIGS[name]()
    flat, pyramid = build_backbone(config), build_backbone(config, flat="pyramid")
    assert len(set(flat.strides)) == 1
    assert pyramid.strides == ((7, 14, 28, 56) if name == "dinov2" else (4, 8, 16, 32))
    assert segmenter(config, decoder="upernet").config.logits_stride == pyramid.strides[0]
    maps = pyramid(torch.randn(1, 3, 33, 70)).feature_maps
    expected = [(ceil(33 / stride), ceil(70 / stride)) for stride in pyramid.strides]
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == expected


def test_maps_of_a_transformers_backbone_are_its_own():
    torch.manual_seed(0)
    backbone = build_backbone(CONFIGS["swin"]()).eval()
    pixels = torch.randn(2, 3, 65, 97)
    with torch.no_grad():
        torch.testing.assert_close(backbone(pixels).feature_maps, backbone.encoder(pixels).feature_maps)


def test_stages_that_the_configuration_names_are_used():
    config = ResNetConfig(**CONV, embedding_size=8, layer_type="basic", out_features=["stage2", "stage4"])
    assert build_backbone(config).strides == (8, 32)
    config = TimmBackboneConfig(backbone="resnet18", out_indices=[0, 2])
    assert build_backbone(config).strides == (2, 8)


def test_by_default_stages_of_every_stride_are_used_without_the_stem():
    assert build_backbone(CONFIGS["resnet"]()).facts.out_indices == (1, 2, 3, 4)
    assert build_backbone(CONFIGS["timm resnet"]()).strides == (4, 8, 16, 32)
    assert build_backbone(CONFIGS["timm shvit"]()).strides == (16, 32, 64)
    assert build_backbone(
        timm("vit_tiny_patch16_224", embed_dim=12, depth=8, num_heads=2)
    ).facts.out_indices == (1, 3, 5, 7)


def test_an_image_too_large_for_a_fixed_encoder_is_refused():
    backbone = build_backbone(CONFIGS["hiera"]())
    with pytest.raises(ValueError, match="128x32 is larger than 96x96, the only size"):
        backbone(torch.randn(1, 3, 128, 32))


def test_an_unknown_timm_model_is_answered_with_a_close_name():
    with pytest.raises(ValueError, match="timm has no model 'resnet81', did you mean 'resnet"):
        build_backbone(TimmBackboneConfig(backbone="resnet81"))


@pytest.mark.slow
def test_strides_are_measured_where_they_divide_the_image():
    # At its own size of 224 pixels, the last feature map has 4 x 4 cells, as if its stride were 56.
    assert build_backbone(timm("efficientvit_m0")).strides == (16, 32, 64)


@pytest.mark.slow
def test_an_encoder_that_trains_on_two_images_only_needs_no_large_ones():
    resnest = build_backbone(timm("resnest14d")).train()
    assert resnest.facts.minimum <= 64
    maps = resnest(torch.randn(2, 3, 33, 45)).feature_maps
    assert [tuple(feature_map.shape[2:]) for feature_map in maps] == [(9, 12), (5, 6), (3, 3), (2, 2)]


@each("config", {"pvt": PvtConfig(), "bert": BertConfig()})
def test_a_configuration_without_a_backbone_is_answered_with_those_that_have_one(config):
    with pytest.raises(
        ValueError, match=f"no backbone of type '{config.model_type}'.* a model of timm .*, swin,"
    ) as found:
        build_backbone(config)
    assert "image size" not in str(found.value)


def test_features_that_are_no_maps_are_refused_with_their_shape():
    tokens = BeitConfig(**VIT, image_size=64, use_relative_position_bias=True, reshape_hidden_states=False)
    with pytest.raises(ValueError, match=r"shape \(1, 785, 8\).* has reshape_hidden_states, set it to True"):
        build_backbone(tokens)


def test_after_loading_every_parameter_gets_a_gradient(tmp_path):
    segmenter(custom_config()).save_pretrained(tmp_path)
    loaded = SegDeformerForSemanticSegmentation.from_pretrained(tmp_path).train()
    loaded(torch.randn(1, 3, 33, 45), labels=torch.randint(0, 3, (1, 33, 45))).loss.backward()
    assert [name for name, value in loaded.named_parameters() if value.grad is None] == []


def test_a_module_with_two_names_stays_one_after_loading(tmp_path):
    segmenter(custom_config()).save_pretrained(tmp_path)
    encoder = SegDeformerForSemanticSegmentation.from_pretrained(tmp_path).backbone.encoder
    assert encoder.first_stage.weight is encoder.stages[0].weight


def test_the_configuration_of_the_user_is_left_as_it_was():
    config = TimmBackboneConfig(backbone="resnet18")
    before = config.to_dict()
    build_backbone(config)
    assert config.to_dict() == before


def test_attentions_and_hidden_states_are_the_encoders():
    model = segmenter(CONFIGS["segformer"]()).eval()
    model.set_attn_implementation("eager")
    outputs = model.backbone(torch.randn(1, 3, 32, 32), output_attentions=True, output_hidden_states=True)
    assert [len(outputs.attentions), len(outputs.hidden_states)] == [4, 4]


@each("name", ["swin", "timm vit"])
def test_gradient_checkpointing_changes_no_gradient(name):
    model = segmenter(CONFIGS[name]()).train()
    pixels, gradients = torch.randn(1, 3, 33, 45), []
    for enable in (False, True):
        if enable:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(1)
        model(pixels, labels=torch.ones(1, 33, 45, dtype=torch.long)).loss.backward()
        gradients.append([value.grad.clone() for value in model.backbone.parameters()])
    torch.testing.assert_close(*gradients)


def test_an_encoder_without_gradient_checkpointing_says_so(caplog):
    segmenter(CONFIGS["resnet"]()).gradient_checkpointing_enable()
    assert "'resnet' has no gradient checkpointing" in caplog.text


@pytest.mark.parametrize("name", slow_but(["segformer", "dinov2", "timm resnet", "custom"], "custom"))
def test_adapters_compile_without_graph_breaks(name):
    backbone, pixels = build_backbone(CONFIGS[name]()).eval(), torch.randn(2, 3, 37, 53)
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(pixels).feature_maps, backbone(pixels).feature_maps)


# -- pretrained encoders -------------------------------------------------------------------------------------------------


@each(
    ("name", "model_class"),
    [
        ("swin", SwinModel),
        ("swin", SwinForImageClassification),
        ("segformer", SegformerModel),
        ("segformer", SegformerForSemanticSegmentation),
        ("dinov2", Dinov2Model),
        ("resnet", ResNetForImageClassification),
        ("glam_swin", GlamSwinModel),
    ],
)
def test_an_encoders_checkpoint_loads_whatever_head_it_has(name, model_class, tmp_path):
    torch.manual_seed(0)
    saved = model_class(CONFIGS[name]())
    saved.save_pretrained(tmp_path)
    backbone = load_pretrained_backbone(tmp_path)
    sums = {
        round(value.double().abs().sum().item(), 6)
        for value in saved.state_dict().values()
        if value.dim() > 1
    }
    loaded = [value for key, value in backbone.encoder.named_parameters() if value.dim() > 1]
    assert len(loaded) > 4
    assert all(round(value.double().abs().sum().item(), 6) in sums for value in loaded)
    assert backbone.channels == build_backbone(CONFIGS[name]()).channels


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    ResNetForImageClassification(CONFIGS["resnet"]()).save_pretrained(tmp_path)
    SwinConfig(**SWIN).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is not a checkpoint of this encoder"):
        load_pretrained_backbone(tmp_path)


def test_the_normalization_is_the_checkpoints_or_else_imagenets(tmp_path):
    assert encoder_normalization(tmp_path) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert encoder_normalization("vit_tiny_patch16_224") == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    (tmp_path / "preprocessor_config.json").write_text(
        '{"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]}'
    )
    assert encoder_normalization(tmp_path) == ((0.1, 0.2, 0.3), (1, 2, 3))


# -- repositories --------------------------------------------------------------------------------------------------------


EXPORTED = ["segformer", "swin", "dinov2", "timm vit", "timm swin", "glam_swin", "custom"]


# Run by somebody who never installed contextseg, on folders that hold a model, and what it is and says beside them.
STRANGER = """
import sys

sys.modules["contextseg"] = None
import torch
from transformers import AutoModelForSemanticSegmentation

pixels = torch.load("pixels.pt")
for folder in sys.argv[1:]:
    state, logits = torch.load(f"{folder}.pt")
    model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True).eval()
    found = model.state_dict()
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
    torch.testing.assert_close(model(pixels).logits, logits)
    assert type(model).__module__.startswith("transformers_modules")
    print(folder, flush=True)
"""


@pytest.mark.processes
def test_two_processes_repositories_open_without_contextseg(tmp_path):
    torch.manual_seed(0)
    pixels = torch.randn(1, 3, 33, 45)
    torch.save(pixels, tmp_path / "pixels.pt")
    for name in EXPORTED:
        model = segmenter(CONFIGS[name]()).eval()
        model.save_pretrained(tmp_path / name)
        torch.save((model.state_dict(), model(pixels).logits.detach()), tmp_path / f"{name}.pt")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    finished = subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, *EXPORTED],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert finished.stdout.splitlines() == EXPORTED, finished.stderr[-2000:]


def test_a_backbone_that_cannot_travel_is_announced_and_the_model_saved(tmp_path, caplog):
    config = custom_config()
    module = sys.modules[type(config).__module__]
    path = Path(module.__file__)
    path.write_text(CUSTOM.replace("import torch\n", "import torch\nfrom PIL import Image\n", 1))
    linecache.clearcache()
    try:
        segmenter(config).save_pretrained(tmp_path)
    finally:
        path.write_text(CUSTOM)
        linecache.clearcache()
    assert "module_of_a_user imports PIL" in caplog.text
    assert (tmp_path / "model.safetensors").is_file()
