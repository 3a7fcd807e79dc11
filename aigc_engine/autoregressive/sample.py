"""Sampling from language models: many texts at once, each a function of its own prompt and seed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from aigc_engine import latents
from aigc_engine.autoregressive.model import LanguageModel, bucket, window_start
from aigc_engine.autoregressive.stop import StopFilter
from aigc_engine.ops import philox_uniform, sample_token
from aigc_engine.zoo import Checkpoint

START = "\n"  # every text is taken to follow one, as in training and in `evaluate.text`
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


class TextSampler:
    """Texts x with x_t ~ p(x_t | prompt, x_0 ... x_{t-1}), one character at a time.

    A row is a function of its own prompt, seed and settings: n samples with `seed=s` equal n single calls
    with seeds s, s + 1, ... bit for bit, in one batch. The sampler keeps no state: threads may share it.

    Past the model's context (256 characters for text-transformer) the window rolls: when it is full, the last
    half is read again from position 0 and the text goes on from there. An LSTM has no such limit.

    Args:
        model: the language model; its weights are used as they are.
        sampling: defaults for `sample` and `stream`: temperature, top_k, top_p, min_p, repetition_penalty.
    """

    def __init__(self, model: LanguageModel, **sampling: float) -> None:
        self.model, self.vocabulary, self.context = model, model.vocabulary, model.context
        self._index = {character: token for token, character in enumerate(model.vocabulary)}
        if START not in self._index:
            raise ValueError("TextSampler: model without a newline in its vocabulary, expected one; add it")
        unknown = sampling.keys() - set(SETTINGS)
        if unknown:
            raise ValueError(f"TextSampler: sampling {sorted(unknown)}, expected {list(SETTINGS)}")
        self.sampling = sampling

    @classmethod
    def from_checkpoint(cls, checkpoint: Checkpoint) -> TextSampler:
        """The sampler of a checkpoint of family "text", with the defaults of its config's "sampling"."""
        return cls(checkpoint.model, **checkpoint.config.get("sampling", {}))

    def sample(
        self,
        n: int | None = None,
        *,
        prompt: str | Sequence[str] = "",
        seed: int | Sequence[int] = 0,
        length: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        use_cache: bool = True,
        progress: bool = False,
        on_token: Callable[[int, str], Any] | None = None,
    ) -> list[str]:
        """Sample n texts.

        Args:
            n: number of texts, >= 1; None takes one per prompt or seed of a sequence, else one.
            prompt: what the text goes on from (empty: the beginning of a line), or n prompts of any lengths.
            seed: int, rows take seed, seed + 1, ...; or n seeds.
            length: most characters to add, >= 1.
            temperature: T >= 0, 0 takes the likeliest character. top_k: >= 0, 0 keeps all. top_p: in (0, 1].
            min_p: in [0, 1]. repetition_penalty: > 0, counts prompt and text. See `ops.sample_token`; None
                takes the sampler's own default, at first 1, 0, 1, 0 and 1.
            stop: string or strings that end a text; they aren't part of it, and only new text is searched.
            use_cache: False recomputes the visible text for every character: slow, kept as the baseline.
            progress: draw a progress bar on stderr.
            on_token: called with (row, piece) as soon as a piece is certain; its exception ends the run.
        Returns:
            n texts, without their prompts.
        Raises:
            TypeError, ValueError: naming the argument.
        """
        name = "TextSampler.sample"
        prompts, seeds = self._rows(name, n, prompt, seed)
        given = (temperature, top_k, top_p, min_p, repetition_penalty)
        pieces = self._pieces(name, prompts, seeds, length, self._settings(given), stop, use_cache, progress)
        texts = [""] * len(prompts)
        for row, piece in pieces:
            texts[row] += piece
            if on_token is not None:
                on_token(row, piece)
        return texts

    def stream(
        self,
        prompt: str = "",
        *,
        seed: int = 0,
        length: int = 256,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        stop: str | Sequence[str] | None = None,
        use_cache: bool = True,
    ) -> Iterator[str]:
        """One text in pieces, as they come; joined, they are `sample(prompt=prompt, seed=seed, ...)[0]`.

        The arguments are checked at once; the model first runs when the first piece is asked for.

        Args:
            prompt: a string. The others: as in `sample`.
        Returns:
            Iterator of non-empty strings.
        """
        name = "TextSampler.stream"
        if not isinstance(prompt, str):
            raise TypeError(f"{name}: prompt {type(prompt).__name__}, expected a str; `sample` takes many")
        prompts, seeds = self._rows(name, 1, prompt, seed)
        given = (temperature, top_k, top_p, min_p, repetition_penalty)
        pieces = self._pieces(name, prompts, seeds, length, self._settings(given), stop, use_cache, False)
        return (piece for _, piece in pieces)

    def _rows(self, name: str, n: int | None, prompt: Any, seed: Any) -> tuple[list[list[int]], Tensor]:
        """Prompts as tokens, and seeds (n,)."""
        if isinstance(prompt, str):
            seeds = latents.seed_rows(name, n, seed)
            return [self._tokens(name, prompt)] * len(seeds), seeds
        if not isinstance(prompt, Sequence):
            raise TypeError(f"{name}: prompt {type(prompt).__name__}, expected a str or a list of them")
        if not prompt or (n is not None and latents.count(name, "n", n) != len(prompt)):
            wanted = "at least one" if n is None else f"n = {n}"
            raise ValueError(f"{name}: prompt has {len(prompt)} entries, expected {wanted}; one per text")
        seeds = latents.seed_rows(name, len(prompt), seed)
        return [self._tokens(name, text) for text in prompt], seeds

    def _tokens(self, name: str, prompt: Any) -> list[int]:
        if not isinstance(prompt, str):
            raise TypeError(f"{name}: prompt has a {type(prompt).__name__}, expected str; convert it")
        unknown = sorted(set(prompt) - self._index.keys())
        if unknown:
            raise ValueError(
                f"{name}: prompt with {unknown[0]!r}, expected one of {len(self.vocabulary)} characters; "
                f"replace {', '.join(map(repr, unknown[:8]))} (sampler.vocabulary lists the known)"
            )
        return [self._index[START], *(self._index[character] for character in prompt)]

    def _settings(self, given: tuple[float | None, ...]) -> dict[str, Any]:
        settings = {key: value for key, value in zip(SETTINGS, given, strict=True) if value is not None}
        settings = {**self.sampling, **settings}
        sample_token.check(torch.zeros(1, 1), torch.zeros(1), **settings)
        return settings

    def _pieces(
        self, name: str, prompts: list[list[int]], seeds: Tensor, length: int, settings: dict[str, Any],
        stop: str | Sequence[str] | None, use_cache: bool, progress: bool,
    ) -> Iterator[tuple[int, str]]:  # fmt: skip
        """Checks what is left to check, then (row, piece) as they come."""
        length = latents.count(name, "length", length)
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        for text in stops:
            if not isinstance(text, str) or not text:
                raise ValueError(f"{name}: stop {text!r}, expected non-empty strings; leave it out")
        filters = [StopFilter(stops) for _ in prompts]
        run = Run(self.model, prompts, seeds, length, settings, use_cache)
        return self._filtered(run, filters, length, progress)

    def _filtered(
        self, run: Run, filters: list[StopFilter], length: int, progress: bool
    ) -> Iterator[tuple[int, str]]:
        for _ in tqdm(range(length), desc="characters", disable=not progress):
            for row, token in run.advance():
                piece = filters[row].push(self.vocabulary[token])
                if piece:
                    yield row, piece
            run.keep([row for row in run.rows if not filters[row].ended])
            if not run.rows:
                break
        for row, held in enumerate(filters):
            rest = held.flush()
            if rest:
                yield row, rest


