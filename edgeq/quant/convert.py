"""Turn an ordinary network into a multi-bit one: decide every edge's grid, then build the units.

Each operator asks something of the edges it reads: a convolution or linear layer wants codes of its own bits (8 if it
is an edge layer, else the network's, unless `layer_bits` names it), additions, poolings that average and stand-alone
BatchNorms want 8 bits. Pooling by maximum, flatten and dropout pass the wish of their readers on. An edge is stored as
its widest reader wants it; narrower readers get a `NarrowUnit` in between. A layer that feeds one addition and nothing
else is *tied* to that addition's grid.
"""

from dataclasses import replace

import torch
from torch import nn

from edgeq.errors import InputError
from edgeq.pixels import OWN, Pixels, is_own
from edgeq.quant.batchnorm import WidthNorm
from edgeq.quant.bits import FLOAT_BITS, Width, at_bits
from edgeq.quant.codebook import CodebookUnit, Codewords, word_step
from edgeq.quant.ends import LAYERS, as_logits, back, check_ends, drawn, seen
from edgeq.quant.grid import Codes, Grid
from edgeq.quant.joins import AddUnit, AvgPoolUnit, ConcatUnit, MulUnit, PlaneSumUnit
from edgeq.quant.layer_bits import Bits, check_names
from edgeq.quant.moves import MoveUnit
from edgeq.quant.network import IMAGE, MultiBitNet, QuantConfig, Step
from edgeq.quant.tables import TableUnit
from edgeq.quant.trace import INF, Op, trace
from edgeq.quant.units import (
    PIXEL_STEP,
    AbstractUnit,
    DropoutUnit,
    FlattenUnit,
    InputUnit,
    MaxPoolUnit,
    Narrowing,
    NarrowUnit,
    Output,
    ReluUnit,
)
from edgeq.quant.weighted import ConvUnit, LinearUnit

PASSING = ("maxpool", "flatten", "dropout", "relu", "move")  # codes stay on the grid of their input
SAME = 1e-3  # relative to the largest logit: the order of summation differs, nothing else


def multibit(
    model: nn.Module,
    *,
    bits: tuple[int, ...] = (32, 8, 5, 4, 2),
    image_shape: tuple[int, int, int] = (3, 32, 32),
    config: QuantConfig | None = None,
    pixels: Pixels = OWN,
    draws: bool = False,
) -> MultiBitNet:
    """Return a multi-bit network with a copy of `model`'s weights; `model` itself is not changed.

    The network takes bytes, and shows `model` `(pixel - 128) / 64` of them. Where `model` was trained on something
    else, `pixels` says on what: a layer `pixels` of one weight a channel then comes first. (To put it into the first
    convolution would change what that sees at the border: zeros stand there for the mean.)

    Args:
        model: Any network that torch.fx can trace, made of the operators in `edgeq.quant.trace.SUPPORTED`.
        bits: The widths; ignored where `config` is given.
        image_shape: (channels, height, width) of the images.
        config: All choices, see `QuantConfig`.
        pixels: What `model` was trained on.
        draws: The results are an image, like the one that comes in, and not logits: below 32 bits they are its pixels,
            code = pixel - 128, and at every width what they stand for is (pixel - 128) / 64.
    """
    config = config or QuantConfig(bits=tuple(bits))
    ops = as_logits(tuple(_as_conv(op) for op in trace(model, image_shape)))
    check_ends(ops)
    if draws:
        ops = drawn(ops, pixels, image_shape)
    if not is_own(pixels, image_shape[0]):
        ops = seen(ops, pixels, image_shape)
    network = _Plan(ops, config, draws=draws).build(image_shape)
    if FLOAT_BITS in config.bits:
        _check_same(model, network, pixels)
    return network.train(model.training)


