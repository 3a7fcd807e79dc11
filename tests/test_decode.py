"""`sample_token` cuts as transformers does and draws by the inverse CDF; `decoder_step` keeps rows apart."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from aigc_engine.dispatch import use_backend
from aigc_engine.ops import decoder_step, sample_token

BACKENDS = ("native", "reference")
GRID = 1 << 14


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest):
    with use_backend(sample_token=request.param):
        yield request.param


def random_logits(rows: int, vocabulary: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def frequencies(logits: Tensor, **settings: object) -> Tensor:
    """Share of each token when u runs over an even grid: its probability to within 1 / GRID."""
    uniform = (torch.arange(GRID) / GRID).float()
    tokens = sample_token(logits.expand(GRID, -1), uniform, **settings)
    return torch.bincount(tokens, minlength=logits.shape[-1]) / GRID


def warped(logits: Tensor, previous: Tensor | None = None, **settings: float) -> Tensor:
    """Probabilities by transformers' processors, in the order of its `generate`."""
    transformers = pytest.importorskip("transformers.generation.logits_process")
    if "repetition_penalty" in settings:
        logits = transformers.RepetitionPenaltyLogitsProcessor(settings["repetition_penalty"])(
            previous, logits
        )
    for name, cls in (
        ("temperature", transformers.TemperatureLogitsWarper),
        ("top_k", transformers.TopKLogitsWarper),
        ("top_p", transformers.TopPLogitsWarper),
        ("min_p", transformers.MinPLogitsWarper),
    ):
        if name in settings:
            logits = cls(settings[name])(None, logits)
    return torch.softmax(logits, dim=-1)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.7},
        {"top_k": 7},
        {"top_p": 0.8},
        {"min_p": 0.05},
        {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "min_p": 0.02},
        {"temperature": 0.6, "top_k": 5, "top_p": 0.5},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_probabilities_are_transformers(backend: str, settings: dict[str, float]) -> None:
    for seed in range(3):
        logits = random_logits(1, 40, seed)
        wanted = warped(logits, **settings)[0]
        got = frequencies(logits, **settings)
        assert (got - wanted).abs().max() <= 1.5 / GRID
        assert not got[wanted == 0].any(), "a token that transformers removes was drawn"


def test_repetition_penalty_is_transformers(backend: str) -> None:
    logits = random_logits(1, 40)
    previous = torch.tensor([[3, 3, 17, 0, 39, 17]])
    got = frequencies(logits, repetition_penalty=1.4, previous=previous.expand(GRID, -1))
    assert (got - warped(logits, previous, repetition_penalty=1.4)[0]).abs().max() <= 1.5 / GRID


def test_lengths_limit_the_penalty(backend: str) -> None:
    logits, uniform = random_logits(1, 40).expand(3, -1), torch.full((3,), 0.4)
    previous = torch.tensor([[1, 2, 3, -7]] * 3)
    kwargs = {"repetition_penalty": 3.0, "temperature": 0.0}
    got = sample_token(logits, uniform, previous=previous, lengths=torch.tensor([0, 1, 3]), **kwargs)
    for row, length in enumerate((0, 1, 3)):
        alone = sample_token(logits[:1], uniform[:1], previous=previous[:1, :length], **kwargs)
        assert got[row] == alone[0]


def test_greedy_takes_the_lowest_of_equals(backend: str) -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 1.0], [5.0, 5.0, 5.0, 5.0], [-math.inf, -2.0, -1.0, -1.0]])
    tokens = sample_token(logits, torch.tensor([0.9, 0.9, 0.9]), temperature=0.0)
    assert tokens.tolist() == [1, 0, 2]


def test_inverse_cdf_edges(backend: str) -> None:
    logits = torch.log(torch.tensor([[0.25, 0.0, 0.25, 0.5]])).expand(5, -1)
    uniform = torch.tensor([0.0, 0.25 - 2**-24, 0.25, 0.5, 1 - 2**-24])
    assert sample_token(logits, uniform).tolist() == [0, 0, 2, 3, 3]


