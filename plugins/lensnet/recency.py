"""LensNet without parameters: scores fall with the distance to the cursor."""

from __future__ import annotations

from torch import Tensor

from mcframe.context.working_context import WorkingContext
from mcframe.hookspecs import LensNet, ModelShape


class RecencyLensNet(LensNet):
    """A baseline: +1 at the cursor, -1 at the start of the window, linear between. No parameters.

    Source:
        StreamingLLM (Xiao et al., 2024).
    """

    masks_documents = True

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()

    def forward(self, context: WorkingContext, embeddings: Tensor) -> Tensor:
        """Return scores [R, L] from the positions of the entries alone."""
        cursor = max(context.tree.cursor, 1)
        middle = (context.start + context.end - 1).float() / 2
        return (2 * middle / cursor - 1).clamp(-1, 1).to(embeddings.dtype)
