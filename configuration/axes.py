"""Sizes along the axes of images (rows, columns) and volumes (slices, rows, columns)."""

Sides = int | list[int] | tuple[int, ...]  # the same along all axes, or one per axis


def along_axes(sides: Sides, num_axes: int) -> tuple[int, ...]:
    """One number per axis, from a number for all of them or a list."""
    return tuple(sides) if isinstance(sides, list | tuple) else (sides,) * num_axes


class StageStrides:
    """Patches and strides of hierarchical backbones, which halve their grid after each stage."""

    num_axes = 2  # of images

    @property
    def patch(self) -> tuple[int, ...]:
        """Sides of a patch in pixels, one per axis."""
        return along_axes(self.patch_size, self.num_axes)

    @property
    def reductions(self) -> list[tuple[int, ...]]:
        """Patches along each axis that become one after each stage but the last."""
        return [(2,) * self.num_axes] * (len(self.depths) - 1)

    @property
    def strides(self) -> list[int] | list[tuple[int, ...]]:
        """Stride of each stage in pixels: one number if images have the same along both axes, else one per axis."""
        strides = [self.patch]
        for reduction in self.reductions:
            strides.append(tuple(side * step for side, step in zip(strides[-1], reduction, strict=True)))
        is_square = self.num_axes == 2 and all(len(set(stride)) == 1 for stride in strides)
        return [stride[0] for stride in strides] if is_square else strides

    @property
    def has_square_strides(self) -> bool:
        """Whether the configuration is that of a model for images, with equal strides along both axes."""
        return isinstance(self.strides[0], int)


class StridesPerAxis(StageStrides):
    """The same for configurations whose `patch_size`, `window_size` and `merge_strides` may have one number per axis."""

    @property
    def num_axes(self) -> int:
        """2 for images, 3 for volumes."""
        return len(self.patch_size) if isinstance(self.patch_size, list | tuple) else 2

    @property
    def reductions(self) -> list[tuple[int, ...]]:
        """Patches along each axis that become one after each stage but the last."""
        given = (2,) * (len(self.depths) - 1) if self.merge_strides is None else self.merge_strides
        return [along_axes(strides, self.num_axes) for strides in given]

    def validate_axes(self) -> None:
        axes, sides = self.num_axes, [self.window_size, *(self.merge_strides or ())]
        if axes not in (2, 3) or any(len(along_axes(entry, axes)) != axes for entry in sides):
            raise ValueError(
                f"patch_size {self.patch_size}, window_size {self.window_size} and merge_strides {self.merge_strides} do not fit "
                "together. Give a number, or one per axis: rows and columns of images, or slices, rows and columns."
            )
        if len(self.reductions) != len(self.depths) - 1:
            raise ValueError(
                f"merge_strides has {len(self.reductions)} entries for {len(self.depths)} stages. Give one per stage but the "
                "last."
            )
        if self.has_square_strides:
            return
        if self.decoder != "unet" or self.use_auxiliary_head or self.pretrain_image_size is not None:
            raise ValueError(
                f"patch_size {self.patch_size} and merge_strides {self.merge_strides} are those of volumes or of patches that are "
                "not square, for which there is only decoder 'unet', without use_auxiliary_head and pretrain_image_size."
            )
