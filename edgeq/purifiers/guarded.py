"""The networks of PerturbShield: a VQ-VAE on features, learned prompt vectors, and the frozen towers between them."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Shaped
from torch import Tensor, nn

from edgeq.errors import InputError
from edgeq.purifiers.base import AbstractAnswering
from edgeq.purifiers.codebook import Codebook
from edgeq.purifiers.towers import NO_INTEGERS, AbstractTowers, named

SPREAD = 0.02  # standard deviation of the prompt vectors at the start, as of word vectors
Grid = Float[Tensor, "n d gh gw"]


@dataclass(frozen=True)
class Sizes:
    """How large the VQ-VAE is.

    Attributes:
        channels: Of the inner layers.
        codes: Codewords; 0 for none.
        code_dim: Length of a codeword.
        commitment: Weight of the codebook's loss.
        vectors: Vectors in a training batch.
    """

    channels: int
    codes: int
    code_dim: int
    commitment: float
    vectors: int


class Residual(nn.Module):
    """x + a 1x1 convolution of a 3x3 one, without normalisation, as in the authors' network."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.ReLU(), nn.Conv2d(channels, channels, 3, 1, 1), nn.ReLU(), nn.Conv2d(channels, channels, 1)
        )

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h w"]:
        """Run the block."""
        return x + self.body(x)


class PerturbShield(nn.Module):
    """A grid of features to one feature, through codewords.

    Args:
        dim: Numbers of a feature.
        places: Places of the grid.
        sizes: Of the networks.
    """

    def __init__(self, dim: int, places: int, sizes: Sizes) -> None:
        super().__init__()
        inner, code = sizes.channels, sizes.code_dim
        self.encoder = nn.Sequential(
            nn.Conv2d(dim, inner, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(inner, inner, 3, 1, 1),
            Residual(inner),
            nn.Conv2d(inner, code, 1),
            nn.BatchNorm2d(code, affine=False),  # a fixed scale, as in purevq
        )
        self.codebook = (
            Codebook(sizes.codes, code, beta=sizes.commitment, vectors=sizes.vectors) if sizes.codes else None
        )
        self.decoder = nn.Sequential(
            nn.Conv2d(code, inner, 3, 1, 1), Residual(inner), nn.ConvTranspose2d(inner, dim, 3, 1, 1)
        )
        self.places = nn.Linear(places, 1)

    def forward(self, grid: Grid, temperature: float = 0.0) -> Grid:
        """Rebuild a grid; above temperature 0, codewords are chosen softly, for attacks alone."""
        latent = self.encoder(grid)
        return self.decoder(latent if self.codebook is None else self.codebook.choose(latent, temperature))

    def learn(self, grid: Grid) -> tuple[Grid, Float[Tensor, ""]]:
        """Rebuild a grid, adapt the codebook, and return its loss, too."""
        latent = self.encoder(grid)
        words, loss = (latent, latent.new_zeros(())) if self.codebook is None else self.codebook.learn(latent)
        return self.decoder(words), loss

    def projected(self, grid: Grid) -> Float[Tensor, "n d"]:
        """Return the learned sum over the places."""
        return self.places(grid.flatten(2))[..., 0]


class GuardedTowers(AbstractAnswering):
    """Frozen towers, prompt vectors, and a shield (or none).

    Args:
        towers: The towers.
        classes: Names of the classes.
        features: What the shield rebuilds.
        sizes: Of the shield.
        prompt: Prompt vectors.
        fusion: Weight of the shield's logits.
    """

    def __init__(
        self,
        towers: AbstractTowers,
        classes: tuple[str, ...],
        *,
        features: Literal["grid", "class", "none"],
        sizes: Sizes,
        prompt: int,
        fusion: float,
    ) -> None:
        super().__init__()
        self.towers, self.classes, self.features, self.fusion = towers, classes, features, fusion
        places = towers.grid[0] * towers.grid[1] if features == "grid" else 1
        self.shield = None if features == "none" else PerturbShield(towers.dim, places, sizes)
        self.prompt = nn.Parameter(SPREAD * torch.randn(prompt, towers.width))
        tokens = towers.tokens([f"{name.replace('-', ' ').replace('_', ' ')}." for name in classes])
        longest = int(tokens.argmax(1).max()) + 1 + prompt
        if longest > towers.context:
            raise InputError(
                f"expected prompts and class names of at most {towers.context} tokens, got {longest}; use a smaller "
                "prompt_length, or rename the class"
            )
        self.register_buffer("tokens", tokens[:, : longest - prompt], persistent=False)
        self.register_buffer("spoken", torch.zeros(len(classes), towers.dim))

    def begin(self, weights: dict[str, Tensor]) -> None:
        """Take over the towers' weights, and what their captions say."""
        self.towers.load_state_dict(weights)
        with torch.no_grad():
            self.get_buffer("spoken").copy_(named(self.towers, self.classes))

    def texts(self) -> Float[Tensor, "classes d"]:
        """Return the unit features of START, the prompt vectors, a class's name, END."""
        tokens = self.get_buffer("tokens")
        words = self.towers.embed(tokens)
        prompt = self.prompt.expand(len(tokens), -1, -1)
        embedded = torch.cat([words[:, :1], prompt, words[:, 1:]], 1)
        return F.normalize(self.towers.read(embedded, tokens.argmax(1) + len(self.prompt)), dim=-1)

    def look(self, images: Shaped[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n d"], Grid]:
        """Return the class feature, and what the shield rebuilds."""
        seen, grid = self.towers.see(images)
        return seen, (grid if self.features == "grid" else seen[:, :, None, None])

    def logits(self, feature: Float[Tensor, "n d"], texts: Float[Tensor, "classes d"]) -> Float[Tensor, "n classes"]:
        """Return s cos(feature, text)."""
        return self.towers.scale * F.normalize(feature, dim=-1) @ texts.T

    def fused(
        self, images: Shaped[Tensor, "n c h w"], texts: Float[Tensor, "classes d"], *, temperature: float = 0.0
    ) -> Float[Tensor, "n classes"]:
        """Return the guarded logits."""
        seen, grid = self.look(images)
        logits = self.logits(seen, texts)
        if self.shield is None:
            return logits
        drawn = self.shield.projected(self.shield(grid, temperature))
        return (1 - self.fusion) * logits + self.fusion * self.logits(drawn, texts)

    def answers(self, images: Shaped[Tensor, "n c h w"]) -> dict[str, Float[Tensor, "n classes"]]:
        """Return the guarded logits, those of each branch, and those of the bare captions."""
        seen, grid = self.look(images)
        texts = self.texts()
        classed, captioned = self.logits(seen, texts), self.logits(seen, self.get_buffer("spoken"))
        if self.shield is None:
            return {"accuracy": classed, "caption_accuracy": captioned}
        drawn = self.logits(self.shield.projected(self.shield(grid)), texts)
        fused = (1 - self.fusion) * classed + self.fusion * drawn
        return {"accuracy": fused, "class_accuracy": classed, "shield_accuracy": drawn, "caption_accuracy": captioned}

    def chosen(self, images: Shaped[Tensor, "n c h w"]) -> tuple[int, Int64[Tensor, "n h2 w2"] | None]:
        """Return the codewords at each place."""
        if self.shield is None or self.shield.codebook is None:
            return 0, None
        return self.shield.codebook.codes, self.shield.codebook.indices(self.shield.encoder(self.look(images)[1]))

    def not_exportable(self) -> str:
        """Say what does not fold into integers."""
        return NO_INTEGERS
