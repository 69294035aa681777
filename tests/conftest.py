"""Seeds, real data, and two small float64 models trained just enough to have opinions."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastsal.data import load


def pytest_configure(config: pytest.Config) -> None:
    # also where no pyproject.toml is beside tests/
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    config.addinivalue_line(
        "markers", "device_code: takes minutes; only with `-m device_code` or `make test-device-code`"
    )
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    if workers > 1:  # processes share the cores: threads that wait for each other cost more than they bring
        torch.set_num_threads(max(1, torch.get_num_threads() // workers))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes run where they are asked for, by their marker or by their name."""
    if "device_code" in config.option.markexpr or any("::" in argument for argument in config.args):
        return
    slow = [item for item in items if item.get_closest_marker("device_code")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


class Trained(NamedTuple):
    model: nn.Module  # eval mode, float64
    x: Tensor  # (2000, 1, H, W) in [0, 1], not trained on
    y: Tensor


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(20220510)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests of many small tensors, where waking threads costs more than the work, most of all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def images() -> tuple[Tensor, Tensor]:
    """Fashion-MNIST images in float64 and [0, 1], with labels, in a fixed random order."""
    data = load("fashion-mnist-mini")
    x = torch.cat([data.train.images, data.test.images]).double() / 255
    y = torch.cat([data.train.labels, data.test.labels])
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    return x[order], y[order]


def trained(net: nn.Module, x: Tensor, y: Tensor, epochs: int, lr: float, noise: float) -> Trained:
    """Fit on all but the first 2,000 images. The noise keeps gradients and margins moderate."""
    fit_x, fit_y = x[2000:6000], y[2000:6000]
    optimizer = torch.optim.Adam(net.parameters(), lr=lr)
    net.train()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # quicker for nets this small, and the same result on any number of cores
    for _ in range(epochs):
        for batch in torch.randperm(len(fit_x)).split(100):
            z = fit_x[batch]
            loss = F.cross_entropy(net(z + noise * torch.randn_like(z)), fit_y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.set_num_threads(threads)
    return Trained(net.eval(), x[:2000], y[:2000])


@pytest.fixture(scope="session")
def mlp(images) -> Trained:
    """Two layers on 14x14 images."""
    x, y = images
    with torch.random.fork_rng():
        torch.manual_seed(2)
        net = nn.Sequential(nn.Flatten(), nn.Linear(196, 32), nn.ReLU(), nn.Linear(32, 10))
        return trained(net.double(), F.avg_pool2d(x, 2), y, epochs=6, lr=3e-3, noise=0.1)


@pytest.fixture(scope="session")
def cnn(images) -> Trained:
    """Two convolutions with batch norm on 28x28 images."""
    x, y = images
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(
            nn.Conv2d(1, 6, 5, stride=2, bias=False),
            nn.BatchNorm2d(6),
            nn.ReLU(),
            nn.Conv2d(6, 12, 5, stride=2),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(192, 10),
        )
        return trained(net.double(), x, y, epochs=3, lr=3e-3, noise=0.1)
