"""Domains and kinds of answers: one toy model of each through the same door, attacked by random changes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.domain import Box, Domain, Graphs, Several, Tokens
from robustlab.attacker.live import Best, Live
from robustlab.attacker.losses import ATTACKER_LOSSES
from robustlab.attacker.parts import every, size
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim
from robustlab.attacks import pgd
from tests.suite.other_inputs import (
    VOCABULARY,
    Captioned,
    Finder,
    FinderOfTuples,
    Nodes,
    Watching,
    Words,
    graphs,
    images,
    net,
    sentences,
)
from tests.suite.test_no_side_effects import assert_unchanged, snapshot

Change = Callable[[Live, int], Any]


def other_words(live: Live, k: int, part: int = 0) -> Tensor:
    """One token of each sentence is drawn anew."""
    x = live.x[part] if isinstance(live.x, tuple) else live.x
    place = live.noise.integers((k, 0), (1,), x.shape[1])
    return x.scatter(1, place, live.noise.integers((k, 1), (1,), VOCABULARY))


def flipped_edges(live: Live, k: int, flips: int = 2) -> tuple[Tensor, Tensor]:
    """Some random edges are added, or removed if they are there."""
    features, adjacency = live.x
    nodes = adjacency.shape[1]
    upper = torch.triu_indices(nodes, nodes, 1)
    chosen = live.noise.permutation(k, upper.shape[1])[:, :flips]
    flip = torch.zeros_like(adjacency)
    flip[torch.arange(len(live))[:, None], upper[0][chosen], upper[1][chosen]] = 1
    return features, (adjacency - (flip + flip.mT)).abs()


def moved_pixels(live: Live, k: int, part: int = 0) -> Tensor:
    x = live.x[part] if isinstance(live.x, tuple) else live.x
    return (x + live.noise.normal((k, 2), x.shape[1:], x.dtype)).clamp(0, 1)


@dataclass(frozen=True)
class Setting:
    """A model, what it takes and says, and a random change of its inputs."""

    model: Callable[[], nn.Module]
    domain: Domain
    points: Callable[[int], Any]
    change: Change
    answer: str = "classes"
    goal: Callable[[Any, Tensor], Tensor] | None = None

    def victim(self, model: nn.Module, **more: Any) -> Victim:
        return Victim(model, domain=self.domain, answer=self.answer, **more)  # type: ignore[arg-type]


LABELS = net(Nodes)(*graphs(40)).argmax(dim=2)  # labels of the nodes of 40 graphs
BOXES = (net(FinderOfTuples)(images(40))[1] > 0.5).sum(dim=1)  # in 40 images


def first_node_is_lost(answer: Tensor, rows: Tensor) -> Tensor:
    return answer.argmax(dim=2)[:, 0] != LABELS[rows, 0]


def fewer_boxes(answer: Any, rows: Tensor) -> Tensor:
    scores = [each["scores"] for each in answer] if isinstance(answer, list) else list(answer[1])
    return torch.tensor([int((s > 0.5).sum()) for s in scores], dtype=torch.int64) < BOXES[rows]


SETTINGS = {
    "tokens": Setting(lambda: net(Words), Tokens(VOCABULARY), sentences, other_words),
    "graph": Setting(lambda: net(Nodes), Graphs(), graphs, flipped_edges, "sequence", first_node_is_lost),
    "several": Setting(
        lambda: net(Captioned),
        Several(image=Box(0, 1), words=Tokens(VOCABULARY)),
        lambda n: (images(n), sentences(n)),
        lambda live, k: (moved_pixels(live, k), other_words(live, k, part=1)),
    ),
    "boxes": Setting(lambda: net(Finder), Box(0, 1), images, moved_pixels, "boxes", fewer_boxes),
    "boxes in a tuple": Setting(lambda: net(FinderOfTuples), Box(0, 1), images, moved_pixels, "boxes", fewer_boxes),
}
over_settings = pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)


def random_changes(
    setting: Setting, victim: Victim, x: Any, y: Any = None, *, queries: int = 10, ids: Any = None
) -> AttackResult:
    """Random search with labels alone: the first change that meets the goal."""
    kind = type(setting.domain)
    with victim.session(x, y, ids=ids, access="hard", domain=kind, goal=setting.goal) as session:
        best, live = Best(session), session.live(noise=session.noise(0))
        for k in range(queries):
            live.keep(session.can_pay(live))
            if not len(live):
                break
            live.points = setting.change(live, k)
            _, met = session.ask_labels(live.points, live)
            best.keep(live, live.points, torch.where(met, 0.0, torch.inf))
            live.leave(met)
        return session.result(best.points, asked=True, revert=True)


def rows_of(x: Any, rows: slice | Tensor) -> Any:
    return every(lambda part: part[rows], x)


def answers(setting: Setting, model: nn.Module, x: Any) -> Any:
    model.eval()
    with torch.no_grad():
        return model(*x) if isinstance(x, tuple) else model(x)


def refused(message: str, victim: Victim, x: Any, y: Any = None, **more: Any) -> None:
    """No session is opened."""
    more.setdefault("domain", type(victim.domain))
    with pytest.raises((ValueError, TypeError), match=message), victim.session(x, y, **more):
        pass


@over_settings
def test_the_goal_is_met_where_the_result_says_so(setting: Setting) -> None:
    model, x = setting.model(), setting.points(20)
    clean = answers(setting, model, x)
    result = random_changes(setting, setting.victim(model), x)
    said = answers(setting, model, result.x_adv)
    if setting.goal is None:
        met = said.argmax(dim=1) != clean.argmax(dim=1)
    else:
        met = setting.goal(said, torch.arange(20))
    assert torch.equal(met, result.success) and 0 < int(met.sum()) < 20
    setting.domain.check(result.x_adv)
    for name, distance in result.distances.items():
        assert torch.equal(distance, setting.domain.distances(x, result.x_adv)[name]) and distance.shape == (20,)
        assert torch.equal(result.radius(name).isinf(), ~result.success)


@over_settings
@pytest.mark.parametrize("budget", [None, 2, 5])
def test_counts_and_budget(setting: Setting, budget: int | None) -> None:
    """In sum, and for each sample alone, what an independent module counts; never more than the budget."""
    x, seen = setting.points(12), Watching(setting.model())
    y = setting.model()(*x).argmax(1) if setting.goal is None and isinstance(x, tuple) else None
    whole = random_changes(setting, setting.victim(seen, budget=budget), x, y)
    assert int(whole.queries.sum()) == seen.forwards and not bool(whole.gradients.any())
    assert budget is None or int(whole.queries.max()) <= budget
    assert len(set(whole.queries.tolist())) > 1 or budget == 2
    if setting.goal is not None:
        return  # it asks for the samples' places in this batch
    for i in (0, 3, 7):
        seen = Watching(setting.model())
        one = slice(i, i + 1)
        alone = random_changes(
            setting,
            setting.victim(seen, budget=budget),
            rows_of(x, one),
            None if y is None else y[one],
            ids=torch.tensor([i]),
        )
        assert alone.queries.tolist() == [seen.forwards] == whole.queries[one].tolist()
        assert torch.equal(alone.success, whole.success[one])


@over_settings
@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_callers_changes(setting: Setting, fails: bool) -> None:
    """Watching asserts that the model is frozen and in evaluation mode at every question."""
    model = Watching(setting.model()).train()
    next(iter(model.parameters())).requires_grad_(False)
    x = setting.points(6)
    parts = x if isinstance(x, tuple) else (x,)
    before = snapshot(model, *parts)
    if fails:
        wrong = Setting(
            setting.model, setting.domain, setting.points, lambda live, k: 1 / 0, setting.answer, setting.goal
        )
        with pytest.raises(ZeroDivisionError):
            random_changes(wrong, setting.victim(model), x)
    else:
        random_changes(setting, setting.victim(model), x)
    assert_unchanged(before, model, *parts)


@over_settings
def test_access(setting: Setting) -> None:
    x, rest = setting.points(4), {"domain": type(setting.domain), "goal": setting.goal}
    with setting.victim(setting.model(), access="hard").session(x, access="hard", **rest) as session:
        assert session.clean is None
        labels, met = session.ask_labels(x, session.everyone())
        assert met.shape == (4,)
        if setting.answer == "boxes":
            assert labels is None
        else:
            assert torch.equal(labels, answers(setting, setting.model(), x).argmax(dim=-1))
        with pytest.raises(ValueError, match="access: this question needs 'soft' access"):
            session.ask(x, session.everyone())
        with pytest.raises(ValueError, match="access: this question needs 'soft' access"):
            session.ask_many(every(lambda part: part[:, None], x), session.everyone())
    with setting.victim(setting.model(), access="soft").session(x, access="soft", **rest) as session:
        session.ask(x, session.everyone())
        with pytest.raises(ValueError, match="access: this question needs 'white' access"):
            session.gradient(x, session.everyone(), ATTACKER_LOSSES["ce"])
    message = "access: this attack needs 'soft' access, the victim grants 'hard'"
    refused(message, setting.victim(setting.model(), access="hard"), x, access="soft", **rest)


@over_settings
def test_many_points_of_each_sample(setting: Setting) -> None:
    """Three points of each sample at once: counted in order, the goal judged with the sample's own row."""
    x, seen = setting.points(8), Watching(setting.model())
    rest = {"domain": type(setting.domain), "goal": setting.goal}
    with setting.victim(seen).session(x, **rest) as session:
        live = session.live(noise=session.noise(0))
        several = [setting.change(live, k) for k in range(3)]
        alone = [session.ask(points, live) for points in several]
        before = session.queries.clone()
        many = session.ask_many(every(lambda *parts: torch.stack(parts, dim=1), *several), live)
        assert torch.equal(session.queries[live.rows] - before[live.rows], torch.full((len(live),), 3))
        assert int(session.queries.sum()) == seen.forwards
    assert torch.equal(many.met, torch.stack([answer.met for answer in alone], dim=1)) and bool(many.met.any())
    if setting.answer != "boxes":
        torch.testing.assert_close(many.logits, torch.stack([answer.logits for answer in alone], dim=1))


