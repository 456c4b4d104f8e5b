"""What poisoning attacks share: the scene, the budget in bytes, the descent, and what they give.

All attacks here are clean-label: some training images x_i become x_i', labels stay as they are, and

    |x_i' - x_i| <= eps   in every byte.

What the attacker changes is kept in [0, 1] units while it is searched for, and rounded to bytes at the end: eps is a
whole number of 1/255, so rounding does not leave the budget.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from edgeq.attacks.patch import Placement, cut
from edgeq.data.augment import FILL
from edgeq.data.seeds import generator
from edgeq.data.splits import Split
from edgeq.errors import InputError
from edgeq.poison.courses import Courses
from edgeq.poison.goals import Targets, Trigger
from edgeq.quant.network import MultiBitNet

Images = Float[Tensor, "n 3 h w"]
Loss = Callable[[Tensor, int], Tensor]  # change, step -> what shall fall
Progress = Callable[[int, int, float], None]  # steps done, steps in all, loss

TINY = 1e-12  # Adam's epsilon: gradients through a sure network are small, and the step must not depend on that


def silent(done: int, steps: int, loss: float) -> None:
    """Show nothing."""


@dataclass(frozen=True)
class Watching:
    """How the caller follows a search, and where it is kept.

    Attributes:
        progress: Called after each step.
        courses: What goes on where it was stopped.
    """

    progress: Progress = silent
    courses: Courses = field(default_factory=Courses)


@dataclass(frozen=True)
class Descent:
    """How a change is searched for.

    Attributes:
        steps: Gradient steps.
        step: Size of the first, of brightness in [0, 1]; it falls to 0 along a half cosine.
        rule: "adam", "sign" of the gradient, or "signed-adam": Adam on the gradient's sign (Geiping et al. 2021).
    """

    steps: int = 250
    step: float = 2 / 255
    rule: Literal["adam", "sign", "signed-adam"] = "adam"

    def __post_init__(self) -> None:
        """Check the ranges."""
        if self.steps < 1 or not 0 < self.step < math.inf:
            raise InputError(f"expected steps of 1 or more and a step size > 0, got {self.steps} and {self.step}")
        if self.rule not in ("adam", "sign", "signed-adam"):
            raise InputError(f"expected rule adam, sign or signed-adam, got {self.rule!r}; choose one")


@dataclass(frozen=True)
class Scene:
    """What the attacker has, and which of several attacks is meant.

    Attributes:
        nets: Surrogates, on one device; attacked at their highest width.
        train: The training images, of which some become poisons.
        test: The images that targets are drawn from.
        classes: Number of classes.
        number: Which target: a test image, or a class.
        seed: Decides everything random.
    """

    nets: tuple[MultiBitNet, ...]
    train: Split
    test: Split
    classes: int
    number: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check that there is something to attack."""
        if not self.nets or self.number < 0:
            raise InputError(f"expected surrogates and a target from 0 on, got {len(self.nets)} and {self.number}")

    @property
    def device(self) -> torch.device:
        """Where the surrogates are."""
        return next(self.nets[0].parameters()).device


@dataclass(frozen=True)
class Poisons:
    """What an attack gives.

    Attributes:
        index: Places of the changed images in the training split.
        images: What stands there instead; the labels stay.
        goal: What counts as success.
        losses: Loss at each step of the search.
    """

    index: Int64[Tensor, " k"]
    images: UInt8[Tensor, "k 3 h w"]
    goal: Targets | Trigger
    losses: tuple[float, ...]

    def put_into(self, train: Split) -> Split:
        """Return a copy of the training split with the poisons in their places."""
        images = train.images.clone()
        images[self.index] = self.images
        return Split(images, train.labels)


