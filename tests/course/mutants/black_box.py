"""Of 08, a black-box attack under a query budget."""

from __future__ import annotations

from tests.course.mutants import mutant

IN_ATTACK = '    "Points that the model behind the API takes for something else."\n'
ROWS = "rows = (found <= 0).nonzero().flatten()[:left]"
LEFT = "lead(api(new), y[rows]), left - len(rows)"
LAST = "    return best\n"
BETTER = "better = value > found[rows]"
EVERYTHING = "some most nearly frugal tight"

MUTANTS = {
    "never counts": mutant(
        (ROWS, ROWS.replace("[:left]", "")), (LEFT, LEFT.replace("- len(rows)", "")), lost="some most nearly tight"
    ),
    "one row too many": mutant((ROWS, ROWS.replace(":left", ":left + 1")), lost="some most nearly tight"),
    "asks on when fooled": mutant((ROWS, "rows = torch.arange(len(x))[:left]"), lost="frugal"),
    "twice the ball": mutant((IN_ATTACK, IN_ATTACK + "    eps *= 2\n"), lost=EVERYTHING),
    "off by 255": mutant((IN_ATTACK, IN_ATTACK + "    eps /= 255\n"), lost="some most nearly frugal"),
    "the wrong way": mutant((BETTER, BETTER.replace(">", "<")), lost="some most nearly frugal"),
    "last, not best": mutant((BETTER, "better = value > -torch.inf"), lost="nearly frugal"),
    "only stripes": mutant(("if step == 0:", "if step >= 0:"), lost="most nearly frugal"),
    "nothing asked": mutant((IN_ATTACK, IN_ATTACK + "    return x.clone()\n"), lost=EVERYTHING),
}

HONEST = {
    "input by input": mutant(
        (
            IN_ATTACK,
            IN_ATTACK
            + "    if len(x) > 1:\n        parts, each = [], budget // len(x)\n        for i in range(len(x)):\n"
            "            parts.append(attack(api, x[i:i + 1], y[i:i + 1], eps, each))\n"
            "        return torch.cat(parts)\n",
        )
    ),
    "double precision": mutant((LAST, LAST.replace("best", "best.double().clamp(0, 1).float()"))),
    "the probability alone": mutant(("z = scores.clamp(min=1e-9).log()", "z = scores.double()")),
}

ALWAYS = "one row too many", "asks on when fooled"
REPLAYED = "some most nearly frugal tight"