@over_settings
def test_an_empty_batch_is_not_asked_about(setting: Setting) -> None:
    seen = Watching(setting.model())
    result = random_changes(setting, setting.victim(seen), setting.points(0))
    assert len(result) == 0 and seen.calls == 0 and result.summary() == "0 samples"


@over_settings
def test_results_move_and_join(setting: Setting) -> None:
    x = setting.points(6)
    result = random_changes(setting, setting.victim(setting.model()), x).to("cpu")
    joined = AttackResult.cat([result, result])
    assert len(joined) == 12 and size(joined.x_adv) == 12
    assert all(torch.equal(a, b) for a, b in _pairs(rows_of(joined.x_adv, slice(6, 12)), result.x_adv))
    assert "of 12 succeeded" in joined.summary()
    with pytest.raises(ValueError, match="norm: want one of"):
        result.radius("edge")


def _pairs(a: Any, b: Any) -> Any:
    return zip(a, b, strict=True) if isinstance(a, tuple) else [(a, b)]


# Gradients -----------------------------------------------------------------------------------------------------------


def test_gradients_of_a_graph() -> None:
    """Of features and adjacency, and counted: two edges chosen by their gradient beat none."""
    x, seen = graphs(5), Watching(net(Nodes))

    def loss(answer: Tensor, y: Tensor, target: Any = None, kappa: float = 0.0) -> Tensor:
        return -nn.functional.cross_entropy(answer.mT, y, reduction="none").sum(dim=1)

    with Victim(seen, domain=Graphs(), answer="sequence").session(x, domain=Graphs, goal=first_node_is_lost) as session:
        assert torch.equal(session.y, LABELS[:5]) and torch.equal(session.active, torch.arange(5))
        live = session.live()
        answer = session.gradient(live.x, live, loss)
        assert session.gradients.tolist() == [1] * 5 and session.queries.tolist() == [2] * 5
        assert seen.forwards == 10 and seen.backwards == 5
    features, adjacency = (part.clone().requires_grad_(True) for part in x)
    wanted = torch.autograd.grad(loss(net(Nodes)(features, adjacency), LABELS[:5]).sum(), (features, adjacency))
    for got, true in zip(answer.grad, wanted, strict=True):
        torch.testing.assert_close(got, true)
    assert not answer.logits.requires_grad and answer.loss.shape == (5,)