@dataclass(frozen=True)
class AbstractAttack(ABC):
    """An attack is a frozen dataclass of its choices; `run` searches for poisons.

    Attributes:
        kind: Its name.
        eps: Largest change of a byte.
    """

    kind: ClassVar[str]
    eps: int = 8

    @abstractmethod
    def run(self, scene: Scene, *, watch: Watching | None = None) -> Poisons:
        """Return poisons for the scene's target."""

    @abstractmethod
    def targets(self, scene: Scene) -> int:
        """Return how many targets there are to choose from."""


def check_eps(eps: int) -> None:
    """Refuse a budget that is none."""
    if not 1 <= eps <= 255:
        raise InputError(f"expected eps from 1 to 255 (of 255), got {eps}; 8 is usual")


def within(images: UInt8[Tensor, "n 3 h w"], change: Float[Tensor, "#n 3 h w"], *, eps: int) -> Tensor:
    """Return the images plus a change, as bytes, none of which moves by more than eps."""
    steps = (change.detach() * 255.0).round().clamp(-eps, eps).to(torch.int16)
    return (images.to(torch.int16) + steps).clamp(0, 255).to(torch.uint8)


def descend(
    loss: Loss,
    start: Float[Tensor, "n 3 h w"],
    clip: Callable[[Tensor], Tensor],
    descent: Descent,
    watch: Watching,
    name: str = "search",
) -> tuple[Float[Tensor, "n 3 h w"], tuple[float, ...]]:
    """Return the change after all steps, each followed by `clip`, and the loss before each."""
    course = watch.courses.begin(name, clip(start.detach()).clone())
    change, losses = course.change, course.losses
    adam = torch.optim.Adam([change], lr=descent.step, eps=TINY)
    steps = torch.tensor(float(len(losses)))
    adam.state[change] = {"step": steps, "exp_avg": course.first, "exp_avg_sq": course.second}
    for t in range(len(losses), descent.steps):
        variable = change.detach().requires_grad_()
        with torch.enable_grad():
            value = loss(variable, t)
            (grad,) = torch.autograd.grad(value, (variable,))
        grad = torch.nan_to_num(grad)
        rate = descent.step * (0.5 + 0.5 * math.cos(math.pi * t / descent.steps))
        course.settled = False
        if descent.rule == "sign":
            change.sub_(rate * grad.sign())
        else:
            adam.param_groups[0]["lr"] = rate
            change.grad = grad.sign() if descent.rule == "signed-adam" else grad
            adam.step()
        change.copy_(clip(change))
        losses.append(float(value.detach()))
        course.settled = True
        watch.courses.stepped()
        watch.progress(t + 1, descent.steps, losses[-1])
    return change.detach(), tuple(losses)


def ball(images: Float[Tensor, "n 3 h w"], eps: int) -> Callable[[Tensor], Tensor]:
    """Return the function that clips changes of these images to the budget, and to what can be seen."""
    return lambda change: (images + change.clamp(-eps / 255, eps / 255)).clamp(0.0, 1.0) - images


def shifted(images: Images, most: int, gen: torch.Generator) -> Images:
    """Shift each image by up to `most` pixels, mid-grey coming in, as training's crop does; differentiable."""
    if most == 0:
        return images
    top, left = torch.randint(2 * most + 1, (2, len(images)), generator=gen).to(images.device)
    padded = F.pad(images, (most, most, most, most), value=FILL / 255)
    return cut(padded, Placement(top, left), images.shape[-1])


def of_class(labels: Int64[Tensor, " n"], label: int, count: int, *, among: str) -> Int64[Tensor, " k"]:
    """Return the places of the images of a class, or say that there are fewer than `count`."""
    places = (labels == label).nonzero()[:, 0]
    if len(places) < count:
        raise InputError(
            f"expected at least {count} images of class {label} in {among}, got {len(places)}; poison fewer"
        )
    return places


def draw(key: str, scene: Scene, count: int) -> Int64[Tensor, " n"]:
    """Return a random order of `count` things; it does not depend on which target is meant."""
    return torch.randperm(count, generator=generator(key, scene.seed))
