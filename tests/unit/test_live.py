"""Live, Best and the session's books: what an attack's loop leaves to them.

The model's scores are its two inputs, and every label is 0: a point meets the goal where the second one is larger.
"""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import ce
from robustlab.attacker.session import Session
from robustlab.attacker.victim import Victim


class Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 1 * x


LOST, WON = torch.tensor([0.6, 0.4]), torch.tensor([0.4, 0.6])


def batch(n: int, done: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """n samples that are not fooled, but for those that are ``done`` at x; no two of them are equal."""
    x = torch.stack([WON if i in done else LOST for i in range(n)])
    x[:, 0] += 0.001 * torch.arange(n)
    return x, torch.zeros(n, dtype=torch.int64)


def points(met: list[bool]) -> Tensor:
    return torch.stack([WON if m else LOST for m in met]) if met else torch.empty(0, 2)


# The samples at work -------------------------------------------------------------------------------------------------


def test_everything_is_filtered_together() -> None:
    x, y = batch(6, done=(1,))
    with Victim(Same()).session(x, y, ids=torch.arange(6) + 70) as session:
        live = session.live(
            eps=torch.arange(6.0), pair=(torch.arange(6), (torch.arange(12).reshape(6, 2),)),
            noise=session.noise(5), nothing=None,
        )  # fmt: skip
        assert session.active.tolist() == live.rows.tolist() == [0, 2, 3, 4, 5] and live.place is None
        live.late, live._mine = 10 * live.rows, torch.zeros(7)
        drawn = session.noise(5).uniform(0, (3,))
        for go_on, mask, left in (
            (live.keep, [1, 0, 1, 1, 0], [0, 3, 4]), (live.leave, [0, 0, 0], [0, 3, 4]),
            (live.leave, [1, 0, 0], [3, 4]), (live.keep, [0, 1], [4]),
        ):  # fmt: skip
            go_on(torch.tensor(mask, dtype=torch.bool))
            at = torch.tensor(left)
            assert len(live) == len(left) and live.rows.tolist() == left
            assert torch.equal(session.active[live.place], live.rows)
            assert torch.equal(live.x, x[at]) and torch.equal(live.y, y[at]) and live.target is None
            assert live.eps.tolist() == left and live.late.tolist() == [10 * i for i in left]
            first, (second,) = live.pair
            assert first.tolist() == left and second[:, 0].tolist() == [2 * i for i in left]
            assert torch.equal(live.noise.uniform(0, (3,)), drawn[at]) and live.nothing is None
            assert live._mine.shape == (7,), "what begins with an underscore does not belong to the samples"
        live.keep(torch.tensor([False]))
        assert len(live) == 0 and live.x.shape == (0, 2)


def test_targets_are_filtered() -> None:
    with Victim(Same()).session(*batch(3), target=1) as session:
        live = session.live()
        live.keep(torch.tensor([True, False, True]))
        assert live.target.tolist() == [1, 1]


@pytest.mark.parametrize("mask", [None, torch.ones(3, dtype=torch.bool)])
def test_nothing_is_indexed_while_all_are_at_work(mask: Tensor | None) -> None:
    with Victim(Same()).session(*batch(3)) as session:
        live = session.live()
        before = live.x
        live.keep(mask)
        assert live.x is before and live.place is None


def test_live_of_a_mask_beside_the_active_samples() -> None:
    x, y = batch(5, done=(0,))
    with Victim(Same()).session(x, y) as session:
        live = session.live(torch.tensor([False, True, False, True]), eps=torch.arange(5.0))
        assert live.rows.tolist() == [2, 4] and live.place.tolist() == [1, 3] and live.eps.tolist() == [2.0, 4.0]
        assert torch.equal(live.x, x[[2, 4]])
        assert session.everyone().rows.tolist() == [0, 1, 2, 3, 4]
        twice = session.of(torch.tensor([3, 0, 3]))
        assert torch.equal(twice.x, x[[3, 0, 3]]) and twice.y.shape == (3,)


def test_what_is_not_there_is_named() -> None:
    with Victim(Same()).session(*batch(2)) as session, pytest.raises(AttributeError, match="no tensor called 'delta'"):
        session.live().delta  # noqa: B018


# The best point ------------------------------------------------------------------------------------------------------


def kept(best: Best) -> list[float]:
    return best.points[:, 0].tolist()


def constant(live: Live, value: float) -> Tensor:
    return torch.full((len(live), 2), value)


def test_the_smallest_value_is_kept_and_of_equal_ones_the_first() -> None:
    x, y = batch(3)
    with Victim(Same()).session(x, y) as session:
        best, live = Best(session), session.live()
        assert torch.equal(best.points, x) and best.value.isinf().all()
        best.keep(live, constant(live, 0.25), torch.tensor([3.0, 2.0, torch.nan]))
        best.keep(live, constant(live, 0.5), torch.tensor([3.0, 1.0, torch.inf]))
        assert kept(best) == [0.25, 0.5, float(x[2, 0])]
        assert best.value.tolist() == [3.0, 1.0, torch.inf]
        best.keep(live, constant(live, 0.75), torch.zeros(3), torch.tensor([False, True, False]))
        assert kept(best) == [0.25, 0.75, float(x[2, 0])]
        other = Best(session)
        live.keep(torch.tensor([True, False, True]))
        other.keep(live, constant(live, 0.5), torch.zeros(2))
        assert kept(other) == [0.5, float(x[1, 0]), 0.5]
        assert torch.equal(x, batch(3)[0]), "the caller's tensor stays as it is"


def test_a_tolerance_asks_for_more_than_smaller() -> None:
    with Victim(Same()).session(*batch(3)) as session:
        best, live = Best(session, tolerance=0.25), session.live()
        best.keep(live, constant(live, 0.25), torch.tensor([4.0, 4.0, 4.0]))
        best.keep(live, constant(live, 0.5), torch.tensor([2.9, 3.0, 3.9]))
        assert kept(best) == [0.5, 0.25, 0.25]
        torch.testing.assert_close(best.value, torch.tensor([2.9, 4.0, 4.0]))


def test_best_points_stand_where_their_samples_do() -> None:
    """Two bests, three lives, samples that leave in between; the points of those who left are not lost."""
    x, y = batch(5, done=(1,))  # active: 0, 2, 3, 4
    with Victim(Same()).session(x, y) as session:
        best, most, live = Best(session), Best(session, points=session.active), session.live()
        best.keep(live, constant(live, 0.1), torch.tensor([5.0, 5.0, 5.0, 5.0]))
        live.keep(torch.tensor([True, False, True, True]))
        best.keep(live, constant(live, 0.2), torch.tensor([4.0, 6.0, 4.0]))
        assert best.of(live).tolist() == [4.0, 5.0, 4.0]
        most.keep(live, 100 + live.rows, -live.rows.double())
        live.keep(torch.tensor([False, True, True]))
        most.keep(live, 200 + live.rows, -10 * live.rows.double())
        other = session.live(torch.tensor([False, True, False, True]))
        best.keep(other, constant(other, 0.3), torch.tensor([3.0, 3.0]))
        best.keep(live, constant(live, 0.4), torch.tensor([2.0, 9.0]))
        assert best.points[:, 0].tolist() == pytest.approx([0.2, 0.3, 0.4, 0.3])
        assert best.value.tolist() == [4.0, 3.0, 2.0, 3.0]
        assert most.points.tolist() == [100, 2, 203, 204] and most.value.tolist() == [0.0, torch.inf, -30.0, -40.0]


def test_more_than_the_point_may_be_kept() -> None:
    x, y = batch(3)
    with Victim(Same()).session(x, y) as session:
        best, live = Best(session, points=(session.start.x, torch.zeros(3, 1))), session.live()
        live.keep(torch.tensor([False, True, True]))
        best.keep(live, (constant(live, 0.5), torch.tensor([[7.0], [8.0]])), torch.tensor([1.0, torch.inf]))
        found, beside = best.points
        assert found[:, 0].tolist() == [float(x[0, 0]), 0.5, float(x[2, 0])] and beside.flatten().tolist() == [0, 7, 0]


# The books -----------------------------------------------------------------------------------------------------------


def test_the_first_success_is_told_by_its_question() -> None:
    """One clean query, then: sample 0 never; 1 at its second question; 2 at once; 3 as the third of five points."""
    with Victim(Same()).session(*batch(4)) as session:
        live = session.live()
        session.ask(points([False, False, True, False]), live)
        answer = session.gradient(points([False, True, False, False]), live, ce)
        assert answer.met.tolist() == [False, True, False, False]
        live.keep(torch.tensor([True, False, True, True]))
        many = torch.stack([points([False] * 5), points([True] * 5), points([False, False, True, False, True])])
        assert session.ask_many(many, live).met.sum(dim=1).tolist() == [0, 5, 2]
        assert session.first_success.tolist() == [-1, 3, 2, 6]
        assert session.queries.tolist() == [8, 3, 8, 8] and session.gradients.tolist() == [1] * 4
        assert session.unmet().tolist() == [True, False, False, False]


def test_the_books_are_those_of_samples_counted_one_by_one() -> None:
    """Random questions about random lives, several at once, against counts kept for each sample by itself."""
    for seed in range(40):
        draw, n = random.Random(seed), 7
        x, y = batch(n, done=(2, 5))
        queries, gradients, firsts = [1] * n, [0] * n, [1 if i in (2, 5) else -1 for i in range(n)]
        with Victim(Same()).session(x, y) as session:
            lives = [session.live(), session.live(), session.everyone()]
            for _ in range(12):
                live = draw.choice(lives)
                rows = live.rows.tolist()
                kind = draw.choice(["ask", "gradient", "jacobian", "many", "probe", "keep", "new", "read", "drop"])
                met = [[draw.random() < 0.15 for _ in rows] for _ in range(3 if kind in ("many", "probe") else 1)]
                if kind == "keep":
                    live.keep(torch.tensor([draw.random() < 0.8 for _ in rows], dtype=torch.bool))
                elif kind == "new":
                    lives[draw.randrange(3)] = session.live(torch.tensor([draw.random() < 0.7 for _ in range(n - 2)]))
                elif kind == "drop":
                    lives[draw.randrange(3)] = session.everyone()  # what was asked about the other stays in the books
                elif kind == "read":
                    assert session.queries.tolist() == queries and session.first_success.tolist() == firsts
                elif rows:
                    ask(session, live, kind, met)
                    for i, row in enumerate(rows):
                        for question in met:
                            queries[row] += 1
                            if question[i] and firsts[row] < 0 and kind != "probe":
                                firsts[row] = queries[row]
                        gradients[row] += kind in ("gradient", "jacobian")
            assert session.queries.tolist() == queries and session.gradients.tolist() == gradients
            assert session.first_success.tolist() == firsts


def ask(session: Session, live: Live, kind: str, met: list[list[bool]]) -> None:
    if kind == "ask":
        session.ask(points(met[0]), live)
    elif kind == "gradient":
        session.gradient(points(met[0]), live, ce)
    elif kind == "jacobian":
        session.jacobian(points(met[0]), live, lambda z: z.argsort(dim=1))
    elif kind == "probe":  # of which no goal is looked at
        session.values(live, ce)(torch.stack([points(question) for question in met], dim=1))
    else:
        session.ask_many(torch.stack([points(question) for question in met], dim=1), live)


def test_a_sample_that_is_named_twice_pays_twice() -> None:
    with Victim(Same()).session(*batch(3)) as session:
        session.gradient(points([False, False, True, False]), session.of(torch.tensor([1, 2, 1, 1])), ce)
        assert session.queries.tolist() == [1, 4, 2] and session.gradients.tolist() == [0, 3, 1]
        assert session.first_success.tolist() == [-1, 2, -1], "its points were asked about at once"


def test_a_part_has_its_own_questions_in_the_same_books() -> None:
    x, y = batch(5, done=(1,))
    with Victim(Same()).session(x, y) as session:
        live = session.live(noise=session.noise(3), size=torch.arange(5.0))
        best = Best(session)
        for mask, rows in ((None, [0, 2, 3, 4]), ([0, 1, 0, 1], [2, 4])):
            part = live.part(None if mask is None else torch.tensor(mask, dtype=torch.bool))
            assert part.rows.tolist() == rows and part.size.tolist() == rows and torch.equal(part.x, x[rows])
            assert torch.equal(part.noise.bits(0, (2,)), session.noise(3).bits(0, (2,))[rows])
            few = live.part(None if mask is None else torch.tensor(mask, dtype=torch.bool), only=("size",))
            assert few.rows.tolist() == rows and few.size.tolist() == rows and torch.equal(few.x, x[rows])
            assert few.y.tolist() == part.y.tolist() and not hasattr(few, "noise")
        assert len(live) == 4
        session.ask(points([False] * 4), live)
        met = session.ask(points([True, False]), part).met
        best.keep(part, points([True, True]), torch.tensor([0.5, 0.7]), met)
        part.leave(met)
        deeper = part.part(torch.tensor([True]))
        session.ask(points([True]), deeper)
        best.keep(deeper, points([True]), torch.tensor([0.2]))
        session.ask(points([False] * 4), live)
        assert session.queries.tolist() == [3, 1, 4, 3, 5]
        assert session.first_success.tolist() == [-1, 1, 3, -1, 4]
        inf = float("inf")
        torch.testing.assert_close(best.value, torch.tensor([inf, 0.5, inf, 0.2]))


def test_samples_may_have_different_numbers_of_questions() -> None:
    """One row for each that a mask names, in order, with what belongs to its sample; each pays for its own."""
    x, y = batch(4, done=(1,))
    with Victim(Same(), budget=9).session(x, y) as session:
        live = session.live(size=torch.arange(4.0), other=torch.arange(4.0))
        asked = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]], dtype=torch.bool)
        each = session.one_by_one(live, asked, only=("size",))
        assert each.rows.tolist() == [0, 0, 0, 2, 3, 3] and each.size.tolist() == [0.0, 0.0, 0.0, 2.0, 3.0, 3.0]
        assert torch.equal(each.x, x[each.rows]) and not hasattr(each, "other") and len(live) == 3
        told = session.values(each, ce)(points([False, True] * 3)[:, None])
        assert told.shape == (6, 1) and session.queries.tolist() == [4, 1, 2, 3]
        assert session.first_success.tolist() == [-1, 1, -1, -1], "no goal is looked at"
        assert session.can_pay(live, 5).tolist() == [False, True, True], "though the model was asked once"


