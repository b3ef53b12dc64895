import json
import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.simulate.answers import answer
from batcher.simulate.knowledge import LABELS, PHRASES, QUESTIONS

SAMPLES = Path(__file__).parents[2] / "sample_data"
LIST = ", ".join(LABELS)
BULLETS = """Choose one of these labels.

- billing: invoices, refunds
- bug: crashes
- account: password
- shipping: parcels
- feature: wishes
- praise: thank you so much"""
SYSTEM = f"Label the customer ticket. Answer with one of: {LIST}."


def rows(name):
    return [json.loads(line) for line in (SAMPLES / name).read_text("utf-8").splitlines()]


TICKETS, ASKED = rows("tickets.jsonl"), rows("questions.jsonl")


def user(content):
    return {"role": "user", "content": content}


def ask(text, system=None, quality=1.0, model="sim", seed=0):
    messages = [] if system is None else [{"role": "system", "content": system}]
    return answer([*messages, user(text)], model, quality, seed)


@pytest.mark.parametrize(
    "wording",
    [
        "Label this ticket with one of: {list}.\n\nTicket: {text}",
        "{text}\n\nLabels: billing|bug|account|shipping|feature|praise\nLabel:",
        "Is it one of billing, bug, account, shipping, feature or praise?\nText: {text}",
        "Categories: {list}, other\nCustomer wrote:\n{text}",
        BULLETS + "\n\nMessage: {text}",
        "Labels: {list}\nTicket: Please send an invoice.\nLabel: billing\nTicket: {text}\nLabel:",
    ],
)
def test_every_sample_ticket_gets_its_gold_label_however_the_prompt_is_worded(wording):
    """Accuracy in a simulated report must mean the model's quality, not the rules' gaps."""
    for ticket in TICKETS:
        assert ask(wording.format(list=LIST, text=ticket["text"])) == ticket["gold"], ticket


def test_every_sample_ticket_gets_its_gold_label_when_the_system_message_lists_the_labels():
    """The way in which `--system` is used."""
    wrong = [ticket for ticket in TICKETS if ask(ticket["text"], SYSTEM) != ticket["gold"]]
    assert wrong == []


def test_every_sample_question_gets_its_gold_answer_with_and_without_words_around_it():
    """The evaluation example needs a model that can know everything."""
    for row in ASKED:
        assert ask(row["question"]) == row["gold"]
        wrapped = f"Answer with the bare answer.\n\nQuestion: {row['question'].lower()}\nAnswer:"
        assert ask(wrapped) == row["gold"]


def test_no_question_is_part_of_another_and_no_phrase_speaks_for_two_labels():
    """Otherwise which of them counts would depend on their order."""
    texts = [question.question.lower() for question in QUESTIONS]
    assert not [(a, b) for a in texts for b in texts if a != b and a in b]
    phrases = [p for weights in PHRASES.values() for some in weights.values() for p in some]
    assert [p for p, count in Counter(phrases).items() if count > 1] == []
    assert all(phrase == phrase.lower() for phrase in phrases)


@pytest.mark.parametrize("quality", [0.0, 0.5, 0.8, 0.95])
def test_the_share_of_right_answers_is_the_quality(quality):
    """5 seeds on 300 tickets: within four standard deviations."""
    right = sum(
        ask(ticket["text"], SYSTEM, quality, seed=seed) == ticket["gold"]
        for ticket in TICKETS
        for seed in range(5)
    )
    spread = (quality * (1 - quality) / 1500) ** 0.5
    assert right / 1500 == pytest.approx(quality, abs=4 * spread)


def test_a_better_model_of_the_same_name_and_seed_is_right_wherever_a_worse_one_is():
    """One coin per question: raising the quality never breaks an answer."""
    for ticket in TICKETS:
        if ask(ticket["text"], SYSTEM, 0.6) == ticket["gold"]:
            assert ask(ticket["text"], SYSTEM, 0.9) == ticket["gold"]


def test_models_and_seeds_are_wrong_in_different_places():
    """Agreement between models is only worth reporting when they differ."""
    ways = [("a", 0), ("b", 0), ("a", 1)]
    said = [[ask(t["text"], SYSTEM, 0.7, *way) for t in TICKETS] for way in ways]
    assert said[0] != said[1] != said[2] != said[0]


