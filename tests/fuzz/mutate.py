"""Damage to files: seeded, and aware of the layout where a blind change would only ever break the first byte.

Every function takes a random generator of Python's `random` and returns a changed copy.
"""

import io
import json
import random
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutation = Callable[[random.Random, bytes], bytes]

NUMBERS = [0, 1, -1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e308, 2**31, 2**63, 2_000_000, 10**19, 10**400]
ODD = [
    *(None, True, False, "", "false", "x", "\ud800", "1", "nan", [], [1], [[1]], {}, {"a": 1}),
    *(float("nan"), float("inf"), -float("inf"), "a" * 5000, "../x", "/etc/passwd", "*", "(a+)+$", *NUMBERS),
]
BYTES = [b"", b"\0", b"\xff", b"\xef\xbb\xbf", b"\r\n", b"[" * 100_000, b"9" * 5000, b"\x80" * 8, b"{", b'"', b"NaN"]
WORDS = [0, 1, 2, 7, 255, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**59, 2**63 - 1, 2**63, 2**64 - 1]
YAML = [
    *("!!int ''", "!!timestamp 'x'", "!!float 'x'", "!!binary '*'", "!!python/object:os.system x", "2001-99-99", "~"),
    *("&a [*a]", "*missing", "{a: {a: {a: 1}}}", "9" * 5000, "0x", "[1, 2", "- - - x", "? x", "yes", "!!set {a}", "''"),
    "[&a [x,x,x,x,x,x,x,x,x], &b [*a,*a,*a,*a,*a,*a,*a,*a,*a], &c [*b,*b,*b,*b,*b,*b,*b,*b,*b], "
    "&d [*c,*c,*c,*c,*c,*c,*c,*c,*c], &e [*d,*d,*d,*d,*d,*d,*d,*d,*d], &f [*e,*e,*e,*e,*e,*e,*e,*e,*e]]",
]
JINJA = [
    *("{{ 1 // 0 }}", "{{ 1 % 0 }}", "{{ x.y.z }}", "{{ messages[9] }}", "{% include 'x' %}", "{{ 'a' * 10 ** 10 }}"),
    *("{% for i in range(10 ** 9) %}{% endfor %}", "{{ range(10 ** 12) | list }}", "{{ cycler() }}"),
    "{% for i in range(99999) %}{% for j in range(99999) %}{% for k in range(9999) %}" + "{% endfor %}" * 3,
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    *("{{ messages | tojson(indent=10**9) }}", "{{ 'x' | center(10**10) }}", "{{ lipsum(n=10**6) }}"),
    *("{{ '%1000000000d' % 1 }}", "{{ 9 ** 9 ** 9 }}"),
    *("{{ ''.__class__.__mro__ }}", "{{ raise_exception('no') }}", "{% if %}", "{{", "{{ undefined() }}"),
    *("{{ messages.append(1) }}", "{{ strftime_now('%' * 9999) }}", "{{ [1] | sort(attribute='x.y') }}"),
]  # fmt: skip

STATEMENTS = [
    *("\nraise SystemExit(0)", "\nimport sys; sys.exit('x')", "\n1 / 0", "\nimport nothing", "\nopen('/no/x', 'w')"),
    *("\nclass E(BaseException): pass\nraise E", "\ndel RECIPE", "\nRECIPE = 7", "\nRECIPE = Recipe"),
]  # fmt: skip
EXPRESSIONS = [
    *("b'x'", "(8, 16)", "'adamw'", "None", "float('nan')", "float('inf')", "-1", "0", "10 ** 400", "2 ** 63", "1.5"),
    *("[]", "{}", "True", "'x' * 9999", "1e-400", "object()", "Recipe", "'\\ud800'", "('q_proj', 7)", "LoraConfig()"),
    "lambda: 0",
]  # fmt: skip
COMMANDS = [
    (["generate", "Say red.", "--model", "model"], ["--out", "--batch", "--model", "--from"]),
    (
        ["generate", "--from", "requests/tasks.jsonl", "--model", "model", "--out", "new"],
        ["--out", "--batch", "--from"],
    ),
    (["embed", "Say red.", "--encoder", "encoder", "--out", "new.npy"], ["--out", "--encoder", "--model"]),
    (["models", "model"], []),
    (["mix", "adapter", "adapter", "--weights", "1", "-1", "--out", "new"], ["--weights", "--out", "--method"]),
    (["export", "adapter", "--format", "gguf", "--base", "base", "--out", "new"], ["--out", "--base", "--dtype"]),
    (["publish", "model", "--out", "new"], ["--out", "--alpha", "--encoder"]),
    (
        ["chat", "--model", "model", "--max-new-tokens", "3"],
        ["--seed", "--temperature", "--top-p", "--max-new-tokens", "--adapter", "--description", "--model"],
    ),
]
TEXTS = [
    *("0", "-1", "1", "nan", "inf", "1e400", "99999999999999999999", "1.5", "", "x", "x" * 300, "../x"),
    *("a/" * 1000, "out\udcff", ".", "/", "base", "requests/tasks.jsonl", "/dev/null", "\0", "~", "hf:x", "pypi:x==1"),
    *("-", "/proc/self/mem"),
]  # fmt: skip


