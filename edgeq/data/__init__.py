from edgeq.data.augment import Augment as Augment
from edgeq.data.loader import TrainBatches as TrainBatches
from edgeq.data.loader import batches as batches
from edgeq.data.specs import load as load
from edgeq.data.splits import Dataset as Dataset
from edgeq.data.splits import ImageFiles as ImageFiles
from edgeq.data.splits import Split as Split
from edgeq.data.splits import holdout as holdout
