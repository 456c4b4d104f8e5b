"""Purifiers, one file each: small networks that clean an image before a classifier sees it."""

from edgeq.purifiers.alp import ALP as ALP
from edgeq.purifiers.base import AbstractPurifier as AbstractPurifier
from edgeq.purifiers.base import Draw as Draw
from edgeq.purifiers.base import Purified as Purified
from edgeq.purifiers.config import METHODS as METHODS
from edgeq.purifiers.config import Method as Method
from edgeq.purifiers.config import PurifierConfig as PurifierConfig
from edgeq.purifiers.evaluate import fidelity as fidelity
from edgeq.purifiers.evaluate import purified_accuracies as purified_accuracies
from edgeq.purifiers.folders import PurifierInfo as PurifierInfo
from edgeq.purifiers.folders import load_purifier as load_purifier
from edgeq.purifiers.folders import srl_from as srl_from
from edgeq.purifiers.purevq import PureVQ as PureVQ
from edgeq.purifiers.srl import SRL as SRL
from edgeq.purifiers.training import Progress as Progress
from edgeq.purifiers.training import train_purifier as train_purifier
from edgeq.purifiers.vae import VAE as VAE
