"""Patch attacks, one file each; the tuple is the order in which they are listed."""

from edgeq.attacks.adaptive import FineTune as FineTune
from edgeq.attacks.adaptive import attackers as attackers
from edgeq.attacks.adaptive import tuned_copy as tuned_copy
from edgeq.attacks.base import AbstractPatchAttack as AbstractPatchAttack
from edgeq.attacks.base import Ascent as Ascent
from edgeq.attacks.base import PatchResult as PatchResult
from edgeq.attacks.eot import EOT as EOT
from edgeq.attacks.eot import pixels as pixels
from edgeq.attacks.gap import GAP as GAP
from edgeq.attacks.goal import Goal as Goal
from edgeq.attacks.lavan import LAVAN as LAVAN
from edgeq.attacks.located import Located as Located
from edgeq.attacks.located import Race as Race
from edgeq.attacks.located import strong_attack as strong_attack
from edgeq.attacks.located import training_attack as training_attack
from edgeq.attacks.patchattack import PatchAttack as PatchAttack
from edgeq.attacks.pool import PatchPool as PatchPool
from edgeq.attacks.pool import PoolConfig as PoolConfig
from edgeq.attacks.pool import make_pool as make_pool
from edgeq.attacks.pool import open_pool as open_pool
from edgeq.attacks.success import Success as Success
from edgeq.attacks.success import success as success
from edgeq.attacks.textures import Textures as Textures
from edgeq.attacks.textures import build_textures as build_textures
from edgeq.attacks.victim import Surrogate as Surrogate
from edgeq.attacks.victim import all_but as all_but
from edgeq.attacks.victim import answers as answers
from edgeq.attacks.victim import surrogate as surrogate

ATTACKS: tuple[type[AbstractPatchAttack], ...] = (Located, LAVAN, GAP, PatchAttack)