class Run:
    """The state of one call: texts so far, and what the model remembers of those that go on."""

    def __init__(
        self, model: LanguageModel, prompts: list[list[int]], seeds: Tensor, length: int,
        settings: dict[str, Any], use_cache: bool,
    ) -> None:  # fmt: skip
        self.model, self.settings = model, settings
        self.rows = list(range(len(prompts)))
        self.texts = [list(prompt) for prompt in prompts]  # of the rows that go on, as the tensors below
        self.seeds = seeds
        self.drawn = 0
        self.state: Any = None
        self.use_cache = use_cache
        self.history: Tensor | None = None
        if settings.get("repetition_penalty", 1.0) != 1.0:
            self.history = _padded(self.texts, max(map(len, prompts)) + length)

    @torch.inference_mode()
    def advance(self) -> list[tuple[int, int]]:
        """Draw one token in every row: (row, token)."""
        logits = self._cached() if self.use_cache else self._recomputed()
        uniform = philox_uniform(self.seeds, stream=self.drawn)
        previous: dict[str, Tensor] = {}
        if self.history is not None:
            previous = {"previous": self.history, "lengths": torch.tensor([len(text) for text in self.texts])}
        tokens = sample_token(logits, uniform, **self.settings, **previous)
        if self.history is not None:
            self.history[torch.arange(len(self.rows)), previous["lengths"]] = tokens
        drawn = tokens.tolist()
        for text, token in zip(self.texts, drawn, strict=True):
            text.append(token)
        self.drawn += 1
        return list(zip(self.rows, drawn, strict=True))

    @torch.inference_mode()
    def keep(self, rows: list[int]) -> None:
        """Go on with these rows only."""
        if len(rows) == len(self.rows):
            return
        places = [self.rows.index(row) for row in rows]
        chosen = torch.tensor(places, dtype=torch.int64)
        self.rows, self.texts = rows, [self.texts[place] for place in places]
        self.seeds = self.seeds[chosen]
        self.state = None if self.state is None else self.state.select(chosen)
        self.history = None if self.history is None else self.history[chosen]

    def _cached(self) -> Tensor:
        if self.state is None:
            self.state = self.model.start(len(self.texts))
            self._read([place for place, text in enumerate(self.texts) if len(text) > 1])
        else:
            context = self.model.context
            self._read(
                [
                    place
                    for place, text in enumerate(self.texts)
                    if window_start(len(text), context) != window_start(len(text) - 1, context)
                ]
            )
        return self.model.step(torch.tensor([text[-1] for text in self.texts]), self.state)

    def _read(self, places: list[int]) -> None:
        """Read these rows' windows, but for the last token; rows of one padded size go together."""
        sizes: dict[int, list[tuple[int, list[int]]]] = {}
        context = self.model.context
        longest = max((len(text) for text in self.texts), default=0)
        for place in places:
            text = self.texts[place]
            seen = text[window_start(len(text), context) : -1]
            size = longest if context is None else bucket(len(seen), context)
            sizes.setdefault(size, []).append((place, seen))
        for size, group in sizes.items():
            rows = torch.tensor([place for place, _ in group])
            lengths = torch.tensor([len(seen) for _, seen in group])
            self.model.prefill(self.state, rows, _padded([seen for _, seen in group], size), lengths)

    def _recomputed(self) -> Tensor:
        windows = [text[window_start(len(text), self.model.context) :] for text in self.texts]
        longest = max(map(len, windows))
        last = torch.tensor([len(window) - 1 for window in windows])
        return self.model(_padded(windows, longest))[torch.arange(len(windows)), last]


def _padded(texts: list[list[int]], size: int) -> Tensor:
    return torch.tensor([text + [0] * (size - len(text)) for text in texts])
