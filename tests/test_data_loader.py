"""TensorLoader: order, seeds, values, and augmentation against a slow loop over images."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastsal.data import Split, TensorLoader
from fastsal.data.augment import PADDING, Draws, gather


def numbered(count: int, shape: tuple[int, int, int] = (1, 5, 5)) -> tuple[torch.Tensor, ...]:
    """Images whose pixels are random, and labels that tell them apart."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    return images, torch.arange(count)


def run(loader: TensorLoader) -> tuple[torch.Tensor, torch.Tensor]:
    xs, ys = zip(*loader, strict=True)
    return torch.cat(xs), torch.cat(ys)


def reflect_padded(images: torch.Tensor) -> torch.Tensor:
    return F.pad(images.float(), [PADDING] * 4, mode="reflect").to(torch.uint8)


def cut_out(padded: torch.Tensor, top: int, left: int, mirrored: bool) -> torch.Tensor:
    """One padded (C, H + 8, W + 8) image the long way: cut out, mirror."""
    height, width = (size - 2 * PADDING for size in padded.shape[1:])
    cut = padded[:, top : top + height, left : left + width]
    return cut.flip(2) if mirrored else cut


@pytest.mark.parametrize("shape", [(1, 5, 5), (3, 32, 32), (2, 7, 11), (3, 28, 6)])
@pytest.mark.parametrize(("crop", "flip"), [(True, True), (True, False), (False, True)])
def test_gather_is_a_slow_loop_over_images_for_every_offset(shape, crop, flip):
    images, _ = numbered(200, shape)
    offsets = torch.cartesian_prod(*[torch.arange(2 * PADDING + 1)] * 2)
    count = len(offsets)
    generator = torch.Generator().manual_seed(1)
    chosen = torch.randint(200, (count,), generator=generator)
    mirrored = torch.randint(2, (count,), generator=generator).bool()
    got = gather(
        images,
        chosen,
        Draws(
            offsets[:, 0] if crop else None,
            offsets[:, 1] if crop else None,
            mirrored if flip else None,
        ),
    )
    assert got.dtype == torch.uint8 and got.is_contiguous()
    padded = reflect_padded(images)
    for i in range(count):
        top, left = offsets[i].tolist() if crop else (PADDING, PADDING)
        want = cut_out(padded[chosen[i]], top, left, flip and bool(mirrored[i]))
        assert torch.equal(got[i], want), (i, top, left)


@pytest.mark.parametrize("augment", ["crop", "flip", ("crop", "flip"), "crop,flip"])
def test_augmented_batches_are_crops_and_flips_with_even_odds(augment):
    # Of 10 pixels and more no crop is the mirror image of another.
    images, _ = numbered(2, (1, 12, 12))
    crop, flip = "crop" in augment, "flip" in augment
    tops = range(2 * PADDING + 1) if crop else (PADDING,)
    mirrors = (False, True) if flip else (False,)
    variants = [(t, left, m) for t in tops for left in tops for m in mirrors]
    number = {
        (label, cut_out(padded, *variant).numpy().tobytes()): i
        for label, padded in enumerate(reflect_padded(images))
        for i, variant in enumerate(variants)
    }
    assert len(number) == 2 * len(variants)
    count = 8100
    labels = torch.arange(count) % 2
    x, y = run(TensorLoader(images[labels], labels, 1000, augment=augment, seed=5))
    assert len(y) == count
    seen = [
        number[label, image.tobytes()]
        for label, image in zip(y.tolist(), (x * 255).round().to(torch.uint8).numpy(), strict=True)
    ]
    expected = count / len(variants)
    counts = torch.bincount(torch.tensor(seen), minlength=len(variants))
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_images_of_a_batch_get_different_crops():
    images, labels = numbered(1, (1, 8, 8))
    loader = TensorLoader(images.expand(64, -1, -1, -1), labels.expand(64), 64, augment="crop", seed=0)
    x, _ = next(iter(loader))
    assert len(x.flatten(1).unique(dim=0)) > 20


