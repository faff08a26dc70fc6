"""Draws the README's picture, which the landing page shows too: ``python -m book.readme_picture``.

Eight test digits, the perturbations that PGD finds on the small network, and what the network makes of the sum. The
budget is half of the one in the README's example, so that a reader still sees every digit at a glance.
"""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

from matplotlib.figure import Figure

from book.notebooks import ROOT
from robustlab import data, zoo
from robustlab.attacks import pgd
from robustlab.teaching.plot import image_grid, style

PICTURE = ROOT / "book" / "static" / "images" / "readme.png"
EPS = 0.15
COUNT = 8


def draw() -> Figure:
    """The picture: the first ``COUNT`` of 40 test images on which the attack turns a right label into a wrong one."""
    mnist = data.load("mnist5k").subset(n_test=40)
    x, y = mnist.x_test, mnist.y_test
    model = zoo.load("mnist_cnn")
    before = model(x).argmax(1)
    attacked = pgd(model, x, y, norm="linf", eps=EPS, steps=40)
    chosen = (attacked.success & (before == y)).nonzero().squeeze(1)[:COUNT]
    x_adv = attacked.x_adv[chosen]
    after = model(x_adv).argmax(1)
    style()
    return image_grid(
        {"image": x[chosen], "perturbation": x_adv - x[chosen], "attacked": x_adv},
        titles={
            "image": [f"read as {label}" for label in before[chosen].tolist()],
            "attacked": [f"read as {label}" for label in after.tolist()],
        },
        signed=["perturbation"],
    )


def main() -> None:
    """Writes the picture."""
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(PICTURE, dpi=150, bbox_inches="tight", facecolor="white", metadata={"Software": None})
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
