"""What families have in common whose tower sees images or tiles of one size: LLaVA, InternVL, Aya Vision."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ModelError
from ..tokens import Grid
from .adapter import ModelAdapter


class TowerAdapter(ModelAdapter):
    """A ``vision_tower`` before a ``multi_modal_projector``; every entry of ``pixel_values`` is an image."""

    @property
    def vision(self) -> Any:
        return self.base.vision_tower

    @property
    def projector(self) -> nn.Module:
        return self.base.multi_modal_projector

    def token_ids(self) -> dict[str, int]:
        return {"image": self.model.config.image_token_id}

    def grids(self, inputs: Mapping[str, Any]) -> dict[str, list[Grid]]:
        pixels = inputs.get("pixel_values")
        return {} if pixels is None else {"image": [self.grid(*pixels.shape[-2:])] * pixels.shape[0]}

    def grid_inputs(self, modality: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        return {"pixel_values": args[0] if args else kwargs["pixel_values"]}

    def encoder_grids(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Grid]:
        return self.grids(self.grid_inputs("image", args, kwargs))["image"]

    def token_patches(self, grid: Grid) -> Tensor:
        return patches_of_tokens(grid, self.merge, first=self.patches(grid) - len(grid) * self.merge**2)

    @abstractmethod
    def grid(self, height: int, width: int) -> Grid:
        """The layout of an image of so many pixels."""

    @staticmethod
    def refuse_cls() -> None:
        """Raise ModelError for a model that hands its CLS token on to the LLM."""
        raise ModelError(
            "vision_feature_select_strategy='full' keeps the CLS token among the visual tokens, which has no place "
            "on the grid; set it to 'default'."
        )


def patches_of_tokens(grid: Grid, side: int, first: int = 0) -> Tensor:
    """(n, side^2) long: where the patches of each token lie in raster order, behind `first` other positions."""
    cells = torch.arange(len(grid) * side**2).view(grid.rows, side, grid.columns, side).transpose(1, 2)
    return cells.reshape(len(grid), side**2) + first


def block_means(patches: Tensor, grid: Grid, side: int) -> Tensor:
    """(n, ...) means over the `side` x `side` patches of each LLM token, of (n * side^2, ...) in raster order."""
    cells = patches.reshape(grid.rows, side, grid.columns, side, *patches.shape[1:])
    return cells.mean((1, 3)).flatten(0, 1)
