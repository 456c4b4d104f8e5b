"""One BatchNorm per bit-width (the default), or one for all of them (an option and a control arm).

Below 8 bits every shared backbone that works normalises each width by its own statistics; that alone may make the
widths' features differ, so the shared form must be there to compare with.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

SHARED = "shared"


class WidthNorm(nn.Module):
    """BatchNorm statistics and parameters for every width of a layer."""

    def __init__(self, source: nn.BatchNorm2d | nn.BatchNorm1d, bits: tuple[int, ...], *, shared: bool) -> None:
        super().__init__()
        kind = nn.BatchNorm2d if isinstance(source, nn.BatchNorm2d) else nn.BatchNorm1d
        self.shared = shared
        self.norms = nn.ModuleDict()
        for key in (SHARED,) if shared else tuple(map(str, bits)):
            norm = kind(source.num_features, eps=source.eps, momentum=source.momentum)
            norm.load_state_dict(source.state_dict())
            self.norms[key] = norm

    def at(self, bits: int) -> nn.BatchNorm2d | nn.BatchNorm1d:
        """Return the BatchNorm of one width."""
        norm = self.norms[SHARED if self.shared else str(bits)]
        assert isinstance(norm, (nn.BatchNorm2d, nn.BatchNorm1d))
        return norm

    def forward(
        self, x: Float[Tensor, "n c *space"], bits: int, step: Float[Tensor, ""] | None
    ) -> Float[Tensor, "n c *space"]:
        """Normalise with batch statistics (training) or running ones, the result in units of `step`.

        Dividing by the step costs nothing here: it goes into the affine parameters.
        """
        norm = self.at(bits)
        weight, bias = norm.weight, norm.bias
        if step is not None:
            weight, bias = weight / step, bias / step
        momentum = 0.1 if norm.momentum is None else norm.momentum
        if self.training and torch.is_grad_enabled() and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        return F.batch_norm(
            x, norm.running_mean, norm.running_var, weight, bias, self.training, momentum, norm.eps
        )
