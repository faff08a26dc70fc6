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

_FIRST = {"2.1": 2, "2.2": 6, "3": 15, "3.1": 16, "3.2": 19, "3.3": 21, "4": 27}  # each section's first chapter

KINDS: Mapping[str, str] = {
    "study": "study",
    "poisoning": "poisoning attack",
    "backdoor": "backdoor attack",
    "attack": "evasion attack",
    "universal": "universal attack",
    "physical": "physical attack",
    "solver": "gradient estimator or solver",
    "evaluation": "evaluation",
    "detector": "detector",
    "repair": "repair",
    "trainer": "training",
    "aggregator": "robust aggregation",
    "certified_defense": "certified defense",
    "verifier": "verifier",
    "estimate": "estimate, not a guarantee",
    "application": "application",
}
"""The kinds of methods, and the words that a reader sees."""

FOLDERS: Mapping[str, str] = {
    "attacks/poisoning": "Data poisoning",
    "attacks/backdoor": "Backdoors",
    "attacks/federated": "Attacks on federated learning",
    "attacks/whitebox": "White-box attacks",
    "attacks/softlabel": "Soft-label attacks",
    "attacks/hardlabel": "Hard-label attacks",
    "attacks/transfer": "Transfer attacks",
    "attacks/universal": "Universal attacks",
    "attacks/semantic": "Semantic attacks",
    "attacks/physical": "Physical attacks",
    "attacks/discrete": "Attacks on text and graphs",
    "defenses/detection": "Detection",
    "defenses/purification": "Repair of models",
    "defenses/training": "Robust training",
    "defenses/aggregation": "Robust aggregation",
    "defenses/certified": "Certified defenses",
    "defenses/certified/smoothing": "Randomized smoothing",
    "verification/complete": "Complete verifiers",
    "verification/estimates": "Estimates of the robust radius",
    "verification/propagation": "Bounds by propagation",
    "verification/duals": "Bounds by duality",
    "verification/semantic": "Verification of semantic changes",
    "evaluation/protocol": "Protocols of evaluation",
    "evaluation/adaptive": "Tools for adaptive attacks",
    "evaluation/hygiene": "Checklist for a claimed defense",
    "applications": "Applications",
}
"""The folders of robustlab that hold methods, and what a reader calls them."""

CHAPTERS = tuple(f"{number:02d}" for number in range(1, 33))
NORMS = ("l0", "l1", "l2", "linf")
ACCESS = ("white", "soft", "hard")
DIMS = ("flat", "image", "color", "tokens", "graph")


@dataclass(frozen=True, kw_only=True)
class Row:
    """A method of the book.

    It states what cannot be derived. Where the method is found follows from its folder and key, its section of the
    survey from its chapter; whether the survey cites it is told by the bibliography.

    Attributes:
        key: the method's name in code, claims and file names: file and function are called so.
        title: its name in prose.
        cite: its key in book/references.bib, or several, the method's own paper first.
        kind: one of ``KINDS``.
        chapter: the chapter that treats it, two digits.
        also: further chapters that use it and make a claim about it.
        folder: where its file lies, one of ``FOLDERS``; None while the method is to come.
        file: the name of its file where that is another method's.
        norms: the norms that its argument ``norm`` takes; empty where it has no such argument.
        targeted: whether it takes ``target``.
        access: the least that it must be told of the model: gradients, scores, or labels alone.
        per_sample: whether what happens to one sample depends on nothing else in its batch.
        min_norm: True if it looks for the smallest perturbation; False if it is given a budget ``eps``.
        min_classes: the fewest classes that it can work with.
        dims: the samples it takes: ``"flat"`` for floats (d,), ``"image"`` for (C, H, W), ``"color"`` for (3, H, W)
            alone; ``"tokens"`` for int64 token ids (T,), in the domain of tokens; ``"graph"`` for features (V, F) and
            an adjacency (V, V), in the domain of graphs.
        quick: keyword arguments for a run of well under a second, used by the shared suites; what is meant for one norm
            only stands in a mapping under the norm's name.
    """

    key: str
    title: str
    cite: str | tuple[str, ...]
    kind: str
    chapter: str
    also: tuple[str, ...] = ()
    folder: str | None = None
    file: str | None = None
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
        return self.folder is not None

    @property
    def module(self) -> str | None:
        """The module that holds it, such as ``robustlab.attacks.whitebox.pgd``; None while it is to come."""
        if self.folder is None:
            return None
        return ".".join(["robustlab", *self.folder.split("/"), self.file or self.key])

    @property
    def callable(self) -> str | None:
        """``"module:function"``; None while it is to come."""
        return self.module and f"{self.module}:{self.key}"

    @property
    def public_name(self) -> str | None:
        """The name by which users import it: ``robustlab.attacks.pgd``. None while it is to come."""
        return self.folder and f"robustlab.{self.folder.partition('/')[0]}.{self.key}"

    @property
    def section(self) -> str:
        """The section of the survey, one of ``SECTIONS``: its chapter's.

        The attacks that open chapter 01 or that the chapter on evaluation brings are deployment-phase attacks too.
        """
        if self.chapter == "01" or (self.chapter == "15" and self.kind == "attack"):
            return "2.2"
        return max((first, section) for section, first in _FIRST.items() if first <= int(self.chapter))[1]

    @property
    def cites(self) -> tuple[str, ...]:
        """The keys of its references, the method's own paper first."""
        return (self.cite,) if isinstance(self.cite, str) else self.cite

    @property
    def chapters(self) -> tuple[str, ...]:
        """The chapters that must make a claim about it."""
        return (self.chapter, *self.also)
