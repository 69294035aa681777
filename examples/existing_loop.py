"""SENSE in a training loop that is there already: one line makes the attack, one call uses it.

python examples/existing_loop.py            # two epochs, about a minute
python examples/existing_loop.py --quick    # seconds
"""

import sys

import torch
from torch.nn.functional import cross_entropy

import fastsal

torch.manual_seed(0)
images = 512 if "--quick" in sys.argv else 8000
dataset = fastsal.data.load("fashion-mnist-mini")
x_train, y_train = dataset.train.images[:images].float() / 255, dataset.train.labels[:images]
model = fastsal.models.get("tiny-cnn-16k", in_channels=1, image_size=28)
optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)

attack = fastsal.SENSE(model, eps=0.05, steps=5, c=0.5)  # (1) beside the model and the optimizer

for epoch in range(2):
    for rows in torch.randperm(images).split(64):
        x, y = x_train[rows], y_train[rows]
        loss = cross_entropy(model(attack(x, y)), y)  # (2) attack(x, y) where x was
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

x_test, y_test = dataset.test.images[:images].float() / 255, dataset.test.labels[:images]
print(fastsal.evaluate(model, [(x_test, y_test)], eps=0.05, steps=10, progress=False).table())
