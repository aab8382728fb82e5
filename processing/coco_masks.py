"""pycocotools' masks in run-length encoding, or an error that says how to install them."""

try:
    from pycocotools import mask as coco_masks
except ImportError as error:
    raise ImportError(
        "Detection reads and scores masks with pycocotools, which is not installed. "
        "Install it: pip install 'contextseg[detection]'."
    ) from error

__all__ = ["coco_masks"]
