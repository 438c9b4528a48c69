"""The task of a model from the class in its config.json, and from optimum where the name does not tell."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from runtime.errors import UnsupportedError
from targets.facts import ModelFacts
from targets.task import TASKS, infer_task

if TYPE_CHECKING:
    from pathlib import Path


def facts(path: Path, name: str | None, source: str = "huggingface") -> ModelFacts:
    config: dict[str, Any] = {} if name is None else {"architectures": [name]}
    return ModelFacts(source, path, path.name, str(path), config, {})


USUAL = {
    "LlamaForCausalLM": "text-generation",
    "Qwen3ForCausalLM": "text-generation",
    "GPT2LMHeadModel": "text-generation",
    "Gemma3ForConditionalGeneration": "text-generation",
    "BertModel": "feature-extraction",
    "MPNetModel": "feature-extraction",
    "T5EncoderModel": "feature-extraction",
    "DistilBertForSequenceClassification": "text-classification",
    "XLMRobertaForTokenClassification": "token-classification",
    "T5ForConditionalGeneration": "text2text-generation",
    # optimum says fill-mask, the first of the tasks that BART can do
    "BartForConditionalGeneration": "text2text-generation",
}

FROM_OPTIMUM = {
    "ReformerModelWithLMHead": "text-generation",
    "MarianMTModel": "text2text-generation",
    "ProphetNetForConditionalGeneration": "text2text-generation",
    "DPRQuestionEncoder": "feature-extraction",
}


@pytest.mark.parametrize(("name", "task"), USUAL.items())
def test_usual_classes(tmp_path, name, task):
    assert infer_task(facts(tmp_path, name)) == task


@pytest.mark.parametrize("entry", ["modules.json", "1_Pooling"])
@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForMaskedLM", "feature-extraction"),
        ("Qwen3ForCausalLM", "feature-extraction"),
        ("SomethingElse", "feature-extraction"),
        (None, "feature-extraction"),
        # a cross encoder has its classifier on purpose
        ("BertForSequenceClassification", "text-classification"),
    ],
)
def test_sentence_transformers(tmp_path, entry, name, task):
    (tmp_path / entry).mkdir()
    assert infer_task(facts(tmp_path, name)) == task


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("BertForMaskedLM", "BertForMaskedLM is for fill-mask;"),
        ("BertForQuestionAnswering", "BertForQuestionAnswering is for question-answering;"),
        ("BertForMultipleChoice", "is for multiple-choice;"),
        ("BertForPreTraining", "is for pre-training;"),
        ("", "config.json: names no model class;"),
        (None, "config.json: names no model class;"),
    ],
)
def test_refused_by_name(tmp_path, name, part):
    with pytest.raises(UnsupportedError) as caught:
        infer_task(facts(tmp_path, name))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / 'config.json'}: ")
    assert part in message
    assert "\n" not in message
    assert all(task in message for task in TASKS)


def test_a_gguf_file_has_no_class(tmp_path):
    path = tmp_path / "model.gguf"
    with pytest.raises(UnsupportedError, match=r"model\.gguf: names no model class"):
        infer_task(facts(path, None, source="gguf"))


# In a process of its own: what is imported shows, and optimum's import may warn.
_ASK = """
import json, pathlib, sys
from targets.facts import ModelFacts
from targets.task import infer_task
for name in sys.argv[2:]:
    facts = ModelFacts("huggingface", pathlib.Path("m"), "m", "m", {"architectures": [name]}, {})
    try:
        print(json.dumps([name, infer_task(facts)]))
    except Exception as error:
        print(json.dumps([name, f"{type(error).__name__}: {error}"]))
    if sys.argv[1] == "block":
        assert not {"torch", "transformers", "optimum"} & {m for m in sys.modules if sys.modules[m]}, name
"""
_BLOCK = 'import sys\nfor name in ("torch", "transformers", "optimum"):\n    sys.modules[name] = None\n'


def ask(mode: str, *names: str) -> dict[str, str]:
    """The answers of a fresh process; with "block", of one that has no optimum, torch or transformers."""
    code = (_BLOCK if mode == "block" else "") + _ASK
    done = subprocess.run([sys.executable, "-c", code, mode, *names], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


def test_usual_classes_import_nothing():
    code = f"{_ASK}\nassert not {{'torch', 'transformers', 'optimum'}} & set(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "", *USUAL], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert ask("block", *USUAL) == USUAL


def test_without_optimum_one_line_says_how_to_get_it():
    (answer,) = ask("block", "ReformerModelWithLMHead").values()
    assert answer.startswith(
        "UnsupportedError: m/config.json: the name ReformerModelWithLMHead does not tell the task;"
    )
    assert "pip install 'packlight[optimum]'" in answer


def test_what_only_optimum_knows():
    unknown = {
        "XLMWithLMHeadModel": "XLMWithLMHeadModel is for fill-mask;",
        "WhisperForConditionalGeneration": "is for automatic-speech-recognition;",
        "GPT2DoubleHeadsModel": "neither the name GPT2DoubleHeadsModel nor optimum tells the task;",
        "NoSuchThing": "NoSuchThing is no model class of transformers;",
        "pipeline": "pipeline is no model class of transformers;",
    }
    answers = ask("open", *FROM_OPTIMUM, *unknown)
    assert {name: answers[name] for name in FROM_OPTIMUM} == FROM_OPTIMUM
    for name, part in unknown.items():
        assert answers[name].startswith("UnsupportedError: m/config.json: ")
        assert part in answers[name]
