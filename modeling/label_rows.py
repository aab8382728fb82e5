"""Weights with one row for each label: what happens to them when a model is given other labels.

Legend: K labels before, K' labels after.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def rows_of_equal_names(known: Mapping[int, str], wanted: Mapping[int, str]) -> list[int | None]:
    """For each wanted label the known one of the same name, or None."""
    row_of = {name: row for row, name in known.items()}
    return [row_of.get(wanted[label]) for label in sorted(wanted)]


def with_kept_rows(stored: Tensor, fresh: Tensor, rows: Sequence[int | None]) -> Tensor:
    """(K, ...), (K', ...) -> (K', ...): for each label the stored row that `rows` names, or the fresh one where it is None."""
    kept = [fresh[label] if row is None else stored[row].to(fresh) for label, row in enumerate(rows)]
    return torch.stack(kept)


class LabelRows(nn.Module):
    """A module whose own parameters and buffers all have one row for each label."""

    @torch.no_grad()
    def replace_labels(self, rows: Sequence[int | None], initialize: Callable[[nn.Module], None]) -> None:
        """Takes other labels: for each the row of the label that it keeps, or None for a fresh one.

        Args:
            rows: One entry for each new label.
            initialize: Fills a module with fresh values in place.
        """
        stored = dict(self.named_parameters(recurse=False)) | dict(self.named_buffers(recurse=False))
        for name, tensor in stored.items():
            empty = torch.empty(len(rows), *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
            is_parameter = isinstance(tensor, nn.Parameter)
            setattr(self, name, nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty)
        initialize(self)
        for name, tensor in stored.items():
            fresh = getattr(self, name)
            fresh.copy_(with_kept_rows(tensor, fresh, rows))


class LabelClassifier(LabelRows, nn.Conv2d):
    """A 1x1 convolution from features to the logits of each label.

    Its constructor is `nn.Conv2d`'s, with which peft builds the adapters of a convolution.
    """

    def replace_labels(self, rows: Sequence[int | None], initialize: Callable[[nn.Module], None]) -> None:
        """As above, and keeps `out_channels` true."""
        super().replace_labels(rows, initialize)
        self.out_channels = len(rows)


__all__ = ["LabelClassifier", "LabelRows", "rows_of_equal_names", "with_kept_rows"]
