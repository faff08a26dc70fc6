"""Paraphrases against brute force, finite differences and the theorem on greedy."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from robustlab.attacker.domain import Tokens
from robustlab.attacker.losses import attacker_loss
from robustlab.attacker.tokens import allowed_changes, gradient_at
from robustlab.attacker.victim import Victim
from robustlab.attacks import augmented_by_paraphrases, paraphrase, sentence_paraphrases, word_substitution
from robustlab.attacks.discrete.sentence_search import assembled
from robustlab.attacks.discrete.substitutes import enumerated, substituted
from robustlab.data import Vocabulary
from robustlab.models import text_bag, text_cnn, text_lstm
from robustlab.models.ngram import Trigrams
from tests.suite.models import Counting

V, T = 14, 5  # tokens, of which 0 is padding and 1 unknown; words
DOMAIN = Tokens(V, fixed=(0, 1))
SEARCHES = ("greedy", "importance", "random", "genetic")


def table(k: int = 2) -> Tensor:
    """Each word may stand for those k and 2k behind it, around."""
    rows = [[2 + (i - 2 + (j + 1) * 5) % (V - 2) for j in range(k)] if i > 1 else [-1] * k for i in range(V)]
    return torch.tensor(rows)


def drawn(n: int, seed: int = 0, length: int = T) -> Tensor:
    x = torch.randint(2, V, (n, length), generator=torch.Generator().manual_seed(seed))
    x[0, length - 2 :] = 0
    return x


def loud(model: nn.Module, factor: float = 3.0) -> nn.Module:
    for p in model.parameters():
        p.data *= factor
    return model.double().eval()


def never(logits: Tensor, y: Tensor, target: Any = None, kappa: float = 0.0) -> Tensor:
    """Minus the second score, of which the goal never hears: the first is always above it."""
    return -logits[:, 1]


class Scored(nn.Module):
    """The score of a model as the second logit, beside a first one that always wins."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        score = self.model(x)
        return torch.stack([torch.full_like(score, 1e6), score], dim=1)


def every_text(x: list[int], words: list[list[int]], m: int) -> list[list[int]]:
    """All texts with at most m substitutions."""
    options = [[token, *words[i]] for i, token in enumerate(x)]
    return [list(t) for t in itertools.product(*options) if sum(a != b for a, b in zip(t, x, strict=True)) <= m]


def words_for(x: Tensor, neighbors: Tensor) -> list[list[list[int]]]:
    return [
        [[w for w in neighbors[t].tolist() if w > 1 and w != t] if t > 1 else [] for t in row] for row in x.tolist()
    ]


# The search ----------------------------------------------------------------------------------------------------------


def test_combinations_are_all_there_is_those_of_few_changes_first() -> None:
    sizes, left = torch.tensor([[2, 0, 3], [1, 1, 1], [0, 0, 0], [3, 2, 1]]), torch.tensor([2, 3, 3, 1])
    choice, exists = enumerated(sizes, left, 10**6)
    for i in range(4):
        got = [tuple(row) for row, there in zip(choice[i].tolist(), exists[i].tolist(), strict=True) if there]
        want = [
            c for c in itertools.product(*(range(n + 1) for n in sizes[i].tolist())) if 0 < sum(map(bool, c)) <= left[i]
        ]
        assert sorted(got) == sorted(want) and len(set(got)) == len(got)
        changes = [sum(map(bool, c)) for c in got]
        assert changes == sorted(changes)
    few, there = enumerated(sizes, left, 3)
    assert torch.equal(few, choice[:, :3]) and few.shape[1] == 3 and torch.equal(there, exists[:, :3])


@pytest.mark.parametrize("m", [1, 2, 5])
def test_with_all_places_at_once_it_finds_the_best_of_all_texts(m: int) -> None:
    """Brute force over every text: five places, all combinations, one gradient."""
    x, neighbors = drawn(6), table()
    model = loud(text_cnn(vocabulary=V, embedding=4, channels=6, seed=1))
    y = model(x).argmax(dim=1)
    result = paraphrase(
        Victim(model, domain=DOMAIN), x, y, neighbors=neighbors, changes=m, kappa=1e6, combinations=10**4
    )
    for i, words in enumerate(words_for(x, neighbors)):
        texts = torch.tensor(every_text(x[i].tolist(), words, m))
        logits = model(texts).detach()
        margin = logits[:, y[i]] - logits[:, 1 - y[i]]
        found = model(result.x_adv[i : i + 1]).detach()
        assert float(found[0, y[i]] - found[0, 1 - y[i]]) == pytest.approx(float(margin.min()), abs=1e-9)
        assert int(result.queries[i]) == 2 + len(texts) - 1, "x twice, with its gradient, and every other text once"
        assert int(result.gradients[i]) == 1


