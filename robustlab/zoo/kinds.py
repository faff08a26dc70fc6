"""Recipes whose data are no labeled images: how their nets are trained and measured, by the name of the data set."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from robustlab import data
from robustlab.data.citations import CITATIONS
from robustlab.data.dataset import Dataset
from robustlab.zoo.finders import FRAMES, measure_finder, train_finder
from robustlab.zoo.graphs import PART, measure_on_graph, train_on_graph
from robustlab.zoo.recipes import PEOPLE, SPEECH, TEXTS
from robustlab.zoo.speech import ATTACKED_STRINGS, measure_recognizer, train_recognizer
from robustlab.zoo.texts import ATTACKED_TEXTS, measure_reader


@dataclass(frozen=True)
class Kind:
    """What a kind of data asks for.

    Attributes:
        measure: (recipe, model) → accuracy, and accuracy under the recipe's attack; of texts also ``dataset=``, to be
            measured on instead of the recipe's data.
        attacked: how many samples the second is about; of a detector, frames that the attack is made on.
        train: (recipe, model, device=, progress=); None trains as on images, on what ``load`` gives.
        load: a name → a data set.
    """

    measure: Callable[..., tuple[float, float]]
    attacked: int
    train: Callable[..., Any] | None = None
    load: Callable[[str], Dataset] = data.load


KINDS: Mapping[str, Kind] = {
    SPEECH: Kind(measure_recognizer, ATTACKED_STRINGS, train_recognizer),
    PEOPLE: Kind(measure_finder, FRAMES, train_finder),
    **dict.fromkeys(CITATIONS, Kind(measure_on_graph, PART, train_on_graph)),
    **dict.fromkeys(TEXTS, Kind(measure_reader, ATTACKED_TEXTS, load=data.load_tokens)),
}
"""Data sets that are no labeled images."""
