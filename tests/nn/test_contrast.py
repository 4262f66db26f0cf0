"""Contrastive terms against loops over their definition."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from d2ls_fast.nn.contrast import PixelDictionaryInfoNCE, RatioContrastiveLoss, labels_on_grid


def test_ratio() -> None:
    torch.manual_seed(0)
    d = torch.randn(3, 4, 8, dtype=torch.float64)
    mu = d.mean(0)
    intra = (d - mu).square().sum(-1).mean()
    pairs = [(mu[j] - mu[k]).square().sum() for k in range(4) for j in range(k)]
    torch.testing.assert_close(RatioContrastiveLoss()(d), intra / (torch.stack(pairs).mean() + 1e-6))


@pytest.mark.parametrize("shape", [(1, 4, 8), (3, 1, 8)])
def test_ratio_is_zero_where_there_is_nothing_to_compare(shape: tuple[int, int, int]) -> None:
    d = torch.randn(shape, requires_grad=True)
    loss = RatioContrastiveLoss()(d)
    loss.backward()
    assert loss.item() == 0.0
    assert d.grad is not None and torch.equal(d.grad, torch.zeros_like(d))


def nce_case() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    pixels, dictionary = torch.randn(2, 12, 8).double(), torch.randn(2, 4, 8).double()
    target = torch.randint(0, 3, (2, 12))  # class 3 is absent
    target[0, :3], target[1] = 255, target[1].where(torch.arange(12) != 5, 255)
    scores = torch.stack([F.normalize(pixels[b], dim=-1) @ F.normalize(dictionary[b], dim=-1).T for b in range(2)])
    return pixels, dictionary, target, scores / 0.1


def test_pixel_direction() -> None:
    pixels, dictionary, target, scores = nce_case()
    wanted = F.cross_entropy(scores.transpose(1, 2), target, ignore_index=255)
    torch.testing.assert_close(PixelDictionaryInfoNCE()(pixels, dictionary, target), wanted)
    shaped = PixelDictionaryInfoNCE()(pixels, dictionary, target.view(2, 3, 4))
    torch.testing.assert_close(shaped, wanted)


def test_balanced() -> None:
    pixels, dictionary, target, scores = nce_case()
    each = F.cross_entropy(scores.transpose(1, 2), target, ignore_index=255, reduction="none")
    wanted = torch.stack([each[target == k].mean() for k in range(3)]).mean()
    torch.testing.assert_close(PixelDictionaryInfoNCE(balanced=True)(pixels, dictionary, target), wanted)


def test_dictionary_direction_and_both() -> None:
    pixels, dictionary, target, scores = nce_case()
    losses = []
    for b in range(2):
        for k in range(4):
            if (target[b] == k).any():
                column = scores[b, :, k]
                losses.append(column[target[b] != 255].logsumexp(0) - column[target[b] == k].mean())
    wanted = torch.stack(losses).mean()
    got = PixelDictionaryInfoNCE(direction="dictionary")(pixels, dictionary, target)
    torch.testing.assert_close(got, wanted)
    forward = PixelDictionaryInfoNCE()(pixels, dictionary, target)
    both = PixelDictionaryInfoNCE(direction="both")(pixels, dictionary, target)
    torch.testing.assert_close(both, (wanted + forward) / 2)


def test_prototypes_of_a_class_are_all_positive() -> None:
    pixels, dictionary, target, scores = nce_case()
    target = target.where(target != 2, 1)
    log_p = scores.log_softmax(-1).view(2, 12, 2, 2).logsumexp(-1)
    wanted = F.nll_loss(log_p.transpose(1, 2), target, ignore_index=255)
    torch.testing.assert_close(PixelDictionaryInfoNCE(prototypes=2)(pixels, dictionary, target), wanted)


@pytest.mark.parametrize("direction", ["pixels", "dictionary", "both"])
def test_images_without_labels(direction: str) -> None:
    pixels = torch.randn(2, 6, 8, requires_grad=True)
    loss = PixelDictionaryInfoNCE(direction=direction)(pixels, torch.randn(2, 3, 8), torch.full((2, 6), 255))  # type: ignore[arg-type]
    loss.backward()
    assert loss.item() == 0.0
    assert pixels.grad is not None and torch.equal(pixels.grad, torch.zeros_like(pixels))


def test_wrong_use_is_refused() -> None:
    with pytest.raises(ValueError, match="temperature"):
        PixelDictionaryInfoNCE(temperature=0.0)
    with pytest.raises(ValueError, match="direction must be one of pixels, dictionary, both"):
        PixelDictionaryInfoNCE(direction="up")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="prototypes"):
        PixelDictionaryInfoNCE(prototypes=0)
    with pytest.raises(ValueError, match="target must label"):
        PixelDictionaryInfoNCE()(torch.randn(1, 4, 8), torch.randn(1, 2, 8), torch.zeros(1, 5, dtype=torch.long))


def test_labels_on_grid_take_the_centre_of_every_cell() -> None:
    target = torch.arange(2 * 8 * 12).view(2, 8, 12)
    assert torch.equal(labels_on_grid(target), target[:, 2::4, 2::4])
    assert torch.equal(labels_on_grid(target, stride=1), target)
    ragged = labels_on_grid(target[:, :5, :10])  # cells of one row and of two columns at the border
    assert torch.equal(ragged, target[:, [2, 4]][:, :, [2, 6, 9]])
    padded = labels_on_grid(target, grid=(8, 8), ignore_index=7)
    assert padded.shape == (2, 8, 8) and torch.equal(padded[:, :2, :3], target[:, 2::4, 2::4])
    assert (padded[:, 2:] == 7).all() and (padded[:, :, 3:] == 7).all()


def test_labels_on_grid_by_majority() -> None:
    torch.manual_seed(0)
    target = torch.randint(0, 3, (2, 9, 8))
    got = labels_on_grid(target, reduction="majority")
    assert got.shape == (2, 3, 2)
    for b in range(2):
        for y in range(2):
            for x in range(2):
                cell = target[b, 4 * y : 4 * y + 4, 4 * x : 4 * x + 4].flatten()
                assert got[b, y, x] == cell.bincount().argmax()
    assert (got[:, 2] == 255).all()  # one row of labels, three of padding


def test_labels_on_grid_for_training() -> None:
    """Full-resolution labels of an image that the model pads to 32 pixels reach the pixels of its output."""
    import d2ls_fast as d2

    model = d2.create_model("resnet18", 3, stages=1)
    images, target = torch.randn(2, 3, 40, 36), torch.randint(0, 3, (2, 40, 36))
    output = model.train()(images)
    labels = labels_on_grid(target, grid=(16, 16))
    assert (labels.flatten(1) != 255).sum() == 2 * 10 * 9
    loss = PixelDictionaryInfoNCE(direction="both")(output.pixels, output.dictionary, labels)
    loss.backward()
    assert loss.isfinite() and all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_labels_on_grid_refuses_wrong_calls() -> None:
    target = torch.zeros(1, 8, 8, dtype=torch.long)
    for message, change in {
        "target must be": {"target": target[0]},
        "stride must be": {"stride": 0},
        "reduction must be one of nearest, majority": {"reduction": "mean"},
        r"grid must cover \(8, 8\)": {"grid": (1, 2)},
    }.items():
        with pytest.raises(ValueError, match=f"labels_on_grid: {message}"):
            labels_on_grid(**{"target": target, **change})  # type: ignore[arg-type]