def damage(rng: random.Random, data: bytes) -> bytes:
    """Bytes changed, cut out, put in, doubled, or numbers of four or eight bytes overwritten."""
    place = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            return data[:place]
        case 1:
            return data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]
        case 2:
            return data[:place] + rng.choice(BYTES) + data[place:]
        case 3:
            return data[:place] + data[place + rng.randrange(1, 64) :]
        case 4:
            return rng.choice([b"\xef\xbb\xbf" + data, data + data, b"", data + b"\0" * rng.randrange(1, 100)])
    layout = rng.choice("IQ")
    size = struct.calcsize(layout)
    return data[:place] + struct.pack(f"<{layout}", rng.choice(WORDS) % 2 ** (8 * size)) + data[place + size :]


def head(rng: random.Random, data: bytes, length: int = 600) -> bytes:
    """`damage` to the first bytes, where binary formats keep what they say of the rest."""
    return damage(rng, data[:length]) + data[length:]


def value(rng: random.Random, tree: Any) -> Any:
    """One change somewhere in a tree of JSON: another value, a field that is gone, renamed, new, or swapped."""
    if isinstance(tree, dict) and tree and rng.random() < 0.85:
        key = rng.choice(list(tree))
        match rng.randrange(8):
            case 0:
                return {name: item for name, item in tree.items() if name != key}
            case 1:
                return {(f"{name}_" if name == key else name): item for name, item in tree.items()}
            case 2:
                return {
                    **tree,
                    rng.choice(["extra", "quantization_config", "rope_theta", "r", "name"]): rng.choice(ODD),
                }
            case 3:
                return {**tree, key: tree[rng.choice(list(tree))]}
        return {**tree, key: value(rng, tree[key])}
    if isinstance(tree, list) and tree and rng.random() < 0.7:
        place = rng.randrange(len(tree))
        return [*tree[:place], *([value(rng, tree[place])] * rng.randrange(3)), *tree[place + 1 :]]
    if isinstance(tree, int | float) and abs(tree) < 2**63 and rng.random() < 0.3:
        return rng.choice([tree * 2, tree + 1, tree - 1, -tree, float(tree), str(tree), tree / 2])
    return rng.choice(ODD)


