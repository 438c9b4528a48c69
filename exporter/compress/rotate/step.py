"""The rotate step of a recipe: QuaRot's and SpinQuant's rotations that fold into the weights.

R1 turns the hidden state (https://arxiv.org/abs/2404.00456), R2 each head's values (https://arxiv.org/abs/2405.16406).
The function is the same to rounding: an RMSNorm without weights sees only lengths, which a rotation keeps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from exporter.compress.links import forward_norm, gain, has_post_norms, set_gain
from exporter.compress.rotate.hadamard import rotation
from exporter.compress.widths import head_width
from runtime.errors import ModelError, UserError

if TYPE_CHECKING:
    from torch import Tensor

    from exporter.compress.subject import Subject
    from exporter.steps import Rotate


def run(step: Rotate, subject: Subject) -> None:
    """See `exporter.compress.registry.Runner`."""
    model = subject.model
    layers = model.base_model.layers
    try:
        if "residual" in step.spaces:
            _refuse_other_norms(layers, model.base_model.norm)
            _rotate_residual(subject)
        if "values" in step.spaces:
            for number, layer in enumerate(layers):
                _rotate_values(layer, model.config, subject.recipe.seed + number)
    except AttributeError as error:
        raise ModelError(f"{type(layers[0]).__name__}: is built otherwise than packlight knows ({error})") from error


def _refuse_other_norms(layers: Any, last: Any) -> None:  # noqa: ANN401
    name = type(last).__name__
    if "RMSNorm" not in name or has_post_norms(layers[0]):
        what = (
            "norms what each layer adds" if has_post_norms(layers[0]) else f"has {name}, which sees more than lengths"
        )
        raise UserError(f"--recipe: rotate residual: the model {what}; say spaces: [values]")


def _rotate_residual(subject: Subject) -> None:
    model = subject.model
    base, head, table = model.base_model, model.get_output_embeddings(), model.get_input_embeddings()
    final = gain(base.norm).double()
    tied = head.weight is table.weight
    if tied and not torch.equal(final, final[:1].expand_as(final)):
        head.weight = torch.nn.Parameter(table.weight.detach().clone(), requires_grad=False)
        model.config.tie_word_embeddings = subject.config["tie_word_embeddings"] = False
        subject.notes.append(
            f"rotate residual: the head is no longer the table of tokens, {head.weight.numel():,} weights more"
        )
        tied = False
    turn = torch.from_numpy(rotation(table.weight.shape[1], subject.recipe.seed))
    _put(table.weight, table.weight.double() @ turn)
    for number, layer in enumerate(base.layers):
        subject.progress("rotate", number, len(base.layers))
        attention, forward = layer.self_attn, layer.mlp
        _turn_inputs(layer.input_layernorm, (attention.q_proj, attention.k_proj, attention.v_proj), turn)
        _turn_inputs(forward_norm(layer), (forward.gate_proj, forward.up_proj), turn)
        for module in (attention.o_proj, forward.down_proj):
            _put(module.weight, turn.T @ module.weight.double())
            if module.bias is not None:
                _put(module.bias, turn.T @ module.bias.double())
    if not tied:
        _put(head.weight, (head.weight.double() * final) @ turn)
        set_gain(base.norm, torch.ones_like(base.norm.weight))
    subject.progress("rotate", len(base.layers), len(base.layers))


def _turn_inputs(norm: Any, consumers: tuple[Any, ...], turn: Tensor) -> None:  # noqa: ANN401
    """Fold the norm's weights into what reads it, and turn that back."""
    gains = gain(norm).double()
    for module in consumers:
        _put(module.weight, (module.weight.double() * gains) @ turn)
    set_gain(norm, torch.ones_like(norm.weight))


def _rotate_values(layer: Any, config: Any, seed: int) -> None:  # noqa: ANN401
    v, o = layer.self_attn.v_proj, layer.self_attn.o_proj
    head = head_width(config)
    turn = torch.from_numpy(rotation(head, seed))
    _put(v.weight, (turn.T @ v.weight.double().reshape(-1, head, v.weight.shape[1])).reshape(v.weight.shape))
    if v.bias is not None:
        _put(v.bias, (v.bias.double().reshape(-1, head) @ turn).reshape(-1))
    _put(o.weight, (o.weight.double().reshape(o.weight.shape[0], -1, head) @ turn).reshape(o.weight.shape))


def _put(parameter: Tensor, values: Tensor) -> None:
    parameter.data.copy_(values)