def test_ties_at_the_nucleus_keep_the_lower_index(backend: str) -> None:
    got = frequencies(torch.zeros(1, 8), top_p=0.5)
    assert (got > 0).tolist() == [True] * 4 + [False] * 4


def test_top_p_keeps_one_at_least(backend: str) -> None:
    assert (frequencies(random_logits(1, 50), top_p=1e-9) > 0).sum() == 1


@pytest.mark.parametrize("vocabulary", [3, 64, 1000, 50257])
def test_backends_agree_on_random_settings(vocabulary: int) -> None:
    g = torch.Generator().manual_seed(vocabulary)
    rows = 64 if vocabulary <= 1000 else 8
    for trial in range(4):
        logits = torch.randn(rows, vocabulary, generator=g) * (1 + 3 * trial)
        if trial == 2:
            logits = logits.round()
        kwargs = {
            "temperature": torch.rand(rows, generator=g) * 2,
            "top_k": torch.randint(0, vocabulary + 2, (rows,), generator=g),
            "top_p": 1 - torch.rand(rows, generator=g),
            "min_p": torch.rand(rows, generator=g) * 0.1,
            "repetition_penalty": torch.rand(rows, generator=g) + 0.5,
            "previous": torch.randint(0, vocabulary, (rows, 9), generator=g),
        }
        uniform = torch.rand(rows, generator=g)
        with use_backend("native"):
            got = sample_token(logits, uniform, **kwargs)
        assert torch.equal(got, sample_token.reference(logits, uniform, **kwargs)), f"trial {trial}"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_bad_logits_name_the_row(backend: str, bad: float) -> None:
    logits = random_logits(4, 10)
    logits[2, 7] = bad
    with pytest.raises(ValueError, match="sample_token: logits row 2 has NaN, "):
        sample_token(logits, torch.zeros(4))


def test_a_row_of_minus_infinity_is_bad(backend: str) -> None:
    with pytest.raises(ValueError, match="sample_token: logits row 1 has"):
        sample_token(torch.tensor([[0.0, 1.0], [-math.inf, -math.inf]]), torch.zeros(2))


@pytest.mark.parametrize("token", [-1, 10])
def test_foreign_previous_tokens_name_the_row(backend: str, token: int) -> None:
    previous = torch.tensor([[1, 2], [3, token]])
    with pytest.raises(ValueError, match="sample_token: previous row 1 has a token outside the vocabulary"):
        sample_token(random_logits(2, 10), torch.zeros(2), previous=previous, repetition_penalty=1.1)


