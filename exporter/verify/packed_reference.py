"""A decoder's checkpoint in packed integers, in torch: transformers has another library for each, often on GPUs only.

packlight reads the weights itself, as it does for the export; the model's code is transformers'. So what is compared is
what the layout says that the weights are worth, in float32 and not in the half precision of such a library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from exporter.verify.reference import TransformersReference
from runtime.errors import UserError
from targets.grouped import AWQ, GPTQ
from targets.weights import WeightReader

if TYPE_CHECKING:
    from targets.facts import ModelFacts

PACKED = (GPTQ, AWQ, "I4_OFFSET", "I8_OFFSET")
"""Element types that are read here."""
_CHUNK = 1 << 22
"""Weights that are decoded at a time."""


def is_packed(facts: ModelFacts) -> bool:
    """Whether a checkpoint is such a one."""
    return any(fact.dtype in PACKED for fact in facts.tensors.values())


class PackedReference(TransformersReference):
    """See the module. Raises ModelError."""

    def __init__(self, facts: ModelFacts, **how: Any) -> None:
        self._facts = facts
        super().__init__(facts.path, **how)
        self.description += ", packed weights read by packlight"

    def load(self, transformers: Any, kind: str, options: dict[str, Any]) -> tuple[Any, list[str]]:  # noqa: ANN401, ARG002
        """See `TorchSource.load`. Raises UserError for a class that transformers has not."""
        import torch

        common = {key: options[key] for key in ("local_files_only", "trust_remote_code")}
        config = transformers.AutoConfig.from_pretrained(self._facts.path, **common)
        del config.quantization_config
        dtype, named = options["dtype"], self._facts.architecture
        model_class = getattr(transformers, named, None)
        if model_class is None:
            raise UserError(f"{self._facts.requested}: transformers has no class {named}; use --no-verify")
        with WeightReader() as reader:
            state = {
                name: torch.cat(
                    [torch.from_numpy(rows).to(dtype) for rows in reader.read_chunks(fact, _CHUNK)]
                ).reshape(fact.shape)
                for name, fact in self._facts.tensors.items()
            }
        # The Auto classes want a directory.
        model, loading = model_class.from_pretrained(
            None, config=config, state_dict=state, output_loading_info=True, dtype=dtype
        )
        return model.to(dtype), list(loading["missing_keys"])
