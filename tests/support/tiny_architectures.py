"""A random tiny model of every architecture that becomes GGUF, as transformers 5 saves it and as the hub has it.

What matters to the parity test: grouped heads, a head that is not hidden / heads where the family allows it, widths
that all differ, and random values in every norm and every bias.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from support.tiny_models import write_tokenizer
from support.tiny_tokenizers import tiny_tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch
    from transformers import PretrainedConfig as PreTrainedConfig
    from transformers import PreTrainedModel

    Config = dict[str, Any]

TOKENIZER, VOCAB = "llama", 600

SHARED = {
    "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
    "num_hidden_layers": 2, "max_position_embeddings": 2048, "tie_word_embeddings": False,
}  # fmt: skip

F32 = 1e-5
"""What is left where llama.cpp computes the same in the same precision."""
ONE_EPSILON = 1e-4
"""llama.cpp has one epsilon where transformers has two."""
RAMP = 1e-2
"""llama.cpp rounds where YaRN's ramp begins and ends, GPT-OSS does not: 4e-3 here, and the file says so in a note."""
GELU = 1e-3
"""ggml looks the GELU up in a table of f16, and has only the approximation by tanh."""


@dataclass(frozen=True)
class Case:
    """One tiny model.

    config: the configuration's class in transformers; fields: its own settings, over `SHARED` unless `bare`
    public: turns config.json as saved into what the hub's checkpoints have, beyond the common differences
    original: whether saved with the names of the hub's checkpoints, as transformers does by itself
    limit: of the difference of logits, relative to the largest
    """

    config: str
    fields: dict[str, Any] = field(default_factory=dict)
    bare: bool = False
    public: Callable[[Config], Config] = lambda config: config
    original: bool = True
    limit: float = F32


def rope(theta: float = 10000.0, **more: Any) -> Config:
    """rope_parameters of transformers 5."""
    return {"rope_type": "default", "rope_theta": theta, **more}


def _without(*keys: str, **added: Any) -> Callable[[Config], Config]:
    return lambda config: {key: value for key, value in config.items() if key not in keys} | added


def _neox(config: Config) -> Config:
    """GPT-NeoX has names of its own for its rope."""
    names = {"partial_rotary_factor": "rotary_pct", "rope_theta": "rotary_emb_base"}
    return {names.get(key, key): value for key, value in config.items() if key != "rope_scaling"}


EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 48}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope", "rope_theta": 1e4, "long_factor": [1.0, 1.5, 2.0, 3.0, 4.0, 5.0],
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5], "partial_rotary_factor": 0.75,
}  # fmt: skip
GRANITE = {
    "embedding_multiplier": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.5, "logits_scaling": 2.0,
}  # fmt: skip
HYBRID = {
    **GRANITE, "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "num_local_experts": 4, "shared_intermediate_size": 80, "mamba_n_heads": 4, "mamba_d_head": 32, "mamba_n_groups": 2,
    "mamba_d_state": 16, "mamba_chunk_size": 16,
}  # fmt: skip
FALCON = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2, "alibi": False, "bias": False}
GPT2 = {"n_embd": 64, "n_head": 4, "n_layer": 2, "n_positions": 128}
GEMMA2 = {
    "head_dim": 32, "num_key_value_heads": 1, "num_hidden_layers": 3, "tie_word_embeddings": True, "sliding_window": 16,
    "query_pre_attn_scalar": 32, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 10.0,
}  # fmt: skip
GPT_OSS = {
    "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 32, "num_hidden_layers": 3, "sliding_window": 16,
}  # fmt: skip

