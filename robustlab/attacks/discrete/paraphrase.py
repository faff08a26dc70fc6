"""Paraphrases, first of sentences and then of words, that make a classifier of texts change its mind.

Lei, Wu, Chen, Dimakis, Dhillon and Witbrock, "Discrete adversarial attacks and submodular optimization with
applications to text classification" (2019): algorithm 1 (joint), 2 (sentences) and 3 (words, gradient-guided greedy). A
text of n words may become any text in which at most m words stand for others,

    minimize_l g(model(x^l))  subject to  x_i^l ∈ {x_i} ∪ W_i,  #{i : x_i^l ≠ x_i} ≤ m,

over the neighbors W_i of each word. The set function f(S) = max −g over changes inside the places S is monotone and
submodular for some simple nets, for which greedy reaches 1 − 1/e of the optimum; the gradient only guides, and carries
no such guarantee.

Different here: a place is tried once, as in the paper's published code, but also where fewer than five places are open;
the bound m is never passed; combinations are asked in the order of their number of changes, up to ``combinations``; the
margin is the loss by default, which ranks places as the cross-entropy does where there are two classes, and does not
saturate. The termination threshold τ on a probability of two classes is κ = log(τ/(1 − τ)), 0.85 for the paper's 0.7.
"""

from __future__ import annotations

from torch import Tensor, nn

from robustlab import checks
from robustlab.attacker.domain import Tokens
from robustlab.attacker.live import Best
from robustlab.attacker.losses import LossFunction, LossName, attacker_loss
from robustlab.attacker.results import AttackResult
from robustlab.attacker.tokens import ask_some, embedding_layer, gradient_at
from robustlab.attacker.victim import Model
from robustlab.attacks.discrete.sentence_search import by_sentences, check_sentences
from robustlab.attacks.discrete.substitutes import enumerated, substituted, substitutes
from robustlab.attacks.discrete.word_search import Language, begun, take_best, victim_of_tokens
from robustlab.progress import bar


def paraphrase(
    victim: Model,
    x: Tensor,
    y: Tensor | None = None,
    *,
    neighbors: Tensor,
    sentences: Tensor | None = None,
    changes: int | float = 0.2,
    sentence_changes: float = 0.2,
    language: Language | None = None,
    max_change: float = 2.0,
    positions: int = 5,
    combinations: int = 512,
    layer: nn.Module | str | None = None,
    loss: LossName | LossFunction = "margin",
    kappa: float = 0.0,
    target: int | Tensor | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    progress: bool = False,
) -> AttackResult:
    """Change sentences, then words, until the classifier errs: gradient-guided greedy search over paraphrases.

        x ← argmin over s, k of g(x with paraphrase k of sentence s),    one sentence after the other; then repeat
        I ← the ``positions`` open places of largest ‖∂g/∂e_i‖²,          e_i the vector of word i
        x ← argmin of g over all x' that differ from x in I alone, x'_i ∈ W_i; I is closed

    Args:
        victim: a Victim of the domain ``Tokens``, or a model of tokens in 0 … V − 1, of which 0, the padding, and 1,
            the unknown, may not be changed nor come in. White access: the gradient at its embeddings is needed.
        x: (N, T) int64 token ids.
        y: (N,) labels; None takes the model's own prediction.
        neighbors: (V, K) int64, the tokens that may stand for each token, −1 where there are no more;
            :func:`robustlab.data.synonyms` makes them, with its filter by embedding distance.
        sentences: (N, S, M, L) int64, the ways of saying each sentence of each text, of which the first is its own,
            with −1 behind the end, as :func:`robustlab.attacks.sentence_paraphrases` makes them; None leaves sentences
            alone. What makes a text longer than T is not tried.
        changes: m, how many words may be changed: an integer, or a share λ_w of the words in [0, 1], rounded up.
        sentence_changes: λ_s, the share of a text's sentences that may be changed, rounded up.
        language: a model whose log-probability of the text must not change by more than ``max_change`` per word; None
            is no filter.
        max_change: δ in nats, of the three words that a trigram model reads a word in; default 2.
        positions: N, places that one gradient chooses, in 1 … 8; default 5.
        combinations: most combinations to ask about per gradient, those of fewest changes first; default 512.
        layer: the module that turns tokens into vectors, or its name; None is the model's first ``nn.Embedding``.
        loss: the attacker's loss g, default ``"margin"``.
        kappa: κ ≥ 0, the margin at which to stop.
        target: a label, or one per sample, for the targeted attack.
        seed, ids: as of all attacks; nothing is drawn here.
        progress: show a bar in a terminal.

    Returns:
        AttackResult, of distance ``"tokens"``: places in which two texts differ. Each combination costs one query, each
        choice of places one query and one gradient. Where the attack fails it has the text of smallest loss. A word
        without neighbors, and so a text without any, stays as it is.

    Raises:
        ValueError, TypeError: for a wrong argument, before any work.

    Source:
        Lei et al. (2019), algorithms 1 to 3. Departures: see the module.
    """
    g, victim = attacker_loss(loss), victim_of_tokens(victim, neighbors, changes)
    checks.at_least("positions", positions, 1, integer=True)
    checks.at_most("positions", positions, 8)
    checks.at_least("combinations", combinations, 1, integer=True)
    checks.at_least("max_change", max_change, 0.0)
    module = embedding_layer(victim.model, layer)
    if sentences is not None:
        check_sentences(sentences, x, victim.domain, sentence_changes)
    with victim.session(x, y, target=target, ids=ids, kappa=kappa, loss=g, domain=Tokens) as session:
        live, best = begun(session, changes, seed), Best(session)
        if sentences is not None:
            by_sentences(session, live, best, g, sentences, sentence_changes)
        live.words = substitutes(session, live.points, neighbors, language, max_change)  # (n, T, K), −1 behind the last
        live.open = (live.words >= 0).any(dim=2)
        rounds = -(-session.x.shape[1] // positions)
        for _ in bar(range(rounds), show=progress, label="paraphrase"):
            live.keep(live.open.any(dim=1) & (live.left > 0))
            live.keep(session.can_pay(live))
            if not len(live):
                break
            answer = gradient_at(session, live, live.points, module, g)
            best.keep(live, live.points, answer.loss.double())
            importance = answer.grad.flatten(2).square().sum(dim=2).masked_fill(~live.open, -1.0)
            place = importance.argsort(dim=1, descending=True, stable=True)[:, :positions]
            sizes = (live.words >= 0).sum(dim=2).gather(1, place) * live.open.gather(1, place)
            told = enumerated(sizes, live.left, combinations)
            tried = substituted(live.points, live.words, place, told.choice)
            asked = ask_some(session, live, tried, told.exists, g)
            before = live.points
            take_best(live, tried, asked.loss, asked.met, answer.loss.double())
            best.keep(live, live.points, live.value)
            live.left = live.left - (live.points != before).sum(dim=1)
            live.open = live.open.scatter(1, place, False)
            live.leave(live.met)
        return session.result(best.points, asked=True)