def test_what_changes_are_neighbors_within_the_budget_and_the_language() -> None:
    x, neighbors = drawn(40, seed=3, length=9), table(3)
    language = Trigrams(drawn(60, seed=4, length=9), vocabulary=V)
    model = loud(text_bag(vocabulary=V, embedding=4, seed=2))
    victim = Victim(model, domain=DOMAIN)
    plain, strict = (
        paraphrase(victim, x, neighbors=neighbors, changes=0.4, language=l, max_change=0.4) for l in (None, language)
    )
    moved = strict.x_adv != x
    assert bool((moved.sum(dim=1) <= ((x > 1).sum(dim=1) * 0.4).ceil()).all())
    assert bool((neighbors[x] == strict.x_adv[:, :, None]).any(dim=2)[moved].all())
    by = language.changes(x, strict.x_adv[:, :, None])[:, :, 0]
    assert float(by[moved].abs().max()) <= 0.4 and 0 < int(strict.success.sum()) <= int(plain.success.sum())
    assert not bool(moved[x <= 1].any()) and bool((plain.x_adv[x > 1] > 1).all())


@pytest.mark.parametrize("build", [text_cnn, text_lstm, text_bag])
def test_the_gradient_is_that_of_finite_differences(build: Callable[..., nn.Module]) -> None:
    """Of words that stand once in their text, whose vectors can be moved in the table."""
    model = loud(build(vocabulary=V, embedding=3, seed=5), 2.0)
    x, g, h = torch.tensor([[2, 5, 9, 13, 7]]), attacker_loss("margin"), 1e-6
    y = model(x).argmax(dim=1)
    with Victim(model, domain=DOMAIN).session(x, y, domain=Tokens) as session:
        grad = gradient_at(session, session.live(), x, model.embed, g).grad[0]  # type: ignore[arg-type]
    table = model.embed.weight.data  # type: ignore[union-attr]
    for place, token in enumerate(x[0].tolist()):
        for k in range(3):
            ends = []
            for side in (h, -h):
                table[token, k] += side
                ends.append(float(g(model(x), y).detach()))
                table[token, k] -= side
            assert float(grad[place, k]) == pytest.approx((ends[0] - ends[1]) / (2 * h), abs=1e-4)
    assert not model.embed._forward_hooks and all(p.requires_grad for p in model.parameters())  # type: ignore[union-attr]


def test_the_gradient_chooses_the_places() -> None:
    """With one place per gradient only the word of the largest one is ever tried, and each place once."""
    model = loud(text_bag(vocabulary=V, embedding=3, seed=8))
    x, neighbors = drawn(5, seed=9), table()
    with torch.no_grad():  # a place counts by its vector's slope, which is the same everywhere but for a word's factor
        scale = torch.linspace(1, 2, V, dtype=torch.float64)[:, None]
    wide = nn.Sequential(model.embed, _Scale(scale, x), _Sum(model.out))  # type: ignore[arg-type]
    seen = Counting(wide)
    result = paraphrase(Victim(seen, domain=DOMAIN), x[1:2], neighbors=neighbors, positions=1, changes=1, kappa=1e6)
    assert int(result.queries[0]) == seen.forwards and int(result.gradients[0]) == seen.backwards
    changed = (result.x_adv != x[1:2]).nonzero()[:, 1].tolist()
    order = wide[1].factor[1].argsort(descending=True).tolist()
    assert changed and int(result.gradients[0]) == order.index(changed[0]) + 1


class _Scale(nn.Module):
    """Vectors times a factor for each place, none of which is equal to another."""

    def __init__(self, scale: Tensor, x: Tensor) -> None:
        super().__init__()
        self.factor = torch.stack([torch.tensor([3.0, 1.0, 5.0, 2.0, 4.0]).double()] * len(x))

    def forward(self, e: Tensor) -> Tensor:
        return e * self.factor[: len(e), :, None] if len(e) <= len(self.factor) else e * self.factor[:1, :, None]


class _Sum(nn.Module):
    def __init__(self, out: nn.Module) -> None:
        super().__init__()
        self.out = out

    def forward(self, e: Tensor) -> Tensor:
        return self.out(e.sum(dim=1))


