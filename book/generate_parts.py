"""The map of the parts on the landing page: cards that link the chapters there are and name the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from book.notebooks import Chapter


@dataclass(frozen=True)
class Part:
    """A part of the book: its title, the survey's section, and its chapters by number and planned title."""

    title: str
    section: str
    chapters: dict[int, str]


PARTS = (
    Part("Foundations", "1", {1: "The life cycle of a model, threat models, notation, a first attack"}),
    Part(
        "Training-phase attacks",
        "2.1",
        {
            2: "Memorization and availability poisoning",
            3: "Targeted clean-label poisoning",
            4: "Backdoors",
            5: "Backdoors in federated learning",
        },
    ),
    Part(
        "Deployment-phase attacks",
        "2.2",
        {
            6: "Data similarity and attack formulations",
            7: "White-box attacks",
            8: "Sparse and structured attacks",
            9: "Soft-label black-box attacks",
            10: "Hard-label attacks",
            11: "Transfer attacks",
            12: "Universal perturbations",
            13: "Physical attacks",
            14: "Text, graphs, audio",
        },
    ),
    Part(
        "Empirical defenses",
        "3.1",
        {
            15: "Evaluating a defense",
            16: "Finding and repairing poisoned data and models",
            17: "Detecting adversarial inputs",
            18: "Adversarial training and its relatives",
        },
    ),
    Part(
        "Certified defenses",
        "3.2",
        {19: "Certified training-phase defenses", 20: "Randomized smoothing"},
    ),
    Part(
        "Verification",
        "3.3",
        {
            21: "Exact verification",
            22: "CLEVER and Lipschitz estimates",
            23: "Linear relaxations",
            24: "Duals and semidefinite bounds",
            25: "General architectures and semantic perturbations",
            26: "Training for certificates",
        },
    ),
    Part(
        "Remarks",
        "4",
        {
            27: "Explanations, privacy, ownership",
            28: "Reprogramming",
            29: "Augmentation, synthesis, CAPTCHAs",
            30: "Beyond classification",
            31: "Robustness to weight perturbation",
            32: "Foundation models",
        },
    ),
)


def parts_map(chapters: Sequence[Chapter]) -> str:
    """The cards as MyST Markdown, for a page in book/; raises ValueError for a chapter of no part."""
    there = {chapter.number: chapter for chapter in chapters}
    unknown = sorted(set(there) - {number for part in PARTS for number in part.chapters})
    if unknown:
        raise ValueError(f"chapters {unknown} belong to no part: add them to PARTS in book/generate_parts.py")
    planned = sum(len(part.chapters) for part in PARTS)
    status = (
        f"**{len(there)} of {planned} chapters are here.** Those without a link are to come; "
        "the [method index](generated/method_index.md) says method by method what is done."
    )
    cards = [_card(part, there) for part in PARTS]
    return "\n\n".join([status, "\n".join(["::::{grid} 1 1 2 2", ":gutter: 3", "", *cards, "::::"])]) + "\n"


def _card(part: Part, there: dict[int, Chapter]) -> str:
    lines = [f":::{{grid-item-card}} {part.title}", f"*Survey section {part.section}*", ""]
    for number, planned in part.chapters.items():
        if number in there:
            chapter = there[number]
            lines.append(f"- [{number:02d} {chapter.title}](../chapters/{chapter.stem}.ipynb)")
        else:
            lines.append(f"- {number:02d} {planned} (to come)")
    return "\n".join([*lines, ":::", ""])
