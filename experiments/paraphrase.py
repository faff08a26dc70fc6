"""Chapter 14: how often words of the same meaning make three kinds of net err, and at what price.

A row is one network and one search, with a filter or without. All searches share the table of synonyms and the bound of
a fifth of the words; success counts texts that were read rightly before. "Judge" is the share of the successes in which
a second, independent model, naive Bayes on words and pairs, changes its mind about the text as well. The rows of
"augmented" retrain the recipe on paraphrases that fool the network, and attack what comes out as the other rows do;
their control is retrained on the same texts with as many words changed, in places and to words of the table that chance
draws.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from experiments import nets
from experiments.record import Experiment
from robustlab.attacker.domain import Tokens
from robustlab.attacker.results import AttackResult
from robustlab.attacker.victim import Victim, predict
from robustlab.attacks import augmented_by_paraphrases, paraphrase, sentence_paraphrases, word_substitution
from robustlab.attacks.discrete.substitutes import changed_at_random
from robustlab.data import Dataset, load_texts, load_tokens, synonyms, vocabulary_of
from robustlab.data.texts import LENGTHS
from robustlab.geometry.keyed import Noise
from robustlab.intervals import Rate
from robustlab.models import NaiveBayes
from robustlab.models.ngram import Trigrams
from robustlab.zoo.recipes import recipe
from robustlab.zoo.training import train

KINDS = ("cnn", "lstm", "bag")
NETS = tuple(f"{text}_{kind}" for text in ("polarity", "banking") for kind in KINDS)
SEEDS = (*NETS, *(f"polarity_{kind}-{seed}" for kind in KINDS for seed in (1, 2)))
SEARCHES = ("gradient", "greedy", "importance", "random", "genetic")
TEXTS = 200


@cache
def material(name: str) -> dict[str, Any]:
    """Test texts, their tables of words and sentences, the language model and the judge."""
    data, vocabulary = load_tokens(name), vocabulary_of(name)
    texts, few = load_texts(name), load_texts(name).texts_test[:TEXTS]
    pool = {"labels": texts.y_test[:TEXTS], "pool": (texts.texts_train, texts.y_train)} if name == "banking77" else {}
    return {
        "data": data, "x": data.x_test[:TEXTS], "y": data.y_test[:TEXTS], "size": len(vocabulary),
        "synonyms": synonyms(vocabulary), "unfiltered": synonyms(vocabulary, similar=-1.0),
        "neighbors": synonyms(vocabulary, by="vectors", similar=0.5),
        "sentences": sentence_paraphrases(few, vocabulary, length=LENGTHS[name], **pool),
        "language": Trigrams(data.x_train, vocabulary=len(vocabulary)),
        "judge": NaiveBayes(data.x_train, data.y_train, vocabulary=len(vocabulary), classes=len(data.classes)),
    }  # fmt: skip


def attacked(model: nn.Module, given: dict[str, Any], search: str, filters: str) -> AttackResult:
    """One search on the first test texts."""
    victim = Victim(model, domain=Tokens(given["size"], fixed=(0, 1)))
    table = {"none": "unfiltered", "vectors": "neighbors"}.get(filters, "synonyms")
    told: dict[str, Any] = {"neighbors": given[table], "changes": 0.2}
    if filters in ("both", "sentences"):
        told["language"] = given["language"]
    if filters == "sentences":
        told["sentences"] = given["sentences"]
    x, y = given["x"], given["y"]
    if search == "gradient":
        return paraphrase(victim, x, y, **told)
    return word_substitution(victim, x, y, search=search, **told)  # type: ignore[arg-type]  # one of SEARCHES


def counted(model: nn.Module, given: dict[str, Any], result: AttackResult) -> dict[str, Rate | float]:
    """Success among the texts that were right, its price, and what the judge says."""
    right = predict(model, given["x"]) == given["y"]
    won = result.success & right
    before, after = (given["judge"](x).argmax(dim=1) for x in (given["x"], result.x_adv))
    found: dict[str, Rate | float] = {
        "right before": Rate.of(right),
        "success": Rate.of(result.success[right]),
        "queries": mean(result.queries[right]),
        "gradients": mean(result.gradients[right]),
    }
    if bool(won.any()):
        found["words changed"] = mean(result.distances["tokens"][won])
        found["judge changes"] = Rate.of((before != after)[won])
    return found


def mean(values: Tensor) -> float:
    return float(values.double().mean())


def measure(net: str, search: str, filters: str) -> dict[str, Rate | float]:
    """One row."""
    given = material("sentence_polarity" if net.startswith("polarity") else "banking77")
    model = nets.load(net)[0]
    if search != "augmented":
        return counted(model, given, attacked(model, given, search, filters))
    base, _, seed = net.partition("-")
    data: Dataset = given["data"]
    victim = Victim(model, domain=Tokens(given["size"], fixed=(0, 1)))
    x, y = augmented_by_paraphrases(victim, data, neighbors=given["synonyms"], share=0.5, combinations=64)
    made_by = replace(recipe(base), seed=int(seed or 0))
    taught = train(made_by, dataset=replace(data, x_train=x, y_train=y))
    n = len(data.x_train)
    drawn = torch.cat([data.x_train, by_chance(x[n:], data.x_train, given["synonyms"])])
    control = train(made_by, dataset=replace(data, x_train=drawn, y_train=y))
    found: dict[str, Rate | float] = {"added": float(len(x) - n)}
    for name, other in (("plain", model), ("taught", taught), ("control", control)):
        found[f"{name}: accuracy"] = Rate.of(predict(other, data.x_test) == data.y_test)
        shown = counted(other, given, attacked(other, given, "gradient", filters))
        found |= {f"{name}: {key}": value for key, value in shown.items() if key in ("success", "queries")}
    return found


def by_chance(paraphrases: Tensor, texts: Tensor, table: Tensor) -> Tensor:
    """The texts (N, T) that paraphrases (n, T) were made of, with as many words changed, where and to what is drawn."""
    x = texts[torch.cdist(paraphrases.double(), texts.double(), p=0).argmin(dim=1)]  # the nearest by changed words
    words, noise = table[x], Noise(0, torch.arange(len(x)))
    return changed_at_random(x, words, (words >= 0).any(dim=2), (paraphrases != x).sum(dim=1), noise, ())


EXPERIMENT = Experiment(
    name="paraphrase",
    question="How often do paraphrases fool a classifier of texts, and what do search, filter and training change?",
    cases=[
        *({"net": net, "search": search, "filters": "synonyms"} for net in SEEDS for search in SEARCHES),
        *(
            {"net": net, "search": "gradient", "filters": filters}
            for net in NETS
            for filters in ("none", "both", "sentences", "vectors")
        ),
        *({"net": net, "search": "augmented", "filters": "synonyms"} for net in SEEDS),
    ],
    measure=measure,
    n={"texts": TEXTS, "networks": len(SEEDS)},
    seeds=[0, 1, 2],
    data=["sentence_polarity", "banking77", "words"],
    nets=SEEDS,
    tolerance={
        "queries": 5.0, "gradients": 0.1, "words changed": 0.1, "added": 150.0,
        "plain: queries": 30.0, "taught: queries": 30.0, "control: queries": 30.0,
    },
)  # fmt: skip

if __name__ == "__main__":
    EXPERIMENT.main()