@pytest.mark.parametrize(
    ("kwargs", "error", "message"),
    [
        ({"logits": torch.zeros(10)}, ValueError, "logits has 1 dimensions"),
        ({"logits": torch.zeros(2, 10, dtype=torch.int64)}, TypeError, "logits torch.int64"),
        ({"logits": torch.zeros(2, 0)}, ValueError, r"logits \(B, 0\)"),
        ({"uniform": torch.zeros(3)}, ValueError, r"uniform shape \(3,\), expected \(2,\)"),
        ({"uniform": torch.zeros(2).double()}, TypeError, "uniform torch.float64"),
        ({"temperature": -0.1}, ValueError, "temperature -0.1, expected a finite number >= 0"),
        ({"temperature": math.nan}, ValueError, "temperature nan"),
        ({"temperature": math.inf}, ValueError, "temperature inf"),
        ({"temperature": torch.tensor([1.0, -2.0])}, ValueError, "temperature -2.0"),
        ({"temperature": torch.ones(3)}, ValueError, r"temperature shape \(3,\)"),
        ({"temperature": "hot"}, TypeError, "temperature str"),
        ({"top_k": -1}, ValueError, "top_k -1"),
        ({"top_k": 2.5}, TypeError, "top_k is not a whole number"),
        ({"top_p": 0.0}, ValueError, r"top_p 0.0, expected a number in \(0, 1\]"),
        ({"top_p": 1.01}, ValueError, "top_p 1.01"),
        ({"min_p": 1.5}, ValueError, "min_p 1.5"),
        ({"repetition_penalty": 0.0}, ValueError, "repetition_penalty 0.0"),
        ({"previous": torch.zeros(2, 3)}, TypeError, "previous torch.float32"),
        ({"previous": torch.zeros(3, 3, dtype=torch.int64)}, ValueError, "previous has 3 rows, expected 2"),
        ({"lengths": torch.zeros(2, dtype=torch.int64)}, ValueError, "lengths without previous"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(kwargs: dict, error: type[Exception], message: str) -> None:
    arguments = {"logits": torch.zeros(2, 10), "uniform": torch.zeros(2)} | kwargs
    with pytest.raises(error, match=f"sample_token: {message}"):
        sample_token(arguments.pop("logits"), arguments.pop("uniform"), **arguments)


def a_step(rows: int = 6) -> tuple[list, dict]:
    sample = next(s for s in decoder_step.samples(torch.float32, "cpu") if s.name == "llama_rows")
    x, keys, values, lengths, blocks = sample.args
    phases = sample.kwargs["phases"]
    return [x[:rows], keys[:, :rows], values[:, :rows], lengths[:rows], blocks], {"phases": phases[:rows]}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", ["native", "reference"])
def test_decoder_step_rows_do_not_see_their_neighbours(name: str) -> None:
    args, kwargs = a_step(9)
    x, keys, values, lengths, blocks = args
    with use_backend(decoder_step=name), torch.no_grad():
        whole = decoder_step(*args, **kwargs)
        for rows in (slice(0, 1), slice(3, 4), slice(2, 7)):
            part = decoder_step(
                x[rows], keys[:, rows], values[:, rows], lengths[rows], blocks, phases=kwargs["phases"][rows]
            )
            assert torch.equal(part[0], whole[0][rows])
            assert torch.equal(part[1], whole[1][:, rows])
            assert torch.equal(part[2], whole[2][:, rows])


@pytest.mark.parametrize("name", ["native", "reference"])
def test_decoder_step_ignores_what_lies_beyond_the_length(name: str) -> None:
    args, kwargs = a_step()
    x, keys, values, lengths, blocks = args
    with use_backend(decoder_step=name):
        before = decoder_step(*args, **kwargs)
        beyond = (torch.arange(keys.shape[3]) >= lengths[:, None])[None, :, None, :, None]
        after = decoder_step(
            x, keys.masked_fill(beyond, 1e6), values.masked_fill(beyond, -1e6), lengths, blocks, **kwargs
        )
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("place", "value", "error", "message"),
    [
        (0, torch.zeros(6, 95), ValueError, "keys with 3 heads of 32, expected 95"),
        (0, torch.zeros(6, 96).double(), TypeError, "keys torch.float32, expected torch.float64"),
        (1, torch.zeros(2, 6, 3, 40), ValueError, "keys has 4 dimensions"),
        (2, torch.zeros(2, 6, 3, 39, 32), ValueError, "values shape"),
        (3, torch.zeros(6), TypeError, "lengths torch.float32"),
        (
            3,
            torch.tensor([0, 1, 2, 3, 4, 41]),
            ValueError,
            r"lengths \[0, 1, 2, 3, 4, 41\], expected 0 to 40",
        ),
        (3, torch.tensor([0, 1, 2, 3, 4, -1]), ValueError, "lengths .*, expected 0 to 40"),
        (4, [[None] * 11] * 2, ValueError, r"blocks\[0\] has 11 entries"),
        (4, [[None] * 12] * 2, TypeError, r"blocks\[0\] norm1 NoneType"),
    ],
    ids=str,
)
def test_decoder_step_names_bad_arguments(
    place: int, value: object, error: type[Exception], message: str
) -> None:
    args, kwargs = a_step()
    args[place] = value
    with pytest.raises(error, match=f"decoder_step: {message}"):
        decoder_step(*args, **kwargs)
