"""ONNX models as they come: a file, its bytes, or the model itself."""

import os
from typing import TYPE_CHECKING

from edgeq.errors import InputError

if TYPE_CHECKING:
    import onnx


def parsed(model: bytes) -> "onnx.ModelProto":
    """Return a model from its bytes.

    Raises:
        InputError: They are none.
    """
    import onnx

    try:
        return onnx.load_from_string(model)
    except Exception as error:  # protobuf's have no common base
        raise _no_model("bytes that are none", error) from error


def loaded(model: "str | os.PathLike[str] | bytes | onnx.ModelProto") -> "onnx.ModelProto":
    """Return a model and check it, unless it is one already.

    Raises:
        InputError: There is no file, or it is no valid model.
    """
    import onnx

    if isinstance(model, onnx.ModelProto):
        return model
    try:
        if isinstance(model, bytes):
            read = parsed(model)
            onnx.checker.check_model(read)
        else:
            read = onnx.load(os.fspath(model))  # with the weights that lie beside it
            onnx.checker.check_model(os.fspath(model))
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"expected an ONNX file, got {model} ({error.strerror}); name one that can be read") from error
    except Exception as error:  # protobuf and the checker have no common base
        raise _no_model("bytes" if isinstance(model, bytes) else os.fspath(model), error) from error
    return read


def _no_model(came: str, error: Exception) -> InputError:
    reason = str(error).strip().split("\n")[0]
    return InputError(f"expected an ONNX model, got {came} ({reason}); export it again")
