"""Papers for model cards: titles, citations, and notes on how our models interpret them."""

from collections.abc import Mapping
from typing import Any

TITLES = {
    "glam_swin": "GLAM-Swin",
    "segdeformer": "SegDeformer",
    "maformer": "MAFormer",
    "cswin": "CSWin",
    "caswit": "CASWiT",
    "relay": "Relay tokens",
    "mask_rcnn": "Mask R-CNN",
    "nnformer": "nnFormer",
}
PAPERS = {
    "segdeformer": """\
@inproceedings{shi2022transformer,
  title = {A Transformer-Based Decoder for Semantic Segmentation with Multi-level Context Mining},
  author = {Shi, Bowen and Jiang, Dongsheng and Zhang, Xiaopeng and Li, Han and Dai, Wenrui and Zou, Junni and Xiong, Hongkai and Tian, Qi},
  booktitle = {European Conference on Computer Vision (ECCV)},
  pages = {624--639},
  year = {2022}
}""",
    "glam_swin": """\
@inproceedings{themyr2023full,
  title = {Full Contextual Attention for Multi-resolution Transformers in Semantic Segmentation},
  author = {Themyr, Loic and Rambour, Cl{\\'e}ment and Thome, Nicolas and Collins, Toby and Hostettler, Alexandre},
  booktitle = {Proceedings of the IEEE/CVF Winter Conference on Applications of Computer Vision (WACV)},
  pages = {3224--3233},
  year = {2023}
}""",
    "maformer": """\
@article{wang2022maformer,
  title = {MAFormer: A Transformer Network with Multi-scale Attention Fusion for Visual Recognition},
  author = {Wang, Yunhao and Sun, Huixin and Wang, Xiaodi and Zhang, Bin and Li, Chao and Xin, Ying and
    Zhang, Baochang and Ding, Errui and Han, Shumin},
  journal = {arXiv preprint arXiv:2209.01620},
  year = {2022}
}""",
    "cswin": """\
@inproceedings{dong2022cswin,
  title = {CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows},
  author = {Dong, Xiaoyi and Bao, Jianmin and Chen, Dongdong and Zhang, Weiming and Yu, Nenghai and Yuan, Lu and
    Chen, Dong and Guo, Baining},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  pages = {12124--12134},
  year = {2022}
}""",
    "caswit": """\
@article{carreaud2026context,
  title = {Context-Aware Semantic Segmentation via Stage-Wise Attention},
  author = {Carreaud and Lahellec and Naha and Skaloud and Chansel and Gressin},
  journal = {arXiv preprint arXiv:2601.11310},
  year = {2026}
}""",
    "nnformer": """\
@article{zhou2023nnformer,
  title = {nnFormer: Volumetric Medical Image Segmentation via a 3D Transformer},
  author = {Zhou, Hong-Yu and Guo, Jiansen and Zhang, Yinghao and Han, Xiaoguang and Yu, Lequan and Wang, Liansheng and
    Yu, Yizhou},
  journal = {IEEE Transactions on Image Processing},
  volume = {32},
  pages = {4036--4045},
  year = {2023}
}""",
    "relay": """\
@article{perron2026adapting,
  title = {Adapting Vision Transformers to Ultra-High Resolution Semantic Segmentation with Relay Tokens},
  author = {Perron and Sydorov and Pottier and Landrieu},
  journal = {Transactions on Machine Learning Research},
  year = {2026}
}""",
    "mask_rcnn": """\
@inproceedings{he2017mask,
  title = {Mask {R-CNN}},
  author = {He, Kaiming and Gkioxari, Georgia and Doll{\\'a}r, Piotr and Girshick, Ross},
  booktitle = {Proceedings of the IEEE International Conference on Computer Vision (ICCV)},
  pages = {2961--2969},
  year = {2017}
}""",
}
# Notes on models that their paper leaves partly open.
READINGS = {
    "caswit": [
        "- Built from the abstract of the CASWiT paper; no reference numbers exist. The abstract names two Swin encoders, "
        "cross-attention from the crop to its context at every stage, and gated injection. Gate, norms, MLP and context "
        "decoder are this library's choices, and the authors' weights cannot be loaded.",
    ],
    "maformer": [
        "- The MAFormer authors published neither code nor weights. This model follows the paper and the "
        "numbers in its tables. Global learning pools the feature map to a fixed grid before its fully "
        "connected layer, because a layer over all tokens would have more parameters than the paper gives "
        "for the whole model. MAFormer-S has 5.1 G multiply-adds; the paper gives 4.5 G "
        "(`depths=(2, 4, 8, 3)` matches the paper's parameters and multiply-adds).",
    ],
    "nnformer": [
        "- In a re-evaluation of 3-D networks under one protocol (2024), nnFormer reaches an average Dice of 80.86 on BTCV "
        "and nnU-Net 83.08, against the order in nnFormer's paper. Compare both on your data.",
        '- `variant="2021"` is the first published version, on which GLAM-nnFormer is built, `"2022"` the current one with '
        "skip attention. Relative positions have one row per offset and windows the configured size. Converted weights "
        'keep the rules of the authors\' code: `relative_positions="official"` and `fixed_grid=True`.',
    ],
    "relay": [
        "- The paper passes the relay tokens through a block with the context first and with the local crop "
        'second (`relay_update="sequential"`). The published ViT and SwinV2 code averages two independent '
        'updates (`"mean"`). The parameters are the same, the results are not.',
    ],
}


def papers_of(config: Mapping[str, Any]) -> list[str]:
    """Citations of a model: of its type, and of GLAM's for an nnFormer with global tokens."""
    model_type = config["model_type"]
    names = [model_type] + ["glam_swin"] * (
        model_type == "nnformer" and bool(config.get("num_global_tokens"))
    )
    return [PAPERS[name] for name in names if name in PAPERS]
