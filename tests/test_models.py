"""Networks against the literature: sizes, shapes, layouts, tracing, and independence of rows."""

import copy
from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastsal import models
from fastsal.models.cifar_resnet import ResidualBlock
from fastsal.models.preact_resnet import PreActBlock

# Ten classes at 3x32x32, except MNIST's network at 1x28x28.
PARAMETERS = {
    "small-cnn": 312_202,
    "tiny-cnn-62k": 62_006,
    "tiny-cnn-16k": 15_773,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "preactresnet18": 11_172_170,
    "wrn-34-10": 46_160_474,
}
FIXED_SIZE = ["small-cnn", "tiny-cnn-62k", "tiny-cnn-16k"]
RESIDUAL = [name for name in PARAMETERS if name not in FIXED_SIZE]


def side(name: str) -> int:
    """A small image that the shared network of this name accepts."""
    return {"small-cnn": 28}.get(name, 32 if name in FIXED_SIZE else 8)


@cache
def network(name: str) -> nn.Module:
    """A float64 network in eval mode, its batch norms away from the identity.

    Tests share it and leave it unchanged.
    """
    torch.manual_seed(0)
    net = models.get(name).double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            for tensor, low, high in [
                (module.weight, 0.5, 1.0),
                (module.bias, -0.2, 0.2),
                (module.running_mean, -0.2, 0.2),
                (module.running_var, 0.5, 2.0),
            ]:
                tensor.data.uniform_(low, high)
    return net.requires_grad_(False)