CASES: dict[str, Case] = {
    "llama": Case("LlamaConfig", {"attention_bias": True, "mlp_bias": True}),
    "mistral": Case("MistralConfig", {"head_dim": 32, "sliding_window": None}),
    "mixtral": Case("MixtralConfig", {"num_local_experts": 4, "head_dim": 32, "rope_parameters": rope(1e6)}),
    "mixtral-fused": Case("MixtralConfig", {"num_local_experts": 4}, original=False),
    "smollm3": Case("SmolLM3Config", {"num_hidden_layers": 5, "tie_word_embeddings": True}),
    "arcee": Case("ArceeConfig"),
    "ernie4_5": Case("Ernie4_5Config", {"head_dim": 32, "tie_word_embeddings": True}),
    "qwen2": Case("Qwen2Config"),
    "qwen3": Case("Qwen3Config", {"head_dim": 32}),
    "qwen2moe": Case("Qwen2MoeConfig", {**EXPERTS, "shared_expert_intermediate_size": 80}, public=_without("qkv_bias")),
    "qwen2moe-tied": Case("Qwen2MoeConfig", {**EXPERTS, "tie_word_embeddings": True, "qkv_bias": False}),
    "qwen3moe": Case("Qwen3MoeConfig", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}),
    "qwen3moe-fused": Case("Qwen3MoeConfig", {**EXPERTS, "head_dim": 32, "norm_topk_prob": True}, original=False),
    "gemma": Case("GemmaConfig", {"head_dim": 32, "num_key_value_heads": 1, "tie_word_embeddings": True}, limit=GELU),
    "gemma2": Case("Gemma2Config", GEMMA2, public=_without("layer_types"), limit=GELU),
    "gemma3": Case(
        "Gemma3TextConfig",
        {"head_dim": 32, "num_hidden_layers": 6, "sliding_window": 16, "query_pre_attn_scalar": 32,
         "tie_word_embeddings": True},
        limit=GELU,
    ),
    "phi2": Case("PhiConfig", {"rope_parameters": rope(partial_rotary_factor=0.5)}, limit=GELU),
    "phi3": Case("Phi3Config", {"pad_token_id": 0}),
    "phi3-short": Case(
        "Phi3Config",
        {"rope_parameters": LONG, "original_max_position_embeddings": 512, "max_position_embeddings": 2048,
         "pad_token_id": 0},
    ),
    "phi3-long": Case(
        "Phi3Config",
        {"rope_parameters": LONG, "original_max_position_embeddings": 32, "max_position_embeddings": 512,
         "pad_token_id": 0, "tie_word_embeddings": True},
    ),
    "granite": Case("GraniteConfig", {**GRANITE, "attention_bias": True, "mlp_bias": True}),
    "granitemoe": Case("GraniteMoeConfig", {**GRANITE, "num_local_experts": 4, "tie_word_embeddings": True}),
    "granitemoe-fused": Case("GraniteMoeConfig", {**GRANITE, "num_local_experts": 4}, original=False),
    "granitemoe-shared": Case(
        "GraniteMoeSharedConfig", {**GRANITE, "num_local_experts": 4, "shared_intermediate_size": 80}
    ),
    "olmo": Case("OlmoConfig", {"clip_qkv": 0.5}),
    "olmo2": Case("Olmo2Config"),
    "olmo2-tied": Case("Olmo2Config", {"tie_word_embeddings": True}),
    "olmo3": Case("Olmo3Config", {"num_hidden_layers": 5, "sliding_window": 16}, public=_without("layer_types")),
    "olmoe": Case("OlmoeConfig", {"num_experts": 4, "num_experts_per_tok": 2, "num_key_value_heads": 4}),
    "stablelm": Case("StableLmConfig", {"use_qkv_bias": True, "rope_parameters": rope(partial_rotary_factor=0.25)}),
    "stablelm-parallel": Case("StableLmConfig", {"use_parallel_residual": True, "qk_layernorm": True}),
    "starcoder2": Case("Starcoder2Config", {"tie_word_embeddings": True}, limit=GELU),
    "nemotron": Case("NemotronConfig", {"attention_bias": True, "mlp_bias": True}),
    "gpt2": Case("GPT2Config", {**GPT2, "n_inner": 96}, bare=True, limit=GELU),
    "gpt2-usual": Case("GPT2Config", GPT2, bare=True, limit=GELU),
    "gpt_bigcode": Case("GPTBigCodeConfig", GPT2, bare=True, limit=GELU),
    "gptneox": Case(
        "GPTNeoXConfig", {"rope_parameters": rope(partial_rotary_factor=0.5)}, public=_neox, limit=GELU
    ),
    "gptneox-sequential": Case(
        "GPTNeoXConfig", {"use_parallel_residual": False, "hidden_act": "gelu_fast"}, original=False, limit=GELU
    ),
    "falcon": Case("FalconConfig", {**FALCON, "multi_query": True, "num_kv_heads": 4}, bare=True, limit=GELU),
    "falcon-grouped": Case(
        "FalconConfig", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, bare=True, limit=GELU
    ),
    "falcon-one-norm": Case(
        "FalconConfig",
        {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        bare=True,
        limit=GELU,
    ),
    "bloom": Case(
        "BloomConfig",
        {"hidden_size": 96, "n_head": 6, "n_layer": 2},
        bare=True,
        public=lambda config: {**config, "seq_length": 2048, "n_embed": 96},
        limit=GELU,
    ),
    "mpt": Case(
        "MptConfig",
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.5}},
        bare=True,
        public=_without("architectures", architectures=["MPTForCausalLM"]),
        limit=GELU,
    ),
    "cohere": Case("CohereConfig", {"tie_word_embeddings": True, "logit_scale": 0.5}),
    "cohere-deep": Case(
        "CohereConfig",
        {"tie_word_embeddings": True, "hidden_size": 32, "num_hidden_layers": 64, "use_qk_norm": True,
         "intermediate_size": 32},
    ),
    "cohere2": Case(
        "Cohere2Config",
        {"tie_word_embeddings": True, "num_hidden_layers": 5, "sliding_window": 16, "logit_scale": 0.5},
        public=_without("layer_types", sliding_window_pattern=4),
    ),
    "glm": Case("GlmConfig", {"head_dim": 16, "pad_token_id": 0, "rope_parameters": rope(partial_rotary_factor=0.5)}),
    "glm4": Case("Glm4Config", {"head_dim": 32, "pad_token_id": 0, "rope_parameters": rope(partial_rotary_factor=0.5)}),
    "exaone4": Case("Exaone4Config", {"sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "seed_oss": Case("SeedOssConfig", {"head_dim": 32}),
    "gpt-oss": Case(
        "GptOssConfig",
        {**GPT_OSS, "rope_parameters": rope(150000.0)},
        public=lambda config: {**config, "rope_scaling": {"rope_type": "default"}},
    ),
    # with nothing said of rope it is the public checkpoints' own
    "gpt-oss-silent": Case(
        "GptOssConfig", {**GPT_OSS, "head_dim": 64}, public=_without("rope_scaling", "rope_theta"), limit=RAMP
    ),
    "gpt-oss-yarn": Case("GptOssConfig", {**GPT_OSS, "rope_parameters": YARN}),
    "mamba": Case(
        "MambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "time_step_rank": 6},
        bare=True,
    ),
    "falcon_mamba": Case(
        "FalconMambaConfig",
        {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "tie_word_embeddings": False},
        bare=True,
        limit=ONE_EPSILON,
    ),
    "mamba2": Case(
        "Mamba2Config",
        {"hidden_size": 64, "num_hidden_layers": 2, "num_heads": 4, "head_dim": 32, "state_size": 16, "n_groups": 2,
         "chunk_size": 16},
        bare=True,
    ),
    "lfm2moe": Case(
        "Lfm2MoeConfig",
        {**EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1,
         "tie_word_embeddings": True, "rope_parameters": rope(1e6)},
    ),
    "granitehybrid": Case("GraniteMoeHybridConfig", HYBRID),
    "granitehybrid-dense": Case("GraniteMoeHybridConfig", {**HYBRID, "num_local_experts": 0, "num_experts_per_tok": 0}),
    "granitehybrid-attention": Case(
        "GraniteMoeHybridConfig",
        {**HYBRID, "num_local_experts": 0, "num_experts_per_tok": 0, "layer_types": ["full_attention"] * 3,
         "position_embedding_type": "rope"},
    ),
    "lfm2": Case(
        "Lfm2Config",
        {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "block_multiple_of": 16,
         "tie_word_embeddings": True, "rope_parameters": rope(1e6)},
    ),
}  # fmt: skip


def make_tiny_architecture(name: str, directory: Path, *, public: bool = False) -> Path:
    """Write the model of a case into `directory` (made if missing) and return it. public: config.json as on the hub."""
    import torch

    case = CASES[name]
    model = tiny_model(name)
    model.to(torch.bfloat16).save_pretrained(directory, save_original_format=case.original)
    if public:
        path = directory / "config.json"
        path.write_text(json.dumps(case.public(_older(json.loads(path.read_text(encoding="utf-8")))), indent=2))
    return write_tokenizer(TOKENIZER, directory, vocab=VOCAB)


def tiny_config(name: str) -> PreTrainedConfig:
    """The configuration of a case."""
    import transformers

    case, tokenizer = CASES[name], tiny_tokenizer(TOKENIZER, VOCAB)
    fields = {**tokenizer.ids, "initializer_range": 0.15, "vocab_size": tokenizer.n_tokens, "dtype": "bfloat16"}
    made: PreTrainedConfig = getattr(transformers, case.config)(
        **{**fields, **({} if case.bare else SHARED), **case.fields}
    )
    return made


def tiny_model(name: str) -> PreTrainedModel:
    """The random model of a case, float32."""
    import torch
    import transformers

    torch.manual_seed(0)
    model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32)
    _randomize(model)
    model.generation_config = transformers.GenerationConfig(**tiny_tokenizer(TOKENIZER, VOCAB).generation)
    return model.eval()


