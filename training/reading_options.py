"""How images and masks are read: one group of options of every command, saved with a run and used after it.

Nothing heavy is imported here, so that `--help` answers at once.
"""

from dataclasses import dataclass, fields
from typing import Any

from .command_line import option
from .option_texts import value_limits


@dataclass(kw_only=True)
class RgbOptions:
    """Options of images that are read as RGB: all that classification and detection need."""

    _argument_group_name = "Reading"

    value_range: str | None = option(
        None,
        "values of black and white in images that are not 8-bit (default: 0 65535 for 16-bit images; others need it)",
        metavar="LOW HIGH",
    )
    pixel_limit: int | None = option(
        None, "most pixels of an image; larger ones are refused (default: 178956970)"
    )

    def keywords(self) -> dict[str, Any]:
        """Returns the given options as arguments of `read_image`."""
        limits = self.value_range and value_limits(self.value_range)
        options = {"value_range": limits, "pixel_limit": self.pixel_limit}
        return {name: value for name, value in options.items() if value is not None}

    def words(self) -> str:
        """Returns the given options as words of a command line, each with a space before it."""
        given = {name: getattr(self, name, None) for name in reading_names()}
        return "".join(
            f" --{name.replace('_', '-')}={value}"
            if str(value).startswith("-")
            else f" --{name.replace('_', '-')} {value}"
            for name, value in given.items()
            if value is not None
        )


@dataclass(kw_only=True)
class PixelOptions(RgbOptions):
    """Options that concern images only: all that `contextseg-predict` needs."""

    num_channels: int | None = option(
        None,
        "channels of the images (default: those of the model; of a new model 3, to which every image is converted)",
    )

    def keywords(self) -> dict[str, Any]:
        """Returns the given options as arguments of `open_data`."""
        channels = {} if self.num_channels is None else {"num_channels": self.num_channels}
        return channels | super().keywords()


@dataclass(kw_only=True)
class ReadingOptions(PixelOptions):
    """Options of all commands that read images with masks."""

    _argument_group_name = "Reading"

    classes: str | None = option(
        None, "file with the class names (default: classes.json in the data or beside it)", metavar="FILE"
    )
    image_column: str | None = option(
        None, "image column of a dataset for `datasets` (default: found by type and name)", metavar="NAME"
    )
    mask_column: str | None = option(
        None, "mask column of a dataset for `datasets` (default: found by type and name)", metavar="NAME"
    )

    def keywords(self) -> dict[str, Any]:
        """Returns the given options as arguments of `open_data`."""
        options = {
            "classes": self.classes,
            "image_column": self.image_column,
            "mask_column": self.mask_column,
        }
        return {name: value for name, value in options.items() if value is not None} | super().keywords()


def reading_names() -> list[str]:
    """The names of all options of the group."""
    return [field.name for field in fields(ReadingOptions)]
