"""Doors in: networks that other tools quantized become integer graphs, and the price of it is counted."""

from edgeq.pixels import Pixels as Pixels

from .agreement import Agreement as Agreement
from .agreement import agreement as agreement
from .agreement import onnx_original as onnx_original
from .qdq import Imported as Imported
from .qdq import import_onnx as import_onnx
