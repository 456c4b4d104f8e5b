"""Attacks on training data, one file each, and the pipeline that shows what a defence leaves of them."""

from edgeq.poison.base import AbstractAttack as AbstractAttack
from edgeq.poison.base import Descent as Descent
from edgeq.poison.base import Poisons as Poisons
from edgeq.poison.base import Scene as Scene
from edgeq.poison.bullseye import Bullseye as Bullseye
from edgeq.poison.cache import make_poisons as make_poisons
from edgeq.poison.cache import open_poisons as open_poisons
from edgeq.poison.goals import Targets as Targets
from edgeq.poison.goals import Trigger as Trigger
from edgeq.poison.goals import successes as successes
from edgeq.poison.gradient_matching import GradientMatching as GradientMatching
from edgeq.poison.narcissus import Narcissus as Narcissus
from edgeq.poison.pipeline import ARMS as ARMS
from edgeq.poison.pipeline import Plan as Plan
from edgeq.poison.pipeline import Watch as Watch
from edgeq.poison.pipeline import run_plan as run_plan

ATTACKS: tuple[type[Bullseye] | type[Narcissus] | type[GradientMatching], ...] = (Bullseye, Narcissus, GradientMatching)
