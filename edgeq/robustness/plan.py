"""What is evaluated: surrogates x attacks x sizes, as a list of cells.

A *surrogate* is what a patch is made on:

    8           the network at 8 bits: white-box for 8 bits, transfer for every other width
    joint       all widths at once
    all-but-8   all widths but one: the attacker of 8 bits who may see everything else
    tuned       a copy that was tuned at random widths (QAA's idea), all widths at once

Each cell's patches are made once and answered by every width.
"""

from dataclasses import dataclass, field

from edgeq.errors import InputError
from edgeq.robustness.arsenal import ARMS, EFFORTS, LOCATED, SHORT, Effort, arm

SURROGATES = ("each", "joint", "tuned", "all-but")
JOINT, TUNED = "joint", "tuned"


@dataclass(frozen=True)
class Plan:
    """The choices of an evaluation.

    Attributes:
        attacks: Names from `ARMS`.
        surrogates: Of "each", "joint", "tuned" and "all-but".
        several: Attacks that are made on surrogates of several widths, which cost as many times as much; empty for all.
        sizes: Sides of the patches in pixels.
        towards: Target classes of the universal patches.
        images: Test images to judge on; fewer where there are fewer.
        train_images: Training images that universal patches and the tuned surrogate are made from.
        effort: How hard the attacks try.
        seed: Decides everything random.
        batch_size: Images at once; patches per image do not depend on it.
        probe: Also make patches with an eighth of the steps, to see that success grows with them.
    """

    attacks: tuple[str, ...] = (LOCATED, "gap", "lavan-universal", "patch-mono")
    surrogates: tuple[str, ...] = ("each", "joint", "tuned")
    sizes: tuple[int, ...] = (6, 8, 10)
    towards: tuple[int, ...] = (0,)
    images: int = 500
    train_images: int = 1000
    effort: Effort = field(default_factory=lambda: EFFORTS["standard"])
    seed: int = 0
    batch_size: int = 100
    probe: bool = True
    several: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the names and the ranges."""
        _check_names("attacks", self.attacks, tuple(ARMS))
        _check_names("surrogates", self.surrogates, SURROGATES)
        if self.several:
            _check_names("several", self.several, self.attacks)
        if not self.sizes or min(self.sizes) < 1 or len(set(self.sizes)) != len(self.sizes):
            raise InputError(f"expected different patch sizes of 1 pixel or more, got {list(self.sizes)}; try 6 8 10")
        if not self.towards or len(set(self.towards)) != len(self.towards):
            raise InputError(f"expected different target classes, got {list(self.towards)}; name at least one")
        if self.images < 2 or self.train_images < 1 or self.batch_size < 1:
            raise InputError(
                f"expected 2 or more images to judge on, got {self.images}; 500 give intervals of 4 points either way"
            )

    def check(self, *, classes: int, image_shape: tuple[int, int, int]) -> None:
        """Say what does not fit a network."""
        wrong = [t for t in self.towards if not 0 <= t < classes]
        if wrong:
            raise InputError(f"expected target classes in 0..{classes - 1}, got {wrong}; choose among those")
        side = min(image_shape[1:])
        large = [s for s in self.sizes if s > side]
        if large:
            raise InputError(f"expected patches of at most {side} pixels, got {large}; choose smaller ones")

    def cells(self, bits: tuple[int, ...]) -> tuple["Cell", ...]:
        """Return what is to be made for a network of these widths, smallest patches first."""
        made = self._surrogates(bits)
        found: list[Cell] = []
        for size in sorted(self.sizes):
            if self.probe and LOCATED in self.attacks and "each" in self.surrogates and size == min(self.sizes):
                found += [Cell(SHORT, size, str(b), (b,)) for b in bits]
            for name in self.attacks:
                wide = arm(name).gradients and (not self.several or name in self.several)
                usable = made if wide else {n: w for n, w in made.items() if n.isdecimal()}
                aims: tuple[int | None, ...] = self.towards if arm(name).universal else (None,)
                found += [Cell(name, size, n, widths, aim) for aim in aims for n, widths in usable.items()]
        if not found:
            raise InputError(
                f"expected something to attack, got none: {', '.join(self.attacks)} on {', '.join(self.surrogates)} "
                f"of {len(bits)} width(s); black boxes need 'each'"
            )
        return tuple(found)

    def _surrogates(self, bits: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        made: dict[str, tuple[int, ...]] = {}
        if "each" in self.surrogates:
            made |= {str(b): (b,) for b in bits}
        if JOINT in self.surrogates and len(bits) > 1:
            made[JOINT] = bits
        if TUNED in self.surrogates:
            made[TUNED] = bits
        if "all-but" in self.surrogates and len(bits) > 2:
            made |= {f"all-but-{b}": tuple(c for c in bits if c != b) for b in bits}
        return made


@dataclass(frozen=True)
class Cell:
    """One set of patches.

    Attributes:
        attack: Name from `ARMS`, or the probe's.
        size: Side in pixels.
        surrogate: What they are made on.
        widths: The widths of the surrogate.
        towards: Target class of a universal patch; None is untargeted.
    """

    attack: str
    size: int
    surrogate: str
    widths: tuple[int, ...]
    towards: int | None = None

    @property
    def name(self) -> str:
        """A name for people."""
        aim = "" if self.towards is None else f" towards {self.towards}"
        made = f"{self.surrogate} bits" if self.surrogate.isdecimal() else self.surrogate
        return f"{self.attack} {self.size}x{self.size}{aim} made on {made}"

    @property
    def tuned(self) -> bool:
        """Whether the surrogate is the tuned copy."""
        return self.surrogate == TUNED

    @property
    def probe(self) -> bool:
        """Whether the cell only serves a check, and counts in no maximum."""
        return self.attack == SHORT

    def white_box(self, bits: int) -> bool:
        """Whether the patches were made on this very width, and no other."""
        return self.widths == (bits,) and not self.tuned

    def blind(self, bits: int) -> bool:
        """Whether the patches were made without any knowledge of this width's own answers."""
        return bits not in self.widths and not self.tuned


def _check_names(what: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    unknown = [name for name in names if name not in known]
    if unknown or not names or len(set(names)) != len(names):
        got = repr(unknown[0]) if unknown else f"[{' '.join(names)}]"
        raise InputError(f"expected {what} of {', '.join(known)}, each once, got {got}; correct the names")