@pytest.mark.parametrize("kappa", [0.0, 0.1])
def test_a_lead_is_what_each_of_its_parts_is_alone(kappa: float) -> None:
    with Victim(Same()).session(*batch(3), kappa=kappa) as session:
        live, logits = session.live(), torch.tensor([[0.6, 0.4], [0.45, 0.5], [0.3, 0.7]])
        lead = session.lead(logits, live)
        assert torch.equal(lead.margin, session.goal_margin(logits, live))
        assert lead.secure.tolist() == session.secure(logits, live).tolist() == [False, kappa == 0, True]
        assert torch.equal(lead.aim, kappa + session.beyond(logits, live))


def test_a_budget_keeps_one_query_for_the_final_check() -> None:
    with Victim(Same(), budget=6).session(*batch(2)) as session:
        live, other = session.live(), session.live(torch.tensor([True, False]))
        session.ask(points([False, False]), live)
        session.ask(points([False]), other)  # sample 0 has paid 3, sample 1 has paid 2
        for cost, able in ((1, [True, True]), (2, [True, True]), (3, [False, True]), (4, [False, False])):
            paying = session.can_pay(live, cost)
            assert (paying is None and all(able)) or (paying is not None and paying.tolist() == able)
        live.keep(session.can_pay(live, 3))
        assert session.can_pay(live, 3).tolist() == [True]
        session.ask_many(points([False] * 3)[None], live)
        assert live.rows.tolist() == [1] and session.result(session.start.x).queries.tolist() == [4, 6]


