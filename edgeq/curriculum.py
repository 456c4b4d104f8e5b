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
    """

    enabled: bool = True
    stage: float = 0.1

    def __post_init__(self) -> None:
        """Check the stage length."""
        if not 0.0 < self.stage <= 1.0:
            raise InputError(f"expected a stage between 0 and 1 (a fraction of the epochs), got {self.stage}")

    def entries(self, bits: tuple[int, ...], epochs: int) -> dict[int, int]:
        """Return the epoch at which each width enters.

        Every width enters early enough to train for at least one epoch, and where no width of {32, 8} is there, the
        highest one starts.
        """
        first = [b for b in bits if b in FIRST] or [max(bits)]
        later = sorted((b for b in bits if b not in first), reverse=True)
        entries = dict.fromkeys(first, 0)
        for index, b in enumerate(later, start=1):
            entry = int(self.stage * index * epochs) if self.enabled else 0
            entries[b] = min(entry, max(epochs - 1, 0))
        return entries

    def active(self, bits: tuple[int, ...], epochs: int, epoch: int) -> tuple[int, ...]:
        """Return the widths that train in an epoch, from high to low."""
        entries = self.entries(bits, epochs)
        return tuple(b for b in sorted(bits, reverse=True) if entries[b] <= epoch)