def test_gradients_of_several_inputs() -> None:
    """None for the tokens; 0 for floats that the model passes over."""

    class OneOfTwo(nn.Module):
        def forward(self, used: Tensor, unused: Tensor, tokens: Tensor) -> Tensor:
            return torch.stack([used.sum(dim=1), tokens.sum(dim=1).to(used)], dim=1)

    domain = Several(used=Box(0, 1), unused=Box(0, 1), tokens=Tokens(VOCABULARY))
    x = (torch.rand(3, 4), torch.rand(3, 2), sentences(3))
    with Victim(OneOfTwo(), domain=domain).session(x, domain=Several) as session:
        used, unused, tokens = session.gradient(x, session.everyone(), ATTACKER_LOSSES["ce"]).grad
    assert used.shape == (3, 4) and bool((used != 0).all())
    assert torch.equal(unused, torch.zeros(3, 2)) and tokens is None


def test_gradients_of_boxes() -> None:
    """The loss is one of the answer as it comes; what is returned has no graph."""
    x, seen = images(4), Watching(net(Finder))

    def loss(answer: Any, y: Tensor, target: Any = None, kappa: float = 0.0) -> Tensor:
        return torch.stack([each["scores"].sum() for each in answer])

    with Victim(seen, answer="boxes").session(x, goal=fewer_boxes) as session:
        answer = session.gradient(x, session.everyone(), loss)
        assert session.gradients.tolist() == [1] * 4 and int(session.queries.sum()) == seen.forwards
    assert not any(part.requires_grad for each in answer.logits for part in each.values())
    points = x.clone().requires_grad_(True)
    torch.testing.assert_close(answer.grad, torch.autograd.grad(loss(net(Finder)(points), LABELS).sum(), points)[0])


