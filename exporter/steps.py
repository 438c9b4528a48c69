"""The steps of a recipe, as a YAML file writes them: what each is told. What they do is in `exporter.compress`."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path  # noqa: TC003 - pydantic reads it
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(gt=0, lt=1)]
Patterns = tuple[str, ...]
"""Patterns of weights' names as transformers has them, such as "model.layers.*.mlp.down_proj.weight"."""


class Strict(BaseModel):
    """A part of a recipe: no key but its own."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Text(Strict):
    """What statistics are gathered on.

    source: "model", text that the model itself writes, so that no data is needed; "text", a UTF-8 file; "jsonl", a file
        of JSON objects, a line each; "help", half of Python's own help; "dataset", of the Hugging Face hub. Where it is
        not said, what else is named decides
    text, jsonl: the file; dataset: the id, split: of it; field: of an object, with the text in, or with a conversation,
        a list of messages with role and content, which the model's chat template renders
    chunks: pieces, from all over it; tokens: of a piece
    """

    source: Literal["model", "text", "jsonl", "help", "dataset"] | None = None
    text: Path | None = None
    jsonl: Path | None = None
    dataset: str | None = None
    split: str = "train"
    field: str = "text"
    chunks: int = Field(default=32, ge=1)
    tokens: int = Field(default=512, ge=16)

    @property
    def kind(self) -> str:
        """The source, said or meant."""
        if self.source is not None:
            return self.source
        named = (kind for kind in ("text", "jsonl", "dataset") if getattr(self, kind) is not None)
        return next(named, "model")

    @model_validator(mode="after")
    def _goes_together(self) -> Text:
        for kind, value in (("text", self.text), ("jsonl", self.jsonl), ("dataset", self.dataset)):
            if value is not None and self.kind != kind:
                raise ValueError(f"{kind} goes with source {kind} only")
            if value is None and self.kind == kind:
                raise ValueError(f"source {kind} needs {kind}")
        return self


class Rule(Strict):
    """Another type for some tensors.

    tensors: a pattern of their names in the file, such as "blk.*.ffn_down.weight"; regex: in place of it a regular
        expression that is found in their names, such as "blk\\.[0-3]\\.ffn_down"
    type: of the format, such as "q5_1"
    """

    tensors: str | None = None
    regex: str | None = None
    type: str

    @model_validator(mode="after")
    def _goes_together(self) -> Rule:
        if (self.tensors is None) == (self.regex is None):
            raise ValueError("needs either tensors or regex")
        try:
            re.compile(self.regex or "")
        except re.error as error:
            raise ValueError(f"regex {self.regex} is no regular expression ({error})") from error
        return self

    def fits(self, name: str) -> bool:
        """Whether the rule is for a tensor of that name."""
        if self.regex is not None:
            return re.search(self.regex, name) is not None
        return fnmatchcase(name, self.tensors or "")


class Features(Strict):
    """What lies within a teacher and is followed beside what it predicts; a weight of each loss, 0 for none.

    hidden: of the outputs of layers; distance: between two, "nmse", the squared difference as a share of the teacher's
        square, or "cosine"
    attention: of the attention maps
    layers: the teacher's layer, from 0, for each of the student's, null for one that follows none; where it is not
        said, a student made of its teacher follows what the next of its layers used to read, and another one layers
        evenly apart
    """

    hidden: Annotated[float, Field(ge=0)] = 1.0
    distance: Literal["nmse", "cosine"] = "nmse"
    attention: Annotated[float, Field(ge=0)] = 0.0
    layers: tuple[Annotated[int, Field(ge=0)] | None, ...] | None = None

    @model_validator(mode="after")
    def _follows_something(self) -> Features:
        if self.hidden == self.attention == 0:
            raise ValueError("hidden and attention are both 0; leave features out, or give one a weight")
        if self.layers is not None and all(one is None for one in self.layers):
            raise ValueError("layers names none; leave features out, or name one of the teacher's")
        return self


class Training(Strict):
    """How weights learn to predict what a teacher predicts.

    teacher: another model of the same tokens, a directory or a hub id; the model that the recipe began with where none
        is said
    loss: between the two predictions: "forward-kl" where none is said, "reverse-kl" or "jsd"; between embeddings "nmse"
        or "cosine", as of `Features`; temperature: of both; top: the teacher's likeliest tokens that are kept of
        each, all others count as one
    hard: share of the loss on the text's own next tokens in place of the teacher's predictions; 1 needs none of them
    updates: of the weights, at most; batch: pieces of text for each; accumulate: in how many parts one is computed
    features: of the teacher's layers to follow as well
    patience: evaluations on held-out pieces without a gain after which it ends
    gradient_checkpointing: less memory, a third more time
    text: what is learned from; one piece in 16 is held out
    """

    teacher: str | None = None
    loss: Literal["forward-kl", "reverse-kl", "jsd", "nmse", "cosine"] | None = None
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top: Annotated[int, Field(ge=1)] = 64
    hard: Annotated[float, Field(ge=0, le=1)] = 0.0
    features: Features | None = None
    updates: Annotated[int, Field(ge=1)] = 500
    batch: Annotated[int, Field(ge=1)] = 8
    accumulate: Annotated[int, Field(ge=1)] = 1
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    patience: Annotated[int, Field(ge=1)] | None = None
    text: Text = Text(chunks=256)

    @model_validator(mode="after")
    def _is_whole(self) -> Training:
        asked = self.hard < 1 or self.text.kind == "model" or self.features is not None
        if self.teacher is not None and not asked:
            raise ValueError("nothing is asked of teacher where hard is 1 and the text is given")
        if self.batch % self.accumulate:
            raise ValueError(f"batch {self.batch} is no multiple of accumulate {self.accumulate}")
        return self


class OnGrid(Training):
    """Train a model whose matrices lie on their grids: quantization-aware training.

    train: "all", codes and scales of matrices, and all weights that have none; "scales", scales and vectors, under
        codes that stay
    """

    train: Literal["all", "scales"] = "all"


class Quantize(Strict):
    """Put every matrix onto the grid that a preset of the format gives it.

    types: "preset", or "measured": those that cost the model least for the bytes that the preset would take
    method: how codes are chosen; iterations: of autoround, on every layer
    training: of the codes and scales that were chosen, all layers together
    rules: types of some tensors whatever else is said, the first that matches counts
    """

    step: Literal["quantize"]
    preset: str
    types: Literal["preset", "measured"] = "preset"
    method: Literal["rtn", "gptq", "gptq-natural", "autoround"] = "gptq"
    iterations: Annotated[int, Field(ge=1)] = 200
    rules: tuple[Rule, ...] = ()
    training: OnGrid | None = None


class Prune(Strict):
    """Set weights of the layers' matrices to zero.

    sparsity: the share that becomes zero; pattern: "N:M", N of every M neighbours of a row stay, in place of sparsity
    scope: "layer", the share of every matrix; "global", of all together, by magnitude alone
    exclude: matrices that are left alone
    training: zeros come little by little, by magnitude, while all other weights learn
    """

    step: Literal["prune"]
    method: Literal["magnitude", "wanda", "sparsegpt"]
    sparsity: Share | None = None
    pattern: Annotated[str, Field(pattern=r"^[1-9]\d*:[1-9]\d*$")] | None = None
    scope: Literal["layer", "global"] = "layer"
    exclude: Patterns = ()
    training: Training | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Prune:
        if (self.sparsity is None) == (self.pattern is None):
            raise ValueError("needs either sparsity or pattern")
        if self.pattern is not None:
            kept, of = map(int, self.pattern.split(":"))
            if kept >= of:
                raise ValueError(f"pattern {self.pattern} keeps every weight; the first number is how many stay")
        if self.scope == "global" and (self.method != "magnitude" or self.pattern is not None):
            raise ValueError("scope global goes with method magnitude and sparsity only")
        if self.training is not None and (self.method != "magnitude" or self.pattern is not None):
            raise ValueError("training goes with method magnitude and sparsity only")
        return self


class Remove(Strict):
    """Take whole units out of the model, so that it is smaller everywhere.

    units: "layers"; "heads": whole groups of query heads with their key and value head; "neurons" of the feed-forward
    share: of the units that go; count: how many of every layer, in place of share
    widths: of the layers by then: "even", the same number goes in every layer; "uneven", where the model
        is expected to lose least by it; "auto", uneven where the recipe's format has such layers
    scores: by what units are ranked; for layers alone are "influence", how little they turn the hidden state, "greedy",
        one after the other goes without which the model says what is nearest to before, and "spaced", those that stay
        lie evenly apart
    repair: matrices that read heads or neurons make up for those that are gone
    """

    step: Literal["remove"]
    units: Literal["layers", "heads", "neurons"]
    share: Share | None = None
    count: Annotated[int, Field(ge=1)] | None = None
    scores: Literal["magnitude", "activation", "gradient", "influence", "greedy", "spaced"] | None = None
    repair: bool = True
    widths: Literal["even", "uneven", "auto"] = "even"

    @model_validator(mode="after")
    def _goes_together(self) -> Remove:
        if self.units == "layers" and self.widths == "uneven":
            raise ValueError("widths goes with units heads and neurons only")
        if (self.share is None) == (self.count is None):
            raise ValueError("needs either share or count")
        if self.scores in ("influence", "greedy", "spaced") and self.units != "layers":
            raise ValueError(f"scores {self.scores} goes with units layers only")
        return self


class Factorize(Strict):
    """Two thin matrices in place of one.

    keep: share of a matrix's weights that the two have together; energy: share of its squared singular values that they
    keep, in place of keep; matrices: which; those whose factors would not be smaller are left alone
    """

    step: Literal["factorize"]
    method: Literal["svd", "svd-llm"] = "svd-llm"
    keep: Share | None = None
    energy: Share | None = None
    matrices: Patterns = ("*",)

    @model_validator(mode="after")
    def _goes_together(self) -> Factorize:
        if (self.keep is None) == (self.energy is None):
            raise ValueError("needs either keep or energy")
        return self


class ShareWeights(Strict):
    """Weights that are stored once and used often.

    method: "codebook", every matrix's weights by k-means to 2^bits values; "layers", neighbouring layers alike enough
    become one; bits: of a codebook's index; count: how many layers take their neighbour's weights
    """

    step: Literal["share"]
    method: Literal["codebook", "layers"]
    bits: Annotated[int, Field(ge=1, le=8)] = 4
    count: Annotated[int, Field(ge=1)] = 1
    exclude: Patterns = ()


class Smooth(Strict):
    """Move scales between matrices and what comes before them, the function unchanged, so that rounding costs less.

    method: "awq", scales searched for weights that are rounded; "smoothquant", for activations that are
    strength: SmoothQuant's alpha
    """

    step: Literal["smooth"]
    method: Literal["awq", "smoothquant"]
    strength: Annotated[float, Field(ge=0, le=1)] = 0.5


class Rotate(Strict):
    """Turn the model's inner spaces by orthogonal matrices, the function unchanged, so that outliers spread.

    spaces: "residual", the hidden state (QuaRot's and SpinQuant's R1); "values", each head's values (R2)
    """

    step: Literal["rotate"]
    spaces: tuple[Literal["residual", "values"], ...] = ("residual", "values")


class Distill(Training):
    """Train the model as it is by then.

    train: "all" weights; "norms", vectors alone; "lora", two thin matrices beside each, added to it at the end
    rank: of lora, 16 where it is not said
    """

    step: Literal["distill"]
    train: Literal["all", "norms", "lora"] = "all"
    rank: Annotated[int, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _goes_together(self) -> Distill:
        if self.rank is not None and self.train != "lora":
            raise ValueError("rank goes with train lora only")
        return self


class Initialize(Strict):
    """Begin with new weights: a student of the same family and tokens in another shape.

    config: its config.json; change: keys of the model's own that the student has otherwise, in place of config
    reuse: weights whose name and shape the model has as well are taken from it
    """

    step: Literal["initialize"]
    config: Path | None = None
    change: dict[str, Any] | None = None
    reuse: bool = True

    @model_validator(mode="after")
    def _goes_together(self) -> Initialize:
        if (self.config is None) == (self.change is None):
            raise ValueError("needs either config or change")
        return self


Step = Annotated[
    Quantize | Prune | Remove | Factorize | ShareWeights | Smooth | Rotate | Distill | Initialize,
    Field(discriminator="step"),
]


def training_of(step: Step) -> Training | None:
    """What a step trains by; None for one that trains nothing."""
    found = getattr(step, "training", None) or step
    return found if isinstance(found, Training) else None
