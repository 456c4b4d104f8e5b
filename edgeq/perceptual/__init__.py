"""Perceptual similarity of maps between bit-widths: soft edges, smooth HOG, their null, and TriQDef's penalties."""

from edgeq.perceptual.diagnose import Measured as Measured
from edgeq.perceptual.diagnose import diagnose as diagnose
from edgeq.perceptual.null import derangement as derangement
from edgeq.perceptual.null import neighbours as neighbours
from edgeq.perceptual.pairs import all_pairs as all_pairs
from edgeq.perceptual.pairs import sample_pairs as sample_pairs
from edgeq.perceptual.similarity import Alignment as Alignment
from edgeq.perceptual.similarity import alignment_penalty as alignment_penalty
from edgeq.perceptual.similarity import fdp as fdp
from edgeq.perceptual.similarity import gpdp as gpdp
from edgeq.perceptual.similarity import similarity as similarity
from edgeq.perceptual.taps import feature_taps as feature_taps
