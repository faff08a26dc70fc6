"""NES by the top k or by labels alone: what it counts, what it makes of probes that show nothing, and where it ends."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.victim import Victim
from robustlab.attacks import nes_limited
from tests.suite.cases import noise_box
from tests.suite.models import Counting, mlp

SHAPE, CLASSES = (2, 3, 3), 4


def problem(n: int = 6, seed: int = 0) -> tuple[nn.Module, Tensor, Tensor, Tensor]:
    """A model, samples, targets that are not their labels, and starts of the targets' classes."""
    model, pool = mlp(SHAPE, CLASSES, seed=seed), noise_box(400, SHAPE, torch.float64, seed)
    with torch.no_grad():
        label = model(pool).argmax(1)
    x, y = pool[:n], label[:n]
    target = (y + 1) % CLASSES
    start = torch.stack([pool[n:][label[n:] == t][0] for t in target])
    return model, x, target, start


@pytest.mark.slow
@pytest.mark.parametrize(("sees", "k"), [("scores", 1), ("scores", 2), ("labels", 1)])
def test_ends_inside_the_ball_at_the_target(sees: str, k: int) -> None:
    """With the target kept shown; every query counted, inside the box; labels need no more than hard access."""
    model, x, target, start = problem()
    seen = Counting(model)
    victim = Victim(seen, access="hard" if sees == "labels" else "soft")
    run = {"eps": 0.35, "steps": 40, "q": 6, "samples": 5, "sigma": 0.02, "step_size": 0.05}
    result = nes_limited(victim, x, start=start, target=target, sees=sees, k=k, **run)  # type: ignore[arg-type]
    assert int(result.queries.sum()) == seen.forwards and seen.low >= 0 and seen.high <= 1
    assert int(result.success.sum()) >= 4
    with torch.no_grad():
        assert torch.equal(model(result.x_adv).argmax(1) == target, result.success)
    assert float(result.distances["linf"].max()) <= 0.35 + 1e-12
    assert torch.equal(result.first_success > 0, result.success)
    alone = nes_limited(
        victim,
        x[3:4],
        start=start[3:4],
        target=target[3:4],
        ids=torch.tensor([3]),
        sees=sees,
        k=k,
        **run,  # type: ignore[arg-type]
    )
    torch.testing.assert_close(alone.x_adv[0], result.x_adv[3])
    assert int(alone.queries) == int(result.queries[3])


