"""Geometry of the stages of a network for volumes: strides, grids and windows along three axes."""

Triple = tuple[int, ...]
PATCHES = (1, 2, 4)  # two convolutions, each of stride 1 or 2


def triple(entry: int | list[int] | tuple[int, ...]) -> Triple:
    """One number per axis, from a number for all of them or a list."""
    return tuple(entry) if isinstance(entry, list | tuple) else (entry,) * 3


def cells(sizes: tuple[int, ...] | list[int], strides: tuple[int, ...] | list[int]) -> Triple:
    """The number of cells along each axis, the last of which may be cut."""
    return tuple((size + step - 1) // step for size, step in zip(sizes, strides, strict=True))


class VolumeStages:
    """Rules of configurations with `crop_size`, `patch_size`, `window_size` and `downsample_strides` of volumes."""

    num_axes = 3

    @property
    def hidden_sizes(self) -> list[int]:
        """Channels of each stage."""
        return [self.embed_dim * 2**stage for stage in range(self.num_layers)]

    @property
    def decoder_hidden_size(self) -> int:
        """Channels of the feature map that the decoder passes to the classifier."""
        return self.embed_dim

    @property
    def reductions(self) -> list[Triple]:
        """Strides of the downsampling after each stage but the last."""
        return [triple(stride) for stride in self.downsample_strides]

    @property
    def strides(self) -> list[Triple]:
        """Voxels per cell of each stage, along each axis."""
        strides = [tuple(self.patch_size)]
        for reduction in self.reductions:
            strides.append(tuple(side * step for side, step in zip(strides[-1], reduction, strict=True)))
        return strides

    @property
    def head_kernels(self) -> list[Triple]:
        """Size in voxels of what a cell becomes in the logits of each stage that has a head, fine to coarse."""
        stages = self.num_layers - 1
        if self.variant == "2021":
            return [tuple(self.patch_size), (4, 4, 4)][: min(stages, 2 if self.deep_supervision else 1)]
        return [tuple(self.patch_size)] * min(stages, 3 if self.deep_supervision else 1)

    @property
    def deep_supervision_weights(self) -> list[float]:
        """Weight of the loss of each head, fine to coarse, as in the authors' code.

        In the first version the two weights are those of five heads, of which three do not exist.
        """
        weights = [0.5**level for level in range(len(self.head_kernels))]
        total = 1.875 if self.variant == "2021" and len(weights) > 1 else sum(weights)
        return [weight / total for weight in weights]

    def crop_grid(self, stage: int) -> Triple:
        """Cells of a stage along each axis, for a crop of `crop_size`."""
        grid = cells(self.crop_size, self.patch_size)
        for level, reduction in enumerate(self.reductions[:stage]):
            slices = grid[0]
            grid = cells(grid, reduction)
            if not self.pad_last_downsample and level == self.num_layers - 2:
                grid = ((slices - 1) // reduction[0], *grid[1:])  # of a kernel of 3 without padding
        return grid

    def is_one_window(self, stage: int) -> bool:
        """Whether the rule of the authors' code gives a stage windows that are not shifted."""
        if not self.fixed_grid:
            return False
        window, grid = self.window_size[stage], self.crop_grid(stage)
        return grid == tuple(window) if isinstance(window, list | tuple) else min(grid) <= window

    def stage_window(self, stage: int) -> Triple:
        """Windows of a stage in its cells, along each axis."""
        if self.is_one_window(stage):
            return (min(self.crop_grid(stage)),) * 3 if self.has_cubes(stage) else self.crop_grid(stage)
        return triple(self.window_size[stage])

    def has_cubes(self, stage: int) -> bool:
        """Whether the window of a stage is one number."""
        return not isinstance(self.window_size[stage], list | tuple)

    def position_rows(self, stage: int) -> int:
        """Rows of a stage's table of position embeddings: the authors' count, or `global_position_rows`."""
        if self.global_position_rows is not None:
            return self.global_position_rows[stage]
        return (32 // max(self.stage_window(stage)) * self.num_global_tokens // 2**stage) ** 3

    def drop_path_rates_of_decoder(self, stage: int) -> list[float]:
        """Stochastic depth rate of each block of a stage of the decoder, which runs from coarse to fine."""
        first, blocks = sum(self.depths[stage + 1 : -1]), sum(self.depths[:-1])
        return [
            self.drop_path_rate * (first + index) / max(blocks - 1, 1) for index in range(self.depths[stage])
        ]

    def validate_axes(self) -> None:
        for name in ("crop_size", "patch_size"):
            if len(getattr(self, name)) != 3:
                raise ValueError(
                    f"{name} has {len(getattr(self, name))} entries. Give three: slices, rows, columns."
                )
        for name in ("window_size", "downsample_strides"):
            if any(len(triple(entry)) != 3 for entry in getattr(self, name)):
                raise ValueError(
                    f"{name} has an entry that is neither a number nor three. Give one of these per stage."
                )
        if any(side not in PATCHES for side in self.patch_size):
            raise ValueError(f"patch_size is {tuple(self.patch_size)}, but each entry must be 1, 2 or 4.")

    def validate_stage_lists(self) -> None:
        stages = len(self.depths)
        wanted = {
            "window_size": stages,
            "downsample_strides": stages - 1,
            "decoder_num_heads": stages - 1,
            "global_position_rows": stages,
        }
        for name, count in wanted.items():
            value = getattr(self, name)
            if value is not None and len(value) != count:
                raise ValueError(f"{name} has {len(value)} entries for {stages} stages. Give {count}.")
        if stages < 2:
            raise ValueError("depths has 1 entry, but the decoder needs two stages or more.")
        for stage, (dim, heads) in enumerate(zip(self.hidden_sizes, self.decoder_num_heads, strict=False)):
            if dim % heads:
                raise ValueError(
                    f"stage {stage + 1} of the decoder has {dim} channels, which {heads} heads do not divide. "
                    f"Change {self.width_field} or decoder_num_heads."
                )
