"""The architectures that can be written as GGUF. To add one: declare it in a file here and name it in `_ALL`."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from runtime.errors import UnsupportedError
from targets.gguf.architectures.bert import BERT, DISTILBERT, ROBERTA
from targets.gguf.architectures.cohere import COHERE, COHERE2
from targets.gguf.architectures.fused import BLOOM, FALCON, GPT2, GPT_BIGCODE, GPT_NEOX, MPT
from targets.gguf.architectures.gemma import GEMMA, GEMMA2, GEMMA3
from targets.gguf.architectures.glm import EXAONE4, GLM, GLM4, SEED_OSS
from targets.gguf.architectures.gpt_oss import GPT_OSS
from targets.gguf.architectures.granite import GRANITE, GRANITE_MOE
from targets.gguf.architectures.granite_hybrid import GRANITE_HYBRID
from targets.gguf.architectures.layernorm import NEMOTRON, STABLELM, STARCODER2
from targets.gguf.architectures.lfm2 import LFM2, LFM2_MOE
from targets.gguf.architectures.llama import ARCEE, ERNIE4_5, LLAMA, MIXTRAL, SMOLLM3
from targets.gguf.architectures.olmo import OLMO, OLMO2, OLMO3, OLMOE
from targets.gguf.architectures.phi import PHI2, PHI3
from targets.gguf.architectures.qwen import QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE
from targets.gguf.architectures.recurrent import FALCON_MAMBA, MAMBA, MAMBA2
from targets.gguf.architectures.rotary_encoders import JINA_V3, MODERN_BERT, NOMIC_BERT
from targets.gguf.architectures.t5 import MT5, T5

if TYPE_CHECKING:
    from targets.gguf.architectures.base import Architecture

_ALL = (
    LLAMA, MIXTRAL, SMOLLM3, ARCEE, ERNIE4_5, QWEN2, QWEN3, QWEN2_MOE, QWEN3_MOE, GEMMA, GEMMA2, GEMMA3, PHI2, PHI3,
    GRANITE, GRANITE_MOE, OLMO, OLMO2, OLMO3, OLMOE, STABLELM, STARCODER2, NEMOTRON, GPT2, GPT_BIGCODE, GPT_NEOX,
    FALCON, BLOOM, MPT, COHERE, COHERE2, GLM, GLM4, EXAONE4, SEED_OSS, GPT_OSS, MAMBA, FALCON_MAMBA,
    MAMBA2, LFM2, LFM2_MOE, GRANITE_HYBRID,
    BERT, ROBERTA, DISTILBERT, MODERN_BERT, NOMIC_BERT, JINA_V3, T5, MT5,
)  # fmt: skip

ARCHITECTURES: dict[str, Architecture] = {name: entry for entry in _ALL for name in entry.classes}

_NO_CLASS = "transformers 5 has no such class, so nothing says what the file should compute"
_NO_TOKEN_HEAD = "llama.cpp has heads for a text, none for each of its tokens"

UNSUPPORTED: dict[str, str] = {
    "InternLM2ForCausalLM": _NO_CLASS,
    "MiniCPMForCausalLM": _NO_CLASS,
    "ExaoneForCausalLM": _NO_CLASS,
    "ChatGLMModel": f"{_NO_CLASS}; its successor GlmForCausalLM is known",
    "BitNetForCausalLM": "llama.cpp's graph has SiLU, the public models square a ReLU",
    "BitnetForCausalLM": _NO_CLASS,
    "PhimoeForCausalLM": "transformers chooses its experts by SparseMixer, llama.cpp by softmax",
    "PhiMoEForCausalLM": "transformers chooses its experts by SparseMixer, llama.cpp by softmax",
    "UMT5ForConditionalGeneration": "transformers 5 scales its output, the public models say that it is not scaled",
    "DistilBertForSequenceClassification": "its head has a ReLU, llama.cpp's a tanh",
    "BertForTokenClassification": _NO_TOKEN_HEAD,
    "RobertaForTokenClassification": _NO_TOKEN_HEAD,
    "XLMRobertaForTokenClassification": _NO_TOKEN_HEAD,
    "CamembertForTokenClassification": _NO_TOKEN_HEAD,
    "DistilBertForTokenClassification": _NO_TOKEN_HEAD,
    "ModernBertForTokenClassification": _NO_TOKEN_HEAD,
    "JinaBertModel": f"{_NO_CLASS}; its successor JinaEmbeddingsV3Model is known",
    "NeoBERT": _NO_CLASS,
}
"""Model classes that are known and cannot be written, and why."""


def architecture_of(name: str) -> Architecture:
    """The architecture for a model class of config.json.

    Raises UnsupportedError that says why it cannot be written, or names the nearest known ones.
    """
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if name in UNSUPPORTED:
        raise UnsupportedError(
            f"config.json: architecture '{name}' cannot be written as GGUF: {UNSUPPORTED[name]} "
            "('packlight formats --architectures' lists those that can)"
        )
    near = difflib.get_close_matches(name, ARCHITECTURES, n=3, cutoff=0.5) or sorted(ARCHITECTURES)
    raise UnsupportedError(
        f"config.json: architecture '{name}' cannot be written as GGUF yet; known and near: {', '.join(near)} "
        "(CONTRIBUTING.md says how to add one)"
    )
