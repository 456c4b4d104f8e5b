"""Bits of single layers: the network stays its integer network, edges are as wide as their readers want, refusals."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from edgeq import runs
from edgeq.calib.walk import codes_served
from edgeq.errors import InputError
from edgeq.export import lower
from edgeq.export.dialects import build as translate
from edgeq.export.graph import Conv, Linear, Rescale
from edgeq.export.graphfile import to_bytes
from edgeq.export.pack import packed_size
from edgeq.export.reference import run
from edgeq.integer import runner
from edgeq.quant.bits import at_bits
from edgeq.quant.convert import multibit
from edgeq.quant.layer_bits import checked, read_layer_bits, write_layer_bits
from edgeq.quant.network import MultiBitNet, QuantConfig
from edgeq.training import TrainConfig
from edgeq.training import plain as plain_choices

LAYERS = ("first", "left", "short", "right", "last")
Pair = tuple[int, int]


class Branches(nn.Module):
    """An edge that two layers and an addition read, one that two layers of a concatenation write, a plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.left, self.short = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.right = nn.Conv2d(16, 8, 3, padding=1)
        self.last = nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x)).relu()
        y = torch.cat([self.left(x).relu(), self.short(x)], 1)
        x = (x + self.right(y)).relu()
        return self.last(nn.functional.max_pool2d(x, 2).flatten(1))


def images(count: int = 6) -> Tensor:
    return torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def mixed(layers: dict[str, int | Pair], *, setting: int = 4, bits: tuple[int, ...] = (32, 4)) -> MultiBitNet:
    torch.manual_seed(0)
    config = QuantConfig(bits=bits, layer_bits={setting: layers} if layers else {})
    net = multibit(Branches().eval(), image_shape=(3, 8, 8), config=config)
    for name in net.grids:  # as good as calibrated, for what is asked here
        net.grid(name).set_step(setting, 2.5 / net.grid(name).range(setting)[1])
    return net.eval()


def differing(net: MultiBitNet, bits: int) -> int:
    """Count the codes, over every edge, at which evaluation mode and the interpreter differ."""
    codes = run(lower(net, bits=bits), images().numpy())
    with torch.no_grad(), at_bits(net, bits):
        values = net.values(images(), keep=net.names)
    same = [name for name in codes if name in values]
    assert {"first", "left", "short", "right", "add", "last"} <= set(same)
    return sum(int((values[name].codes.double().numpy() != codes[name]).sum()) for name in same)


CHOICES = st.dictionaries(st.sampled_from(LAYERS), st.tuples(st.integers(2, 8), st.integers(2, 8)))


@settings(max_examples=8)
@given(CHOICES, st.integers(2, 8))
def test_a_mixed_network_is_its_integer_network(layers: dict[str, int | Pair], setting: int) -> None:
    net = mixed(layers, setting=setting, bits=(32, setting))
    assert differing(net, setting) == 0
    for node in lower(net, bits=setting).nodes:
        if isinstance(node, Conv | Linear):
            edge = 8 if node.name in ("first", "last") else setting
            weights, codes = layers.get(node.name, (edge, edge))  # type: ignore[misc]
            assert node.weight_bits == weights
            assert np.abs(node.weight).max() <= 2 ** (weights - 1) - 1
            assert net.weighted()[node.name].input_bits[setting] == (8 if node.name == "first" else codes)


@pytest.mark.parametrize("target", ["ort", "proof", "qonnx", "trt"])
def test_a_mixed_network_is_exact_in_every_dialect(target: str) -> None:
    from edgeq.export.verify import certify

    net = mixed({"left": (2, 4), "short": (5, 8), "right": (3, 5), "last": 4})
    graph = lower(net, bits=4)
    model = translate(graph, target).SerializeToString()
    certify(graph, model, target=target, inputs=images(4).numpy(), quick=True).require_exact()
    with torch.no_grad(), at_bits(net, 4):
        logits = net.values(images())["last"].codes
    np.testing.assert_array_equal(graph.run(images().numpy()), logits.numpy())
    if target == "ort":
        np.testing.assert_array_equal(runner(model)(images().numpy()), logits.numpy())


def test_weights_are_packed_with_the_bits_of_their_layer() -> None:
    import safetensors.numpy

    net = mixed({"left": 2, "short": 5, "right": (7, 4)})
    graph = lower(net, bits=4)
    _, tensors = to_bytes(graph)
    stored = safetensors.numpy.load(tensors)
    for index, node in enumerate(graph.nodes):
        if isinstance(node, Conv | Linear):
            assert stored[f"{index}.weight"].nbytes == packed_size(node.weight.size, node.weight_bits)


def test_an_edge_is_as_wide_as_its_widest_reader_and_others_read_a_copy() -> None:
    net = mixed({"left": (8, 3), "short": (8, 6), "right": (8, 5)})
    assert net.grid("first").storage_bits(4) == 8  # the addition reads it
    assert net.grid("cat").storage_bits(4) == 5
    copies = {
        node.name: (node.num, node.den, node.hi) for node in lower(net, bits=4).nodes if isinstance(node, Rescale)
    }
    assert copies["first_narrow"] == (7, 127, 7)
    assert copies["first_narrow_2"] == (63, 127, 63)
    assert "cat_narrow" not in copies
    assert codes_served(net, 4)["first"] == 7  # the range suits the narrowest reader
    same = mixed({"left": (8, 3), "short": (5, 3)})
    assert [name for name in same.names if name.startswith("first_narrow")] == ["first_narrow"]  # shared


