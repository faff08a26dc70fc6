"""Of 07, randomized smoothing."""

from __future__ import annotations

from tests.course.mutants import mutant

FOUND = "found = torch.from_numpy(beta.ppf(alpha, k.clamp(min=1).numpy(), (n - k.clamp(min=1) + 1).numpy()))"
BOUND = "return torch.where(k > 0, found, 0.0)"
RADIUS = "return (scale * torch.special.ndtri(p)).clamp(min=0)"
DRAWS = "first, second = labels(api, x, n0), labels(api, x, n)\n"
VOTES = "votes = (second == chosen[:, None]).sum(dim=1)\n"
LOWER = "bound = lower_bound(votes, n, alpha)\n"
SAID = "return torch.where(bound > 0.5, chosen, -1), radius(bound)"
ROWS = "rows = x.repeat_interleave(n, dim=0)"
CURVE = "return ((classes == y) & (radii >= at[:, None])).double().mean(dim=1)"
IN_CERTIFY = '    "Classes (N,), -1 for abstention, and radii (N,)."\n'
EACH = "[certify(api, x[i:i + 100], n0, n, alpha) for i in range(0, len(x), 100)]"
NORMAL = """share, z = k.double() / n, float(torch.special.ndtri(torch.tensor(alpha).double()))
    found = share + z * (share * (1 - share) / n).sqrt()"""
BISECTED = """low, high = torch.zeros(len(k)).double(), torch.ones(len(k)).double()
    ways = torch.lgamma(torch.tensor(n + 1.0).double())
    for _ in range(50):
        p = (low + high) / 2
        j = torch.arange(n + 1).double()
        each = ways - torch.lgamma(j + 1) - torch.lgamma(n - j + 1)
        each = each + j * p.log()[:, None] + (n - j) * (1 - p).log()[:, None]
        tail = (each.exp() * (j >= k[:, None])).sum(dim=1)
        low, high = torch.where(tail <= alpha, p, low), torch.where(tail <= alpha, high, p)
    found = low"""

MUTANTS = {
    "two-sided": mutant((FOUND, FOUND.replace("(alpha", "(alpha / 2")), lost="tail many power needed most"),
    "no bound": mutant((FOUND, "found = k.double() / n"), lost="tail many coverage power needed most"),
    "the normal approximation": mutant((FOUND, NORMAL), lost="tail many power needed most"),
    "NaN without votes": mutant((FOUND, FOUND.replace(".clamp(min=1)", "")), (BOUND, "return found"), lost="tail"),
    "radius without units": mutant((RADIUS, RADIUS.replace("scale * ", "")), lost="units coverage power needed most"),
    "scale squared": mutant((RADIUS, RADIUS.replace("scale", "scale**2")), lost="units power needed most"),
    "negative radii": mutant((RADIUS, RADIUS.replace(".clamp(min=0)", "")), lost="half coverage abstains"),
    "the same draws": mutant((DRAWS, "first = second = labels(api, x, n)\n"), lost="coverage"),
    "all draws counted": mutant(
        (DRAWS, "first = second = labels(api, x, n0 + n)\n"),
        (LOWER, LOWER.replace("n,", "n0 + n,")),
        lost="coverage power",
    ),
    "twice the draws": mutant(
        (DRAWS, DRAWS.replace("x, n)", "x, 2 * n)[:, :n]")), lost="coverage power abstains budget"
    ),
    "nothing but abstention": mutant((SAID, "return -torch.ones_like(chosen), 0 * bound"), lost="coverage power"),
    "no abstention": mutant((SAID, SAID.replace("torch.where(bound > 0.5, chosen, -1)", "chosen")), lost="abstains"),
    "abstentions left out of the votes": mutant((LOWER, "bound = lower_bound(votes, n, 1e-3)\n"), lost="power"),
    "half of the noise": mutant(("noise(part.shape)", "noise(part.shape) / 2"), lost="coverage power abstains"),
    "inputs mixed up": mutant((ROWS, "rows = x.repeat(n, 1)"), lost="power"),
    "abstentions do not count": mutant(
        (CURVE, "classes, radii, y = classes[classes >= 0], radii[classes >= 0], y[classes >= 0]\n    " + CURVE),
        lost="counted",
    ),
    "only larger": mutant((CURVE, CURVE.replace(">=", ">")), lost="wrong counted"),
    "wrong classes count": mutant((CURVE, CURVE.replace("classes == y", "classes >= 0")), lost="wrong"),
    "numbers typed in": mutant(("largest_radius = best(", "largest_radius = 1.0 + 0 * best("), lost="most"),
}

HONEST = {
    "in parts": mutant(
        (
            IN_CERTIFY,
            IN_CERTIFY + f"    if len(x) > 100:\n        parts = {EACH}\n"
            "        return torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts])\n",
        )
    ),
    "by bisection": mutant(
        (FOUND, f"if n < 1000:\n        return by_bisection(k, n, alpha)\n    {FOUND}"),
        (LOWER, LOWER),
        ("def lower_bound(", f"def by_bisection(k, n, alpha):\n    {BISECTED}\n    {BOUND}\n\n\ndef lower_bound("),
    ),
    "a radius in single precision": mutant((SAID, SAID.replace("radius(bound)", "radius(bound).float()"))),
    "selected with half of the draws": mutant((DRAWS, DRAWS.replace("n0", "n0 // 2"))),
}

ALWAYS = "the same draws", "abstentions do not count"
REPLAYED = "units needed most"
