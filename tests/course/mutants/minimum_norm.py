"""Of ``03_minimum_norm``."""

from __future__ import annotations

from tests.course.mutants import mutant

STEEPEST = "return g / w**2 / column(norm(g / w, 2)).clamp_min(1e-30)"
NEAREST = "    nearest = distances.argmin(dim=1)\n"
LEADS = "leads = (z.gather(1, y[:, None]) - z).clamp_min(0)\n"
IN_DEEPFOOL = '    "Points like x, in the box, misclassified where that was reached within so many steps."\n'
GROWS = "delta = torch.where(column(going), delta + step, delta)"
RESULT = "    return (x + (1 + overshoot) * delta).clamp(0, 1)"
LOOP = "    for _ in range(steps):\n"
EACH = "[deepfool(model, x[i:i + 1], y[i:i + 1], steps, overshoot) for i in range(len(x))]"
ACROSS = "return torch.where(column(crosses), x + column(high) * direction, x)"
BISECT_DOC = '    "The first misclassified point along each direction (N, ...): points like x."\n'
OPTIMUM_DOC = '    "weight (K, 48), bias (K,), x (N, 3, 4, 4), y (N,): points like x."\n'

MUTANTS = {
    "the gradient of ℓ2": mutant(
        (STEEPEST, "return g / column(norm(g, 2))"),
        lost="steepest optimum many nearest stops distances accuracy shortest",
    ),
    "nothing but the sign of it": mutant(
        (STEEPEST, "return -" + STEEPEST[7:]), lost="steepest optimum many nearest follows stops found shortest"
    ),
    "the runner-up": mutant(
        (NEAREST, "    nearest = leads.scatter(1, y[:, None], torch.inf).argmin(dim=1)\n"),
        lost="optimum many distances accuracy",
    ),
    "wrong samples are moved": mutant((LEADS, LEADS.replace(".clamp_min(0)", ".abs()")), lost="settled distances"),
    "half of the way": mutant(
        ("x + column(distances[rows, nearest])", "x + 0.5 * column(distances[rows, nearest])"),
        lost="optimum many distances accuracy",
    ),
    "the safe side": mutant((ACROSS, ACROSS.replace("high", "low")), lost="across"),
    "no care for those without": mutant((ACROSS, "return x + column(high) * direction"), lost="stays"),
    "four halvings": mutant(("range(20)", "range(4)"), lost="across"),
    "one bracket for all": mutant(("out = wrong(middle)", "out = wrong(middle).all().expand(len(x))"), lost="across"),
    "train mode": mutant((IN_DEEPFOOL, IN_DEEPFOOL + "    model.train()\n"), lost="nearest"),
    "no clamp": mutant((RESULT, RESULT.replace(".clamp(0, 1)", "")), lost="box"),
    "one step": mutant((LOOP, "    for _ in range(1):\n"), lost="follows"),
    "goes on with the others": mutant(
        (GROWS, "delta = delta + step"),
        ("going &= distance.isfinite()", "going = distance.isfinite()"),
        (".detach().clamp_min(0)", ".detach().abs()"),
        lost="nearest stops",
    ),
    "no overshoot": mutant((RESULT, RESULT.replace("(1 + overshoot) * delta", "0.99 * delta")), lost="nearest follows"),
    "DeepFool alone": mutant(("    tried = (x + step)", "    tried = (x + 0 * step)"), lost="found shortest"),
    "never moves": mutant(
        *((doc, doc + "    return x.clone()\n") for doc in (OPTIMUM_DOC, BISECT_DOC, IN_DEEPFOOL)),
        lost="optimum many settled across stays nearest box follows stops distances accuracy found shortest",
    ),
    "numbers typed in": mutant(
        ("smallest = length(nearest - mine", "smallest = 0 * length(nearest - mine"), lost="distances accuracy"
    ),
}

HONEST = {
    "sample by sample": mutant(
        (IN_DEEPFOOL, IN_DEEPFOOL + f"    if len(x) > 1:\n        return torch.cat({EACH})\n"),
    ),
    "double precision inside": mutant(
        (
            OPTIMUM_DOC,
            OPTIMUM_DOC + "    if x.dtype != torch.double:\n"
            "        return affine_optimum(weight.double(), bias.double(), x.double(), y).to(x)\n",
        ),
    ),
    "the gradient of the dual": mutant(
        (
            STEEPEST,
            "point = g.detach().clone().requires_grad_()\n"
            "    return torch.nan_to_num(torch.autograd.grad(dual(point).sum(), point)[0])",
        )
    ),
    "a scan of the line": mutant(
        (
            BISECT_DOC,
            BISECT_DOC + "    if len(x) > 1:\n"
            "        rows = torch.arange(len(x)).split(1)\n"
            "        return torch.cat([bisect(model, x[i], y[i], direction[i], far) for i in rows])\n"
            "    line = x + torch.linspace(0, far, 3001).reshape(-1, 1, 1, 1) * direction\n"
            "    out = model(line).argmax(dim=1) != y\n"
            "    at = int(out.nonzero()[0]) if bool(out[-1] & ~out[0]) else 0\n"
            "    return line[at:at + 1].to(x)\n",
        )
    ),
    "more halvings": mutant(("range(20)", "range(40)")),
}

ALWAYS = "the runner-up", "one step"
REPLAYED = "steepest optimum many nearest distances shortest"