def test_values_are_the_bytes_over_255_exactly():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    x, _ = next(iter(TensorLoader(images, torch.zeros(1, dtype=torch.int64), seed=0)))
    assert x.dtype == torch.float32
    assert torch.equal(x.flatten(), torch.tensor([k / 255 for k in range(256)]))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("augment", [None, "crop", ("flip", "crop")])
@pytest.mark.parametrize("as_float", [False, True])
def test_batches_are_contiguous_float32_and_int64_in_unit_range(shuffle, augment, as_float):
    images, labels = numbered(10, (3, 6, 5))
    if as_float:
        images = images.float() / 255
    # A memory format that the loader has to straighten out.
    images = images.to(memory_format=torch.channels_last)
    loader = TensorLoader(images, labels, 4, shuffle=shuffle, augment=augment, seed=0)
    for x, y in loader:
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert x.is_contiguous() and y.is_contiguous()
        assert x.min() >= 0 and x.max() <= 1 and x.max() > 0.5


@pytest.mark.parametrize("as_float", [False, True])
def test_changing_a_batch_in_place_leaves_the_set_alone(as_float):
    images, labels = numbered(6)
    if as_float:
        images = images.float() / 255
    before = images.clone(), labels.clone()
    split = Split(images, labels)
    for x, y in split.loader(3):
        x.fill_(0.25)
        y.fill_(9)
    assert torch.equal(split.images, before[0]) and torch.equal(split.labels, before[1])


def test_without_shuffle_the_order_is_the_set_s_and_batches_have_their_sizes():
    images, labels = numbered(10)
    loader = Split(images, labels).loader(4)
    assert [len(y) for _, y in loader] == [4, 4, 2]
    x, y = run(loader)
    assert torch.equal(y, labels) and torch.equal(x, images.float() / 255)
    assert (len(loader), loader.batch_size, loader.num_samples) == (3, 4, 10)


def test_drop_last_leaves_out_the_odd_rest_and_counts_what_is_left():
    images, labels = numbered(10)
    loader = Split(images, labels).loader(4, drop_last=True, shuffle=True, seed=0)
    assert [len(y) for _, y in loader] == [4, 4]
    assert (len(loader), loader.num_samples) == (2, 8)
    exact = Split(images, labels).loader(5, drop_last=True)
    assert (len(exact), exact.num_samples) == (2, 10)


def test_each_epoch_is_another_permutation_and_all_follow_from_the_seed():
    images, labels = numbered(50)

    def epochs(seed: int) -> list[list[int]]:
        loader = TensorLoader(images, labels, 16, shuffle=True, seed=seed)
        return [run(loader)[1].tolist() for _ in range(4)]

    first = epochs(7)
    assert all(sorted(order) == list(range(50)) for order in first)
    assert len({tuple(order) for order in first}) == 4
    assert epochs(7) == first
    assert not {tuple(o) for o in epochs(8)} & {tuple(o) for o in first}


def test_images_stay_with_their_labels_when_shuffled():
    images, labels = numbered(50)
    x, y = run(TensorLoader(images, labels, 16, shuffle=True, seed=3))
    assert torch.equal(x, images[y].float() / 255)


def test_augmentation_differs_from_epoch_to_epoch_and_follows_from_the_seed():
    images, labels = numbered(30, (1, 8, 8))
    loaders = [TensorLoader(images, labels, 16, augment="crop,flip", seed=1) for _ in range(2)]
    first, again = ([run(loader)[0] for _ in range(2)] for loader in loaders)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], first[1])


def test_setting_the_epoch_resumes_a_run():
    images, labels = numbered(30, (1, 8, 8))
    whole = TensorLoader(images, labels, 8, shuffle=True, augment="crop", seed=4)
    want = [run(whole) for _ in range(3)][2]
    assert whole.epoch == 3
    resumed = TensorLoader(images, labels, 8, shuffle=True, augment="crop", seed=4)
    resumed.epoch = 2
    got = run(resumed)
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


