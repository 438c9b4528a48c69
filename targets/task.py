"""What a model is for: one of `TASKS`, from the class that its config.json names, before any weight is read."""

from __future__ import annotations

import importlib
import re
from typing import TYPE_CHECKING, NoReturn

from runtime.errors import UnsupportedError
from targets.facts import shown

if TYPE_CHECKING:
    from pathlib import Path

    from targets.facts import ModelFacts

TEXT_GENERATION = "text-generation"
FEATURE_EXTRACTION = "feature-extraction"
TEXT_CLASSIFICATION = "text-classification"
TOKEN_CLASSIFICATION = "token-classification"
TEXT2TEXT_GENERATION = "text2text-generation"

TASKS = (TEXT_GENERATION, FEATURE_EXTRACTION, TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION, TEXT2TEXT_GENERATION)

# The first match decides. None: the name alone does not tell, so optimum is asked. A task that is not in TASKS is
# known well enough to be refused by its name.
_RULES: tuple[tuple[str, str | None], ...] = (
    # The older XLM, Flaubert and Reformer wrote it this way round; the first two of them are masked models.
    (r"WithLMHead", None),
    (r"(ForCausalLM|LMHeadModel)$", TEXT_GENERATION),
    # Published with a vision tower, exported as the text model that is in it.
    (r"^Gemma3ForConditionalGeneration$", TEXT_GENERATION),
    (r"^(T5|MT5|UMT5|Bart|MBart|Pegasus)ForConditionalGeneration$", TEXT2TEXT_GENERATION),
    (r"ForSequenceClassification$", TEXT_CLASSIFICATION),
    (r"ForTokenClassification$", TOKEN_CLASSIFICATION),
    (r"ForMaskedLM$", "fill-mask"),
    (r"ForQuestionAnswering$", "question-answering"),
    (r"ForMultipleChoice$", "multiple-choice"),
    (r"ForNextSentencePrediction$", "next-sentence-prediction"),
    (r"ForPreTraining$", "pre-training"),
    # A head, a translator or two towers behind a name that ends as a bare model does.
    (r"(Heads|MT|EncoderDecoder)Model$", None),
    (r"[a-z0-9A-Z]Model$", FEATURE_EXTRACTION),
)

# What sentence-transformers writes beside the weights of an embedding model.
_SENTENCE_TRANSFORMERS = ("modules.json", "1_Pooling")
# A head that such a directory means to be used; any other (a language model's) was only trained with.
_CLASSIFIERS = (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION)


def infer_task(facts: ModelFacts) -> str:
    """The task of a model, one of `TASKS`.

    The class in config.json decides, by its name; a directory of sentence-transformers is for feature extraction,
    whatever head its model was trained with, unless that is a classifier. A class whose name does not tell is looked
    up in optimum's TasksManager, which imports torch and transformers; without optimum it is refused.
    Raises UnsupportedError, in one line, for a task that is not in `TASKS` and for a class that nobody knows.
    """
    name = facts.architecture
    known, task = _by_name(name)
    if task in _CLASSIFIERS:
        return str(task)
    if facts.source == "huggingface" and is_sentence_transformer(facts.path):
        return FEATURE_EXTRACTION
    if not name:
        _refuse(facts, "names no model class", "set 'architectures' to the class that the model was saved from")
    if not known:
        task = _by_optimum(facts, name)
    if task in TASKS:
        return task
    return _refuse(facts, f"{shown(name)} is for {shown(task)}", "use a model for another task")


def is_pair(facts: ModelFacts) -> bool:
    """Whether the class is that of an encoder and a decoder in one, by its name."""
    return _by_name(facts.architecture)[1] == TEXT2TEXT_GENERATION


def is_sentence_transformer(directory: Path) -> bool:
    """Whether the directory is one of sentence-transformers."""
    return any((directory / entry).exists() for entry in _SENTENCE_TRANSFORMERS)


def _by_name(name: str) -> tuple[bool, str | None]:
    """Whether a rule tells the task of the class, and the task."""
    for pattern, task in _RULES:
        if re.search(pattern, name):
            return task is not None, task
    return False, None


def _by_optimum(facts: ModelFacts, name: str) -> str:
    """What optimum says of a class of transformers; its synonyms ("summarization", …) become the tasks' own names.

    By name and not by an import statement: nothing in this tree may need transformers, and here it is the last resort.
    """
    install = "pip install 'packlight[optimum]' so that its table can be asked"
    try:
        manager = importlib.import_module("optimum.exporters.tasks").TasksManager
        transformers = importlib.import_module("transformers")
    except ImportError:
        _refuse(facts, f"the name {shown(name)} does not tell the task", install)
    # The name comes from a file of unknown origin; what is looked up must be a model's class.
    model_class = getattr(transformers, name, None) if name.isidentifier() and not name.startswith("_") else None
    if not (isinstance(model_class, type) and hasattr(model_class, "from_pretrained")):
        _refuse(facts, f"{shown(name)} is no model class of transformers", "name a model that is saved from one")
    try:
        task = manager.infer_task_from_model(model_class)
    except (ValueError, RuntimeError):  # it knows classes of its auto models only
        _refuse(facts, f"neither the name {shown(name)} nor optimum tells the task", "use a model for another task")
    return str(manager.map_from_synonym(task)).removesuffix("-with-past")


def _refuse(facts: ModelFacts, what: str, fix: str) -> NoReturn:
    where = facts.path / "config.json" if facts.source == "huggingface" else facts.path
    raise UnsupportedError(f"{where}: {what}; {fix} (tasks that can be exported: {', '.join(TASKS)})")
