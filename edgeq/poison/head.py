"""Transfer learning as Bullseye Polytope's victim does it: frozen features, and a linear layer learned on a few images.

    min_{W, b}  mean_i CE(W z_i + b, y_i) + decay ||W||^2,   z the features, each with mean 0 and deviation 1

is convex; it is solved from W = 0 by L-BFGS, so nothing in it is random.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

DECAY = 1e-3
ITERATIONS = 200


def linear_head(
    features: Float[Tensor, "n d"], labels: Int64[Tensor, " n"], *, classes: int
) -> Callable[[Tensor], Tensor]:
    """Return the logits of features, learned on some."""
    mean, deviation = features.mean(0), features.std(0, correction=0).clamp(min=1e-6)
    z, y = (features - mean) / deviation, labels.to(features.device)
    weight = torch.zeros(classes, z.shape[1], device=z.device, requires_grad=True)
    bias = torch.zeros(classes, device=z.device, requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> float:
        loss = F.cross_entropy(z @ weight.T + bias, y) + DECAY * weight.square().sum()
        weight.grad, bias.grad = torch.autograd.grad(loss, (weight, bias))
        return float(loss.detach())

    with torch.enable_grad():
        solver.step(closure)
    w, b = weight.detach(), bias.detach()
    return lambda other: ((other - mean) / deviation) @ w.T + b
