"""The attacks of the evaluation by name, and how hard each tries.

Per-image patches are untargeted and made for the test images that they are judged on: the strongest attacker. Universal
patches are targeted, made on training images, and judged on test images at places drawn anew.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from edgeq.attacks import GAP, LAVAN, AbstractPatchAttack, Ascent, Located, PatchAttack, Textures, strong_attack
from edgeq.attacks.eot import EOT, pixels
from edgeq.attacks.gap import ASCENT
from edgeq.errors import InputError

UNIVERSAL_BATCH = 64  # images per step of a universal patch; part of the result
ASKED = 5  # candidates of a black box cost a forward pass only, so more of them fit at once


@dataclass(frozen=True)
class Effort:
    """How hard the attacks try.

    Attributes:
        steps: Gradient steps of a patch per image.
        starts: Short climbs per image that race after it, where it has not won.
        scouts: Starts that are asked about before the long search.
        universal_steps: Gradient steps of a universal patch.
        queries: Most questions of a black box per image.
        tune_steps: Training steps of the tuned surrogate.
    """

    steps: int = 40
    starts: int = 32
    scouts: int = 60
    universal_steps: int = 150
    queries: int = 150
    tune_steps: int = 300

    def __post_init__(self) -> None:
        """Check the ranges."""
        least = min(self.steps, self.universal_steps, self.tune_steps)
        if least < 1 or min(self.scouts, self.starts) < 0 or self.queries < 10:
            raise InputError(
                f"expected 1 or more of everything, 0 or more scouts and starts and 10 questions or more, got {self}; "
                "raise them"
            )


EFFORTS: dict[str, Effort] = {
    "quick": Effort(steps=20, starts=16, scouts=40, universal_steps=60, queries=50, tune_steps=100),
    "standard": Effort(),
    "strong": Effort(steps=60, starts=64, scouts=150, universal_steps=500, queries=1000, tune_steps=600),
}


@dataclass(frozen=True)
class Arm:
    """One attack of the evaluation.

    Attributes:
        build: From side, effort, images at once and textures to the attack.
        universal: One targeted patch for all images, instead of one untargeted patch per image.
        gradients: Whether it differentiates the victim; else it asks questions alone.
        about: For people.
    """

    build: Callable[[int, Effort, int, Textures | None], AbstractPatchAttack]
    universal: bool
    gradients: bool
    about: str


def _located(size: int, effort: Effort, batch: int, _: Textures | None) -> AbstractPatchAttack:
    attack = strong_attack(size, steps=effort.steps, starts=effort.starts, scouts=effort.scouts)
    return replace(attack, batch_size=batch)


def _short(size: int, effort: Effort, batch: int, _: Textures | None) -> AbstractPatchAttack:
    attack = strong_attack(size, steps=max(1, effort.steps // 8), starts=0, scouts=effort.scouts // 8)
    return replace(attack, batch_size=batch)


def _gap(size: int, effort: Effort, _batch: int, _: Textures | None) -> AbstractPatchAttack:
    return GAP(size=size, ascent=replace(ASCENT, steps=effort.universal_steps), batch_size=UNIVERSAL_BATCH)


def _lavan(size: int, effort: Effort, batch: int, _: Textures | None) -> AbstractPatchAttack:
    return LAVAN(size=size, ascent=Ascent(2 * effort.steps, 0.05), batch_size=batch)


def _lavan_universal(size: int, effort: Effort, _batch: int, _: Textures | None) -> AbstractPatchAttack:
    ascent = Ascent(effort.universal_steps, 0.05)
    return LAVAN(size=size, universal=True, ascent=ascent, batch_size=UNIVERSAL_BATCH)


def _mono(size: int, effort: Effort, batch: int, _: Textures | None) -> AbstractPatchAttack:
    return PatchAttack(size=size, queries=effort.queries, batch_size=ASKED * batch)


def _texture(size: int, effort: Effort, batch: int, textures: Textures | None) -> AbstractPatchAttack:
    assert textures is not None
    return PatchAttack(size=size, textures=textures, queries=effort.queries, batch_size=ASKED * batch)


LOCATED, SHORT, TEXTURE = "located", "located-short", "patch-texture"
ARMS: dict[str, Arm] = {
    LOCATED: Arm(_located, universal=False, gradients=True, about="a patch per image at the best place found"),
    "gap": Arm(_gap, universal=True, gradients=True, about="one targeted patch for all images, turned and scaled"),
    "lavan": Arm(_lavan, universal=False, gradients=True, about="noise per image at the border"),
    "lavan-universal": Arm(_lavan_universal, universal=True, gradients=True, about="one targeted noise at the border"),
    "patch-mono": Arm(_mono, universal=False, gradients=False, about="black box: one colour per image"),
    TEXTURE: Arm(_texture, universal=False, gradients=False, about="black box: texture from training images"),
}
PROBE = Arm(_short, universal=False, gradients=True, about="located with an eighth of the effort, to see success grow")


def arm(name: str) -> Arm:
    """Return an attack by its name, the probe included."""
    return PROBE if name == SHORT else ARMS[name]


def views_of(attack: AbstractPatchAttack) -> EOT | None:
    """Return the views of a universal patch; None for patches per image."""
    if isinstance(attack, GAP):
        return attack.eot
    if isinstance(attack, LAVAN) and attack.universal:
        return pixels(attack.region)
    assert isinstance(attack, Located | LAVAN | PatchAttack)
    return None