def _randomize(model: torch.nn.Module) -> None:
    """Move norms, biases and attention sinks away from their neutral values, of whatever shape they are."""
    import torch

    stored = model.state_dict()  # the parameters and those of the buffers that are saved, such as biases of routers
    with torch.no_grad():
        for name, values in stored.items():
            if values.ndim == 1 or "norm" in name or "bias" in name:
                values.add_(torch.randn_like(values) * 0.2)


def _older(config: Config) -> Config:
    """config.json with the keys of transformers 4, which nearly every public model has."""
    found = dict(config)
    found["torch_dtype"] = found.pop("dtype")
    found["transformers_version"] = "4.48.0"
    scaling = found.pop("rope_parameters", None)
    if not scaling:
        return found
    if "sliding_attention" in scaling:
        if "rope_theta" in scaling["sliding_attention"]:
            found["rope_local_base_freq"] = scaling["sliding_attention"]["rope_theta"]
        scaling = scaling["full_attention"]
    scaling = dict(scaling)
    found["rope_theta"] = scaling.pop("rope_theta")
    partial = scaling.pop("partial_rotary_factor", None)
    if partial is not None:
        found["partial_rotary_factor"] = partial
    found["rope_scaling"] = None if scaling["rope_type"] == "default" else scaling
    return found
