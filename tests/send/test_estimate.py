"""Tokens guessed from bytes, beside those that tokenizers counted."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.send.estimate import TokenEstimator

# As `scripts/bench tokens tests/send/token_counts.json` writes them: lengths of 200 bodies of each
# kind and their prompt tokens by four tokenizers.
COUNTS = json.loads((Path(__file__).parent / "token_counts.json").read_text())


@pytest.mark.parametrize("tokenizer", ["cl100k", "o200k", "anthropic", "deepseek"])
@pytest.mark.parametrize("kind", COUNTS)
def test_after_a_hundred_rows_the_sum_is_right_within_a_tenth(kind, tokenizer):
    """English, Korean, code, base64, and all of these in turn; one row, too, unless they are mixed."""
    sizes, tokens = COUNTS[kind]["bytes"], COUNTS[kind][tokenizer]
    estimate = TokenEstimator()
    for size, told in zip(sizes[:100], tokens[:100], strict=True):
        estimate.observe(size, told, 0)
    guessed = [estimate.tokens(size, 0)[0] for size in sizes[100:]]
    real = tokens[100:]
    assert sum(guessed) == pytest.approx(sum(real), rel=0.1)
    off = sorted(abs(g / r - 1) for g, r in zip(guessed, real, strict=True))
    if kind != "mixed":
        assert off[len(off) // 2] < 0.1


def test_before_anything_is_learned_a_token_has_four_bytes():
    estimate = TokenEstimator()
    assert estimate.tokens(4000, 100) == (1100.0, 1100.0)
    assert estimate.tokens(4000, None) == (1250.0, None)


@given(st.integers(0, 2000), st.floats(0.1, 1.0), st.lists(st.integers(100, 9000), min_size=40))
def test_a_fixed_part_and_a_part_by_length_are_told_apart(fixed, slope, sizes):
    """As of a long system prompt in one language and rows in another; nearly, for equal lengths."""
    estimate = TokenEstimator()
    for size in sizes:
        estimate.observe(size, round(fixed + slope * size), 7)
    mean = sum(sizes) / len(sizes)
    spread = (sum(size * size for size in sizes) / len(sizes) - mean * mean) ** 0.5
    steep = (fixed + slope * mean) / mean > 4 * slope  # Not believed of any language.
    if spread > 0.25 * mean and not steep:
        for size in (min(sizes), max(sizes)):
            guessed, _most = estimate.tokens(size, None)
            assert guessed == pytest.approx(fixed + slope * size + 7, rel=0.05, abs=12)


@given(
    st.lists(st.tuples(st.integers(1, 10**7), st.integers(0, 10**7)), max_size=60),
    st.integers(1, 10**8),
    st.none() | st.integers(1, 10**6),
)
def test_whatever_was_learned_a_guess_is_a_number_of_tokens(seen, size, most):
    """At least one, and the largest no smaller than the likely one."""
    estimate = TokenEstimator()
    for body, tokens in seen:
        estimate.observe(body, tokens, 10)
    guessed, bound = estimate.tokens(size, most)
    assert 1 <= guessed < float("inf")
    assert bound is None or bound >= guessed


@given(st.lists(st.integers(200, 400), min_size=30, max_size=90), st.integers(1000, 10**6))
def test_of_rows_alike_nothing_is_concluded_for_a_long_one(tokens, size):
    """Noise is no slope: a row of a megabyte is taken to be in proportion."""
    estimate = TokenEstimator()
    for told in tokens:
        estimate.observe(1000, told, 0)
    guessed, _most = estimate.tokens(size, 0)
    assert 0.199 * size <= guessed <= 0.401 * size


def body(text):
    request = {"model": "m", "messages": [{"role": "user", "content": text}]}
    return json.dumps(request, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    ("text", "per_byte"),
    [
        ("9281 7745 0031 " * 60, 0.8),  # A tokenizer that takes digits one by one.
        ("한국어 문장입니다 " * 40, 0.5),
        ("QmFzZTY0IGlzIGRlbnNlCg" * 40, 0.75),
    ],
    ids=["digits", "korean", "base64"],
)
def test_denser_rows_than_all_before_are_bounded_by_their_bytes(text, per_byte):
    """Or the first dense rows behind many light ones would spend more than `--max-cost`."""
    estimate, light = TokenEstimator(), body("the parcel is late and nobody answers " * 20)
    for _ in range(100):
        estimate.observe(len(light), len(light) // 4, 50, light)
    assert estimate.max_prompt(len(light), light) <= len(light) * 0.31
    dense = body(text)
    assert estimate.max_prompt(len(dense), dense) >= len(dense) * per_byte
    for _ in range(3):
        estimate.observe(len(dense), int(len(dense) * per_byte), 50, dense)
    assert estimate.max_prompt(len(dense), dense) >= len(dense) * per_byte