def test_naming_the_bits_that_a_layer_has_anyway_changes_nothing() -> None:
    plain = mixed({})
    named = mixed({"first": 8, "left": 4, "short": (4, 4), "right": 4, "last": 8})
    assert all(torch.equal(t, named.state_dict()[name]) for name, t in plain.state_dict().items())
    assert to_bytes(lower(plain, bits=4)) == to_bytes(lower(named, bits=4))


def test_other_widths_of_a_network_with_a_mixed_setting_stay_as_they_are() -> None:
    torch.manual_seed(0)
    model = Branches().eval()
    plain, named = (
        multibit(model, image_shape=(3, 8, 8), config=QuantConfig(bits=(32, 8, 4, 2), layer_bits=chosen))
        for chosen in ({}, {4: {"left": 2, "short": 8}})
    )
    for bits in (8, 2):
        ours, theirs = (run(lower(net, bits=bits), images().numpy()) for net in (plain, named))
        np.testing.assert_array_equal(ours["last"], theirs["last"])
    with at_bits(plain, 4), at_bits(named, 4), torch.no_grad():
        assert not torch.equal(plain(images()), named(images()))


@pytest.mark.parametrize("scales", ["learned", "observer"])
def test_every_step_of_a_mixed_network_is_trained(scales: str) -> None:
    torch.manual_seed(0)
    config = QuantConfig(bits=(32, 4), scales=scales, layer_bits={4: {"left": (2, 4), "short": (5, 8), "last": (4, 6)}})
    net = multibit(Branches(), image_shape=(3, 8, 8), config=config).train()
    before = {name: grid.step(4).item() for name, grid in ((n, net.grid(n)) for n in net.grids)}
    with at_bits(net, 4):
        net(images()).square().mean().backward()
    if scales == "learned":
        steps = {name: p for name, p in net.named_parameters() if "steps" in name}
        assert all(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in steps.values())
    else:
        assert any(net.grid(name).step(4).item() != step for name, step in before.items())


@settings(max_examples=20)
@given(
    st.dictionaries(
        st.integers(2, 8),
        st.dictionaries(
            st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1),
            st.tuples(st.integers(2, 8), st.integers(2, 8)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
    ),
    st.sampled_from(["toml", "json"]),
)
def test_files_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, choices: dict[int, dict[str, Pair]], kind: str
) -> None:
    path = tmp_path_factory.mktemp("files") / f"mixed.{kind}"
    write_layer_bits(path, choices, remark="two\nlines")
    assert read_layer_bits(path) == checked(choices)
    assert list(read_layer_bits(path)) == sorted(choices, reverse=True)


def test_a_run_keeps_its_layers_and_one_without_keeps_its_format(tmp_path: Path) -> None:
    named = QuantConfig(bits=(32, 4), layer_bits={4: {"blocks_0_conv1": 2, "fc": (4, 8)}})
    for quant in (QuantConfig(bits=(32, 4)), named):
        choices = plain_choices(TrainConfig(quant=quant))
        info = runs.RunInfo("resnet8", "signs", quant, ("a", "b"), (3, 8, 8), choices)
        runs.write_info(tmp_path, info)
        assert runs.read_info(tmp_path) == info
        text = (tmp_path / runs.CONFIG).read_text()
        assert text.count("layer_bits") == (2 if quant is named else 0)
        assert runs.new_network(info).weighted()["fc"].weight_bits == {4: 4 if quant is named else 8}


@pytest.mark.parametrize(
    ("given_bits", "says"),
    [
        ({3: {"left": 2}}, r"widths \[32, 4\], got 3"),
        ({4: {"middle": 2}}, "setting 4 of layer_bits, got 'middle'; it has first, left, short, right, last"),
        ({4: {"left": 1}}, "2 to 8 bits for layer 'left'"),
        ({4: {"left": (2, 9)}}, r"2 to 8 bits for layer 'left'.*got \(2, 9\)"),
        ({32: {"left": 8}}, "settings from 2 to 8 in layer_bits, got 32"),
    ],
)
def test_wrong_choices_are_named(given_bits: dict[int, dict[str, int | Pair]], says: str) -> None:
    with pytest.raises(InputError, match=says):
        multibit(Branches(), image_shape=(3, 8, 8), config=QuantConfig(bits=(32, 4), layer_bits=given_bits))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.toml", "[layer_bits.4]\nleft = 2.5\n", "for layer 'left'"),
        ("a.toml", "[layer_bits.4]\nleft = true\n", "for layer 'left'"),
        ("a.toml", "[layer_bits.4]\nleft = [2, 4, 8]\n", "for layer 'left'"),
        ("a.toml", "[layer_bits]\n4 = 2\n", "layers with their bits in setting 4"),
        ("a.toml", "[layer_bits.four]\nleft = 2\n", "got 'four'"),
        ("a.toml", "[layer_bits.4\n", "expected TOML in"),
        ("a.toml", "bits = 4\n", "got none; write a table like"),
        ("a.json", "[4]", "got none"),
        ("a.json", "{", "expected JSON in"),
        ("a.json", '{"layer_bits": [4]}', "as settings with layers"),
        ("a.yaml", "", "expected a file .toml or .json"),
    ],
)
def test_wrong_files_are_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=says):
        read_layer_bits(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.toml: No such file"):
        read_layer_bits(tmp_path / "nowhere.toml")
    with pytest.raises(InputError, match="rename it"):
        write_layer_bits(tmp_path / "mixed.yaml", {4: {"left": (2, 2)}})
