"""Bits of single layers: which weights and which input codes a layer multiplies in a *setting*, a width of the network.

In setting b every layer multiplies b-bit weights by b-bit codes (the first and the last one 8-bit ones), except the
layers that `QuantConfig.layer_bits` names:

    {4: {"blocks_0_conv1": 8, "blocks_0_conv2": (2, 4)}}

In setting 4 the first layer has 8-bit weights and reads 8-bit codes, the second one has 2-bit weights and reads 4-bit
codes, all others have 4 bits. An edge is stored with the bits of its widest reader, narrower readers get a narrow copy
with the same clipping range; additions and averages want 8 bits, as ever. A file of such choices is TOML or JSON:

    [layer_bits.4]
    blocks_0_conv1 = 8
    blocks_0_conv2 = [2, 4]
"""

import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path

from edgeq.errors import InputError
from edgeq.files import write_text

Bits = tuple[int, int]  # of the weights, of the codes that the layer reads
LayerBits = Mapping[int, Mapping[str, Bits]]
KEY = "layer_bits"


def checked(given: object) -> dict[int, dict[str, Bits]]:
    """Return settings from high to low with a pair of bits per layer, or say what is wrong with them.

    Args:
        given: Settings (numbers, or their digits as JSON and TOML have them) and in each layers with a number of bits
            or a pair of them.
    """
    if not isinstance(given, Mapping):
        raise InputError(f"expected layer_bits as settings with layers and their bits, got {given!r}; see the docs")
    found = {_setting(key): value for key, value in given.items()}
    for setting, layers in found.items():
        if not isinstance(layers, Mapping):
            raise InputError(f"expected layers with their bits in setting {setting}, got {layers!r}; name some layers")
    return {
        setting: {str(name): _pair(str(name), bits) for name, bits in found[setting].items()}
        for setting in sorted(found, reverse=True)
    }


def check_names(layer_bits: Mapping[int, Mapping[str, object]], known: tuple[str, ...]) -> None:
    """Refuse layers that a network does not have."""
    for setting, layers in layer_bits.items():
        for name in layers:
            if name not in known:
                raise InputError(
                    f"expected layers of this network in setting {setting} of layer_bits, got {name!r}; it has "
                    f"{', '.join(known)}"
                )


def read_layer_bits(path: str | os.PathLike[str]) -> dict[int, dict[str, Bits]]:
    """Read a TOML or JSON file with `layer_bits`."""
    path = Path(path)
    if path.suffix not in (".toml", ".json"):
        raise InputError(f"expected a file .toml or .json with layer_bits, got {path}; edgeq sensitivity writes one")
    try:
        text = path.read_text(encoding="utf-8")
        body = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise InputError(f"expected a file with layer_bits, got {path}: {error.strerror}; name another") from error
    except ValueError as error:  # of tomllib, json and the encoding alike
        raise InputError(f"expected {path.suffix[1:].upper()} in {path}, got another text: {error}; mend it") from error
    if not isinstance(body, dict) or not body.get(KEY):
        raise InputError(f"expected layer_bits in {path}, got none; write a table like [layer_bits.4]")
    return checked(body[KEY])


def write_layer_bits(path: str | os.PathLike[str], layer_bits: LayerBits, *, remark: str = "") -> None:
    """Write a TOML or JSON file that `read_layer_bits` takes.

    Args:
        path: Its suffix decides.
        layer_bits: The choices.
        remark: Where they come from; a comment in TOML.
    """
    path = Path(path)
    plain = {
        str(s): {n: b[0] if b[0] == b[1] else list(b) for n, b in layers.items()} for s, layers in layer_bits.items()
    }
    if path.suffix == ".json":
        write_text(path, json.dumps({**({"remark": remark} if remark else {}), KEY: plain}, indent=2) + "\n")
    elif path.suffix == ".toml":
        lines = [f"# {line}" for line in remark.splitlines()]
        for setting, layers in plain.items():
            lines += ["", f"[{KEY}.{setting}]", *(f"{json.dumps(name)} = {bits}" for name, bits in layers.items())]
        write_text(path, "\n".join(lines).lstrip() + "\n")
    else:
        raise InputError(f"expected a file .toml or .json to write layer_bits to, got {path}; rename it")


def _setting(key: object) -> int:
    digits = str(key)
    if not digits.isdecimal() or not 2 <= int(digits) <= 8:
        raise InputError(
            f"expected settings from 2 to 8 in layer_bits, got {key!r}; a setting is a width of the network"
        )
    return int(digits)


def _pair(name: str, bits: object) -> Bits:
    pair = tuple(bits) if isinstance(bits, (list, tuple)) else (bits, bits)
    if len(pair) != 2 or not all(type(b) is int and 2 <= b <= 8 for b in pair):
        raise InputError(
            f"expected 2 to 8 bits for layer {name!r} in layer_bits, or a pair of them for weights and activations, "
            f"got {bits!r}"
        )
    return pair  # type: ignore[return-value]