def test_a_loop_that_stops_early_or_runs_beside_another_disturbs_none():
    images, labels = numbered(40)
    quiet = TensorLoader(images, labels, 8, shuffle=True, seed=4)
    want = [run(quiet)[1] for _ in range(2)]
    loader = TensorLoader(images, labels, 8, shuffle=True, seed=4)
    for _ in loader:
        break
    assert torch.equal(run(loader)[1], want[1])
    loader.epoch = 0
    side_by_side = list(zip(iter(loader), iter(loader), strict=True))
    for which in range(2):
        assert torch.equal(torch.cat([pair[which][1] for pair in side_by_side]), want[which])


def test_a_seed_leaves_the_global_generator_alone():
    images, labels = numbered(20, (1, 8, 8))
    before = torch.random.get_rng_state()
    loader = TensorLoader(images, labels, 8, shuffle=True, augment="crop,flip", seed=0)
    run(loader)
    run(loader)
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_without_a_seed_exactly_one_integer_is_drawn_at_construction(shuffle):
    images, labels = numbered(20, (1, 8, 8))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        torch.randint(2**63 - 1, ())
        one_drawn = torch.random.get_rng_state()
        torch.manual_seed(11)
        loader = TensorLoader(images, labels, 8, shuffle=shuffle, augment="crop")
        assert torch.equal(torch.random.get_rng_state(), one_drawn)
        run(loader)
        assert torch.equal(torch.random.get_rng_state(), one_drawn)
        other = TensorLoader(images, labels, 8, shuffle=shuffle, augment="crop")
    assert loader.seed != other.seed
    named = TensorLoader(images, labels, 8, shuffle=shuffle, augment="crop", seed=loader.seed)
    loader.epoch = 0
    assert torch.equal(run(named)[0], run(loader)[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size: expected an integer of at least 1, got 0"),
        ({"batch_size": 2.5}, "batch_size: expected an integer"),
        ({"augment": "rotate"}, "augment: expected names out of .*got 'rotate'"),
        ({"augment": ("flip", "flip")}, "augment: expected each name once"),
        ({"batch_size": 21, "drop_last": True}, "batch_size: expected at most 20"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    images, labels = numbered(20)
    with pytest.raises(ValueError, match=message):
        TensorLoader(images, labels, **arguments)


def test_tensors_that_do_not_fit_are_named():
    images, labels = numbered(20)
    with pytest.raises(ValueError, match=r"'crop' reflects 4 pixels.*got \(4, 5\)"):
        TensorLoader(images[:, :, :4], labels, augment="crop")
    with pytest.raises(ValueError, match=r"images: expected \(N, C, H, W\)"):
        TensorLoader(images[0], labels)
    with pytest.raises(ValueError, match=r"labels: expected \(20,\) int64, got \(19,\)"):
        TensorLoader(images, labels[:19])
    with pytest.raises(ValueError, match="images: expected at least one"):
        TensorLoader(images[:0], labels[:0])


@pytest.mark.parametrize("augment", [None, (), "", "crop", " crop , flip "])
def test_augment_may_be_nothing_a_string_or_a_sequence(augment):
    images, labels = numbered(3)
    assert len(run(TensorLoader(images, labels, augment=augment, seed=0))[1]) == 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("augment", [None, "crop", "flip", "crop,flip"])
def test_every_device_gets_the_same_batches(augment):
    images, labels = numbered(100, (3, 32, 32))
    split = Split(images, labels)
    loaders = [split.loader(32, shuffle=True, augment=augment, seed=2, device=device) for device in ("cpu", "cuda")]
    for (x, y), (x_cuda, y_cuda) in zip(*loaders, strict=True):
        assert x_cuda.is_cuda and y_cuda.is_cuda
        assert torch.equal(x, x_cuda.cpu()) and torch.equal(y, y_cuda.cpu())
