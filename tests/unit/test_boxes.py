"""Boxes and detectors: overlaps by counting pixels, suppression and precision by hand, scenes by what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve
from torch import Tensor

from robustlab.data import people
from robustlab.data.people import _figure, sheet_points
from robustlab.geometry.keyed import Noise
from robustlab.models import average_precision, build, detected, detection_training
from robustlab.models.boxes import candidates, kept, overlap, present

Box = tuple[int, int, int, int]


def pixels(box: Box) -> set[tuple[int, int]]:
    left, top, right, bottom = box
    return {(x, y) for x in range(left, right) for y in range(top, bottom)}


def some_boxes(n: int, seed: int, size: int = 12) -> Tensor:
    corner = torch.randint(0, size, (n, 2, 2), generator=torch.Generator().manual_seed(seed))
    return torch.cat([corner.amin(dim=1), corner.amax(dim=1) + 1], dim=1).double()


def share(a: list[float], b: list[float]) -> float:
    one, other = (pixels(tuple(int(v) for v in box)) for box in (a, b))  # type: ignore[arg-type]
    return len(one & other) / max(1, len(one | other))


def test_overlap_counts_pixels() -> None:
    a, b = some_boxes(30, 0), some_boxes(20, 1)
    wish = [[share(one, other) for other in b.tolist()] for one in a.tolist()]
    torch.testing.assert_close(overlap(a, b), torch.tensor(wish, dtype=torch.float64))
    assert float(overlap(torch.zeros(1, 4), torch.zeros(1, 4))) == 0.0


def greedy(boxes: list[list[float]], scores: list[float], threshold: float, most: float) -> list[int]:
    order, keep = sorted(range(len(scores)), key=lambda j: -scores[j]), list[int]()
    for j in order:
        if scores[j] > threshold and all(share(boxes[j], boxes[k]) <= most for k in keep):
            keep.append(j)
    return keep


def precision_by_hand(
    boxes: Tensor, scores: Tensor, truth: Tensor, iou: float
) -> tuple[float, list[float], list[bool], int]:
    """VOC's area, its ranked scores and hits, and how many were to be found; one candidate after the other."""
    told = []
    for i in range(len(boxes)):
        free = [t for t in truth[i].tolist() if t[2] > t[0]]
        for j in greedy(boxes[i].tolist(), scores[i].tolist(), 0.0, 0.45):
            best = max(free, key=lambda t: share(boxes[i, j].tolist(), t), default=None)
            hit = best is not None and share(boxes[i, j].tolist(), best) >= iou
            if hit:
                free.remove(best)  # type: ignore[arg-type]
            told.append((float(scores[i, j]), hit))
    told.sort(key=lambda pair: -pair[0])
    total, area = int(present(truth).sum()), 0.0
    for k, (_, hit) in enumerate(told):
        if hit:
            area += max(sum(h for _, h in told[: m + 1]) / (m + 1) for m in range(k, len(told))) / total
    return area, [score for score, _ in told], [hit for _, hit in told], total


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_is_that_of_hand_and_of_scikit_learn(seed: int) -> None:
    """Brute force on random sets; scikit-learn's curve of the same hits, its best precision to the right, scaled."""
    generator = torch.Generator().manual_seed(seed)
    truth = torch.stack([some_boxes(3, 10 * seed + i) for i in range(8)])
    truth[::3, 2] = 0
    boxes = torch.stack([torch.cat([truth[i], some_boxes(5, 77 * seed + i)]) for i in range(8)])
    boxes[:, :2, 2:] += torch.randint(0, 3, (8, 2, 2), generator=generator)
    scores = torch.rand(8, 8, generator=generator, dtype=torch.float64)
    area, ranked, hits, total = precision_by_hand(boxes, scores, truth, 0.5)
    found = average_precision((boxes, scores), truth)
    assert found == pytest.approx(area, abs=1e-12) and 0 < area < 1
    precision, recall, _ = precision_recall_curve(hits, ranked)
    best = np.maximum.accumulate(precision)  # the best to the right, where thresholds are lower
    assert found == pytest.approx(-float(np.diff(recall) @ best[:-1]) * sum(hits) / total, abs=1e-12)


def test_average_precision_is_scikit_learns_where_precision_never_rises() -> None:
    """Hits first, then false alarms: there is nothing to the right that is better."""
    truth = torch.tensor([[[0.0, 0, 4, 4]], [[2.0, 2, 6, 6]]])
    boxes = torch.cat([truth, torch.tensor([[[8.0, 8, 9, 9]]]).expand(2, -1, -1)], dim=1)
    scores = torch.tensor([[0.9, 0.3], [0.8, 0.2]])
    assert (
        average_precision((boxes, scores), truth) == average_precision_score([1, 1, 0, 0], [0.9, 0.8, 0.3, 0.2]) == 1.0
    )
    with pytest.raises(ValueError, match="truth: want at least one box"):
        average_precision((boxes, scores), torch.zeros(2, 1, 4))


