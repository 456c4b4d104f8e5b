"""The evaluation of a network against patches: every surrogate, every attack, every width, with reasons for doubt."""

from edgeq.robustness.arsenal import ARMS as ARMS
from edgeq.robustness.arsenal import EFFORTS as EFFORTS
from edgeq.robustness.arsenal import Effort as Effort
from edgeq.robustness.document import document as document
from edgeq.robustness.doubts import doubts as doubts
from edgeq.robustness.headline import headlines as headlines
from edgeq.robustness.matrix import Entry as Entry
from edgeq.robustness.matrix import Matrix as Matrix
from edgeq.robustness.matrix import Progress as Progress
from edgeq.robustness.matrix import attack_matrix as attack_matrix
from edgeq.robustness.perception import alignment as alignment
from edgeq.robustness.plan import SURROGATES as SURROGATES
from edgeq.robustness.plan import Cell as Cell
from edgeq.robustness.plan import Plan as Plan
