"""Training objectives, one file each; the tuple is what `edgeq train --defense` knows."""

from edgeq.defenses.standard import Standard as Standard
from edgeq.defenses.standard import StandardObjective as StandardObjective

DEFENSES: tuple[str, ...] = ("standard",)
