"""Which layer a width's accuracy is lost in: every unit quantized alone, and every unit left out."""

from edgeq.sensitivity.measure import Answers as Answers
from edgeq.sensitivity.measure import Layer as Layer
from edgeq.sensitivity.measure import Sensitivity as Sensitivity
from edgeq.sensitivity.measure import WidthReport as WidthReport
from edgeq.sensitivity.measure import measure as measure
from edgeq.sensitivity.mixture import Mixture as Mixture
from edgeq.sensitivity.mixture import reference_bits as reference_bits
from edgeq.sensitivity.mixture import rounding_units as rounding_units
