"""The bit-width curriculum (BACT): start with {32, 8}, bring in lower widths one stage at a time.

The paper (TriQDef) gives the order but no stage lengths; ours are a fraction of the epochs each, `stage`. A width that
enters starts from calibration on held-out images; no weights are copied.
"""

from dataclasses import dataclass

from edgeq.errors import InputError

FIRST = (32, 8)  # the widths that train from the beginning


@dataclass(frozen=True)
class Curriculum:
    """When each width enters.

    Attributes:
        enabled: False trains all widths from the first epoch.
        stage: Fraction of all epochs between two entries.
        alone: Fraction of all epochs, at the beginning, in which the highest width trains alone. Short runs reach a
            good float network sooner so: an epoch costs as many times more as there are widths.
    """

    enabled: bool = True
    stage: float = 0.1
    alone: float = 0.0

    def __post_init__(self) -> None:
        """Check the fractions."""
        if not 0.0 < self.stage <= 1.0:
            raise InputError(f"expected a stage between 0 and 1 (a fraction of the epochs), got {self.stage}")
        if not 0.0 <= self.alone < 1.0:
            raise InputError(f"expected alone from 0 to below 1 (a fraction of the epochs), got {self.alone}")

    def entries(self, bits: tuple[int, ...], epochs: int, frozen_from: int | None = None) -> dict[int, int]:
        """Return the epoch at which each width enters.

        Every width enters early enough to train for at least one epoch before BatchNorm freezes at `frozen_from`
        (else before the end), and where no width of {32, 8} is there, the highest one starts.
        """
        end = epochs if frozen_from is None else frozen_from
        first = [b for b in bits if b in FIRST] or [max(bits)]
        later = sorted((b for b in bits if b not in first), reverse=True)
        stages = {max(bits): 0.0, **{b: self.alone for b in first if b != max(bits)}}
        stages |= {b: self.alone + self.stage * index for index, b in enumerate(later, start=1)}
        # 1e-9: 0.7 of 10 epochs is the seventh, not the sixth, whatever the binary fractions say
        entries = {b: int(begin * epochs + 1e-9) if self.enabled else 0 for b, begin in stages.items()}
        return {b: min(entry, max(end - 1, 0)) for b, entry in entries.items()}

    def active(self, bits: tuple[int, ...], epochs: int, epoch: int, frozen_from: int | None = None) -> tuple[int, ...]:
        """Return the widths that train in an epoch, from high to low."""
        entries = self.entries(bits, epochs, frozen_from)
        return tuple(b for b in sorted(bits, reverse=True) if entries[b] <= epoch)
