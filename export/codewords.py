"""The choice of a codeword, tried in the engine itself with scores at the ends of what can be.

The part of a model behind the scores of a `Codebook` (`LAYER:acc`) is cut out and given, for every codeword k, scores
of which k alone is the largest, by one, and scores of which k and all after it are: both times k is the answer.
"""

from typing import TYPE_CHECKING

import numpy as np

from .certificate import Proof
from .cuts import extract
from .dialects import dialect
from .engines import session
from .graph import Codebook, IntegerGraph, reach
from .multiplier import FLOAT32_EXACT

if TYPE_CHECKING:
    import onnx

IN_FLOAT = ("trt", "qonnx")  # dialects whose scores are float32
INT32_LIMIT = 1 << 31


def codebook_proofs(graph: IntegerGraph, node: Codebook, model: "onnx.ModelProto", target: str) -> list[Proof]:
    """Return that the scores fit into their type, and that every codeword is found, also among equals."""
    largest = int(reach(node.scores, graph.edges[node.input]).max())
    limit = FLOAT32_EXACT if target in IN_FLOAT else INT32_LIMIT - 1
    detail = f"scores reach {largest}, which their type does not hold" if largest > limit else ""
    fits = Proof(node.name, "int32", len(node.weight), not detail, detail)
    return [fits, _found(graph, node, model, target, min(largest, limit))]


def _found(graph: IntegerGraph, node: Codebook, model: "onnx.ModelProto", target: str, top: int) -> Proof:
    count = len(node.weight)
    alone, last = np.eye(count, dtype=bool), np.tri(count, dtype=bool)
    scores = np.concatenate([alone, last], 1) + (top - 1)  # codeword, case
    fed = {f"{node.name}:acc": scores[None, :, :, None].astype(np.float32 if target in IN_FLOAT else np.int32)}
    part = extract(model, fed, node.name)
    if part is None or not part.graph.node:
        return Proof(node.name, "codewords", 0, False, "the model has no operators for it")
    got = np.asarray(session(part.SerializeToString()).run([node.name], fed)[0])
    zero = 0 if target in IN_FLOAT else dialect(target).observe(graph)[node.name][1]
    codes = got[0, :, :, 0].astype(np.int32).T - zero  # case, channel
    wrong = np.argwhere((codes != np.tile(node.weight, (2, 1))).any(1)).ravel()
    if not len(wrong):
        return Proof(node.name, "codewords", 2 * count, True)
    case, among = int(wrong[0]) % count, " among equals" if wrong[0] >= count else ""
    detail = f"codeword {case}{among} gives other codes ({len(wrong)} of {2 * count} cases differ)"
    return Proof(node.name, "codewords", 2 * count, False, detail)