def test_tokens_have_no_gradient() -> None:
    x = sentences(3)
    with Victim(net(Words), domain=Tokens(VOCABULARY)).session(x, domain=Tokens) as session:
        live = session.everyone()
        with pytest.raises(TypeError, match="victim: want inputs of floats for a gradient"):
            session.gradient(x, live, ATTACKER_LOSSES["ce"])


# Answers -------------------------------------------------------------------------------------------------------------


def test_labels_of_a_sequence() -> None:
    """One for each element, or one for each sample; wrong ones are refused."""
    victim, x = Victim(net(Nodes), domain=Graphs(), answer="sequence"), graphs(3)
    rest = {"domain": Graphs, "goal": first_node_is_lost}
    for y in (LABELS[:3], torch.tensor([0, 1, 2])):
        with victim.session(x, y, **rest) as session:
            assert torch.equal(session.y, y)
    for y, message in (
        (LABELS[:2], r"y: want shape \(3,\)"),
        (LABELS[:3] + 5, "y: want labels in 0 … 2"),
        (LABELS[:3].double(), "y: want integers"),
    ):
        refused(message, victim, x, y, **rest)
    refused("target: want a label other than y", victim, x, LABELS[:3], target=LABELS[:3], **rest)


def test_answers_of_another_shape_are_refused() -> None:
    refused(r"model: want output of shape \(4, K\), got \(4, 6, 3\)", Victim(net(Nodes), domain=Graphs()), graphs(4))
    words = Victim(net(Words), domain=Tokens(VOCABULARY), answer="sequence")
    refused(r"model: want output of shape \(4, T, K\), got \(4, 3\)", words, sentences(4), goal=first_node_is_lost)
    refused("model: want a tensor of scores, got dict; say logits=", Victim(net(Finder)), images(4))


