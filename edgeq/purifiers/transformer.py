"""A small transformer: the image tower of a ViT, and the text tower of CLIP (arXiv 2103.00020)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

HEAD = 16  # numbers per attention head
WIDER = 2  # the hidden layer of a block
SPREAD = 0.02  # standard deviation of embeddings at the start, as in CLIP


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)).

    Args:
        width: Numbers per token.
        causal: Whether a token sees only those before it.
    """

    def __init__(self, width: int, *, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, WIDER * width), nn.GELU(), nn.Linear(WIDER * width, width))

    def forward(self, x: Float[Tensor, "n tokens width"]) -> Float[Tensor, "n tokens width"]:
        """Run the block."""
        n, tokens, width = x.shape
        parts = self.mix(self.before(x)).view(n, tokens, 3, width // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).reshape(n, tokens, width))
        return x + self.mlp(self.between(x))


class ImageTower(nn.Module):
    """A vision transformer whose class and grid features are projected alike.

    Args:
        image_shape: (channels, height, width).
        patch: Side of a patch.
        width: Numbers per token.
        depth: Blocks.
        dim: Numbers of a feature.
    """

    def __init__(self, image_shape: tuple[int, int, int], *, patch: int, width: int, depth: int, dim: int) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        self.grid = (height // patch, breadth // patch)
        self.patches = nn.Conv2d(channels, width, patch, patch)
        self.token = nn.Parameter(SPREAD * torch.randn(width))
        self.places = nn.Parameter(SPREAD * torch.randn(self.grid[0] * self.grid[1] + 1, width))
        self.blocks = nn.Sequential(*(Block(width, causal=False) for _ in range(depth)))
        self.last, self.project = nn.LayerNorm(width), nn.Linear(width, dim, bias=False)

    def forward(self, images: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n d gh gw"]]:
        """Return the class feature and the grid of features of images in -1...1."""
        patches = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(images), 1, -1), patches], 1) + self.places
        features = self.project(self.last(self.blocks(x)))
        return features[:, 0], features[:, 1:].transpose(1, 2).unflatten(2, self.grid)


class TextTower(nn.Module):
    """A causal transformer; the feature is that of the end token.

    Args:
        tokens: How many different ones.
        context: Longest text.
        width: Numbers per token.
        depth: Blocks.
        dim: Numbers of a feature.
    """

    def __init__(self, tokens: int, context: int, *, width: int, depth: int, dim: int) -> None:
        super().__init__()
        self.words = nn.Embedding(tokens, width)
        nn.init.normal_(self.words.weight, std=SPREAD)
        self.places = nn.Parameter(SPREAD * torch.randn(context, width))
        self.blocks = nn.Sequential(*(Block(width, causal=True) for _ in range(depth)))
        self.last, self.project = nn.LayerNorm(width), nn.Linear(width, dim, bias=False)

    def forward(self, embedded: Float[Tensor, "n tokens width"], ends: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        """Return the features of embedded texts."""
        x = self.blocks(embedded + self.places[: embedded.shape[1]])
        return self.project(self.last(x[torch.arange(len(x), device=x.device), ends]))
