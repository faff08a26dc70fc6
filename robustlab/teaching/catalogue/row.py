"""The row of the catalogue, and the words that its fields may use."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

SECTIONS: Mapping[str, str] = {
    "2.1": "Training-phase attacks",
    "2.2": "Deployment-phase attacks",
    "3": "Evaluating a defense",
    "3.1": "Empirical defenses",
    "3.2": "Certified defenses",
    "3.3": "Verification",
    "4": "Remarks: applications and beyond",
}
"""The survey's sections that hold methods."""

KINDS: Mapping[str, str] = {
    "study": "study",
    "poisoning": "poisoning attack",
    "backdoor": "backdoor attack",
    "attack": "evasion attack",
    "universal": "universal attack",
    "solver": "gradient estimator or solver",
    "evaluation": "evaluation",
    "detector": "detector",
    "repair": "repair",
    "trainer": "training",
    "certified_defense": "certified defense",
    "verifier": "verifier",
    "estimate": "estimate, not a guarantee",
    "application": "application",
}
"""The kinds of methods, and the words that a reader sees."""

CHAPTERS = tuple(f"{number:02d}" for number in range(1, 33))
NORMS = ("l0", "l1", "l2", "linf")
ACCESS = ("white", "soft", "hard")
DIMS = ("flat", "image", "color")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method of the book.

    Attributes:
        key: the method's name in code, claims and file names.
        title: its name in prose.
        cite: its key in book/references.bib, or several, the method's own paper first.
        section: the section of the survey, one of ``SECTIONS``.
        kind: one of ``KINDS``.
        chapter: the chapter that treats it, two digits.
        also: further chapters that use it and make a claim about it.
        callable: ``"module:function"``; None while the method is to come.
        beyond_survey: True where its first reference is not one of the survey's.
        norms: the norms that its argument ``norm`` takes; empty where it has no such argument.
        targeted: whether it takes ``target``.
        access: the least that it must be told of the model: gradients, scores, or labels alone.
        per_sample: whether what happens to one sample depends on nothing else in its batch.
        min_norm: True if it looks for the smallest perturbation; False if it is given a budget ``eps``.
        min_classes: the fewest classes that it can work with.
        dims: the sample shapes it takes: ``"flat"`` for (d,), ``"image"`` for (C, H, W), ``"color"`` for
            (3, H, W) alone.
        quick: keyword arguments for a run of well under a second, used by the shared suites; what is meant for one norm
            only stands in a mapping under the norm's name.
    """

    key: str
    title: str
    cite: str | tuple[str, ...]
    section: str
    kind: str
    chapter: str
    also: tuple[str, ...] = ()
    callable: str | None = None
    beyond_survey: bool = False
    norms: tuple[str, ...] = ()
    targeted: bool = False
    access: str = "white"
    per_sample: bool = True
    min_norm: bool = False
    min_classes: int = 2
    dims: tuple[str, ...] = ("flat", "image")
    quick: Mapping[str, object] = field(default_factory=dict, hash=False)

    @property
    def done(self) -> bool:
        """Whether the method exists."""
        return self.callable is not None

    @property
    def public_name(self) -> str | None:
        """The name by which users import it: ``robustlab.attacks.pgd``. None while the method is to come."""
        if self.callable is None:
            return None
        module, _, function = self.callable.partition(":")
        return ".".join([*module.split(".")[:2], function])

    @property
    def cites(self) -> tuple[str, ...]:
        """The keys of its references, the method's own paper first."""
        return (self.cite,) if isinstance(self.cite, str) else self.cite

    @property
    def chapters(self) -> tuple[str, ...]:
        """The chapters that must make a claim about it."""
        return (self.chapter, *self.also)