def json_text(rng: random.Random, data: bytes) -> bytes:
    """A JSON file with a changed value, or damaged bytes."""
    if rng.random() < 0.2:
        return damage(rng, data)
    tree = json.loads(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        tree = value(rng, tree)
    return dumped(tree)


def dumped(tree: Any) -> bytes:
    """A tree as JSON, with NaN, Infinity and lone surrogates as Python writes them."""
    return json.dumps(tree, indent=1).encode()


def json_lines(rng: random.Random, data: bytes) -> bytes:
    """One line of a JSONL file changed."""
    lines = data.splitlines(keepends=True)
    if rng.random() < 0.2 or not lines:
        return damage(rng, data)
    place = rng.randrange(len(lines))
    lines[place] = json_text(rng, lines[place]).replace(b"\n", b" ") + b"\n"
    return b"".join(lines)


def safetensors(rng: random.Random, data: bytes) -> bytes:
    """A changed header, a weight that is no number, a length that is none, or damaged bytes."""
    length = int.from_bytes(data[:8], "little")
    match rng.randrange(5):
        case 0:
            return damage(rng, data)
        case 1:
            return struct.pack("<Q", rng.choice(WORDS)) + data[8:]
        case 2:
            place = 8 + length + 4 * rng.randrange(max((len(data) - 8 - length) // 4, 1))
            odd = rng.choice([float("nan"), float("inf"), -float("inf"), 1e30, 0.0])
            return data[:place] + struct.pack("<f", odd) + data[place + 4 :]
    header = dumped(value(rng, json.loads(data[8 : 8 + length])))
    return struct.pack("<Q", len(header)) + header + data[8 + length :]


def gguf(rng: random.Random, data: bytes) -> bytes:
    """A field's type or value overwritten, a weight that is no number, or damaged bytes of the header or anywhere."""
    match rng.randrange(8):
        case 0:
            return damage(rng, data)
        case 1:
            place = len(data) - 4 * rng.randrange(1, 1000)
            return data[:place] + struct.pack("<f", rng.choice([float("nan"), float("inf")])) + data[place + 4 :]
        case 2 | 3:
            return head(rng, data, data.rfind(b".weight") + 40)
    keys = list(re.finditer(rb"(?:general|tokenizer|llama)\.[a-z_.]+", data))
    place = rng.choice(keys).end()
    if rng.random() < 0.4:
        return data[:place] + struct.pack("<I", rng.randrange(14)) + data[place + 4 :]
    odd = [struct.pack("<I", rng.choice(WORDS) % 2**32), struct.pack("<f", rng.choice([0.0, -1.0, 1e30, float("nan")]))]
    return data[: place + 4] + rng.choice(odd) + data[place + 8 :]


def yaml_text(rng: random.Random, data: bytes) -> bytes:
    """A value of a YAML file replaced by an odd one, a line that is gone or doubled, or damaged bytes."""
    lines = data.decode().splitlines()
    place = rng.randrange(len(lines))
    match rng.randrange(4):
        case 0:
            return damage(rng, data)
        case 1:
            lines[place] = rng.choice(["", lines[rng.randrange(len(lines))], f"  {lines[place]}"])
        case _:
            start, colon, _ = lines[place].partition(":")
            lines[place] = f"{start}{colon or ':'} {rng.choice(YAML)}"
    return "\n".join(lines).encode()


def template(rng: random.Random, data: bytes) -> bytes:
    """A fragment put into a chat template, or damaged bytes."""
    if rng.random() < 0.25:
        return damage(rng, data)
    place = rng.choice([0, len(data), data.find(b"%}") + 2])
    return data[:place] + rng.choice(JINJA).encode() + data[place:]


def python(rng: random.Random, data: bytes) -> bytes:
    """A value of a recipe replaced by an odd one, a statement that ends or raises, or damaged bytes."""
    text = data.decode()
    match rng.randrange(8):
        case 0:
            return damage(rng, data)
        case 1:
            return (text + rng.choice(STATEMENTS)).encode()
    places = [match.span(1) for match in re.finditer(r"=([^=(),]+|\([^()]*\)|\w+\([^()]*\))(?=[,)])", text)]
    start, end = rng.choice(places)
    return (text[:start] + rng.choice(EXPRESSIONS) + text[end:]).encode()


def arguments(rng: random.Random, data: bytes) -> bytes:
    """A command with an option or two of odd values, as JSON."""
    command, options = rng.choice(COMMANDS)
    for option in rng.sample(options, min(rng.choice([0, 1, 1, 2]), len(options))):
        command = [*command, option, rng.choice(TEXTS)]
    return json.dumps(command).encode()


def wheel(rng: random.Random, data: bytes) -> bytes:
    """A wheel with an odd member, or damaged bytes."""
    if rng.random() < 0.6:
        return damage(rng, data)
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive:
        name = rng.choice(["../out", "/tmp/out", "a/../../out", "x" * 300, "big", "p/config.json", "dir/"])
        archive.writestr(name, b"\0" * rng.choice([10, 10_000_000, 60_000_000]))
    return stream.getvalue()