def test_one_person_found_twice_is_one_hit_and_one_false_alarm() -> None:
    """Two candidates that overlap each other too little to be suppressed, and both lie on the one box."""
    truth = torch.tensor([[[0.0, 0, 10, 10]]])
    boxes = torch.tensor([[[0.0, 0, 6, 10], [4.0, 0, 10, 10]]])
    assert average_precision((boxes, torch.tensor([[0.5, 0.9]])), truth) == 1.0
    both = torch.cat([truth, truth + 20], dim=1)
    assert average_precision((boxes, torch.tensor([[0.5, 0.9]])), both) == 0.5


def test_suppression_goes_down_from_the_surest() -> None:
    boxes = torch.stack([some_boxes(12, seed, 6) for seed in range(10)])
    scores = torch.rand(10, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    keep = kept(boxes, scores, threshold=0.2, most=0.3)
    for i in range(10):
        wish = greedy(boxes[i].tolist(), scores[i].tolist(), 0.2, 0.3)
        assert set(keep[i].nonzero().flatten().tolist()) == set(wish)


def test_answers_of_both_forms_are_read() -> None:
    boxes, scores = some_boxes(5, 0), torch.tensor([0.9, 0.1, 0.8, 0.7, 0.6], dtype=torch.float64)
    said = [{"boxes": boxes[:2], "scores": scores[:2]}, {"boxes": boxes[2:], "scores": scores[2:]}]
    padded, told = candidates(said)
    assert torch.equal(padded[1], boxes[2:]) and told.tolist() == [[0.9, 0.1, 0.0], [0.8, 0.7, 0.6]]
    assert detected(said, boxes[[0, 3]]).tolist() == [True, True]
    assert detected(said, boxes[[0, 3]], threshold=0.95).tolist() == [False, False]
    for wrong in (boxes, (boxes, scores), [boxes], {"boxes": boxes}):
        with pytest.raises((TypeError, ValueError), match=r"^model: want boxes"):
            candidates(wrong)


def test_a_figure_fills_its_box_and_its_shirt_is_where_it_says() -> None:
    """On black: what was drawn reaches all four sides of the box within a pixel; a control point is on the cloth."""
    noise, here = Noise(3, torch.arange(30)), torch.ones(30, dtype=torch.bool)
    images, boxes, shirts = _figure(torch.full((30, 3, 64, 64), -1.0), torch.full((30,), 32.0), here, noise, 0)
    for image, box in zip(images, boxes, strict=True):
        rows, columns = (image > -0.5).any(dim=0).nonzero().unbind(1)
        drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert float((drawn - box).abs().max()) <= 1.0
    middle = ((shirts[:, [5, 6, 9, 10]] + 1) * 32).long()  # well inside: pixels there show cloth, none shows black
    assert all(bool((images[i, :, y, x] > -0.5).all()) for i in range(30) for x, y in middle[i].tolist())
    assert sheet_points()[5].tolist() == pytest.approx([-1 / 3, -0.5]) and present(boxes).all()


def test_a_scene_depends_on_seed_and_number_alone() -> None:
    whole, part = people(7, seed=2), people(2, seed=2, first=4)
    assert torch.equal(whole.images[4:6], part.images) and torch.equal(whole.boxes[4:6], part.boxes)
    assert not torch.equal(whole.images, people(7, seed=3).images)
    alone = people(20, least=1, most=1, part="test")
    assert present(alone.boxes).all() and alone.boxes.shape == (20, 1, 4) and "20 figures" in repr(alone)
    for name, wrong in (("n", {"n": 0}), ("most", {"most": 4}), ("least", {"least": 3}), ("side", {"side": 8})):
        with pytest.raises(ValueError, match=f"^{name}: "):
            people(**{"n": 2, **wrong})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["anchor_detector", "point_detector"])
def test_the_objective_is_what_one_box_after_the_other_gives(name: str) -> None:
    model, scenes = build(name, seed=1).eval(), people(6, seed=5)
    boxes, scores = (told.detach() for told in model(scenes.images))
    assert scores.shape == (6, (64 // model.stride) ** 2) and float(scores.max()) < 0.5  # type: ignore[operator]
    score, fits, count, side = 0.0, list[Tensor](), 0, 64 // model.stride  # type: ignore[operator]
    for i in range(6):
        for j in range(scores.shape[1]):
            x, y = (j % side + 0.5) * model.stride, (j // side + 0.5) * model.stride  # type: ignore[operator]
            near = [
                (max(abs(x - float(t[0] + t[2]) / 2), abs(y - float(t[1] + t[3]) / 2)) / model.stride, k)  # type: ignore[operator]
                for k, t in enumerate(scenes.boxes[i]) if t[2] > t[0]
            ]  # fmt: skip
            least, k = min(near, default=(9.0, 0))
            p, wish = scores[i, j], least <= model.reach  # type: ignore[operator]
            score = score - (float(p) - wish) ** 2 * torch.log(p if wish else 1 - p)
            if wish:
                count += 1
                fits.append(1 - overlap(boxes[i, j][None], scenes.boxes[i, k][None])[0, 0])
    loss = detection_training(model, scenes.images, scenes.boxes, ids=torch.arange(6), seed=0)  # type: ignore[arg-type]
    torch.testing.assert_close(loss, (4 * score + 2 * sum(fits)) / count, rtol=1e-4, atol=1e-5)
