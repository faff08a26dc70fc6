"""Of ``01_first_attack``."""

from __future__ import annotations

from tests.course.mutants import mutant

STEP = "    return (x + eps * grad.sign()).clamp(0, 1)"
IN_FGSM = '    "Away from the labels y: a tensor like x."\n'
BACK = "    return (x - eps * grad.sign()).clamp(0, 1)"
LOWEST = 'lowest = torch.maximum(x - threat["reach"].to(x) * moves, threat["low"].to(x))'
MOVES = 'moves = torch.tensor([way == "both" for way in threat["way"]]).to(x)'
CORNER = "return torch.where(grad > 0, highest, torch.where(grad < 0, lowest, x))"

MUTANTS = {
    "wrong sign": mutant((STEP, STEP.replace("x + eps", "x - eps")), lost="fgsm double"),
    "away from the target": mutant((BACK, BACK.replace("x - eps", "x + eps")), lost="target"),
    "no clamp": mutant((STEP, "    return x + eps * grad.sign()"), lost="fgsm double"),
    "the gradient itself": mutant((STEP, STEP.replace("grad.sign()", "grad / grad.abs().max()")), lost="fgsm double"),
    "train mode": mutant((IN_FGSM, IN_FGSM + "    model.train()\n"), lost="fgsm"),
    "off by 255": mutant((IN_FGSM, IN_FGSM + "    eps /= 255\n"), lost="fgsm double"),
    "single precision": mutant((IN_FGSM, IN_FGSM + "    x, model = x.float(), model.float()\n"), lost="double"),
    "no box": mutant((LOWEST, 'lowest = x - threat["reach"].to(x) * moves'), lost="real whole grows best"),
    "every way": mutant((MOVES, "moves = 1.0"), lost="real whole grows best curve feature"),
    "no way": mutant((MOVES, "moves = 0.0"), lost="real whole grows best curve feature"),
    "not a pair": mutant(("return lowest, highest\n", "return torch.stack([lowest, highest])\n"), lost="real whole"),
    "downhill": mutant((CORNER, CORNER.replace("grad", "-grad")), lost="grows best curve feature"),
    "half of the way": mutant((CORNER, CORNER.replace("return ", "return 0.5 * x + 0.5 * ")), lost="best curve"),
    "numbers typed in": mutant(("for scale in (0.25, 0.5, 1)]", "for scale in (1, 1, 1)]"), lost="curve"),
    "the least useful feature": mutant(("fixed.index(max(fixed))", "fixed.index(min(fixed))"), lost="feature"),
}

HONEST = {
    "backward()": mutant(
        (
            '    (grad,) = torch.autograd.grad(cross_entropy(model(point), y, reduction="sum"), point)\n' + STEP,
            "    cross_entropy(model(point), y).backward()\n    grad = point.grad\n" + STEP,
        ),
    ),
    "the mean": mutant(('cross_entropy(model(point), target, reduction="sum")', "cross_entropy(model(point), target)")),
    "a tensor of numbers": mutant(
        ("fixed = [", "robust_accuracies = torch.tensor(robust_accuracies)\nfixed = ["),
    ),
}

ALWAYS = "every way", "the least useful feature"
REPLAYED = "real whole grows best curve"