@pytest.mark.parametrize(
    ("goal", "message"),
    [
        (None, "goal: want a function, since the answer is 'boxes', got None"),
        ("hidden", "goal: want a function, since the answer is 'boxes', got hidden"),
        (lambda answer, rows: [True] * 4, r"goal: want a function that returns bools of shape \(4,\), got list"),
        (lambda answer, rows: torch.ones(4), r"goal: .* got torch.float32 of shape \(4,\)"),
        (lambda answer, rows: torch.ones(3, dtype=torch.bool), r"goal: .* got torch.bool of shape \(3,\)"),
    ],
)
def test_goals_that_are_missing_or_wrong(goal: Any, message: str) -> None:
    model = net(Finder)
    refused(message, Victim(model, answer="boxes"), images(4), goal=goal)
    assert model.score.weight.requires_grad


def test_goals_that_are_not_wanted() -> None:
    refused("goal: want None for answers of classes", Victim(nn.Flatten()), torch.rand(2, 3), goal=fewer_boxes)
    refused("kappa: want 0 beside a goal", Victim(net(Finder), answer="boxes"), images(2), goal=fewer_boxes, kappa=1.0)
    with pytest.raises(ValueError, match="answer: want one of"):
        Victim(nn.Flatten(), answer="box")  # type: ignore[arg-type]


# Domains -------------------------------------------------------------------------------------------------------------


def test_attacks_on_floats_refuse_other_inputs() -> None:
    for setting in ("tokens", "graph", "several"):
        name, x = type(SETTINGS[setting].domain).__name__, SETTINGS[setting].points(3)
        seen = Watching(SETTINGS[setting].model())
        with pytest.raises(TypeError, match=r"^(x|victim): want"):
            pgd(SETTINGS[setting].victim(seen), x, eps=0.1)
        assert seen.calls == 0
        victim = SETTINGS[setting].victim(seen)
        with pytest.raises(TypeError, match=rf"victim: want a victim whose inputs are floats in a box, got {name}"):
            victim.bounds  # noqa: B018
        refused(rf"victim: this attack wants inputs of Box, got {name}", victim, x, domain=Box)
    with pytest.raises(TypeError, match="goal: want a function, since the answer is 'boxes'"):
        pgd(SETTINGS["boxes"].victim(net(Finder)), images(2), eps=0.1)


def wrong_graph(change: Callable[[Tensor, Tensor], tuple[Any, Any]]) -> Any:
    return change(*graphs(3))


def with_entry(adjacency: Tensor, i: int, j: int, value: float) -> Tensor:
    changed = adjacency.clone()
    changed[1, i, j] = value
    return changed


