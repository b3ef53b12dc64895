from hypothesis import given
from hypothesis import strategies as st

from batcher.simulate.tokens import PrefixCache, prompt_tokens, text_of, text_tokens


@given(st.lists(st.text(), min_size=1, max_size=5))
def test_tokens_are_bytes_by_four_rounded_up_and_four_a_message(contents):
    """The rule that users of the gateway can work out by hand."""
    texts = [text_of({"role": "user", "content": content}) for content in contents]
    sizes = [len(content.encode("utf-8", "replace")) for content in contents]
    assert prompt_tokens(texts) == sum(4 + (size + 3) // 4 for size in sizes)


def test_images_and_calls_of_tools_have_tokens_of_their_own():
    """Twenty megabytes of base64 are not five million tokens."""
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 100_000}}
    parts = text_of({"role": "user", "content": [{"type": "text", "text": "What?!!!"}, image]})
    assert text_tokens(parts) == 2 + 256
    assert text_of({"role": "assistant", "content": None}) == b""


def test_a_prompt_that_began_before_is_cached_to_the_last_step_of_128():
    """As OpenAI counts: from 1,024 tokens on, in steps of 128, for one model."""
    cache, system = PrefixCache(), b"s" * 4 * 1200
    assert cache.cached("a", [system, b"one"]) == (0, 1152)
    assert cache.cached("a", [system, b"two"]) == (1152, 0)
    assert cache.cached("a", [system, b"s" * 4 * 300]) == (1152, 256)
    assert cache.cached("b", [system, b"two"]) == (0, 1152)
    assert cache.cached("a", [b"x" + system]) == (0, 1152)
    assert cache.cached("a", [b"s" * 4 * 1023]) == (0, 0)


@given(st.lists(st.binary(max_size=9000), min_size=1, max_size=3))
def test_never_more_is_cached_than_the_prompt_has(texts):
    """Or a cost would be negative."""
    cache = PrefixCache()
    cache.cached("a", texts)
    assert sum(cache.cached("a", texts)) <= prompt_tokens(texts)


def test_the_cache_is_bounded_and_forgets_the_least_used():
    """A run of ten million long prompts stays in memory."""
    cache, kept = PrefixCache(most=30), b"k" * 4 * 1280
    cache.cached("a", [kept])
    for n in range(50):
        cache.cached("a", [b"%4d" % n * 1280])
        assert cache.cached("a", [kept]) == (1280, 0)
    assert cache.cached("a", [b"   0" * 1280]) == (0, 1280)
    assert len(cache._seen) <= 30
