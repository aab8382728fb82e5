"""The GLAM authors' position tables, of which images up to a given size use only the center rows."""

import re
from collections.abc import Mapping

from torch import Tensor

from ...configuration.configuration_glam_swin import GlamSwinConfig
from ...modeling.renaming import StateDict


def table_names(converted: Mapping[str, Tensor], stage: int, num_stages: int) -> list[str]:
    """Returns the names of the position tables at the resolution of a stage: those of encoder and Unet
    decoder.
    """
    step = num_stages - 2 - stage
    pattern = rf"(\bencoder\.stages\.{stage}|^decoder\.steps\.{step}\.stage)\.global_position\.table$"
    return [name for name in converted if re.search(pattern, name)]


def stored_rows(converted: Mapping[str, Tensor], config: GlamSwinConfig) -> list[int] | None:
    """Returns the number of rows of each stage's table, 0 for a stage without one; None if there are no
    tables.
    """
    stages = range(len(config.depths))
    names = [table_names(converted, stage, len(stages)) for stage in stages]
    if not any(names):
        return None
    return [converted[found[0]].shape[0] if found else 0 for found in names]


def shortened_tables(
    converted: StateDict, config: GlamSwinConfig, max_image_size: tuple[int, int]
) -> StateDict:
    """Returns the weights with every position table cut to the rows that images up to `max_image_size` use."""
    shortened = dict(converted)
    for stage in range(len(config.depths)):
        needed = num_global_positions(config, stage, max_image_size)
        for name in table_names(converted, stage, len(config.depths)):
            shortened[name] = center_rows(converted[name], needed)
    return shortened


def num_global_positions(config: GlamSwinConfig, stage: int, image_size: tuple[int, int]) -> int:
    """Returns the number of global tokens of an image at a stage: windows of the padded grid times tokens per
    window.
    """
    count = config.num_global_tokens
    for side, patch, window in zip(image_size, config.patch, config.stage_window(stage), strict=True):
        cells = -(-side // patch)
        for _ in range(stage):
            cells = -(-cells // 2)
        count *= -(-cells // window)
    return count


def center_rows(table: Tensor, needed: int) -> Tensor:
    """(rows, C) -> (needed, C), the center rows: any lookup of n <= needed rows gives the same rows as in the
    whole table.

    A lookup of n rows starts at `rows // 2 - n // 2`. To preserve this for any parity, the cut starts at
    `rows // 2 - needed // 2`.
    """
    rows = table.shape[0]
    if needed > rows:
        raise ValueError(
            f"the largest image needs {needed} global positions, but the table has {rows} rows. "
            "Choose a smaller --max-image-size."
        )
    return table.narrow(0, rows // 2 - needed // 2, needed).clone()
