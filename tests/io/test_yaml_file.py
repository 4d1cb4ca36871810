"""YAML becomes plain data, against PyYAML where that is plain; whatever else a file can do is refused."""

import pytest
import yaml

from t2l_jax.data.tasks import load_tasks
from t2l_jax.errors import UserError
from t2l_jax.io.yaml_file import MAX_BYTES, parse_yaml


@pytest.mark.parametrize(
    "text",
    [
        "name: x\ndescriptions:\n- 'it''s'\n- |\n  two\n  lines\n- \"tab\\t\"\n",
        "a: {b: [c, [d]], e: ~}\nf: null\ng:\nh: '7'\n",
        "a: &x [b, c]\nd: *x\n",
        "\ufeffname: grün\r\nother: ö\r\n",
        "a: !!str 7\nb: !!str\n",
        "{}",
    ],
)
def test_texts_lists_mappings_and_nulls_are_those_of_pyyaml(text):
    data = text.encode()
    assert parse_yaml(data, "f") == yaml.safe_load(data)
    assert parse_yaml(text.removeprefix("\ufeff").encode("utf-16"), "f") == yaml.safe_load(data)


@pytest.mark.parametrize(
    "value",
    [
        "2024-02-30", "7", "!!int 7", "1.5", "yes", "true", "9" * 5000, "0x" + "f" * 5000, ":".join(["59"] * 5000),
        "1.0e+999", ".nan", "=",
    ],
)  # fmt: skip
def test_no_scalar_is_converted(value):
    """No constructor runs, so none can fail or take its time: the value is there, but no field takes it."""
    other = parse_yaml(f"other: {value}\n".encode(), "f")["other"]
    assert not isinstance(other, str | int | float | bytes)


@pytest.mark.parametrize("value", ["true", "false", "7", "-3", "0", "2.5", "1.0e-05", "-0.25", "~", "x"])
def test_settings_have_plain_numbers_and_booleans(value):
    found = parse_yaml(f"a: {value}\n".encode(), "f", typed=True)["a"]
    expected = yaml.safe_load(value)
    assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize("value", ["9" * 5000, "0x10", "010", "1:30", ".inf", ".nan", "2024-02-29", "yes", "1.0e+9999"])
def test_what_else_stands_for_a_number_is_not_converted(value):
    found = parse_yaml(f"a: {value}\n".encode(), "f", typed=True)["a"]
    assert not isinstance(found, str | int | float)


def bomb(levels, width=9):
    """Aliases of aliases: its last line stands for width ** levels items."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, levels)]
    return "\n".join(lines) + f"\nname: [{', '.join([f'*a{levels - 1}'] * width)}]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(9), "f: line .*aliases stand for too much"),
        (bomb(4, 60), "aliases stand for too much"),
        ("a: &a " + "x" * 1000 + "\nb: [" + "*a, " * 1000 + "]", "aliases stand for too much"),
        ("a: &a [*a]", "aliases stand for too much|nested more than"),
        ("a: &a {b: *a}", "aliases stand for too much|nested more than"),
        ("a: " + "[" * 60 + "]" * 60, "line 1: nested more than 50 levels deep"),
        ("a: " + "[" * 100_000, "not YAML: .*nesting depth"),
        ("- " * 100_000, "not YAML: .*nesting depth"),
        ("a: 1\nb: 2\na: 3\n", "line 3: the key 'a' is there twice"),
        ("1: x", "line 1: a key must be a text"),
        ("a: &a {b: c}\nd: {<<: *a}", "line 2: merge keys .* are not read"),
        ("? [a]\n: b", "line 1: a key must be a text"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: not YAML without tags: remove !!python/object/apply"),
        ("a: !!int ''", "f: line 1: '' is no !!int: remove the tag"),
        ("b:\n- !!timestamp 'x'", "line 2: 'x' is no !!timestamp"),
        ("a: !!bool x", "'x' is no !!bool"),
        ("a: !!binary 'x'", "'x' is no !!binary"),
        ("a: !own x", "'x' is no !own"),
        ("a: !!set {b}", "not YAML without tags: remove !!set"),
        ("!!omap [a: b]", "not YAML without tags: remove !!omap"),
        ("a: [b", "f: not YAML: .*line 1"),
        ("a: b\n---\nc: d", "not YAML"),
        ("a: *b", "not YAML: .*undefined alias"),
        ('a: "\\ud800"', "not YAML"),
        ("a: \x07", "not YAML"),
        ("x" * (MAX_BYTES + 1), "larger than 1,048,576 bytes"),
        ("", "expected fields such as"),
        ("- name", "expected fields such as"),
    ],
)
def test_a_file_that_is_no_plain_data_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        parse_yaml(text.encode(), "f")


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(UserError, match="f: not YAML"):
        parse_yaml(b"a: \xff\xfe\xff", "f")


@pytest.mark.parametrize(
    ("line", "message"),
    [("!!int ''", "line 1: '' is no !!int"), ("9" * 5000, "field name: must"), ("7", "field name: must")],
)
def test_a_task_with_such_a_value_is_left_out_by_name(tmp_path, line, message):
    for name, text in (("good", "good"), ("bad", line)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "task.yaml").write_text(f"name: {text}\ndescriptions: [x]\n")
        for split in ("train", "test"):
            (folder / f"{split}.jsonl").write_text('{"input": "a", "output": "b"}\n')
    with pytest.warns(UserWarning, match=rf"1 of 2 tasks .* left out.*bad/task\.yaml: {message}"):
        assert [task.name for task in load_tasks(tmp_path)] == ["good"]
