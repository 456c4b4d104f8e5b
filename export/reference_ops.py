"""ONNX Runtime's own operators for `onnx.reference`, written from the formulas in their documentation, and MaxPool.

They share no code with the interpreter or with ONNX Runtime: float64, one line each, `saturate(round(...) + zero)`.
"""

import numpy as np
from onnx.reference.op_run import OpRun


def _quantized(real: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    limits = np.iinfo(zero.dtype)
    return np.clip(np.rint(real / np.float64(scale)) + int(zero), limits.min, limits.max).astype(zero.dtype)


def _real(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    return (codes.astype(np.float64) - int(zero)) * scale.astype(np.float64)


class QLinearAdd(OpRun):
    """C = (A_scale (A - A_zero) + B_scale (B - B_zero)) / C_scale + C_zero."""

    op_domain = "com.microsoft"

    def _run(self, a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero):
        return (_quantized(_real(a, a_scale, a_zero) + _real(b, b_scale, b_zero), c_scale, c_zero),)


class QLinearMul(OpRun):
    """C = A_scale (A - A_zero) B_scale (B - B_zero) / C_scale + C_zero."""

    op_domain = "com.microsoft"

    def _run(self, a, a_scale, a_zero, b, b_scale, b_zero, c_scale, c_zero):
        return (_quantized(_real(a, a_scale, a_zero) * _real(b, b_scale, b_zero), c_scale, c_zero),)


class QGemm(OpRun):
    """Y = (A_scale B_scale (A - A_zero)(B - B_zero) + C) / Y_scale + Y_zero; C is in units of A_scale B_scale."""

    op_domain = "com.microsoft"

    def _run(self, a, a_scale, a_zero, b, b_scale, b_zero, c, y_scale, y_zero, alpha=None, transA=None, transB=None):
        b = b.T if transB else b
        product = (a.astype(np.int64) - int(a_zero)) @ (b.astype(np.int64) - b_zero) + c
        return (_quantized(product * (a_scale.astype(np.float64) * b_scale), y_scale, y_zero),)


class QLinearGlobalAveragePool(OpRun):
    """The mean over the plane, from one scale to another."""

    op_domain = "com.microsoft"

    def _run(self, x, x_scale, x_zero, y_scale, y_zero, channels_last=None):
        axes = tuple(range(1, x.ndim - 1)) if channels_last else tuple(range(2, x.ndim))
        return (_quantized(_real(x, x_scale, x_zero).mean(axes, keepdims=True), y_scale, y_zero),)


class MaxPool(OpRun):
    """The maximum of every window; `onnx.reference` fills the padding with NaN, which no integer can hold."""

    op_domain = ""

    def _run(self, x, *, kernel_shape, pads=None, strides=None, **_):
        pads, strides = pads or (0, 0, 0, 0), strides or (1, 1)
        border = ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3]))
        lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
        padded = np.pad(x, border, constant_values=lowest)
        rows, columns = (
            (size - k) // s + 1 for size, k, s in zip(padded.shape[2:], kernel_shape, strides, strict=True)
        )
        out = np.empty((*x.shape[:2], rows, columns), x.dtype)
        for i, j in np.ndindex(rows, columns):
            top, left = i * strides[0], j * strides[1]
            out[:, :, i, j] = padded[:, :, top : top + kernel_shape[0], left : left + kernel_shape[1]].max((2, 3))
        return (out,)


OPERATORS: tuple[type[OpRun], ...] = (QLinearAdd, QLinearMul, QGemm, QLinearGlobalAveragePool, MaxPool)
