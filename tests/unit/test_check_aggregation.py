"""The check of a server's rule: right makes pass, each slip gets its cause, and its rules are those of the library."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from robustlab.defenses import coordinate_median, krum, norm_clipping, trimmed_mean
from robustlab.teaching import check
from robustlab.teaching.check.aggregation import RIGHT, ROUNDS, SIZES, SLIPS, round_of
from tests.every import every
from tests.planted import cause_of, run

SOURCES = {
    "krum": """
def rule(u, B):
    squares = ((u[:, None] - u[None]) ** 2).sum(dim=2)
    near = squares.sort(dim=1).values[:, 1:len(u) - B - 1]
    return u[near.sum(dim=1).argmin()]
""",
    "trimmed mean": """
def rule(u, B):
    ordered = u.sort(dim=0).values
    return ordered[B:len(u) - B].mean(dim=0)
""",
    "median": """
def rule(u):
    ordered = u.sort(dim=0).values
    return (ordered[(len(u) - 1) // 2] + ordered[len(u) // 2]) / 2
""",
    "clipping": """
def rule(u, R):
    length = u.norm(dim=1, keepdim=True)
    return (u * (R / length).clamp(max=1)).mean(dim=0)
""",
}
WHOLE = "    return u.mean(dim=0)\n"  # before the first line of a rule
PLANTED = [
    ("krum", "a neighbor too many", "1:len(u) - B - 1", "1:len(u) - B"),
    ("krum", "a neighbor too few", "1:len(u) - B - 1", ":len(u) - B - 2"),
    ("krum", "the nearest neighbor alone", "1:len(u) - B - 1", "1:2"),
    ("krum", "all others count, not the nearest alone", "1:len(u) - B - 1", ":"),
    ("krum", "distances, not their squares", ".sum(dim=2)", ".sum(dim=2).sqrt()"),
    ("krum", "the farthest, not the nearest", "sort(dim=1).values[:, 1:", "sort(dim=1, descending=True).values[:, 1:"),
    ("krum", "the largest score, not the least", "argmin", "argmax"),
    ("krum", "multi-Krum", "argmin()]", "argsort()[:len(u) - B - 2]].mean(dim=0)"),
    ("krum", "the plain mean", "    squares =", WHOLE + "    squares ="),
    ("krum", "another rule", ") ** 2)", ").abs())"),
    ("krum", "wrong shape", "u[near.sum(dim=1).argmin()]", "near.sum(dim=1).argmin()"),
    ("krum", "u was changed in place", "    squares =", "    u -= 1\n    squares ="),
    ("trimmed mean", "the smallest stay", "[B:", "[0:"),
    ("trimmed mean", "the largest stay", "len(u) - B]", "len(u)]"),
    ("trimmed mean", "B numbers are dropped in all, not at each end", "[B:len(u) - B]", "[B // 2:len(u) - B + B // 2]"),
    ("trimmed mean", "whole clients are dropped, by their length", "u.sort(dim=0).values",
     "u[u.norm(dim=1).argsort()]"),
    ("trimmed mean", "whole clients are dropped, by their distance", "ordered[B:len(u) - B]",
     "u[(u - u.quantile(0.5, dim=0)).norm(dim=1).argsort()][:len(u) - 2 * B]"),
    ("trimmed mean", "numbers are sorted without sign", "u.sort(dim=0).values", "u.gather(0, u.abs().argsort(dim=0))"),
    ("trimmed mean", "sorted within each client", "sort(dim=0)", "sort(dim=1)"),
    ("trimmed mean", "not sorted", "u.sort(dim=0).values", "u"),
    ("trimmed mean", "divided by m", ".mean(dim=0)", ".sum(dim=0) / len(u)"),
    ("trimmed mean", "a sum, not a mean", ".mean(dim=0)", ".sum(dim=0)"),
    ("trimmed mean", "the median", "[B:len(u) - B]", "[(len(u) - 1) // 2:len(u) // 2 + 1]"),
    ("trimmed mean", "the plain mean", "[B:len(u) - B]", ""),
    ("median", "the lower of two middle numbers", "    ordered =", "    return u.median(dim=0).values\n    ordered ="),
    ("median", "the upper of two middle numbers", "(len(u) - 1) // 2", "len(u) // 2"),
    ("median", "one client's update", "    ordered =",
     "    return u[torch.cdist(u, u).sum(dim=1).argmin()]\n    ordered ="),
    ("median", "not sorted", "u.sort(dim=0).values", "u"),
    ("median", "one number for all coordinates", "    ordered =",
     "    return u.flatten().quantile(0.5).expand(u.shape[1])\n    ordered ="),
    ("median", "the plain mean", "    ordered =", WHOLE + "    ordered ="),
    ("median", "another rule", "u.sort(dim=0)", "u.sort(dim=1)"),
    ("clipping", "short updates are lengthened", ".clamp(max=1)", ""),
    ("clipping", "coordinates are clipped, not lengths", "(u * (R / length).clamp(max=1))", "u.clamp(-R, R)"),
    ("clipping", "the mean is clipped, not each update", "    length =",
     "    u = u.mean(dim=0, keepdim=True)\n    length ="),
    ("clipping", "a sum, not a mean", ".mean(dim=0)", ".sum(dim=0)"),
    ("clipping", "long updates count as zero", "(R / length).clamp(max=1)", "(length <= R)"),
    ("clipping", "long updates are left out", "    length =",
     "    u = u[u.norm(dim=1) <= R]\n    length ="),
    ("clipping", "lengths in ℓ1", "u.norm(dim", "u.norm(p=1, dim"),
    ("clipping", "lengths in ℓ∞", "u.norm(dim", "u.norm(p=torch.inf, dim"),
    ("clipping", "no root of the length", "keepdim=True)", "keepdim=True) ** 2"),
    ("clipping", "one factor for all clients", "(R / length).clamp(max=1)", "R / u.norm()"),
    ("clipping", "one factor for all clients", "dim=1, keepdim=True", ""),
    ("clipping", "the plain mean", "    length =", WHOLE + "    length ="),
    ("clipping", "a division by zero", "(u * (R / length).clamp(max=1))", "(u / length * length.clamp(max=R))"),
    ("clipping", "another rule", "(R / length)", "(2 * R / length)"),
]  # fmt: skip


def rule(name: str, *replaced: tuple[str, str]) -> Any:
    return run(SOURCES[name], *replaced)["rule"]


@every("name", SOURCES)
def test_a_right_rule_passes(name: str) -> None:
    for seed in (0, 1, 40):
        check.aggregation(rule(name), name, seed=seed)  # type: ignore[arg-type]


def test_the_library_passes_and_so_do_other_ways_to_write_a_rule() -> None:
    check.aggregation(lambda u, B: krum(u, f=B), "krum")
    check.aggregation(lambda u, B: trimmed_mean(u, f=B), "trimmed mean")
    check.aggregation(coordinate_median, "median")
    check.aggregation(lambda u: u.quantile(0.5, dim=0), "median")
    check.aggregation(lambda u, R: norm_clipping(u, bound=R), "clipping")
    with_itself = rule("krum", ("1:len(u) - B - 1", ":len(u) - B - 1"))  # adds a zero to each score
    check.aggregation(with_itself, "krum")
    check.aggregation(rule("krum", ("sum(dim=1).argmin", "mean(dim=1).argmin")), "krum")


@every("name, cause, old, new", PLANTED, label=str)
def test_each_slip_of_a_rule_is_named(name: str, cause: str, old: str, new: str) -> None:
    assert cause_of(check.aggregation, rule(name, (old, new)), name) == cause


def test_all_named_slips_are_planted_and_differ_from_each_other() -> None:
    for name, slips in SLIPS.items():
        assert {cause for _, cause, *_ in slips} <= {cause for other, cause, *_ in PLANTED if other == name}
        rounds = [round_of(size, bad, i) for size, bad in SIZES for i in range(ROUNDS)]
        ways = [RIGHT[name], *(made for made, *_ in slips)]
        outcomes = [torch.stack([made(*told).expand(3) for told in rounds]) for made in ways]
        for i, one in enumerate(outcomes):
            for other in outcomes[i + 1 :]:
                assert not torch.allclose(one, other, equal_nan=True), name


def test_the_rules_are_within_what_outliers_can_do() -> None:
    """The theorem on outliers: coordinates within the honest range, and a mean that B clients move by B·R/m at most."""
    for size, bad in SIZES:
        for seed in range(20):
            u, _, bound = round_of(size, bad, seed)
            longest = u.norm(dim=1).argsort()[size - bad :]
            kept = torch.ones(size, dtype=torch.bool).index_fill(0, longest, False)
            for name in ("median", "trimmed mean"):
                merged = RIGHT[name](u, bad, bound)
                assert bool(((u[kept].amin(0) <= merged) & (merged <= u[kept].amax(0))).all())
            silent = u * kept[:, None]
            moved = RIGHT["clipping"](u, bad, bound) - RIGHT["clipping"](silent, bad, bound)
            assert float(moved.norm()) <= bad * bound / size + 1e-9


def test_another_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="rule: want one of krum"):
        check.aggregation(coordinate_median, "mean")  # type: ignore[arg-type]
