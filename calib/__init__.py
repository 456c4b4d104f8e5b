"""From float to ranges: observers, calibration methods, and re-estimated BatchNorm."""

from .batchnorm import reestimate as reestimate
from .calibrate import CalibrationReport as CalibrationReport
from .calibrate import EdgeReport as EdgeReport
from .calibrate import calibrate as calibrate
from .calibrate import init_width as init_width
from .methods import METHODS as METHODS
from .methods import MSE as MSE
from .methods import AbstractMethod as AbstractMethod
from .methods import Entropy as Entropy
from .methods import MinMax as MinMax
from .methods import Percentile as Percentile
from .methods import method as method
