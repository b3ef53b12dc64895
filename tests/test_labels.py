"""Which label a text says."""

import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batcher.send.labels import Labels, plain


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["A*", "A", "B"], {"A*": "A*", "A": "A", '"A*".': "A*", "a*": "A*", "A.": "A", "**A**": None}),
        (["A", "B"], {"**A**": "A", "(A)": "A", "- A": "A", "## A": "A", "A-": None, "A+": None, "!A": None}),
        (["US", "us"], {"US": "US", "us.": "us", "Us": None}),
        (["C", "C++", "C#"], {"c": "C", "C++.": "C++", "**C#**": "C#"}),
        (["1", "1.", "2"], {"1": "1", "1.": "1.", '"1."': "1.", "2": "2", "2.": None}),
        (["1", "5"], {"1.": "1", "(5)": "5", "-1": None, ".5": None, "1.5": None}),
        (["not spam", "spam"], {"Not  spam.": "not spam", "SPAM": "spam"}),
        (["Yes!", "No"], {"Yes!": "Yes!", "Yes": None, "No.": "No"}),
        (["账单", "退款"], {"账单。": "账单", "「账单」": "账单", "【退款】！": "退款"}),
        (["café", "tea"], {"cafe\u0301": "café", "CAFE\u0301.": "café", "cafe": None}),
        (["Straße", "Ort"], {"STRASSE": "Straße"}),
        (["Masse", "Maße"], {"masse": "Masse", "maße": "Maße"}),
        (["İzmir", "Bursa"], {"İzmir.": "İzmir", "IZMIR": None}),
        (["👍", "👎", "❤️"], {"👍": "👍", "👍🏽": None, "❤": "❤️"}),
        (["חשבון", "באג"], {"\u200fחשבון\u200f.": "חשבון"}),
        (["บั๊ก", "อื่น"], {"“บั๊ก”": "บั๊ก"}),
    ],
)  # fmt: skip
def test_a_text_says_a_label_when_it_can_mean_no_other(labels, says):
    """What tells two labels apart is never dropped, and a guess would be a wrong label in the data."""
    assert {text: Labels(labels).match(text) for text in says} == says


@pytest.mark.parametrize(
    ("labels", "text", "named"),
    [
        (["C", "C++", "C#"], "C, not C++", {"C", "C++"}),
        (["not spam", "spam"], "This is not spam.", {"not spam"}),
        (["账单", "退款"], "这不是账单而是退款", {"账单", "退款"}),
        (["バグ", "請求"], "デバグではない", set()),
        (["버그", "청구"], "버그입니다", {"버그"}),
        (["บั๊ก", "อื่น"], "นี่คือบั๊กครับ", {"บั๊ก"}),
        (["bug", "billing"], "a bug.Billing", {"bug", "billing"}),
        (["bug", "billing"], "_bug_ (bug_report)", {"bug"}),
        (["bug", "billing"], "bug_report, bugs, debug, bug's", set()),
        (["1", "2"], "1.5 or 1,000", set()),
        (["don", "t"], "don't", set()),
        (["👨", "x"], "👨\u200d👩\u200d👧", set()),
        (["café", "tea"], "un cafe\u0301 noir", {"café"}),
        (["US", "us"], "tell us", {"us"}),
    ],
)
def test_a_label_is_named_where_it_is_a_word_of_its_own(labels, text, named):
    """By the rules of Unicode, and not by those of English."""
    assert Labels(labels).mentions(text) == named


@settings(max_examples=50)
@given(
    st.lists(st.text(min_size=1, max_size=6).map(str.strip).filter(bool), unique=True, min_size=2)
)
def test_each_label_says_itself(labels):
    """However it is spelled, and however like another it is."""
    known = Labels(labels)
    for label in labels:
        assert known.match(label) == label


def test_labels_of_unknown_sets_lose_no_mark_that_may_be_theirs():
    """A report knows the labels only where a run was held to some."""
    assert [plain(text) for text in ("A*", "**A**", "A.", "C#", "(A)")] == [
        "a*",
        "a",
        "a",
        "c#",
        "a",
    ]


def test_a_run_of_combining_marks_is_not_sorted_for_ever():
    """Normalizing takes the square of its length: 80,000 took 28 s."""
    text = "a" + "\u0301\u0323" * 500_000
    assert Labels(["a", "b"]).mentions(text) == set()
    assert plain(text)
    assert unicodedata.is_normalized("NFC", plain("e\u0301"))