class _Plan:
    """Which edge is signed, wide, tied; then the units."""

    def __init__(self, ops: tuple[Op, ...], config: QuantConfig, *, draws: bool) -> None:
        self.ops = {op.name: op for op in ops}
        self.config = config
        self.draws = draws
        self.width = Width(config.bits[0])
        self.readers: dict[str, list[Op]] = {name: [] for name in (IMAGE, *self.ops)}
        for op in ops:
            for name in op.inputs:
                self.readers[name].append(op)
        layers = [op for op in ops if op.kind in LAYERS]
        chosen = [op.name for op in layers if not op.args.get("affine")]
        self.image = {IMAGE} | {op.name for op in layers if op.args.get("pixels")}
        # a codebook ends one network and begins another, which sees codewords as the first sees pixels
        self.image |= {op.name for op in ops if _fixed_step(op) is not None}
        self.edge_layers = {op.name for op in layers if op.args.get("affine")} | {*chosen[:1], *chosen[-1:]}
        self.edge_layers |= {op.name for op in layers if self._beside_codewords(op)}
        self.last = ops[-1].name
        self.settings = tuple(b for b in config.bits if b != FLOAT_BITS)
        check_names(config.layer_bits, tuple(chosen))
        self.grids: dict[str, Grid] = {}

    def _beside_codewords(self, op: Op) -> bool:
        """Tell whether a layer makes what a codebook replaces, or reads what it chooses."""
        behind = any(_fixed_step(reader) is not None for reader in self.readers[op.name])
        source = self.ops.get(self.source(op.inputs[0]))
        return behind or (source is not None and _fixed_step(source) is not None)

    def bits_of(self, op: Op, setting: int) -> Bits:
        """Return the bits of a layer's weights and of the codes that it reads, at a width of the network."""
        if op.args.get("affine"):
            return 8, 8
        edge = self.config.edge_bits if op.name in self.edge_layers else 0
        named = self.config.layer_bits.get(setting, {}).get(op.name)
        weights, codes = named or (max(setting, edge), 8 if edge == 8 else setting)  # type: ignore[misc]
        return weights, 8 if self.source(op.inputs[0]) in self.image else codes

    def wishes(self, op: Op, setting: int) -> set[int]:
        """Return the bits that readers of this operator's result want it to have."""
        found: set[int] = set()
        for reader in self.readers[op.name]:
            if reader.kind in LAYERS:
                found.add(self.bits_of(reader, setting)[1])
            elif reader.kind in PASSING or reader.kind == "concat":
                found |= self.wishes(reader, setting)
            else:
                found.add(8)
        return found

    def signed(self, name: str) -> bool:
        """Tell whether an operator's result may be negative."""
        if name == IMAGE:
            return True
        op = self.ops[name]
        if op.relu is not None:
            return False
        if op.kind == "table":
            return op.args["function"].signed
        if op.kind in ("maxpool", "avgpool", "flatten", "dropout", "concat", "add", "mul", "move"):
            return any(self.signed(n) for n in op.inputs)
        return True

    def source(self, name: str) -> str:
        """Return the operator that put the codes of `name` on their grid, through passing operators."""
        while name != IMAGE and self.ops[name].kind in PASSING:
            name = self.ops[name].inputs[0]
        return name

    def tied_to(self, op: Op) -> Op | None:
        """Return the addition whose grid this layer shares, if any."""
        readers = self.readers[op.name]
        alone = len(readers) == 1 and readers[0].kind == "add" and op.kind in LAYERS
        if not alone or readers[0].relu not in (None, INF):  # what ReLU6 cuts from a sum is not cut from its summands
            return None
        return readers[0] if readers[0].inputs.count(op.name) == 1 else None

    def output(self, op: Op) -> Output | None:
        """Return where an operator's results land, making its grid on first use."""
        if op.name == self.last and self.draws:
            return Output(_fixed_grid(op, self.settings, PIXEL_STEP), signed=True, owner=True)
        if op.kind in PASSING or op.name == self.last:
            return None
        target = self.tied_to(op) or op
        if target.name not in self.grids:
            self.grids[target.name] = self._grid(target)
        return Output(self.grids[target.name], signed=self.signed(op.name), owner=target is op)

    def _grid(self, op: Op) -> Grid:
        fixed = _fixed_step(op)
        if fixed is not None:
            return _fixed_grid(op, self.settings, fixed)
        codes = {}
        for setting in self.settings:
            wishes = self.wishes(op, setting) or {setting}
            codes[setting] = Codes(8 if op.kind == "add" else max(wishes), min(wishes))
        return Grid(
            codes,
            signed=self.signed(op.name),
            learned=self.config.scales == "learned",
            count=int(torch.Size(op.shape).numel()),
            ceiling=None if op.relu in (None, INF) else op.relu,
        )

    def build(self, image_shape: tuple[int, int, int]) -> MultiBitNet:
        """Return the network."""
        pixels = IMAGE + "_codes"
        steps = [Step(pixels, (IMAGE,))]
        units: dict[str, AbstractUnit] = {pixels: InputUnit(self.width, None)}
        copies: dict[tuple[str, tuple[int, ...]], str] = {}
        for op in self.ops.values():
            inputs = []
            for name in op.inputs:
                at = self._narrowing(op, name)
                if not at:
                    inputs.append(pixels if name == IMAGE else name)
                    continue
                key = name, tuple(narrowing.read for narrowing in at.values())
                if key not in copies:  # readers alike share a copy
                    others = sum(edge == name for edge, _ in copies)
                    copies[key] = f"{name}_narrow" + (f"_{others + 1}" if others else "")
                    units[copies[key]] = NarrowUnit(self.width, signed=self.signed(name), at=at)
                    steps.append(Step(copies[key], (name,)))
                inputs.append(copies[key])
            units[op.name] = self._unit(op)
            steps.append(Step(op.name, tuple(inputs)))
        return MultiBitNet(
            config=self.config,
            width=self.width,
            steps=tuple(steps),
            units=units,
            grids={name: grid for name, grid in self.grids.items() if grid.fixed is None},
            draws=self.draws,
            image_shape=image_shape,
            output_shape=tuple(self.ops[self.last].shape),
        )

    def _narrowing(self, op: Op, name: str) -> dict[int, Narrowing]:
        """Return what happens at each width between an edge and its reader; empty where nothing ever does."""
        source = self.source(name)
        if op.kind not in LAYERS or source == IMAGE:
            return {}
        grid = self.grids[source]
        found = {
            setting: Narrowing(grid.storage_bits(setting), grid.range(setting)[1], self.bits_of(op, setting)[1])
            for setting in self.settings
        }
        return found if any(n.read < n.stored for n in found.values()) else {}

    def _unit(self, op: Op) -> AbstractUnit:
        output = self.output(op)
        if op.kind in LAYERS:
            return self._layer(op, output)
        match op.kind:
            case "relu":
                return ReluUnit(self.width, ceiling=op.relu or INF)
            case "maxpool":
                return MaxPoolUnit(self.width, pool=op.args["pool"])
            case "flatten":
                return FlattenUnit(self.width, None)
            case "dropout":
                return DropoutUnit(self.width, **op.args)
            case "move":
                return MoveUnit(self.width, how=op.args["how"])
            case "planesum":
                return PlaneSumUnit(self.width, None)
        assert output is not None
        match op.kind:
            case "add":
                return AddUnit(self.width, output, relu=op.relu)
            case "mul":
                return MulUnit(self.width, output)
            case "table":
                return TableUnit(self.width, output, function=op.args["function"])
            case "codebook":
                assert isinstance(op.module, Codewords)
                return CodebookUnit(self.width, output, words=op.module.words)
            case "concat":
                return ConcatUnit(self.width, output, relu=op.relu)
        args = {key: value for key, value in op.args.items() if key != "keepdim"}
        return AvgPoolUnit(self.width, output, **args)

    def _layer(self, op: Op, output: Output | None) -> AbstractUnit:
        config = self.config
        bits = {setting: self.bits_of(op, setting) for setting in self.settings}
        norm = None if op.norm is None else WidthNorm(op.norm, config.bits, shared=config.batchnorm == "shared")
        kind = ConvUnit if op.kind == "conv" else LinearUnit
        unit = kind(
            self.width,
            output,
            layer=op.module,  # type: ignore[arg-type]
            norm=norm,
            relu=op.relu,
            weight_bits={setting: weights for setting, (weights, _) in bits.items()},
            input_bits={setting: codes for setting, (_, codes) in bits.items()},
            full_range=config.full_range,
            learned=config.scales == "learned",
        )
        if op.args.get("affine"):
            unit.is_affine, unit.shows_pixels = True, bool(op.args.get("pixels"))
            for parameter in (unit.weight, *([] if unit.bias is None else [unit.bias])):
                parameter.requires_grad_(False)
        return unit


