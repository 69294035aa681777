"""Other libraries' PGD, each called as its documentation says, on one batch: Linf, a random start, steps of alpha."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

INSTALL = "pip install --no-deps -r benchmarks/peers.txt"
Call = Callable[[], Any]  # one attack on the batch


def torchattacks(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Call:
    import torchattacks

    attack = torchattacks.PGD(model, eps=eps, alpha=alpha, steps=steps, random_start=True)
    return lambda: attack(x, y)


def foolbox(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Call:
    import foolbox

    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    attack = foolbox.attacks.LinfPGD(abs_stepsize=alpha, steps=steps, random_start=True)
    return lambda: attack(wrapped, x, y, epsilons=eps)


def cleverhans(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Call:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    return lambda: projected_gradient_descent(
        model, x, eps, alpha, steps, np.inf, clip_min=0.0, clip_max=1.0, y=y, rand_init=True, sanity_checks=False
    )


def art(model: nn.Module, x: Tensor, y: Tensor, eps: float, alpha: float, steps: int) -> Call:
    from art.attacks.evasion import ProjectedGradientDescentPyTorch
    from art.estimators.classification import PyTorchClassifier

    with torch.no_grad():
        classes = model(x[:2]).shape[1]
    wrapped = PyTorchClassifier(
        model=model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescentPyTorch(
        wrapped,
        norm=np.inf,
        eps=eps,
        eps_step=alpha,
        max_iter=steps,
        num_random_init=1,
        batch_size=len(x),
        verbose=False,
    )
    images, labels = x.cpu().numpy(), y.cpu().numpy()
    return lambda: attack.generate(images, labels)


PACKAGES = {
    "torchattacks": "torchattacks",
    "foolbox": "foolbox",
    "cleverhans": "cleverhans",
    "art": "adversarial-robustness-toolbox",
}
PEERS = {"torchattacks": torchattacks, "foolbox": foolbox, "cleverhans": cleverhans, "art": art}


def installed() -> dict[str, str]:
    """Versions of those that are here."""
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def call_of(name: str, *arguments: Any) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their imports
        return PEERS[name](*arguments)