# The theorem ---------------------------------------------------------------------------------------------------------


class WordCNN(nn.Module):
    """Σ_f w_f max_i φ_f(x_i), w ≥ 0: a convolution whose windows are single words, and the maximum over places.

    Token 2 + 2i may become 3 + 2i, whose features are all at least as large.
    """

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        features = torch.rand(V, 6, generator=generator, dtype=torch.float64)
        features[3::2] = features[2::2] + torch.rand(V // 2 - 1, 6, generator=generator, dtype=torch.float64) ** 4
        self.embed = nn.Embedding.from_pretrained(features)
        self.weight = torch.rand(6, generator=generator, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).amax(dim=1) @ self.weight


class ConcaveRNN(nn.Module):
    """h_t = φ(w·h_{t−1} + e(x_t)), φ(a) = 1 − exp(−a), concave and growing, w > 0: one unit. Growth as above."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        drive = torch.rand(V, 1, generator=generator, dtype=torch.float64)
        drive[3::2] = drive[2::2] + 2 * torch.rand(V // 2 - 1, 1, generator=generator, dtype=torch.float64)
        self.embed, self.weight = nn.Embedding.from_pretrained(drive), 0.9

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(len(x), dtype=torch.float64)
        for e in self.embed(x)[:, :, 0].unbind(dim=1):
            h = 1 - torch.exp(-(self.weight * h + e))
        return h


class Pairs(nn.Module):
    """A window of two words behind a threshold that one new word alone does not pass."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        drive = torch.zeros(V, 1, dtype=torch.float64)
        drive[3::2] = 1.0
        self.embed = nn.Embedding.from_pretrained(drive)

    def forward(self, x: Tensor) -> Tensor:
        e = self.embed(x)[:, :, 0]
        return (e[:, 1:] + e[:, :-1] - 1.5).relu().amax(dim=1)


X = torch.tensor([[2, 4, 6, 8, 10, 12]])
UP = torch.tensor([[i + 1] if i > 1 and i % 2 == 0 else [-1] for i in range(V)])


def values(model: nn.Module) -> dict[frozenset[int], float]:
    """f(S) for every set of changed places."""
    sets = [frozenset(s) for k in range(7) for s in itertools.combinations(range(6), k)]
    texts = torch.stack([torch.tensor([t + (i in s) for i, t in enumerate(X[0].tolist())]) for s in sets])
    return dict(zip(sets, model(texts).tolist(), strict=True))


def is_submodular(f: dict[frozenset[int], float]) -> bool:
    """Each place adds at least as much to a set as to any larger one, and never takes away."""
    pairs = [(s, t) for s in f for t in f if s <= t]
    gains = [(f[s | {i}] - f[s], f[t | {i}] - f[t]) for s, t in pairs for i in set(range(6)) - t]
    return all(small >= large - 1e-12 and large >= -1e-12 for small, large in gains)


@pytest.mark.parametrize("build", [WordCNN, ConcaveRNN])
def test_greedy_keeps_its_guarantee_where_the_theorem_holds(build: Callable[[int], nn.Module]) -> None:
    """Nemhauser, Wolsey and Fisher (1978), on nets for which submodularity itself is tested over all sets."""
    worst, guided = 1.0, 1.0
    for seed in range(4):
        model = build(seed)
        f = values(model)
        assert is_submodular(f)
        told: dict[str, Any] = {"neighbors": UP, "loss": never}
        for m in (1, 2, 3, 4):
            best = max(value for s, value in f.items() if len(s) <= m) - f[frozenset()]
            victim = Victim(Scored(model), domain=DOMAIN)
            greedy = word_substitution(victim, X, torch.tensor([0]), search="greedy", changes=m, **told)
            by_gradient = paraphrase(victim, X, torch.tensor([0]), positions=1, changes=m, **told)
            shares = [(float(model(r.x_adv)) - f[frozenset()]) / best for r in (greedy, by_gradient)]
            assert 1 - 1 / math.e <= shares[0] <= 1 + 1e-9
            worst, guided = min(worst, shares[0]), min(guided, shares[1])
    if build is WordCNN:
        assert guided < 1 - 1 / math.e, (
            "the gradient, which sees the winners of the maximum alone, has no such guarantee"
        )


def test_a_window_of_two_words_is_not_submodular_and_greedy_finds_nothing() -> None:
    model = Pairs(0)
    f = values(model)
    assert not is_submodular(f) and max(value for s, value in f.items() if len(s) <= 2) == 0.5
    told: dict[str, Any] = {"neighbors": UP, "loss": never, "changes": 2}
    victim, y = Victim(Scored(model), domain=DOMAIN), torch.tensor([0])
    assert torch.equal(word_substitution(victim, X, y, search="greedy", **told).x_adv, X)
    assert float(model(paraphrase(victim, X, y, positions=6, **told).x_adv)) == 0.5


# The other searches --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> nn.Module:
    return loud(text_cnn(vocabulary=V, embedding=4, channels=6, seed=1))


def by_hand(model: nn.Module, x: list[int], y: int, words: list[list[int]], m: int, search: str) -> list[int]:
    """Greedy and TextFooler, one text at a time, from their definitions."""

    def margin(text: list[int]) -> float:
        logits = model(torch.tensor([text]))[0].detach()
        return float((logits[y] - logits[1 - y]).detach())

    text, open_ = list(x), [i for i in range(len(x)) if words[i]]
    if margin(text) <= 0:
        return text
    rank = sorted(open_, key=lambda i: margin(x[:i] + x[i + 1 :] + [0]))
    while m and open_ and margin(text) > 0:
        if search == "greedy":
            tried = [(margin([*text[:i], w, *text[i + 1 :]]), i, w) for i in open_ for w in words[i]]
        else:
            i = rank.pop(0)
            tried = [(margin([*text[:i], w, *text[i + 1 :]]), i, w) for w in words[i]]
            open_.remove(i)
        fooling = [t for t in tried if t[0] < 0]
        value, i, word = fooling[0] if fooling else min(tried, key=lambda t: t[0])
        if value < margin(text):
            text[i], m = word, m - 1
            if search == "greedy":
                open_.remove(i)
        elif search == "greedy":
            break
    return text


@pytest.mark.parametrize("search", ["greedy", "importance"])
def test_searches_are_those_of_their_definitions(reader: nn.Module, search: Any) -> None:
    x, neighbors = drawn(12, seed=5), table()
    y = reader(x).argmax(dim=1)
    result = word_substitution(Victim(reader, domain=DOMAIN), x, y, neighbors=neighbors, search=search, changes=3)
    for i, words in enumerate(words_for(x, neighbors)):
        assert result.x_adv[i].tolist() == by_hand(reader, x[i].tolist(), int(y[i]), words, 3, search), i
    assert 0 < int(result.success.sum()) < 12


@pytest.mark.parametrize("search", SEARCHES)
def test_each_search_keeps_to_its_rules_and_to_its_own_row(reader: nn.Module, search: Any) -> None:
    x, neighbors, seen = drawn(16, seed=6), table(), Counting(reader)
    y = reader(x).argmax(dim=1)
    y[3:6] = 1 - y[3:6]  # done before it begins
    told: dict[str, Any] = {"neighbors": neighbors, "search": search, "changes": 2, "queries": 60, "seed": 4}
    result = word_substitution(Victim(seen, domain=DOMAIN), x, y, ids=torch.arange(16) + 7, **told)
    moved = result.x_adv != x
    assert int(moved.sum(dim=1).max()) <= 2 and bool((neighbors[x] == result.x_adv[:, :, None]).any(dim=2)[moved].all())
    assert (
        int(result.queries.sum()) == seen.forwards and bool(result.success[3:6].all()) and int(result.success.sum()) > 4
    )
    for i in (0, 4, 9):
        alone = word_substitution(
            Victim(reader, domain=DOMAIN), x[i : i + 1], y[i : i + 1], ids=torch.tensor([i + 7]), **told
        )
        assert torch.equal(alone.x_adv[0], result.x_adv[i]) and int(alone.queries) == int(result.queries[i])
        assert int(alone.first_success) == int(result.first_success[i])
    budget = word_substitution(Victim(reader, domain=DOMAIN, budget=9), x, y, ids=torch.arange(16) + 7, **told)
    assert int(budget.queries.max()) <= 9


# Sentences -----------------------------------------------------------------------------------------------------------


def test_sentences_are_changed_one_by_one_to_the_best_way_of_saying_them(reader: nn.Module) -> None:
    """Algorithm 2 by hand: two sentences, three ways each, of several lengths."""
    ways = torch.tensor([
        [[[2, 5, -1], [3, -1, -1], [7, 8, 9]], [[6, 4, -1], [11, 12, -1], [2, 2, 2]]],
        [[[9, 9, 3], [4, 4, -1], [-1, -1, -1]], [[5, -1, -1], [-1, -1, -1], [-1, -1, -1]]],
    ])  # fmt: skip
    first = torch.zeros(2, 2, dtype=torch.int64)
    x, fits = assembled(ways, first, 5, 0)
    assert x.tolist() == [[2, 5, 6, 4, 0], [9, 9, 3, 5, 0]] and bool(fits.all())
    assert not bool(assembled(ways[:1], torch.tensor([[2, 2]]), 5, 0)[1]), "six words have no room"
    y = reader(x).argmax(dim=1)
    none = torch.full((V, 1), -1)
    told: dict[str, Any] = {"neighbors": none, "sentences": ways, "sentence_changes": 1.0, "kappa": 1e6}
    result = paraphrase(Victim(reader, domain=DOMAIN), x, y, **told)

    def value(i: int, choice: tuple[int, int]) -> float:
        text, fit = assembled(ways[i : i + 1], torch.tensor([choice]), 5, 0)
        logits = reader(text)[0]
        return float(logits[y[i]] - logits[1 - y[i]]) if bool(fit) else math.inf

    for i, sizes in enumerate(((3, 3), (2, 1))):
        at = (0, 0)
        for _ in range(2):
            single = [(k, at[1]) for k in range(1, sizes[0]) if not at[0]] + [
                (at[0], k) for k in range(1, sizes[1]) if not at[1]
            ]
            better = min(single, key=lambda c: value(i, c), default=at)
            at = better if value(i, better) < value(i, at) else at
        assert result.x_adv[i].tolist() == assembled(ways[i : i + 1], torch.tensor([at]), 5, 0)[0][0].tolist()
    with pytest.raises(ValueError, match=r"^sentences: "):
        paraphrase(Victim(reader, domain=DOMAIN), x.flip(1), y, **told)


def test_a_sentence_is_changed_once(reader: nn.Module) -> None:
    """By hand on drawn ways of saying three, where the third step would often be better by changing the first again."""
    ways = torch.randint(2, V, (30, 3, 4, 2), generator=torch.Generator().manual_seed(3))
    x = ways[:, :, 0].flatten(1)
    y = reader(x).argmax(dim=1)
    told: dict[str, Any] = {"sentences": ways, "sentence_changes": 1.0, "kappa": 1e6}
    result = paraphrase(Victim(reader, domain=DOMAIN), x, y, neighbors=torch.full((V, 1), -1), **told)
    for i in range(30):
        texts = {c: torch.cat([ways[i, j, c[j]] for j in range(3)]) for c in itertools.product(range(4), repeat=3)}
        logits = reader(torch.stack(list(texts.values()))).detach()
        value = dict(zip(texts, (logits[:, y[i]] - logits[:, 1 - y[i]]).tolist(), strict=True))
        at = (0, 0, 0)
        for _ in range(3):
            near = [c for c in texts if sum(a != b for a, b in zip(c, at, strict=True)) == 1]
            better = min(
                (c for c in near if all(b in (0, k) for k, b in zip(c, at, strict=True))), key=value.__getitem__
            )
            if value[better] >= value[at]:
                break
            at = better
        assert result.x_adv[i].tolist() == texts[at].tolist(), i


def test_ways_of_saying_come_from_rules_and_from_questions_of_the_same_intent() -> None:
    pool = ["how do i find my card", "where is my card", "my card is lost , help"]
    asked = ["how do i track my card ? it's late ."]
    vocabulary = Vocabulary.of([*pool, *asked, "can it is"], least=1)
    ways = sentence_paraphrases(asked, vocabulary, length=14, similar=0.5)
    said = [[[vocabulary.words[t] for t in way if t >= 0] for way in part] for part in ways[0].tolist()]
    assert ["how", "can", "i", "track", "my", "card", "?"] in said[0] and ["it", "is", "late", "."] in said[1]
    assert said[0][0] == ["how", "do", "i", "track", "my", "card", "?"]
    labeled = sentence_paraphrases(
        asked, vocabulary, length=14, similar=-1.0, labels=torch.tensor([0]), pool=(pool, torch.tensor([0, 0, 1]))
    )
    said = [[vocabulary.words[t] for t in way if t >= 0] for way in labeled[0, 0].tolist()]
    assert pool[0].split() in said and pool[1].split() in said and pool[2].split() not in said
    with pytest.raises(ValueError, match=r"^pool: "):
        sentence_paraphrases(asked, vocabulary, length=9, labels=torch.tensor([0]))


# Training, and what is wrong -----------------------------------------------------------------------------------------


def test_augmentation_adds_what_fools_with_its_true_label(reader: nn.Module) -> None:
    x = drawn(60, seed=11)
    y = reader(x).argmax(dim=1)
    y[:10] = 1 - y[:10]
    more, labels = augmented_by_paraphrases(
        Victim(reader, domain=DOMAIN), (x, y), neighbors=table(), share=0.5, changes=3, seed=2
    )
    new, told = more[60:], labels[60:]
    assert torch.equal(more[:60], x) and torch.equal(labels[:60], y) and 0 < len(new) <= 30
    assert bool((reader(new).argmax(dim=1) != told).all())
    near = [[int((row != other).sum()) <= 3 and int(a) == int(b) for other, b in zip(x, y, strict=True)]
            for row, a in zip(new, told, strict=True)]  # fmt: skip
    assert all(map(any, near))


@pytest.mark.parametrize("attack", [paraphrase, word_substitution])
def test_texts_with_nothing_to_change_come_back(reader: nn.Module, attack: Callable[..., Any]) -> None:
    """One word, no word, unknown words alone, and a table without any neighbor."""
    x = torch.tensor([[5, 0, 0], [0, 0, 0], [1, 1, 1], [4, 5, 6]])
    y = reader(x).argmax(dim=1)
    result = attack(Victim(reader, domain=DOMAIN), x, y, neighbors=table(), changes=3)
    assert torch.equal(result.x_adv[1:3], x[1:3]) and not bool(result.success[1:3].any())
    for empty in (torch.full((V, 2), -1), torch.empty(V, 0, dtype=torch.int64)):
        result = attack(Victim(reader, domain=DOMAIN), x, y, neighbors=empty)
        assert torch.equal(result.x_adv, x) and not bool(result.success.any()) and int(result.queries.max()) == 1


@pytest.mark.parametrize("attack", [paraphrase, word_substitution])
def test_bad_input(reader: nn.Module, attack: Callable[..., Any]) -> None:
    x, good, seen = drawn(3), table(), Counting(reader)
    victim = Victim(seen, domain=DOMAIN)
    wrong: list[tuple[str, dict[str, Any]]] = [
        ("x", {"x": torch.where(x == x[1, 1], V, x)}),
        ("neighbors", {"neighbors": good.double()}),
        ("neighbors", {"neighbors": good[:-1]}),
        ("neighbors", {"neighbors": good + 9}),
        ("changes", {"changes": 1.5}),
        ("changes", {"changes": -1}),
        ("max_change", {"max_change": -1.0}),
    ]
    if attack is paraphrase:
        wrong += [
            ("positions", {"positions": 9}),
            ("combinations", {"combinations": 0}),
            ("layer", {"layer": "nothing"}),
        ]
        wrong += [("layer", {"layer": nn.Embedding(2, 2)})]
    else:
        wrong += [("search", {"search": "luck"}), ("queries", {"queries": 0})]
    for name, changes in wrong:
        with pytest.raises((ValueError, TypeError), match=f"^{name}: "):
            attack(victim, changes.pop("x", x), **{"neighbors": good, **changes})
    assert seen.calls == 0
    with pytest.raises(ValueError, match=r"^layer: "):
        paraphrase(Victim(nn.Sequential(nn.Flatten()), domain=DOMAIN), x, neighbors=good)


def test_shares_of_words_are_rounded_up() -> None:
    movable = torch.tensor([[True] * 10, [True] + [False] * 9, [False] * 10])
    assert allowed_changes(0.2, movable).tolist() == [2, 1, 0] and allowed_changes(3, movable).tolist() == [3, 1, 0]
    assert allowed_changes(0.21, movable).tolist() == [3, 1, 0] and allowed_changes(0.0, movable).tolist() == [0, 0, 0]
    x = torch.tensor([[3, 4, 5]])
    words = torch.tensor([[[6, -1], [7, 8], [9, -1]]])
    moved = substituted(x, words, torch.tensor([[2, 1]]), torch.tensor([[[0, 2], [1, 0], [1, 1]]]))
    assert moved[0].tolist() == [[3, 8, 5], [3, 4, 9], [3, 7, 9]]
