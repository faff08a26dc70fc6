"""Chapter 05: four malicious clients who know the server's bound, against five rules of aggregation, round after round.

Clients, network, trigger and rules are those of :mod:`experiments.federated`: from the converged model on, four of
twelve pool their data in each round, train one model with the backdoor, and all send the same update toward it, no
longer than the bound, which is the median length of honest updates. Those that take whole updates run for ten rounds;
the coordinate-wise rules and clipping, which hold longer, for 25. A row is a data set, a rule and a division; it holds
main and backdoor accuracy after each round, and the backdoor's first rounds apart, which a chapter can repeat.
"""

from __future__ import annotations

from experiments.federated import SEEDS, SETS, TESTED, Pooled, aggregators, attacked, bound, curves
from experiments.record import Experiment

ROUNDS = {"Krum": 10, "multi-Krum": 10, "median": 25, "trimmed mean": 25, "clipping": 25}  # rounds for each rule
FIRST = 3


def measure(set: str, rule: str, seed: int) -> dict[str, list[float]]:
    """One row."""
    four, rounds = range(4), ROUNDS[rule]
    team = dict.fromkeys(four, Pooled(set, seed, four, bound=bound(set, seed), epochs=8, lower_every=4))
    when = {number: list(four) for number in range(rounds)}
    found = curves(attacked(set, seed, team, when, rounds, rule=aggregators(set, seed)[rule]))
    return found | {"first": found["backdoor"][:FIRST]}


EXPERIMENT = Experiment(
    name="bounded",
    question="How long does each rule of aggregation hold against four who know the server's bound?",
    cases=[{"set": name, "rule": rule, "seed": seed} for name in SETS for seed in SEEDS for rule in ROUNDS],
    measure=measure,
    n={"data sets": len(SETS), "divisions": len(SEEDS), "rounds": 10, "or": 25, "test pictures": TESTED},
    seeds=SEEDS,
    data=["fashion", "sign_digits32"],
    tolerance={"main": 0.1, "backdoor": 0.35, "first": 0.1},  # those of the rounds in experiments/federated.py
)

if __name__ == "__main__":
    EXPERIMENT.main()