def test_a_pair_of_which_one_shows_nothing_is_left_out_whole() -> None:
    """The first step is along the mean over whole pairs, rebuilt from the points asked about."""
    weight = torch.randn(18, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def scores(points: Tensor) -> Tensor:
        """The target's score, quadratic, leads where it is above that of class 0; class 2 is the label of x."""
        flat = points.flatten(1)
        own = flat @ weight + flat.square().sum(dim=1)
        third = torch.where(flat.amax(dim=1) < 0.4, 99.0, -99.0).double()
        return torch.stack([torch.full_like(own, float(level)), own, third], dim=1)

    x = torch.full((1, *SHAPE), 0.1, dtype=torch.float64)
    start = torch.full((1, *SHAPE), 0.6, dtype=torch.float64)
    level = (
        0.6 * float(weight.sum()) + 18 * 0.36 - 0.05
    )  # the target leads at the start, and at about half of the probes
    asked = list[Tensor]()

    def seen(points: Tensor) -> Tensor:
        asked.append(points.clone())
        return scores(points)

    q, sigma, alpha = 8, 0.03, 1e-4
    victim = Victim(seen, access="soft")
    nes_limited(victim, x, start=start, target=1, eps=0.01, k=1, steps=1, q=q, sigma=sigma, step_size=alpha)
    probes = asked[2]
    assert [len(p) for p in asked[:3]] == [1, 1, 2 * q]
    z = scores(probes)
    loss = -z.log_softmax(dim=1)[:, 1]
    shown = z.argmax(dim=1) == 1
    whole = shown[:q] & shown[q:]
    assert 0 < int(whole.sum()) < int(shown[:q].sum()) + int(shown[q:].sum())
    slope = (loss[:q] - loss[q:])[whole]
    grad = (slope[:, None] * (probes[:q] - start).flatten(1)[whole]).sum(dim=0)
    first = asked[3].flatten()
    inside = (x.flatten() - 0.01).clamp(0), (x.flatten() + 0.01)
    radius = 0.5  # the start's; the first cut of half the box leaves the ball of eps
    assert radius > 0.01
    want = torch.minimum(torch.maximum(start.flatten() - alpha * grad.sign(), inside[0]), inside[1])
    torch.testing.assert_close(first, want)
    free = [p for p in asked[3:] if bool(((p - start).abs() <= 2 * alpha).all())]
    torch.testing.assert_close(
        free[0].flatten(), (start.flatten() - alpha * grad.sign()).clamp(max=0.6), atol=2e-4, rtol=0
    )


def test_where_nothing_is_shown_there_is_no_nan() -> None:
    """A target that is shown at the start alone: no probe is heard, the point stays where it is, x comes back."""
    start = torch.full((1, 4), 0.5, dtype=torch.float64)

    def needle(points: Tensor) -> Tensor:
        at = (points == start).all(dim=1).double()
        return torch.stack([torch.full_like(at, 0.5), at], dim=1)

    x = torch.full((1, 4), 0.1, dtype=torch.float64)
    result = nes_limited(Victim(needle, access="soft"), x, start=start, target=1, eps=0.05, steps=2, q=3)
    assert not bool(result.success) and torch.equal(result.x_adv, x)
    # Eight α for each cut that fails: ½ … 2⁻⁸ of the box, in the second round 0.1 … 0.1·2⁻⁵; then none, and it stays.
    assert int(result.queries) == 2 + 2 * (2 * 3) + (8 * 8 + 1) + (8 * 6 + 1)


def test_a_start_that_does_not_show_the_target() -> None:
    """Fails by name, after two queries; the others go on."""
    model, x, target, start = problem()
    wrong = start.clone()
    wrong[2] = x[2]
    run = {"target": target, "eps": 0.4, "steps": 5, "q": 4, "sigma": 0.02}
    with pytest.warns(UserWarning, match=r"^start: want images at which the target is shown, got others in rows \[2\]"):
        result = nes_limited(model, x, start=wrong, **run)  # type: ignore[arg-type]
    good = nes_limited(model, x, start=start, **run)  # type: ignore[arg-type]
    assert torch.equal(result.x_adv[2], x[2]) and int(result.queries[2]) == 2 and not bool(result.success[2])
    others = torch.arange(6) != 2
    assert torch.equal(result.queries[others], good.queries[others])


@pytest.mark.parametrize("sees", ["scores", "labels"])
def test_a_budget_is_kept_to_the_query(sees: str) -> None:
    """With steps so long that many are refused, so that the judge comes at every number of queries."""
    model, x, target, start = problem()
    least = 5 + 2 * 2 * (2 if sees == "labels" else 1)
    with pytest.raises(ValueError, match=rf"^budget: want at least {least},"):
        nes_limited(
            Victim(model, budget=least - 1), x, start=start, target=target, eps=0.4, q=2, samples=2, sees=sees,  # type: ignore[arg-type]
        )  # fmt: skip
    for budget in range(least, least + 16):
        seen = Counting(model)
        result = nes_limited(
            Victim(seen, budget=budget, access="soft"), x, start=start, target=target, eps=0.9, steps=9, q=2, samples=2,
            sigma=0.02, step_size=0.9, sees=sees,  # type: ignore[arg-type]
        )  # fmt: skip
        assert int(result.queries.max()) <= budget and int(result.queries.sum()) == seen.forwards


def test_bad_input() -> None:
    model, x, target, start = problem()
    good = {"start": start, "target": target, "eps": 0.1}
    wrong: dict[str, tuple[object, ...]] = {
        "sees": ("logits",), "k": (0,), "samples": (0,), "q": (0,), "plateau": (1,), "momentum": (1.0,),
        "sigma": (0.0,), "spread": (-1.0,), "start": (start[:2], start + 5),
    }  # fmt: skip
    for name, values in wrong.items():
        for value in values:
            with pytest.raises((ValueError, TypeError), match=rf"^{name}: "):
                nes_limited(model, x, **{**good, name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^access: "):
        nes_limited(Victim(model, access="hard"), x, **good)  # type: ignore[arg-type]
