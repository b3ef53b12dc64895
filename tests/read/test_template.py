"""What a template does to values nobody expected."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batcher.errors import JobError
from batcher.read.template import MissingColumn, Template


@given(st.text())
def test_a_value_stands_in_the_prompt_as_it_is(value):
    """Neither escaped as HTML nor read as a template once more."""
    assert Template("--prompt", "<{{ text }}>\n").render({"text": value}) == f"<{value}>\n"


@given(st.text(alphabet=st.characters(exclude_characters="{\r", codec="utf-8")))
def test_a_text_without_braces_is_its_own_template(text):
    """Not one space or newline of a prompt is ours to change."""
    assert Template("--prompt", text).render({}) == text


@pytest.mark.parametrize(
    ("text", "columns", "rendered"),
    [
        ("{{ a.b }}{{ a['b'] }}", {"a": {"b": 1}}, "11"),
        ("{% for x in a %}{{ x }};{% endfor %}", {"a": [1, "é"]}, "1;é;"),
        ("{{ a or 'none' }}", {"a": None}, "none"),
        ("{{ a | default('none') }}", {}, "none"),
        ("{% if a is defined %}{{ a }}{% endif %}", {}, ""),
        ("{{ a | upper }}", {"a": "x"}, "X"),
    ],
)
def test_templates_can_choose_and_loop(text, columns, rendered):
    """Optional columns and lists need no script before the run."""
    assert Template("--prompt", text).render(columns) == rendered


ORDER = {"items": ["shoes"], "price": 1.5, "paid": None}


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("{{ order.items }}", '["shoes"]'),
        ("{{ order['items'][0] }}", "shoes"),
        ("{{ order }}", '{"items": ["shoes"], "price": 1.5, "paid": null}'),
        ("{{ 'a' ~ order.items }}", 'a["shoes"]'),
        ("{{ order | string }}", '{"items": ["shoes"], "price": 1.5, "paid": null}'),
        ("{{ [order.items] | join }}", '["shoes"]'),
        ("{% for name, value in order.items() %}{{ name }} {% endfor %}", "items price paid "),
        ("{{ order | dictsort | map('first') | join(',') }}", "items,paid,price"),
        ("{{ order.price.is_integer() }}", "False"),
        ("{{ row['order'].price }}{{ row.order['price'] }}", "1.51.5"),
        ("{{ '%s %d' % (order.items, 2) }}", '["shoes"] 2'),
        ("{{ '%s' % {'a': order.items} }}", '{"a": ["shoes"]}'),
        ("{{ '%(items)s' % order }} {{ 7 % 4 }}", '["shoes"] 3'),
        ("{{ '%s' | format(order.items) }}", '["shoes"]'),
        ("{{ '%(a)s' | format(a=order.items) }}", '["shoes"]'),
        ("{{ '{} {a[price]:.2f}'.format(order.items, a=order) }}", '["shoes"] 1.50'),
        ("{{ '{items}'.format_map(order) }}", '["shoes"]'),
        ("{{ order.items | upper }}", '["SHOES"]'),
        ("{{ 'It: X' | replace('X', order.items) }}", 'It: ["shoes"]'),
        ("{{ [order.items] | map('trim') | first }}", '["shoes"]'),
        ("{{ order.items | pprint }} {{ 7 | trim }}", '["shoes"] 7'),
        ("{{ when }}", "2024-05-01"),
        ("{{ [when, sum] }}", '["2024-05-01", 0.1]'),
    ],
)
def test_an_item_goes_before_a_method_and_objects_are_json(text, rendered):
    """A prompt has the same bytes in each process, or its rows are paid for again."""
    columns = {"order": ORDER, "when": date(2024, 5, 1), "sum": Decimal("0.1")}
    assert Template("--prompt", text).render(columns) == rendered


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ order.keys }}", "keys is a method"),
        ("{{ order['keys'] }}", "no attribute 'keys'"),
        ("{{ order.keys ~ '' }}", "keys is a method"),
        ("{{ [order.keys] | join }}", "keys is a method"),
        ("{{ order | attr('keys') }}", "keys is a method"),
        ("{{ order.price.is_integer }}", "is_integer is a method"),
        ("{{ 'x'.upper }}", "upper is a method"),
        ("{% macro m() %}{% endmacro %}{{ m }}", "a function"),
        ("{{ order.items | map('upper') }}", "generator"),
        ("{{ self }}", "no text"),
        ("{{ row }}", "the whole row"),
        ("{{ row ~ '' }}", "the whole row"),
        ("{% for name in row %}{{ name }}{% endfor %}", "the whole row"),
        ("{{ raw }}", "bytes"),
        ("{{ [raw] }}", "bytes"),
        ("{{ 'a' ~ order.paid }}", "null"),
        ("{{ order.cost }}", "no attribute 'cost'"),
        ("{{ '%s' % order.paid }}", "null"),
        ("{{ '%(paid)s' % order }}", "null"),
        ("{{ '%s' % (order.items | map('upper')) }}", "generator"),
        ("{{ '{}'.format(order.items | reverse) }}", "iterator"),
        ("{{ '{paid}'.format_map(order) }}", "null"),
        ("{{ '{}'.format(raw) }}", "bytes"),
        ("{{ '{}'.format }}", "format is a method"),
        ("{{ '%s' | format(row) }}", "the whole row"),
        ("{{ order.paid | upper }}", "null"),
        ("{{ raw | trim }}", "bytes"),
        ("{{ row.items() }}", "the whole row"),
    ],
)
def test_what_has_no_text_is_never_shown(text, reason):
    """It would be an address in memory, and paid for."""
    with pytest.raises(MissingColumn, match=reason):
        Template("--prompt", text).render({"order": ORDER, "raw": b"x"})


@pytest.mark.parametrize("name", ["Review Text", "review-text", "a.b", "2nd", "0", "it's", "row"])
def test_a_column_of_any_name_can_be_shown(name):
    """And is what the template names, so that it is read from a Parquet file."""
    template = Template("--prompt", f"{{{{ row[{name!r}] }}}}")
    assert template.render({name: "hi", "other": 1}) == "hi"
    assert template.names == {name}


def test_a_name_that_is_no_identifier_is_told_how_to_be_written():
    """In the words of the row."""
    columns = {"review-text": "hi"}
    for text in ("{{ review-text }}", "{{ row['text'] }}"):
        with pytest.raises(MissingColumn, match=r"is written \{\{ row\['review-text'\] \}\}"):
            Template("--prompt", text).render(columns)
    with pytest.raises(
        JobError, match=r"\{\{ row\['Review Text'\] \}\} for a column of that name"
    ):
        Template("--prompt", "Label: {{ Review Text }}")
    with pytest.raises(JobError, match="takes the name of a column"):
        Template("--prompt", "{{ row[name] }}")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{{ b }}", "'b' is undefined (the row has: a)"),
        ("{{ a.b }}", "'int object' has no attribute 'b' (the row has: a)"),
        ("{{ a / 0 }}", "ZeroDivisionError"),
        ("{% for x in a %}{% endfor %}", "TypeError"),
        ("{{ a.__class__ }}", "SecurityError"),
        ("{% for x in range(9) %}{% endfor %}", "'range' is undefined"),
        ("{% include 'passwords' %}", "no loader"),
    ],
)
def test_what_a_row_cannot_fill_is_that_rows_failure(text, reason):
    """One odd row must not end the run; a template can reach no code and no file."""
    with pytest.raises(MissingColumn) as missing:
        Template("--prompt", text).render({"a": 7})
    assert reason in str(missing.value)


@pytest.mark.parametrize(
    "text",
    [
        "{{ a",
        "{% for %}",
        "{% endif %}",
        "{{ a | nope }}",
        "{{ a | random }}",
    ],
)
def test_a_text_that_is_no_template_is_refused_in_one_line_with_the_flag(text):
    """It is found before a request is paid for."""
    with pytest.raises(JobError, match=r"\A--system is not a template: .*line 1.*\Z"):
        Template("--system", text)


def test_names_are_the_columns_and_no_loop_variables():
    """Only these are read from a Parquet file."""
    template = Template("--prompt", "{% for x in a %}{{ x }}{{ b.c }}{% endfor %}{% set d = 1 %}")
    assert template.names == {"a", "b"}
    assert template.fits({"a": 1, "b": None, "e": 2})
    assert not template.fits({"a": 1})


@pytest.mark.parametrize("text", ["{{ a }}", "{{ a.b }}", "{% if 1 %}{{ a['b'] }}{% endif %}"])
def test_null_is_nothing_to_show(text):
    """The word None would be paid for, a row at a time."""
    columns = {"a": None} if text == "{{ a }}" else {"a": {"b": None}}
    with pytest.raises(MissingColumn, match="null"):
        Template("--prompt", text).render(columns)
    assert Template("--prompt", "{{ a | default('-', true) }}").render({"a": None}) == "-"
    assert Template("--prompt", "{% if a %}x{% endif %}y").render({"a": None}) == "y"
