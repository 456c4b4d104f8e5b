"""One self-contained HTML page about runs and artefacts."""

from edgeq.report.collect import Network as Network
from edgeq.report.collect import Row as Row
from edgeq.report.collect import collect as collect
from edgeq.report.page import render as render
from edgeq.report.purifier import Purifier as Purifier
from edgeq.report.purifier import collect_purifier as collect_purifier
from edgeq.report.purifier import is_purifier as is_purifier
