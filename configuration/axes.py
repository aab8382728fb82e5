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
