"""Every configuration of this package, as transformers' AutoConfig knows them."""

from .configuration_cswin import CswinConfig
from .configuration_glam_swin import GlamSwinConfig
from .configuration_maformer import MaformerConfig
from .configuration_mask_rcnn import MaskRcnnConfig
from .configuration_segdeformer import SegDeformerConfig

CONFIGURATIONS = (CswinConfig, GlamSwinConfig, MaformerConfig, MaskRcnnConfig, SegDeformerConfig)
