"""Training objectives, one file each; the table is what `edgeq train --defense` knows."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgeq.defenses.base import AbstractObjective as AbstractObjective
from edgeq.defenses.base import Setting as Setting
from edgeq.defenses.dwq import DWQ as DWQ
from edgeq.defenses.dwq import DWQObjective as DWQObjective
from edgeq.defenses.patch_at import PatchATObjective as PatchATObjective
from edgeq.defenses.patches import Patches as Patches
from edgeq.defenses.pbat import PBATObjective as PBATObjective
from edgeq.defenses.random_width import RandomWidth as RandomWidth
from edgeq.defenses.standard import Standard as Standard
from edgeq.defenses.standard import StandardObjective as StandardObjective
from edgeq.defenses.triqdef import TriQDef as TriQDef
from edgeq.defenses.triqdef import TriQDefObjective as TriQDefObjective
from edgeq.defenses.turns import Turns as Turns
from edgeq.quant.network import MultiBitNet

if TYPE_CHECKING:
    from edgeq.config import TrainConfig


DEFENSES: "dict[str, Callable[[MultiBitNet, TrainConfig], AbstractObjective]]" = {
    "standard": lambda net, c: StandardObjective(net, c.standard, c.turns or Turns(1)),
    "patch-at": lambda net, c: PatchATObjective(
        net, c.patches, c.turns or Turns(), label_smoothing=c.standard.label_smoothing, clip=c.triqdef.clip
    ),
    "triqdef": lambda net, c: TriQDefObjective(
        net, c.patches, c.triqdef, c.turns or Turns(), label_smoothing=c.standard.label_smoothing
    ),
    "pbat": lambda net, c: PBATObjective(net, c.patches, label_smoothing=c.standard.label_smoothing),
    "dwq": lambda net, c: DWQObjective(net, c.dwq, label_smoothing=c.standard.label_smoothing),
}