@pytest.mark.parametrize(
    ("domain", "x", "message"),
    [
        (Graphs(), [*graphs(3)], r"x: want a pair \(features, adjacency\) of tensors, got list"),
        (Graphs(), graphs(3)[0], r"x: want a pair"),
        (Graphs(), wrong_graph(lambda f, a: (f[0], a)), r"x: want shapes \(N, V, F\) and .*, got \(6, 3\) and"),
        (Graphs(), wrong_graph(lambda f, a: (f[0, 0], a)), r"x: want shapes \(N, V, F\) and .*, got \(3,\) and"),
        (Graphs(), wrong_graph(lambda f, a: (f[:2], a)), r"x: want shapes .* got \(2, 6, 3\) and \(3, 6, 6\)"),
        (Graphs(), wrong_graph(lambda f, a: (f, a[:, :, :5])), "x: want shapes"),
        (Graphs(), wrong_graph(lambda f, a: (f, with_entry(a, 0, 1, 1 - a[1, 0, 1]))), "x: want an adj.* symmetric"),
        (Graphs(), wrong_graph(lambda f, a: (f, with_entry(a, 2, 2, 1))), "x: want an adjacency .* without loops"),
        (Graphs(), wrong_graph(lambda f, a: (f, a / 2)), "x: want an adjacency of 0 and 1"),
        (Graphs(), wrong_graph(lambda f, a: (f * torch.nan, a)), "x: want finite values, got NaN"),
        (SETTINGS["several"].domain, images(3), r"x: want a tuple \(image, words\), got Tensor"),
        (SETTINGS["several"].domain, (images(3),), r"x: want a tuple \(image, words\), got 1 of them"),
        (SETTINGS["several"].domain, (images(3), sentences(2)), r"x: want as many samples .*'image': 3, 'words': 2"),
        (SETTINGS["several"].domain, (images(3) + 1, sentences(3)), r"image: want values in \[0, 1\]"),
        (SETTINGS["several"].domain, (images(3), sentences(3) + 5), "words: want tokens in 0 … 11"),
    ],
)  # fmt: skip
def test_bad_inputs_are_named(domain: Domain, x: Any, message: str) -> None:
    refused(message, Victim(nn.Identity(), domain=domain), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tokens(0), "vocabulary: want at least 1"),
        (lambda: Tokens(2.5), "vocabulary: want an integer"),  # type: ignore[arg-type]
        (lambda: Tokens(5, fixed=(5,)), r"fixed: want tokens in 0 … 4, got \[5\]"),
        (lambda: Several(), "parts: want at least one input"),
        (lambda: Several(image=(0, 1)), "image: want a Domain, got tuple"),  # type: ignore[arg-type]
        (lambda: Box(torch.zeros(3), torch.ones(2)), r"want ends that broadcast .* got \(tensor\(3,\), tensor\(2,\)\)"),
        (lambda: Box(torch.zeros(3), torch.tensor([1.0, 0.0, 1.0])), r"want .* low < high, got \(tensor\(3,\), "),
        (lambda: Victim(nn.Identity(), domain=Tokens), "domain: want a Domain, got"),  # type: ignore[arg-type]
        (lambda: Victim(nn.Identity(), domain=Tokens(3), bounds=(0, 9)), "bounds: want none beside a domain"),
    ],
)  # fmt: skip
def test_bad_domains_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_distances() -> None:
    features, adjacency = graphs(2)
    other, moved = adjacency.clone(), features.clone()
    for i, j in ((0, 1), (2, 4)):
        other[1, i, j] = other[1, j, i] = 1 - other[1, i, j]
    moved[0, 3, :2] += 1
    found = Graphs().distances((features, adjacency), (moved, other))
    assert found["edges"].tolist() == [0, 2] and found["features"].tolist() == [2, 0]
    x, near = (images(2), sentences(2)), (images(2).clone(), sentences(2).clone())
    near[0][1, 0, 0, 0] += 0.25
    near[1][0, 3] += 1
    found = SETTINGS["several"].domain.distances(x, near)
    assert found.keys() == {"image.l0", "image.l1", "image.l2", "image.linf", "words.tokens"}
    assert found["words.tokens"].tolist() == [1, 0]
    torch.testing.assert_close(found["image.l2"], torch.tensor([0, 0.25], dtype=torch.float64))


