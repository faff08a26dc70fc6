"""Of 05, which hands in data. Under the key of the tests seven of the instructor's networks have a backdoor."""

from __future__ import annotations

from tests.course.mutants import mutant

SCORES = "scores, suspect = below.max(dim=1)"
BELOW = "below = sizes.log().median(dim=0).values - sizes.log()"
LINE = '"threshold": torch.tensor([0.45])'
TARGET = "target = suspect\n"
MASKS = '    "masks": masks,\n'
SUCCESS = '    "success": success,\n'
LOSS = "(loss + price * total).sum().backward()"
SEARCHED = "found = [search(network, some, goals) for network in networks]"
OTHERS = "others = slice(60, None)"
BETTER = "better = reached & (total < least)"
VERDICT = "some most nearly"
ALL = "ranking some most nearly named evidence honest"

MUTANTS = {
    "all are flagged": mutant((LINE, LINE.replace("0.45", "-9.0")), lost=VERDICT),
    "none is flagged": mutant((LINE, LINE.replace("0.45", "9.0")), lost=VERDICT + " named evidence honest"),
    "two false alarms": mutant((LINE, LINE.replace("0.45", "0.3")), lost="most nearly"),
    "the wrong sign": mutant((SCORES, SCORES + "\nscores = -scores"), lost=ALL),
    "no scores": mutant((SCORES, SCORES + "\nscores = scores * torch.nan"), lost=ALL),
    "numbers typed in": mutant(
        (SCORES, SCORES + "\nscores = torch.linspace(0, 1, 12)"), lost=ALL.replace(" honest", "")
    ),
    "off by one": mutant((TARGET, "target = (suspect + 1) % 10\n"), lost="named evidence honest"),
    "triggers of another network": mutant((MASKS, '    "masks": masks.roll(1, 0),\n'), lost="evidence honest"),
    "painted over": mutant((MASKS, '    "masks": torch.ones_like(masks),\n'), lost="evidence honest"),
    "masks beyond one": mutant((MASKS, '    "masks": 2 * masks,\n'), lost="evidence honest"),
    "neither triggers nor success": mutant(
        (MASKS, '    "masks": 0 * masks,\n'), (SUCCESS, '    "success": torch.zeros(12),\n'), lost="evidence honest"
    ),
    "success of nothing": mutant((SUCCESS, '    "success": torch.zeros(12),\n'), lost="honest"),
    "no price, and the last mask": mutant(
        (LOSS, "loss.sum().backward()"), (BETTER, "better = reached"), lost="evidence honest"
    ),
    "the best of two images": mutant((SEARCHED, "some, goals = some[:2], goals[:, :2]\n" + SEARCHED), lost="evidence"),
    "compared with nothing": mutant((BELOW, "below = -sizes.log()"), lost=VERDICT + " named evidence honest"),
}

HONEST = {
    "double precision": mutant(
        (SUCCESS, '    "success": success.double(),\n'),
        ('    "scores": scores,\n', '    "scores": scores.double(),\n'),
    ),
    "other units": mutant(
        ('    "scores": scores,\n', '    "scores": 10 * scores,\n'), (LINE, LINE.replace("0.45", "4.5"))
    ),
    "another start": mutant(("torch.zeros(G, *size)\n    optimizer", "0.1 * torch.randn(G, *size)\n    optimizer")),
    "goal by goal": mutant(
        (
            "    (G, n), size = goals.shape, x.shape[2:]\n",
            "    if len(goals) > 1:\n"
            "        parts = [search(network, x, goals[i:i + 1], steps) for i in range(len(goals))]\n"
            "        return torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])\n"
            "    (G, n), size = goals.shape, x.shape[2:]\n",
        )
    ),
    "sizes by their squares": mutant(
        ("sizes = torch.stack([masks.flatten(1).sum(dim=1)", "sizes = torch.stack([(masks**2).flatten(1).sum(dim=1)")
    ),
    "a success that is guessed": mutant((SUCCESS, '    "success": torch.full((12,), 0.88),\n')),
}

ALWAYS = "all are flagged", "off by one"
REPLAYED = "nearly named evidence honest"
COPIED = "nearly named evidence honest"