def test_wrong_labels_are_offered_ones_and_wrong_numbers_are_near():
    """A wrong answer must look like an answer, or `--labels` would catch it."""
    for ticket in TICKETS:
        assert ask(ticket["text"], SYSTEM, 0.0) in set(LABELS) - {ticket["gold"]}
    for row in ASKED:
        said = ask(row["question"], quality=0.0)
        assert said != row["gold"]
        if row["gold"].replace(".", "").isdigit():
            assert abs(float(said) - float(row["gold"])) <= 10
        else:
            assert said in {q.gold for q in QUESTIONS if q.subject == row["subject"]}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("What is 17 * 23?", "391"),
        ("What is 17 + 23?", "40"),
        ("Please compute 2 + 3 * 4 - 10 / 4", "11.5"),
        ("how much is 10 / 3", "3.3333"),
        ("-3 * -4 =", "12"),
        ("What is 7 / 0?", "undefined"),
        ("What is the capital of Kenya? And what is the capital of Norway?", "Oslo"),
        ("Labels: negative | positive | neutral. I love it, great lamp.", "positive"),
        ("Choose from: Good mood, Negative, Positive.\nReview: a terrible waste", "Negative"),
        ("Classify: one of: cat, bug report or other.\nIt crashes.", "bug report"),
        ("Classify: one of feature, bug or other.\nWhere is my parcel?", "other"),
        (
            'JSON schema: {"label": {"enum": [\n "error",\n "bug"]}}\nIt freezes.',
            '{"label": "bug"}',
        ),
        ('What is 6 * 7? Reply in JSON, {"answer": "..."}.', '{"answer": "42"}'),
        (
            'What is 6 * 7? One JSON object: {"answer": {"type": "integer"}}.',
            '{"answer": 42}',
        ),
    ],
)
def test_prompts_of_many_kinds_get_the_right_answer(text, said):
    """The rules, by example."""
    assert ask(text) == said


def test_a_ticket_that_talks_about_json_is_still_answered_with_a_bare_label():
    """Only who asks for JSON gets it."""
    text = 'The JSON export throws an error message about a "label" that is not there.'
    assert ask(text, SYSTEM) == "bug"
    assert ask(text, f"Answer in JSON. Labels: {LIST}.") == '{"label": "bug"}'


def test_a_second_question_after_an_unusable_answer_gets_the_label_of_the_first():
    """`--reask` sends the answer back with its error; that message holds no ticket."""
    first = user(f"Answer with one of: {LIST}.\n\nTicket: The app crashes.")
    again = user(f"That is not one of: {LIST}. Try again.")
    talk = [first, {"role": "assistant", "content": "Hm."}, again]
    assert answer(talk, "sim", 1.0, 0) == "bug"


def test_text_parts_count_and_images_do_not():
    """Content may be a list of parts."""
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/refund.jpg"}}
    parts = [{"type": "text", "text": "The app crashes."}, picture]
    assert ask(parts, SYSTEM) == "bug"


def test_anything_else_gets_a_sentence_that_takes_up_some_of_its_words():
    """Demos read better with varied talk than with lorem ipsum."""
    said = [ask(f"Tell me about {animal} and their life") for animal in ("bees", "owls", "cats")]
    assert len(set(said)) == 3
    assert all(5 <= len(sentence.split()) <= 40 for sentence in said)
    assert all({"about", "and", "their", "life"} & set(s.split()) for s in said)


def test_unknown_labels_are_chosen_the_same_way_by_every_perfect_model():
    """The choice is a property of the text, so that perfect models agree."""
    text = "Labels: red|green|blue. The sky at noon."
    assert len({ask(text, model=model) for model in "abcdef"}) == 1


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)
wild_words = ["one of", "labels", ":", ",", "|", "\n- ", "bug", "or", "and", "other", "JSON", "["]
wild_words += [
    "what is",
    "9" * 15,
    "*",
    "/ 0",
    "-",
    "?",
    "Ticket:",
    '"label"',
    "\ud800",
    "😀",
    " ",
]
wild_texts = st.text() | st.lists(st.sampled_from(wild_words)).map(" ".join)
wild_messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool"]) | json_values},
    optional={
        "content": wild_texts
        | st.lists(st.fixed_dictionaries({"text": wild_texts | json_values}) | json_values)
        | json_values
    },
)


@given(st.lists(wild_messages | json_values) | json_values, st.sampled_from([0.0, 1.0]))
def test_no_input_makes_it_raise_and_the_same_input_gets_the_same_answer(messages, quality):
    """A simulated gateway that answers 500 by accident would make tests lie."""
    said = answer(messages, "sim", quality, 1)
    assert isinstance(said, str)
    assert said == answer(messages, "sim", quality, 1)


@pytest.mark.parametrize(
    "text",
    [
        "one of " * 9_000,
        "labels: " + "a, " * 20_000,
        "labels:" + " " * 60_000,
        "labels\n" + "- a\n" * 15_000,
        "Ticket:\n" * 8_000,
        "1 * " * 15_000,
        "what is 1 " * 6_000,
    ],
)
def test_long_repetitive_texts_take_time_in_proportion_to_their_length(text):
    """No expression may run away; 60 kB in a second is a hundred times the usual time."""
    start = time.process_time()
    ask(text)
    assert time.process_time() - start < 1
