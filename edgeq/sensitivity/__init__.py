"""Which layer a width's accuracy is lost in (each unit quantized alone, and left out), and bits for single layers."""

from edgeq.sensitivity.measure import Answers as Answers
from edgeq.sensitivity.measure import Layer as Layer
from edgeq.sensitivity.measure import Sensitivity as Sensitivity
from edgeq.sensitivity.measure import WidthReport as WidthReport
from edgeq.sensitivity.measure import measure as measure
from edgeq.sensitivity.mixture import Mixture as Mixture
from edgeq.sensitivity.mixture import reference_bits as reference_bits
from edgeq.sensitivity.mixture import rounding_units as rounding_units
from edgeq.sensitivity.noise import LayerNoise as LayerNoise
from edgeq.sensitivity.noise import layer_noises as layer_noises
from edgeq.sensitivity.search import Budget as Budget
from edgeq.sensitivity.search import Plan as Plan
from edgeq.sensitivity.search import Search as Search
from edgeq.sensitivity.search import nearest_setting as nearest_setting
from edgeq.sensitivity.search import search as search
