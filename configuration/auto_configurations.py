"""All configurations of this package, for lookup by name."""

from .configuration_caswit import CaswitConfig
from .configuration_cswin import CswinConfig
from .configuration_glam import GlamConfig
from .configuration_glam_swin import GlamSwinConfig
from .configuration_maformer import MaformerConfig
from .configuration_mask_rcnn import MaskRcnnConfig
from .configuration_nnformer import NnFormerConfig
from .configuration_relay import RelayConfig
from .configuration_segdeformer import SegDeformerConfig

__all__ = [
    "CaswitConfig",
    "CswinConfig",
    "GlamConfig",
    "GlamSwinConfig",
    "MaformerConfig",
    "MaskRcnnConfig",
    "NnFormerConfig",
    "RelayConfig",
    "SegDeformerConfig",
]
