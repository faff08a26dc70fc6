"""A sentence encoder as judge of what an attack on texts has left of the meaning.

An encoder reads a whole text and gives a vector, and texts of like meaning have vectors of small angle. It is nobody's
constraint here, but a second opinion after the attack; who wants a filter drops the successes that it judges low. Which
encoder that is, is the reader's choice: none ships, and none is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from robustlab.data.texts import Vocabulary

__all__ = ["meaning_kept"]

Texts = Tensor | Sequence[str]


def meaning_kept(
    x: Texts, x_adv: Texts, *, judge: Callable[[list[str]], Any], vocabulary: Vocabulary | None = None
) -> Tensor:
    """How near in meaning each changed text is to its own, as a sentence encoder judges it.

        cos(v_i, v'_i) = ⟨v_i, v'_i⟩ / (‖v_i‖₂ ‖v'_i‖₂),    v_i the encoder's vector of text i

    With the package sentence-transformers, and a model of its::

        from sentence_transformers import SentenceTransformer

        encoder = SentenceTransformer("all-MiniLM-L6-v2")
        result = paraphrase(victim, x, y, neighbors=synonyms(vocabulary))
        kept = meaning_kept(x, result.x_adv, vocabulary=vocabulary, judge=encoder.encode)
        counted = result.success & (kept >= 0.8)  # successes that this judge lets pass

    Args:
        x: N texts: token ids (N, T), or strings, as they were before a vocabulary cut them down.
        x_adv: the same after the attack, in either form.
        judge: any function of a list of strings that gives a vector of each, a tensor or array (N, d), such as an
            encoder's ``encode``. It is asked once, about both lists, x before x_adv.
        vocabulary: whose words the token ids are; needed where ids are given.

    Returns:
        (N,) float64 in [−1, 1]; 0 where a vector is 0.

    Raises:
        ValueError, TypeError: for a wrong argument, or where the judge's answer is not one finite vector per text.

    Source:
        As judges of attacks on texts: Jin et al. (2020), section 2, and Morris et al. (2020), section 4, who find that
        people reject much of what common thresholds let pass.
    """
    before, after = (_said(name, texts, vocabulary) for name, texts in (("x", x), ("x_adv", x_adv)))
    if len(before) != len(after):
        raise ValueError(f"x_adv: want as many texts as x, {len(before)}, got {len(after)}")
    if not callable(judge):
        raise TypeError(f"judge: want a function of a list of strings, got {type(judge).__name__}")
    if not before:
        return torch.zeros(0, dtype=torch.float64)
    vectors = torch.as_tensor(judge([*before, *after])).detach().cpu().double()
    if vectors.dim() != 2 or len(vectors) != 2 * len(before):
        raise ValueError(f"judge: want a vector per text, ({2 * len(before)}, d), got shape {tuple(vectors.shape)}")
    strange = (~vectors.isfinite().all(dim=1)).nonzero()[:, 0] % len(before)
    if len(strange):
        raise ValueError(f"judge: want finite vectors, got others for texts {strange.unique().tolist()[:10]}")
    unit = vectors / vectors.norm(dim=1, keepdim=True).clamp_min(torch.finfo(vectors.dtype).tiny)
    return (unit[: len(before)] * unit[len(before) :]).sum(dim=1).clamp(-1.0, 1.0)


def _said(name: str, texts: Texts, vocabulary: Vocabulary | None) -> list[str]:
    """The texts as strings."""
    if isinstance(texts, Tensor):
        if vocabulary is None:
            raise ValueError(f"vocabulary: want one, since {name} holds token ids, got None")
        if texts.dim() != 2 or texts.is_floating_point():
            raise ValueError(f"{name}: want token ids (N, T), got {texts.dtype} of shape {tuple(texts.shape)}")
        if texts.numel() and not 0 <= int(texts.min()) <= int(texts.max()) < len(vocabulary):
            low, high = int(texts.min()), int(texts.max())
            raise ValueError(f"{name}: want token ids from 0 to {len(vocabulary) - 1}, got {low} to {high}")
        return [vocabulary.decode(row) for row in texts]
    if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"{name}: want token ids or a list of strings, got {type(texts).__name__}")
    return list(texts)
