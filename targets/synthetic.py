"""Small models of one kind of matrix: nothing but the time that they take is of interest."""

from __future__ import annotations

from dataclasses import dataclass

VOCAB = 512
"""Small: the head's time shall not count."""


@dataclass(frozen=True)
class Shape:
    """Of a Llama without grouped heads."""

    hidden: int
    ffn: int
    layers: int
    heads: int

    @property
    def elements(self) -> int:
        """Of the matrices in its layers."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.ffn)

    @property
    def attention(self) -> int:
        """Products with one position of the cache."""
        return 2 * self.layers * self.hidden

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names of a Hugging Face directory, and shapes."""
        square, wide = (self.hidden, self.hidden), (self.ffn, self.hidden)
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCAB, self.hidden)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            found |= {f"{prefix}self_attn.{name}_proj.weight": square for name in "qkvo"}
            found |= {f"{prefix}mlp.{name}_proj.weight": wide for name in ("gate", "up")}
            found[f"{prefix}mlp.down_proj.weight"] = wide[::-1]
            found |= {f"{prefix}{name}_layernorm.weight": (self.hidden,) for name in ("input", "post_attention")}
        return {**found, "model.norm.weight": (self.hidden,)}

    def config(self) -> dict[str, object]:
        """As config.json."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": self.hidden,
            "intermediate_size": self.ffn, "num_hidden_layers": self.layers, "num_attention_heads": self.heads,
            "num_key_value_heads": self.heads, "vocab_size": VOCAB, "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 10000.0, "tie_word_embeddings": True,
            "bos_token_id": 1, "eos_token_id": 2,
        }  # fmt: skip


WIDE = Shape(1024, 4096, 4, 16)
"""Nearly all of its time goes into matrices."""
DEEP = Shape(128, 128, 32, 4)
"""Nearly all of its time goes into layers."""
FAR = Shape(256, 256, 32, 4)
"""Behind a long prompt much of its time goes into attention, over heads as wide as usual."""
