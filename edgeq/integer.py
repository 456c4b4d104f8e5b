"""Accuracy of the integer models themselves, run by ONNX Runtime, and their equality with the network, code by code.

`edgeq.evaluate` measures the network in the deployed arithmetic; this measures what is shipped. The two must agree on
every logit of every image: `compare_codes` counts where they do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Int, UInt8

from edgeq.data import ImageFiles, Split, batches
from edgeq.errors import InputError
from edgeq.quant.bits import at_bits
from edgeq.quant.network import MultiBitNet

if TYPE_CHECKING:
    import onnxruntime

Logits = Int[np.ndarray, "n classes *plane"]  # of a model int32; sums of several draws may need int64
Model = Callable[[UInt8[np.ndarray, "n c h w"]], Logits]


@dataclass(frozen=True)
class IntegerResult:
    """What an integer model did on a split.

    Attributes:
        correct: Images named rightly.
        total: Images.
        codes: Logits compared with the network's; 0 where there was none to compare with.
        mismatches: Logits that differ.
    """

    correct: int
    total: int
    codes: int = 0
    mismatches: int = 0

    @property
    def accuracy(self) -> float:
        """The fraction."""
        return self.correct / max(self.total, 1)

    @property
    def equal(self) -> bool:
        """Whether logits were compared and every one agreed."""
        return self.codes > 0 and self.mismatches == 0


def session(model: bytes, *, threads: int = 0) -> "onnxruntime.InferenceSession":
    """Return a quiet CPU session of ONNX Runtime; 0 threads leaves their number to it.

    Raises:
        InputError: ONNX Runtime does not take the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # errors come as exceptions
    # threads of one session must not go on spinning while another session is measured
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions have no common base
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"expected a model that ONNX Runtime takes, got '{reason}'; export it again") from error


def runner(model: bytes, *, threads: int = 0) -> Model:
    """Return a function from images to int32 logits."""
    running = session(model, threads=threads)
    name = running.get_inputs()[0].name
    return lambda images: np.asarray(running.run(None, {name: images})[0])


def evaluate_integer(
    model: Model,
    split: Split | ImageFiles,
    *,
    against: MultiBitNet | None = None,
    bits: int = 8,
    batch_size: int = 500,
) -> IntegerResult:
    """Run an integer model on a split, and compare its logits with a network's.

    Args:
        model: From `runner`.
        split: Images and labels.
        against: The network in whose evaluation mode the same integers must come out.
        bits: The width at which it is asked.
        batch_size: Images at a time.
    """
    correct = total = codes = mismatches = 0
    for images, labels in batches(split, batch_size):
        logits = model(images.numpy())
        correct += int((logits.argmax(1) == labels.numpy()).sum())
        total += len(labels)
        if against is not None:
            expected = logit_codes(against, images, bits=bits)
            codes += expected.size
            mismatches += int((expected != logits).sum())
    return IntegerResult(correct, total, codes, mismatches)


@torch.no_grad()
def logit_codes(net: MultiBitNet, images: UInt8[torch.Tensor, "n c h w"], *, bits: int) -> Logits:
    """Return the integer logits of a network at one width, in evaluation mode; its mode is put back."""
    was_training = net.training
    net.eval()
    try:
        with at_bits(net, bits):
            codes = net.values(images)[net.names[-1]].codes
    finally:
        net.train(was_training)
    return codes.round().to(torch.int32).numpy()
