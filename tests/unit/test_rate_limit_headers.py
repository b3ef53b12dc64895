"""Headers as providers send them."""

import time

import pytest

from batcher.limits.headers import rate_limits, span

NOW = 1_800_000_000.0
OPENAI = {
    "x-ratelimit-limit-requests": "5000",
    "x-ratelimit-remaining-requests": "4999",
    "x-ratelimit-reset-requests": "12ms",
    "x-ratelimit-limit-tokens": "160000",
    "x-ratelimit-remaining-tokens": "159975",
    "x-ratelimit-reset-tokens": "9ms",
}
SENT = {
    "OpenAI": (OPENAI, {("requests", 5000.0), ("tokens", 160_000.0)}),
    "any case": ({k.title(): v for k, v in OPENAI.items()}, {("requests", 5000.0), ("tokens", 160_000.0)}),
    "Groq: requests by the day": (
        {
            "x-ratelimit-limit-requests": "14400",
            "x-ratelimit-remaining-requests": "14399",
            "x-ratelimit-reset-requests": "6s",
            "x-ratelimit-limit-tokens": "8000",
            "x-ratelimit-remaining-tokens": "7890",
            "x-ratelimit-reset-tokens": "825ms",
        },
        {("requests", None), ("tokens", 8000.0)},
    ),
    "Groq: a day that is long": (
        {
            "x-ratelimit-limit-requests": "1000",
            "x-ratelimit-remaining-requests": "370",
            "x-ratelimit-reset-requests": "15h7m12s",
        },
        {("requests", None)},
    ),
    "Azure: what remains is no rate": (
        {"x-ratelimit-remaining-requests": "99", "x-ratelimit-remaining-tokens": "9900"},
        set(),
    ),
    "Anthropic": (
        {
            "anthropic-ratelimit-requests-limit": "50",
            "anthropic-ratelimit-requests-remaining": "49",
            "anthropic-ratelimit-requests-reset": "2027-01-15T08:00:01Z",
            "anthropic-ratelimit-tokens-limit": "40000",
            "anthropic-ratelimit-tokens-remaining": "39000",
            "anthropic-ratelimit-tokens-reset": "2027-01-15T08:00:01Z",
            "anthropic-ratelimit-input-tokens-limit": "30000",
            "anthropic-ratelimit-output-tokens-limit": "8000",
        },
        {("requests", 50.0), ("tokens", 40_000.0)},
    ),
    "OpenRouter: a minute": (
        {"X-RateLimit-Limit": "20", "X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1800000030000"},
        {("requests", 20.0)},
    ),
    "OpenRouter: a day": (
        {"X-RateLimit-Limit": "50", "X-RateLimit-Remaining": "12", "X-RateLimit-Reset": "1800040000000"},
        {("requests", None)},
    ),
    "Cerebras": (
        {
            "x-ratelimit-limit-requests-day": "1440000",
            "x-ratelimit-remaining-requests-day": "1439999",
            "x-ratelimit-reset-requests-day": "33011.382867",
            "x-ratelimit-limit-tokens-minute": "60000",
            "x-ratelimit-remaining-tokens-minute": "59990",
            "x-ratelimit-reset-tokens-minute": "11.38",
        },
        {("requests", None), ("tokens", 60_000.0)},
    ),
    "Mistral": (
        {
            "x-ratelimit-limit-req-minute": "60",
            "x-ratelimit-remaining-req-minute": "59",
            "x-ratelimit-limit-tokens-minute": "500000",
            "x-ratelimit-remaining-tokens-minute": "499000",
        },
        {("requests", 60.0), ("tokens", 500_000.0)},
    ),
    "Mistral, older": (
        {"x-ratelimitbysize-limit-minute": "500000", "x-ratelimitbysize-limit-month": "1000000000"},
        {("tokens", 500_000.0), ("tokens", None)},
    ),
    "Together: by the second": (
        {
            "x-ratelimit-limit": "10",
            "x-ratelimit-remaining": "9",
            "x-ratelimit-reset": "1",
            "x-tokenlimit-limit": "3000",
            "x-tokenlimit-remaining": "2900",
        },
        {("requests", 600.0), ("tokens", 180_000.0)},
    ),
    "Fireworks: parts of tokens are no pace": (
        {"x-ratelimit-limit-tokens-prompt": "60000", "x-ratelimit-limit-tokens-generated": "600"},
        set(),
    ),
    "LiteLLM: no reset": (
        {"x-ratelimit-limit-requests": "600", "x-ratelimit-remaining-requests": "598"},
        {("requests", 600.0)},
    ),
    "LiteLLM, by scope": (
        {"x-ratelimit-api_key-limit-requests": "100", "x-ratelimit-team-limit-tokens": "9000"},
        {("requests", 100.0), ("tokens", 9000.0)},
    ),
    "passed on": ({f"llm_provider-{k}": v for k, v in OPENAI.items()}, {("requests", 5000.0), ("tokens", 160_000.0)}),
    "nonsense": (
        {"x-ratelimit-limit-requests": "many", "x-ratelimit-limit-tokens": "-1", "x-ratelimit-reset": "soon"},
        set(),
    ),
    "nothing": ({"content-type": "application/json"}, set()),
}  # fmt: skip


@pytest.mark.parametrize("who", SENT)
def test_every_dialect_comes_out_as_a_pace(who):
    """None is a limit of a day or a month: used up or not, but no pace."""
    headers, expected = SENT[who]
    assert {(limit.what, limit.per_minute) for limit in rate_limits(headers, NOW)} == expected


@pytest.mark.parametrize("used", [1, 17, 300, 599])
@pytest.mark.parametrize("window", [60, 3600, 86400])
def test_a_bucket_tells_its_window_by_how_long_it_takes_to_fill(used, window):
    """`reset = used / limit × window`."""
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": str(600 - used),
        "x-ratelimit-reset-requests": f"{used / 600 * window:.3f}s",
    }
    (limit,) = rate_limits(headers, NOW)
    assert limit.window == window


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("6m0s", 360.0), ("825ms", 0.825), ("1m30", 60.0), ("10 s.", 10.0), ("1s (approx)", 1.0), ("11.38", 11.38),
     ("2027-01-15T08:00:01Z", 1.0), ("1800000001", 1.0), ("1800000001000", 1.0), ("inf", None), ("soon", None)],
)  # fmt: skip
def test_a_reset_is_read_in_whatever_form_it_comes(text, seconds):
    """Lengths, dates, epochs; anything else is ignored."""
    headers = {"x-ratelimit-limit-requests": "600", "x-ratelimit-reset-requests": text}
    (limit,) = rate_limits(headers, 1_800_000_000.0)
    assert limit.reset == (None if seconds is None else pytest.approx(seconds, abs=1e-3))


@pytest.mark.parametrize("unit", ["1", "1.", "1 ", "1s", "1.1", " "])
def test_a_length_of_time_without_end_is_read_once(unit):
    """Servers send what they like: 32,000 digits without a unit took 46 s."""
    began = time.process_time()
    span(unit * (64_000 // len(unit)))
    assert time.process_time() - began < 2