def test_a_number_beside_a_tensor_is_an_end_too() -> None:
    low, x = torch.tensor([0.0, 0.5]), torch.tensor([[0.1, 0.9], [0.9, 0.6]], dtype=torch.float64)
    model = nn.Linear(2, 3).double()
    one, both = (
        pgd(Victim(model, bounds=(low, high)), x, eps=0.3, steps=3) for high in (0.95, torch.tensor([0.95, 0.95]))
    )
    torch.testing.assert_close(one.x_adv, both.x_adv)
    assert bool((one.x_adv[:, 1] >= 0.5).all() and (one.x_adv <= 0.95).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_what_the_dtype_of_x_can_hold(dtype: torch.dtype) -> None:
    """0.1 and 0.9 are ends of a box in which 0.1 and 0.9 are."""
    x = torch.tensor([[0.1, 0.9]], dtype=dtype)
    Box(0.1, 0.9).check(x)
    Box(torch.tensor([0.1, 0.1], dtype=dtype), 0.9).check(x)
    with pytest.raises(ValueError, match="x: want values in"):
        Box(0.1, 0.9).check(x * (1 + 8 * torch.finfo(dtype).eps))  # more than by rounding


def test_tokens_that_are_fixed() -> None:
    domain = Tokens(5, fixed=(0, 3))
    assert domain.choices().tolist() == [1, 2, 4]
    assert domain.movable(torch.tensor([[0, 1, 3]])).tolist() == [[False, True, False]]


@pytest.mark.parametrize("setting", ["tokens", "several"])
def test_what_leaves_its_domain_reaches_no_model(setting: str) -> None:
    """Clipped where that is possible, and told at the end."""
    chosen, asked = SETTINGS[setting], []

    class Asked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = chosen.model()

        def forward(self, *inputs: Tensor) -> Tensor:
            asked.append(inputs if setting == "several" else inputs[0])
            return self.model(*inputs)

    x = chosen.points(4)
    beyond = every(lambda part: part + 20, x)
    with chosen.victim(Asked()).session(x, domain=type(chosen.domain)) as session:
        session.ask(beyond, session.everyone())
        with pytest.raises(RuntimeError, match=r"a query was outside the domain .*: a bug of the attack"):
            session.result()
    for inputs in asked:
        chosen.domain.check(inputs)


def test_a_matrix_that_is_no_graph_reaches_no_model() -> None:
    """Nothing can be clipped: the attack fails at once."""
    x, seen = graphs(4), Watching(net(Nodes))
    with Victim(seen, domain=Graphs(), answer="sequence").session(x, domain=Graphs, goal=first_node_is_lost) as session:
        live = session.everyone()
        with pytest.raises(RuntimeError, match=r"a query was outside the domain Graphs\(\): a bug of the attack"):
            session.ask((x[0], x[1] / 2), live)
    assert seen.calls == 1


def test_names() -> None:
    assert repr(SETTINGS["several"].domain) == "Several(image=Box(0.0, 1.0), words=Tokens(12))"
    assert repr(Box(torch.zeros(3, 1, 1), 1)) == "Box(tensor(3, 1, 1), tensor(3, 1, 1))"
    assert (
        repr(Victim(net(Words), domain=Tokens(12), budget=7)) == "Victim(Words, Tokens(12), access='white', budget=7)"
    )


def test_one_graph() -> None:
    """One graph is one sample: its nodes' labels are the sequence, an attack on one node is its goal."""
    x = graphs(1)
    result = random_changes(SETTINGS["graph"], Victim(net(Nodes), domain=Graphs(), answer="sequence"), x, queries=60)
    said = net(Nodes)(*result.x_adv).argmax(dim=2)
    assert result.success.tolist() == [True] and int(said[0, 0]) != int(LABELS[0, 0])
    assert result.distances["edges"].tolist() == [2] and torch.equal(result.x_adv[0], x[0])


def test_best_values_beside_tokens_keep_their_precision() -> None:
    """Nothing tells the dtype of a loss beside tokens or graphs: the values are kept in double precision."""
    x = sentences(3)
    with Victim(net(Words), domain=Tokens(VOCABULARY)).session(x, domain=Tokens) as session:
        best, live = Best(session), session.live(torch.tensor([True, False, True]))
        value = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
        best.keep(live, live.x, value)
        assert torch.equal(best.value[[0, 2]], value)
