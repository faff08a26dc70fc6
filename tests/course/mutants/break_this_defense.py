"""Of 04, which hands in data. Under the key of the tests the instructor's sound defense is A, behind rounding."""

from __future__ import annotations

from tests.course.mutants import mutant

STEP = "delta = point.detach() + 0.1 * eps * grad.sign() - x"
BALL = "point = (x + delta.clamp(-eps, eps)).clamp(0, 1)"
BPDA = "return network(seen + ((7 * seen).round() / 7 - seen).detach())"
VIEWS = "views = [points, points.flip(3)]"
SOUND = 'answer["sound"] = (left == left.max()).float()'
LEFT = 'answer["robust_accuracy"] = left'
GRAD = '(grad,) = torch.autograd.grad(cross_entropy(through(name, point), y, reduction="sum"), point)'
KEPT = 'answer[f"x_adv_{name}"] = attack(name)\n'
ALL = "half-1 half-2 broken-1 broken-2 strong verdict honest"
STOOD = """class Stood(torch.nn.Module):
    def __init__(self, name):
        super().__init__()
        self.name = name

    def forward(self, points):
        return through(self.name, points)


"""

MUTANTS = {
    "through the rounding": mutant((BPDA, "return network((7 * seen).round() / 7 + 0 * points)"), lost="strong"),
    "upside down": mutant((BPDA, "return network(points)"), lost="strong"),
    "through the softmax": mutant(
        ("return network(points)\n", "return (1e4 * network(points)).softmax(dim=1)\n"), lost="half-2 broken-2 verdict"
    ),
    "downhill": mutant((STEP, STEP.replace("+ 0.1", "- 0.1")), lost=ALL),
    "no ball": mutant((BALL, "point = (x + delta).clamp(0, 1)"), lost=ALL),
    "no box": mutant((BALL, BALL.replace(".clamp(0, 1)", "")), lost=ALL),
    "one step": mutant(("steps=60", "steps=1"), lost=ALL),
    "off by 255": mutant(
        ('    "Points like x in ball and box', '    eps = mine["eps"] / 255\n    "Points like x in ball and box'),
        lost=ALL,
    ),
    "all sound": mutant((SOUND, 'answer["sound"] = torch.ones(3)'), lost="verdict"),
    "the most accurate is sound": mutant(
        (SOUND, 'left = torch.tensor([accuracy(name, x) for name in "ABC"])\n' + SOUND), lost="verdict"
    ),
    "a verdict without points": mutant(
        (KEPT, 'answer[f"x_adv_{name}"] = x\n'),
        (SOUND, SOUND.replace("left == left.max()", 'torch.tensor([kinds[name] == "rounding" for name in "ABC"])')),
        lost=ALL,
    ),
    "clean accuracy reported": mutant(
        (LEFT, 'answer["robust_accuracy"] = torch.tensor([accuracy(name, x) for name in "ABC"])'), lost="honest"
    ),
    "numbers typed in": mutant((LEFT, 'answer["robust_accuracy"] = torch.tensor([0.3, 0.3, 0.3])'), lost="honest"),
}

HONEST = {
    "robustlab's inner maximizer": mutant(
        ("def attack(name", STOOD + "def attack(name"),
        (
            "    point = x.clone()\n",
            "    from robustlab.attacks.whitebox.pgd import pgd_maximize\n\n"
            "    return pgd_maximize(Stood(name), x, y, eps=eps, steps=steps)\n",
        ),
    ),
    "double precision": mutant((SOUND, SOUND + "\nanswer = {key: value.double() for key, value in answer.items()}")),
    "a random start": mutant(
        ("    point = x.clone()\n", "    point = (x + eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)\n")
    ),
    "momentum": mutant(
        (
            "    for _ in range(steps):\n        point.requires_grad_()",
            "    total = torch.zeros_like(x)\n    for _ in range(steps):\n        point.requires_grad_()",
        ),
        (STEP, "total = 0.9 * total + grad / grad.abs().mean()\n        " + STEP.replace("grad.sign", "total.sign")),
    ),
}

ALWAYS = "through the softmax", "clean accuracy reported"
REPLAYED = "half-1 half-2 broken-1 broken-2 strong verdict honest"
COPIED = "half-1 half-2 broken-1 broken-2 strong verdict honest"
