"""The source model, as the artifact is compared with it: in torch, or, where MODEL is a .gguf, in llama.cpp."""

from __future__ import annotations

import contextlib
import inspect
from typing import TYPE_CHECKING, Any, Protocol

from exporter.verify.chat import render
from runtime.artifact import open_artifact
from runtime.errors import EngineError, ModelError, UserError, in_one_line
from runtime.sessions import open_session
from runtime.tokenizer_file import load_tokenizer
from targets.quiet import no_log_below_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from types import ModuleType

    import numpy as np
    import numpy.typing as npt

    from runtime.measurement import RunOptions

DECODER = "AutoModelForCausalLM"
MAX_SPECIAL_TOKENS = 12
"""Special tokens that go into hard strings; some models declare hundreds of reserved ones."""


class Reference(Protocol):
    """The source model, open. Token ids are plain ints.

    description: what it is and how it runs, for the record
    n_vocab: columns of the logits
    bos_id: the token that the tokenizer puts before a text; None where it adds none
    special_tokens: texts of special tokens, the model's own
    added_tokens: texts that the tokenizer takes out of a text before it splits the rest
    """

    description: str
    n_vocab: int
    bos_id: int | None
    special_tokens: tuple[str, ...]
    added_tokens: tuple[str, ...]

    @property
    def has_chat_template(self) -> bool:
        """Whether `render` can be called."""

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`; special tokens written in the text are recognised."""

    def logits(self, ids: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """Logits at the positions from `first` on of a fresh context, shape (len(ids) - first, n_vocab)."""

    def render(self, conversation: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """The conversation under the source's chat template; raises what the template raises."""

    def close(self) -> None:
        """Free everything."""


def bos_of(tokenize: Callable[..., list[int]]) -> int | None:
    """The token that `tokenize(text, add_special=True)` puts first; None where it adds none."""
    plain, special = tokenize("a", add_special=False), tokenize("a", add_special=True)
    added = len(special) > len(plain) and special[1 : 1 + len(plain)] == plain
    return special[0] if added else None


class GgufReference:
    """A .gguf source, run in llama.cpp."""

    def __init__(self, path: Path, options: RunOptions) -> None:
        self._session = open_session(open_artifact(path), options)
        self.description = f"{path.name} in {self._session.engine}"
        self.n_vocab = self._session.n_vocab
        self.bos_id = bos_of(self.tokenize)
        self._names = {f"{which}_token": self._session.special_text(which) for which in ("bos", "eos")}
        self.special_tokens = tuple(dict.fromkeys(text for text in self._names.values() if text))
        self.added_tokens = self.special_tokens
        self._template = self._session.chat_template()

    @property
    def has_chat_template(self) -> bool:
        """See `Reference`."""
        return self._template is not None

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `Reference`."""
        return self._session.tokenize(text, add_special=add_special)

    def logits(self, ids: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """See `Reference`."""
        return self._session.all_logits(ids)[first:]

    def render(self, conversation: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """See `Reference`. Raises ModelError without a template."""
        if self._template is None:
            raise ModelError(f"{self.description}: has no chat template")
        return render(self._template, conversation, self._names, prompt=prompt)

    def close(self) -> None:
        """See `Reference`."""
        self._session.close()


class TorchSource:
    """A Hugging Face directory in torch on the CPU: its tokenizer, and its model by one of transformers' Auto classes.

    Weights come from safetensors only. kind: the class, "AutoModelForCausalLM" and the like; unused: a piece of the
    names of weights that may be missing, because nothing that is compared reads them. Raises ModelError.

    path: the directory
    """

    def __init__(
        self, path: Path, kind: str, *, dtype: str, trust_remote_code: bool, unused: str | None = None
    ) -> None:
        import torch
        import transformers

        self._torch, self.path = torch, path
        self._threads_before = torch.get_num_threads()
        common = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        with quiet(transformers):
            try:
                self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path, **common)
                self._model, missing = self.load(transformers, kind, {**common, "dtype": getattr(torch, dtype)})
            except UserError:
                raise
            except Exception as error:
                reason = in_one_line(error, 300)
                raise ModelError(f"{path}: transformers cannot load it ({reason}); check the directory") from error
        self._file_tokenizer = _tokenizer_of_file(path)
        missing = sorted(name for name in missing if unused is None or unused not in name)
        if missing:
            # transformers fills them with random numbers and goes on.
            raise ModelError(f"{path}: {len(missing)} weights are missing, the first is {missing[0]}; get them all")
        self._model.eval()
        versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
        self.description = f"{path.name} in {versions}, {dtype}"
        self.special_tokens = tuple(dict.fromkeys(self._tokenizer.all_special_tokens))[:MAX_SPECIAL_TOKENS]
        self.added_tokens = tuple(self._tokenizer.get_added_vocab())

    def load(self, transformers: Any, kind: str, options: dict[str, Any]) -> tuple[Any, list[str]]:  # noqa: ANN401
        """The model by a class of transformers, and the names of weights that it has and the directory has not."""
        model, loading = getattr(transformers, kind).from_pretrained(
            self.path, use_safetensors=True, output_loading_info=True, **options
        )
        # Of a checkpoint in 8 bits it makes bfloat16 weights, whatever is asked for.
        return model.to(options["dtype"]), list(loading["missing_keys"])

    @property
    def model(self) -> Any:  # noqa: ANN401 - a model of transformers
        """The open model itself."""
        return self._model

    def use_threads(self, threads: int | None) -> None:
        """Compute with so many threads until `close`; None leaves it to torch."""
        if threads is not None:
            self._torch.set_num_threads(threads)

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `Reference`."""
        if self._file_tokenizer is not None:
            return list(self._file_tokenizer.encode(text, add_special_tokens=add_special).ids)
        ids = self._tokenizer(text, add_special_tokens=add_special, verbose=False)["input_ids"]
        return [int(token) for token in ids]

    def forward(self, *texts: Sequence[int], **options: Any) -> Any:  # noqa: ANN401 - an output of transformers
        """The model's output for texts of one length. Raises EngineError where torch fails."""
        return self.run(input_ids=self._torch.tensor([list(ids) for ids in texts], dtype=self._torch.long), **options)

    def run(self, **inputs: Any) -> Any:  # noqa: ANN401 - tensors, and an output of transformers
        """The model's output. Raises EngineError where torch fails."""
        try:
            with self._torch.no_grad():
                return self._model(**inputs)
        except RuntimeError as error:
            # torch says so too when it cannot get memory
            raise EngineError(f"{self.description}: failed ({in_one_line(error)})") from error

    def as_float32(self, tensor: Any) -> npt.NDArray[np.float32]:  # noqa: ANN401 - a tensor of torch
        """The tensor's numbers."""
        array: npt.NDArray[np.float32] = tensor.to(self._torch.float32).numpy()
        return array

    def close(self) -> None:
        """Free the model, and give torch its threads back."""
        self._torch.set_num_threads(self._threads_before)
        del self._model


class TransformersReference(TorchSource):
    """A decoder's directory, run by transformers in torch on the CPU."""

    def __init__(
        self, path: Path, *, dtype: str = "float32", threads: int | None = None, trust_remote_code: bool = False
    ) -> None:
        super().__init__(path, DECODER, dtype=dtype, trust_remote_code=trust_remote_code)
        self.use_threads(threads)
        self._can_skip = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self.eos_id: int | None = self._tokenizer.eos_token_id
        self.n_vocab = int(self._model.get_output_embeddings().weight.shape[0])
        self.bos_id = bos_of(self.tokenize)

    @property
    def has_chat_template(self) -> bool:
        """See `Reference`."""
        return bool(self._tokenizer.chat_template)

    def logits(self, ids: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """See `Reference`."""
        # The head is a third of a small model: it runs for the positions that are asked for only.
        skip = {"logits_to_keep": len(ids) - first} if self._can_skip else {}
        output = self.forward(ids, use_cache=False, **skip).logits[0]
        return self.as_float32(output[len(output) - (len(ids) - first) :])

    def render(self, conversation: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """See `Reference`."""
        turns = [dict(turn) for turn in conversation]
        return str(self._tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt))


def _tokenizer_of_file(path: Path) -> Any:  # noqa: ANN401 - tokenizers is untyped
    """The tokenizer that tokenizer.json describes; None where there is no such file.

    transformers 5 builds the tokenizers of some classes anew and drops what the file says of them: under the class
    name GPT2Tokenizer, SmolLM2 loses the step that splits digits. The file is what the model was trained with.
    """
    file = path / "tokenizer.json"
    return load_tokenizer(file, ModelError, "get or save it again") if file.is_file() else None


@contextlib.contextmanager
def quiet(transformers: ModuleType) -> Iterator[None]:
    """transformers writes progress bars and warnings to the terminal while it loads; a library must not."""
    log = transformers.utils.logging
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with no_log_below_error():
            yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
