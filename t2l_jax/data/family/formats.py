"""What is done last: formats of one answer, formats of several (joins), and orders of several."""

from t2l_jax.data.family.primitive import Primitive, modifier

BARE = modifier("bare", lambda text: text)

FORMATS: tuple[Primitive, ...] = (
    BARE,
    modifier("quotes", lambda text: f'"{text}"'),
    modifier("brackets", lambda text: f"[{text}]"),
    modifier("parens", lambda text: f"({text})"),
    modifier("braces", lambda text: f"{{{text}}}", held_out=True),
    modifier("exclaim", lambda text: f"{text}!"),
    modifier("question", lambda text: f"{text}?", held_out=True),
    modifier("period", lambda text: f"{text}."),
    modifier("answer", lambda text: f"Answer: {text}"),
    modifier("bullet", lambda text: f"- {text}"),
    modifier("hashtag", lambda text: f"#{text}"),
    modifier("stars", lambda text: f"**{text}**"),
    modifier("json", lambda text: f'{{"answer": "{text}"}}'),
    modifier("tag", lambda text: f"<answer>{text}</answer>"),
)

COMMA = modifier("comma", ", ".join)

JOINS: tuple[Primitive, ...] = (
    COMMA,
    modifier("space", " ".join),
    modifier("slash", "/".join),
    modifier("hyphen", "-".join),
    modifier("and", " and ".join),
    modifier("list", lambda parts: f"[{', '.join(parts)}]"),
    modifier("semicolon", "; ".join, held_out=True),
)

IN_ORDER = modifier("given", tuple, takes="word name number letter")

ORDERS: tuple[Primitive, ...] = (
    IN_ORDER,
    modifier("reversed", lambda values: tuple(reversed(values)), takes="word name number letter"),
    modifier("alphabetical", lambda values: tuple(sorted(values)), takes="word name letter"),
    modifier("backwards", lambda values: tuple(sorted(values, reverse=True)), takes="word name letter", held_out=True),
    modifier("ascending", lambda values: tuple(sorted(values)), takes="number"),
    modifier("descending", lambda values: tuple(sorted(values, reverse=True)), takes="number"),
)
