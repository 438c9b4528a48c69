"""The presets of llama-quantize, as tables: a base type, and rules by the role of a tensor.

Same preset, same types, as llama.cpp's `llama_tensor_get_type` (src/llama-quant.cpp) chooses, with and without an
importance matrix. `targets.gguf.choice` applies them.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from targets.gguf.mixtures import (
    ModelShape,
    Rule,
    always,
    attn_output,
    eight_experts,
    either,
    falcon,
    first,
    first_part,
    grouped,
    middle,
    more_bits,
    small_attention,
    unweighted,
    weighted,
)

__all__ = ["ALIASES", "COPY", "PRESETS", "ModelShape", "Preset"]


@dataclass(frozen=True)
class Preset:
    """A named mixture: llama.cpp's file type id, the base type, and rules by role.

    output: the type of output.weight, and of a table that is the output as well, where the base type is not Q8_0
    lowest: of those below 3 bits whose attention llama.cpp gives types by rules of their own
    experts: the type of tensors of experts, where it is another
    weighted: it is not written without an importance matrix; needs_importance: types that it alone does not write
        without one
    """

    name: str
    file_type: int
    base: str
    help: str
    rules: dict[str, Rule] = field(default_factory=dict)
    output: str = "Q6_K"
    lowest: bool = False
    experts: str | None = None
    weighted: bool = False
    needs_importance: frozenset[str] = frozenset()

    @property
    def floats(self) -> bool:
        """Whether nothing is quantized."""
        return self.base in {"F32", "F16", "BF16"}


def _lowest(name: str, file_type: int, base: str, help: str, more: str, attention: str | None) -> Preset:
    """A preset below 3 bits.

    more: the type of what is worth more bits: the table, the first ffn_down, attn_v; attention: of attn_output
    """
    return Preset(
        name, file_type, base, help,
        {"token_embd": always(more), "attn_v": small_attention("Q4_K", more), "attn_k": eight_experts(always("Q4_K")),
         "ffn_down": first_part(8, more), "attn_output": eight_experts(always("Q5_K"), always(attention))},
        output="Q5_K", lowest=True, weighted=True,
    )  # fmt: skip


_TERNARY = {"token_embd": always("Q4_K")}

_ALL = (
    Preset("f32", 0, "F32", "no quantization"),
    Preset("f16", 1, "F16", "half precision"),
    Preset("bf16", 32, "BF16", "bfloat16: as most models are trained"),
    Preset("q8_0", 7, "Q8_0", "8 bits, blocks of 32: close to lossless"),
    Preset("q6_k", 18, "Q6_K", "6 bits"),
    Preset("q5_k_m", 17, "Q5_K", "5 bits, sensitive tensors at 6",
           {"attn_v": more_bits("Q6_K"), "ffn_down": more_bits("Q6_K")}),
    Preset("q5_k_s", 16, "Q5_K", "5 bits"),
    Preset("q5_1", 9, "Q5_1", "5 bits, blocks of 32 with a minimum"),
    Preset("q5_0", 8, "Q5_0", "5 bits, blocks of 32", {"ffn_down": weighted(first_part(8, "Q5_1"))}),
    Preset("q4_k_m", 15, "Q4_K", "4 bits, sensitive tensors at 6: the usual choice",
           {"attn_v": more_bits("Q6_K"), "attn_output": attn_output(None),
            "ffn_down": falcon(either(first_part(16, "Q6_K"), more_bits("Q5_K")), more_bits("Q6_K"))}),
    Preset("q4_k_s", 14, "Q4_K", "4 bits, the first layers at 5",
           {"attn_v": first(4, "Q5_K"), "ffn_down": falcon(always(None), first_part(8, "Q5_K")),
            "attn_output": attn_output(None)}),
    Preset("q4_1", 3, "Q4_1", "4 bits, blocks of 32 with a minimum"),
    Preset("q4_0", 2, "Q4_0", "4 bits, blocks of 32: fastest on Arm", {"ffn_down": weighted(first_part(8, "Q4_1"))}),
    Preset("iq4_nl", 25, "IQ4_NL", "4 bits, non-linear levels, blocks of 32",
           {"attn_v": grouped("Q5_K"), "ffn_down": unweighted(first_part(8, "Q5_K")),
            "attn_output": attn_output(None)}),
    Preset("iq4_xs", 30, "IQ4_XS", "4.25 bits, non-linear levels",
           {"attn_v": grouped("Q5_K"), "ffn_down": unweighted(first_part(8, "Q5_K")),
            "attn_output": attn_output(None)}),
    Preset("mxfp4_moe", 38, "MXFP4", "experts at 4.25 bits, of 4-bit floats; all else at 8", output="Q8_0",
           experts="MXFP4"),
    Preset("q3_k_l", 13, "Q3_K", "3 bits, attention output and ffn_down at 5",
           {"attn_v": always("Q5_K"), "ffn_down": falcon(always("Q4_K"), always("Q5_K")),
            "attn_output": attn_output("Q5_K", eight=None, of_falcon="Q4_K")}),
    Preset("q3_k_m", 12, "Q3_K", "3 bits, sensitive tensors at 4 and 5",
           {"attn_v": first(2, "Q5_K", "Q4_K"), "attn_output": attn_output("Q4_K"),
            "ffn_down": either(first_part(16, "Q5_K"), falcon(more_bits("Q4_K"), always("Q4_K")))}),
    Preset("q3_k_s", 11, "Q3_K", "3 bits", {"attn_output": attn_output(None)}),
    Preset("iq3_m", 27, "IQ3_S", "3.4 bits of a lattice, sensitive tensors at 4",
           {"attn_v": always("Q4_K"), "attn_output": attn_output("Q4_K"),
            "ffn_down": either(first_part(8, "Q4_K"), eight_experts(more_bits("Q4_K")))}),
    Preset("iq3_s", 26, "IQ3_S", "3.4 bits of a lattice",
           {"attn_v": grouped("Q4_K"), "attn_output": attn_output(None)}),
    Preset("iq3_xs", 22, "IQ3_S", "3.3 bits of a lattice",
           {"attn_v": grouped("Q4_K"), "attn_k": always("IQ3_XXS"), "attn_q": always("IQ3_XXS"),
            "ffn_gate": middle("IQ3_XXS"), "ffn_up": middle("IQ3_XXS"), "attn_output": attn_output(None)},
           weighted=True),
    Preset("iq3_xxs", 23, "IQ3_XXS", "3.1 bits of a lattice",
           {"token_embd": always("IQ3_S"), "attn_v": either(grouped("Q4_K"), unweighted(always("IQ3_S"))),
            "attn_k": always("IQ2_S"), "attn_q": always("IQ2_S"), "attn_output": attn_output("IQ3_S"),
            "ffn_down": unweighted(first_part(8, "Q4_K", "Q3_K"))}, output="Q5_K", weighted=True),
    Preset("q2_k", 10, "Q2_K", "2 bits, sensitive tensors at 3 and 4: a large loss",
           {"attn_v": grouped("Q4_K", "Q3_K"), "ffn_down": always("Q3_K"), "attn_output": attn_output("Q3_K")}),
    Preset("q2_k_s", 21, "Q2_K", "2 bits",
           {"attn_v": grouped("Q4_K"), "ffn_down": first_part(8, "Q4_K")}, weighted=True,
           needs_importance=frozenset({"Q2_K"})),
    _lowest("iq2_m", 29, "IQ2_S", "2.7 bits of a lattice", "IQ3_S", "IQ3_S"),
    _lowest("iq2_s", 28, "IQ2_XS", "2.5 bits of a lattice", "IQ3_S", "IQ3_S"),
    _lowest("iq2_xs", 20, "IQ2_XS", "2.3 bits of a lattice", "Q2_K", None),
    _lowest("iq2_xxs", 19, "IQ2_XXS", "2.1 bits of a lattice", "Q2_K", None),
    _lowest("iq1_m", 31, "IQ1_M", "1.75 bits of a lattice", "Q2_K", "IQ2_XXS"),
    _lowest("iq1_s", 24, "IQ1_S", "1.56 bits of a lattice", "Q2_K", "IQ2_XXS"),
    Preset("q2_0", 41, "Q2_0", "2.25 bits, blocks of 64: for models trained to it", _TERNARY),
    Preset("tq2_0", 37, "TQ2_0", "ternary, 2.06 bits: for models trained to it", _TERNARY),
    Preset("tq1_0", 36, "TQ1_0", "ternary, 1.69 bits: smaller than tq2_0, and slower", _TERNARY),
    Preset("q1_0", 40, "Q1_0", "one bit, 1.13 with scales: for models trained to it"),
)  # fmt: skip

PRESETS: dict[str, Preset] = {preset.name: preset for preset in _ALL}

COPY = Preset("copy", -1, "F32", "the types that a .gguf source has: to join its parts, or to cut it")
"""No mixture: nothing is quantized. The file's type is the source's."""

ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}
"""Short names that llama-quantize takes too."""