def images(name: str, rows: int) -> Tensor:
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, 3, side(name), side(name))
    return torch.rand(shape, generator=generator, dtype=torch.float64)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    """Equal up to float64 rounding, measured against the largest expected entry."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12 * float(expected.abs().max()))


def test_names_are_the_ones_of_the_table() -> None:
    assert list(models.names()) == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name: str) -> None:
    with torch.device("meta"):
        net = models.get(name, in_channels=1 if name == "small-cnn" else 3)
    assert sum(p.numel() for p in net.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_classes_and_channels_shape_the_network(name: str) -> None:
    with torch.device("meta"):
        net = models.get(name, num_classes=7, in_channels=2).eval()
        assert net(torch.empty(4, 2, side(name), side(name))).shape == (4, 7)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("size", [28, 32])
def test_both_data_sets_fit(name: str, size: int) -> None:
    with torch.device("meta"):
        net = models.get(name, image_size=size).eval()
        assert net(torch.empty(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("name", RESIDUAL)
@pytest.mark.parametrize("size", [(8, 8), (9, 13), (64, 48)])
def test_residual_networks_take_any_size(name: str, size: tuple[int, int]) -> None:
    with torch.device("meta"):
        assert models.get(name).eval()(torch.empty(2, 3, *size)).shape == (2, 10)


@pytest.mark.parametrize("name", FIXED_SIZE)
def test_smallest_image(name: str) -> None:
    assert models.get(name, image_size=16)(torch.rand(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("rows", [0, 1])
def test_empty_and_single_batch(name: str, rows: int) -> None:
    logits = network(name)(images(name, rows))
    assert logits.shape == (rows, 10)
    assert logits.dtype == torch.float64
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", PARAMETERS)
def test_channels_last_equals_contiguous(name: str) -> None:
    net, x = network(name), images(name, 3)
    expected = net(x)
    assert_same(net(x.to(memory_format=torch.channels_last)), expected)
    if name != "wrn-34-10":  # a second copy of its weights says nothing new
        moved = copy.deepcopy(net)
        for weight in moved.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)
        assert_same(moved(x.to(memory_format=torch.channels_last)), expected)


@pytest.mark.parametrize("name", PARAMETERS)
def test_traced_equals_eager(name: str) -> None:
    net, x = network(name), images(name, 2)
    traced = fx.symbolic_trace(net)
    assert_same(traced(x), net(x))
    assert traced(images(name, 0)).shape == (0, 10)


@pytest.mark.parametrize("name", ["small-cnn", "resnet20"])
def test_traced_network_follows_the_mode(name: str) -> None:
    """Dropout and batch norm stay modules, so that train() and eval() work after tracing."""
    traced = fx.symbolic_trace(models.get(name))
    x = images(name, 4).float()
    assert not torch.equal(traced.train()(x), traced.eval()(x))


@pytest.mark.parametrize("name", PARAMETERS)
def test_row_does_not_depend_on_the_batch(name: str) -> None:
    net, x = network(name), images(name, 3)
    together = net(x)
    assert (together[0] - together[1]).abs().max() > 1e-9  # else mixing rows would not show
    assert_same(net(x.flip(0)), together.flip(0))
    assert_same(torch.cat([net(x[:1]), net(x[1:])]), together)


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradient_reaches_every_row_and_channel_of_the_input(name: str) -> None:
    x = images(name, 2).requires_grad_()
    labels = torch.tensor([1, 2])
    (gradient,) = torch.autograd.grad(F.cross_entropy(network(name)(x), labels), x)
    assert gradient.isfinite().all()
    assert (gradient.abs().amax((2, 3)) > 0).all()


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name != "wrn-34-10"])
def test_fresh_network_gives_an_attack_something_to_follow(name: str) -> None:
    torch.manual_seed(0)
    net = models.get(name).train()
    x = images(name, 4).float().requires_grad_()
    loss = F.cross_entropy(net(x), torch.arange(4))
    gradient, *others = torch.autograd.grad(loss, [x, *net.parameters()])
    assert 1.0 < loss.item() < 6.0  # near log(10)
    assert (gradient.abs().amax((1, 2, 3)) > 1e-6).all()
    assert all(other.abs().max() > 0 for other in others)


@pytest.mark.parametrize(
    ("build", "fan"),
    [
        (models.SmallCNN, "in"),
        (models.CifarResNet, "in"),
        (models.PreActResNet18, "out"),
        (lambda: models.WideResNet(10, 4), "out"),
    ],
)
def test_convolutions_start_at_the_promised_scale(build: Callable[[], nn.Module], fan: str) -> None:
    torch.manual_seed(0)
    for module in build().modules():
        if isinstance(module, nn.Conv2d):
            width = module.in_channels if fan == "in" else module.out_channels
            expected = (2 / (width * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15)
            assert module.bias is None or not module.bias.any()


@pytest.mark.parametrize("name", [f"resnet{depth}" for depth in (20, 32, 44, 56)])
def test_batch_norm_directly_follows_its_convolution(name: str) -> None:
    """What lets an attack fold every batch norm of the CIFAR ResNets."""
    net = models.get(name)
    modules = dict(net.named_modules())
    graph = fx.symbolic_trace(net).graph
    calls = [node for node in graph.nodes if node.op == "call_module"]
    norms = [node for node in calls if isinstance(modules[node.target], nn.BatchNorm2d)]
    assert len({node.target for node in norms}) == len(norms) == int(name[-2:]) - 1
    for node in norms:
        convolution = node.args[0]
        assert isinstance(modules[convolution.target], nn.Conv2d)
        assert len(convolution.users) == 1


def test_cifar_shortcut_subsamples_and_pads_with_zeros() -> None:
    block = ResidualBlock(16, 32, stride=2).double().eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 7, 8, dtype=torch.float64)
    expected = torch.zeros(2, 32, 4, 4, dtype=torch.float64)
    expected[:, :16] = x[:, :, ::2, ::2]
    assert torch.equal(block(x), expected)


def test_pre_activation_shortcuts() -> None:
    """Untouched input where shapes agree; else the 1x1 convolution sees the activated one."""
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    same, widening = PreActBlock(16, 16, 1).double(), PreActBlock(16, 32, 2).double()
    for block in (same, widening):
        nn.init.zeros_(block.conv2.weight)
    assert torch.equal(same(x), x)
    assert widening.projection is not None
    expected = widening.projection(torch.relu(widening.bn1(x)))
    assert torch.equal(widening(x), expected)
    assert expected.shape == (2, 32, 3, 3)


@pytest.mark.parametrize("build", [models.PreActResNet18, lambda: models.WideResNet(10, 1)])
def test_pre_activation_networks_end_with_norm_and_relu(
    build: Callable[[], models.PreActResNet18 | models.WideResNet],
) -> None:
    net = build()
    seen: list[Tensor] = []
    net.fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(torch.rand(4, 3, 8, 8))
    assert (seen[0] >= 0).all()
    assert seen[0].mean() > 0.1


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("SmallCNN", "small-cnn"),
        ("small_cnn", "small-cnn"),
        ("TINY-CNN-62K", "tiny-cnn-62k"),
        ("TinyCNN16k", "tiny-cnn-16k"),
        ("resnet-20", "resnet20"),
        ("ResNet20", "resnet20"),
        ("ResNet 56", "resnet56"),
        ("PreActResNet-18", "preactresnet18"),
        ("preact_resnet18", "preactresnet18"),
        ("wrn_34_10", "wrn-34-10"),
        ("WRN34-10", "wrn-34-10"),
        ("wideresnet-34-10", "wrn-34-10"),
        ("Wide-ResNet-34-10", "wrn-34-10"),
    ],
)
def test_spellings(spelling: str, name: str) -> None:
    def shapes(net: nn.Module) -> list[tuple[str, torch.Size]]:
        return [(key, tensor.shape) for key, tensor in net.state_dict().items()]

    with torch.device("meta"):
        assert shapes(models.get(spelling)) == shapes(models.get(name))


def test_unknown_name_lists_the_known_and_suggests_the_nearest() -> None:
    with pytest.raises(ValueError) as error:
        models.get("resnt-20")
    message = str(error.value)
    assert message.startswith("name: expected one of ")
    assert all(name in message for name in models.names())
    assert "got 'resnt-20'" in message
    assert "did you mean 'resnet20'?" in message


def test_name_unlike_any_other_gets_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"got 'zzz'$"):
        models.get("zzz")


@pytest.mark.parametrize("name", PARAMETERS)
@pytest.mark.parametrize("argument", ["num_classes", "in_channels"])
@pytest.mark.parametrize("value", [0, 2.5])
def test_bad_counts(name: str, argument: str, value: int) -> None:
    with pytest.raises(ValueError, match=rf"^{argument}: .* >= 1, got {value}$"):
        models.get(name, **{argument: value})


@pytest.mark.parametrize("name", PARAMETERS)
def test_image_too_small(name: str) -> None:
    smallest = 16 if name in FIXED_SIZE else 8
    with pytest.raises(ValueError, match=rf"^image_size: .* >= {smallest}, got {smallest - 1}$"):
        models.get(name, image_size=smallest - 1)


@pytest.mark.parametrize("hidden", [(0, 21), (30, 0)])
def test_bad_widths(hidden: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"^hidden: .* >= 1, got 0$"):
        models.TinyCNN(hidden)


@pytest.mark.parametrize("depth", [2, 21, 34])
def test_bad_cifar_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth: CifarResNet .*got {depth}$"):
        models.CifarResNet(depth)


@pytest.mark.parametrize("depth", [4, 20, 33])
def test_bad_wide_depth(depth: int) -> None:
    with pytest.raises(ValueError, match=rf"^depth: WideResNet .*got {depth}$"):
        models.WideResNet(depth)
