"""Of ``02_pgd``."""

from __future__ import annotations

from tests.course.mutants import mutant

IN_LINF = '    "The best point of PGD for each sample: a tensor like x."\n'
START = "    best, best_loss = x.clone(), torch.full_like(x.flatten(1)[:, 0], -torch.inf)\n"
CLIPPED = "point = (x + delta.clamp(-eps, eps)).clamp(0, 1)\n"
LINF = "        delta = point + step_size * grad.sign() - x\n        " + CLIPPED
GRADIENT = "        (grad,) = torch.autograd.grad(loss.sum(), point)\n"
NEAREST = "return torch.where(inside, delta, at(high))"
OUTSIDE = "outside = length(at(middle)) > eps"
INSIDE = "    inside = (length(delta) <= eps)"
DUAL = "return norm(g * weights, 2)"
SHARE = 'float((smallest_eps > mine["eps_set"]).float().mean())'
LEAD = "lead = others - z.gather(1, y[:, None]).squeeze(1)"
AS_L2 = "delta * (eps / norm(delta, 2)).clamp(max=1).reshape(-1, *[1] * (x.dim() - 1))"
EACH_PGD = "[pgd_linf(model, x[i:i + 1], y[i:i + 1], eps, steps, step_size) for i in range(len(x))]"
EACH_PROJECT = "[project(delta[i:i + 1], eps[i:i + 1]) for i in range(len(eps))]"

MUTANTS = {
    "wrong sign": mutant((LINF, LINF.replace("x + delta", "x - delta")), lost="corner double inside best gradient"),
    "no projection": mutant((LINF, LINF.replace("delta.clamp(-eps, eps)", "delta")), lost="corner double inside"),
    "no clamp": mutant((LINF, LINF.replace(".clamp(0, 1)", "")), lost="corner double inside"),
    "wrong norm": mutant(
        (LINF, LINF.replace("delta.clamp(-eps, eps)", AS_L2)),
        lost="corner double gradient",
    ),
    "last iterate": mutant((LINF + "    return best", LINF + "    return point"), lost="best"),
    "batch leak": mutant(
        ("better = loss > best_loss\n", "better = (loss.mean() > best_loss.mean()).expand_as(loss)\n"),
        lost="best",
    ),
    "train mode": mutant((IN_LINF, IN_LINF + "    model.train()\n"), lost="corner"),
    "off by 255": mutant((IN_LINF, IN_LINF + "    eps /= 255\n"), lost="corner double inside best gradient"),
    "single precision": mutant(
        (IN_LINF, IN_LINF + "    x, model = x.float(), model.float()\n"),
        lost="double best gradient",
    ),
    "gradients add up": mutant(
        (START, START + "    old = 0\n"),
        (LINF, "        old = old + grad\n" + LINF.replace("grad.sign()", "old.sign()")),
        lost="gradient",
    ),
    "all are in the set": mutant((NEAREST, "return delta"), lost="within surface nearest many optimum box"),
    "scaled, not projected": mutant(
        (NEAREST, "return torch.where(inside, delta, delta * (eps / length(delta)).reshape(-1, 1, 1, 1))"),
        lost="nearest many optimum",
    ),
    "always on the surface": mutant(
        ("low, high = torch.zeros_like(eps)", "low, high = -torch.ones_like(eps) / 2"),
        (NEAREST, "return at(high)"),
        lost="within",
    ),
    "one multiplier for all": mutant(
        (OUTSIDE, "outside = (length(at(middle)) > eps).any().expand_as(eps)"),
        lost="surface nearest many",
    ),
    "a loop per sample": mutant(
        (INSIDE, f"    if len(delta) > 1:\n        return torch.cat({EACH_PROJECT})\n" + INSIDE),
        lost="many",
    ),
    "no clamp in the set": mutant(("x, radius)).clamp(0, 1)", "x, radius))"), lost="box"),
    "dual of another set": mutant((DUAL, "return norm(g, 2)"), lost="dual accuracy-set radii"),
    "never ends": mutant((DUAL, "while len(g) == 10:\n        pass\n    " + DUAL), lost="dual"),
    "cross-entropy on loud logits": mutant((LEAD, "lead = cross_entropy(z, y, reduction='none')"), lost="loud"),
    "ball of the wrong dual": mutant(("lambda g: norm(g, 1)", "lambda g: norm(g, torch.inf)"), lost="accuracy-linf"),
    "numbers typed in": mutant(
        ("smallest_eps = smallest(dual)\n", "smallest_eps = torch.linspace(0, 0.02, 200)\n"),
        (SHARE, "0.123"),
        lost="accuracy-set radii",
    ),
    "numbers of another network": mutant(
        ('z = mine["model"](mine["x"])', 'z = loud(mine["x"])'),
        lost="accuracy-linf accuracy-set radii",
    ),
    "told to end": mutant(
        (IN_LINF, IN_LINF + "    raise SystemExit\n"),
        lost="corner double inside best gradient",
    ),
}

HONEST = {
    "random start": mutant((START, START + "    point = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)\n")),
    "backward()": mutant(
        (GRADIENT, "        point.grad = None\n        loss.sum().backward()\n        grad = point.grad\n")
    ),
    "sample by sample": mutant((IN_LINF, IN_LINF + f"    if len(x) > 1:\n        return torch.cat({EACH_PGD})\n")),
    "double precision inside": mutant(
        (
            "def project(delta, eps):\n",
            "def project(delta, eps):\n    return slowly(delta.double(), eps.double()).to(delta)\n\n\n"
            "def slowly(delta, eps):\n",
        ),
    ),
    "ball and box at once": mutant(
        (
            LINF,
            "        point = (point + step_size * grad.sign()).clamp(0, 1)\n"
            "        point = torch.minimum(torch.maximum(point, x - eps), x + eps)\n",
        ),
    ),
}

ALWAYS = "last iterate", "scaled, not projected"
REPLAYED = "dual nearest many optimum box accuracy-set radii"