def _fixed_step(op: Op) -> float | None:
    """Return the step that an operator's results have by themselves, if they have one."""
    if op.kind == "codebook":
        assert isinstance(op.module, Codewords)
        return word_step(op.module.words)
    return op.args["function"].step if op.kind == "table" else None


def _fixed_grid(op: Op, settings: tuple[int, ...], step: float) -> Grid:
    """Return a grid of 8 bits at every width."""
    codes, count = dict.fromkeys(settings, Codes(8, 8)), int(torch.Size(op.shape).numel())
    return Grid(codes, signed=True, learned=False, count=count, fixed=step)


@torch.no_grad()
def _check_same(model: nn.Module, network: MultiBitNet, seen_as: Pixels) -> None:
    """Compare both networks at 32 bits on two random images: what a trace cannot see must not change the function.

    Operators in place are such a thing: after `y.relu_()` every other reader of y gets the changed values.
    """
    images = torch.randint(0, 256, (2, *network.image_shape), generator=torch.Generator().manual_seed(0))
    images = images.to(torch.uint8)
    device = next(network.parameters()).device
    modes = {module: module.training for module in model.modules()}
    try:
        expected = model.eval()(torch.from_numpy(seen_as.floats(images.numpy())).to(device))
    except Exception as error:  # whatever the user's forward raises
        raise InputError(f"expected a network that takes two images at a time, got one that stops: {error}") from error
    finally:
        for module, training in modes.items():
            module.training = training
    if network.draws:
        gain, shift = (line.float().to(device).reshape(-1, 1, 1) for line in back(seen_as, network.image_shape[0]))
        expected = expected * gain + shift
    with at_bits(network.eval(), FLOAT_BITS):
        got = network(images.to(device))
    far = SAME * float(expected.abs().amax()) if expected.numel() else 0.0
    if got.shape != expected.shape or not torch.allclose(got, expected, rtol=0.0, atol=far, equal_nan=True):
        raise InputError(
            "expected a network that computes what its trace says, got other logits; give every result its own tensor "
            "(no in-place operator whose input is read again) and flatten from dimension 1 on"
        )


def _as_conv(op: Op) -> Op:
    """Return a stand-alone BatchNorm as what it is: a depthwise 1x1 convolution with weight 1, then BatchNorm."""
    if op.kind != "batchnorm":
        return op
    norm = op.module
    if not isinstance(norm, nn.BatchNorm2d):
        raise InputError(f"expected BatchNorm1d to follow a Linear layer, got one alone at {op.name!r}; move it there")
    layer = nn.Conv2d(norm.num_features, norm.num_features, 1, groups=norm.num_features, bias=False)
    nn.init.ones_(layer.weight)
    return replace(op, kind="conv", module=layer, norm=norm, args={"affine": True})
