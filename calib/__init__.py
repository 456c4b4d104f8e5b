"""From float to ranges: observers, calibration methods, and re-estimated BatchNorm."""

from .batchnorm import has_own_norms as has_own_norms
from .batchnorm import reestimate as reestimate
from .bias import correct_bias as correct_bias
from .calibrate import CalibrationReport as CalibrationReport
from .calibrate import EdgeReport as EdgeReport
from .calibrate import calibrate as calibrate
from .calibrate import init_width as init_width
from .equalise import equalise as equalise
from .methods import METHODS as METHODS
from .methods import MSE as MSE
from .methods import AbstractMethod as AbstractMethod
from .methods import Entropy as Entropy
from .methods import MinMax as MinMax
from .methods import Percentile as Percentile
from .methods import method as method
from .passes import PASSES as PASSES
from .passes import PassReport as PassReport
from .rounding import learn_rounding as learn_rounding