def test_who_is_named_twice_pays_twice() -> None:
    """What is known without a look at the counts, that all can pay, is not said where a question costs a sample two."""
    with Victim(Same(), budget=6).session(*batch(2)) as session:
        live = session.live()
        assert session.all_surely_pay(4) and session.can_pay(live, 4) is None
        assert not session.all_surely_pay(5) and session.can_pay(live, 5).tolist() == [False, False]
        twice = session.of(torch.tensor([0, 0, 1]))
        session.ask(points([False] * 3), twice)
        assert not session.all_surely_pay(1)
        assert session.can_pay(live, 2).tolist() == [True, True] and session.can_pay(live, 3).tolist() == [False, True]


def test_without_a_budget_all_can_pay() -> None:
    with Victim(Same()).session(*batch(2)) as session:
        live = session.live()
        assert session.can_pay(live, 10**6) is None
        live.keep(None)
        assert len(live) == 2


def test_a_phase_whose_successes_do_not_count() -> None:
    with Victim(Same()).session(*batch(2)) as session:
        live, before = session.live(), session.first_success.clone()
        session.ask(points([True, False]), live)
        session.forget_successes(before)
        assert session.first_success.tolist() == [-1, -1] and session.queries.tolist() == [2, 2]
        session.ask(points([False, True]), live)
        assert session.first_success.tolist() == [-1, 3]
