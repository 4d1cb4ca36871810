"""What is done last: formats of one answer, formats of several (joins), and orders of several."""

from t2l_jax.data.family.primitive import Primitive, modifier

BARE = modifier(
    "bare",
    lambda text: text,
    "on its own | with nothing around it | without any extra text | with nothing added | all by itself | without "
    "decoration || standing alone | unadorned | with no other characters",
    "add nothing to it | give it on its own | add no other text | do not decorate it || put nothing else with it | "
    "present it bare",
)

FORMATS: tuple[Primitive, ...] = (
    BARE,
    modifier(
        "quotes",
        lambda text: f'"{text}"',
        "in double quotes | inside quotation marks | enclosed in double quotation marks | between quotation marks | "
        "wrapped in double quotes | surrounded by quotation marks || within quote marks | flanked by double quotes",
        "put it in double quotes | add quotation marks around it | enclose it in quotation marks | wrap it in double "
        "quotes || place it between quotation marks | surround it with double quotes",
    ),
    modifier(
        "brackets",
        lambda text: f"[{text}]",
        "in square brackets | inside square brackets | between [ and ] | wrapped in square brackets | surrounded by "
        "square brackets | put inside [ ] || within square brackets | flanked by [ and ]",
        "put it in square brackets | wrap it in [ ] | enclose it in square brackets | add square brackets around it || "
        "place it between square brackets | surround it with [ and ]",
    ),
    modifier(
        "parens",
        lambda text: f"({text})",
        "in parentheses | in round brackets | between ( and ) | wrapped in parentheses | surrounded by round "
        "brackets | put inside ( ) || within parentheses | flanked by ( and )",
        "put it in parentheses | wrap it in ( ) | enclose it in round brackets | add parentheses around it || place it "
        "between parentheses | surround it with ( and )",
    ),
    modifier(
        "braces",
        lambda text: f"{{{text}}}",
        "in curly brackets | in braces | between { and } | wrapped in curly brackets | surrounded by braces || "
        "within curly braces",
        "put it in curly brackets | wrap it in { } | enclose it in braces || place it between curly braces",
        held_out=True,
    ),
    modifier(
        "exclaim",
        lambda text: f"{text}!",
        "followed by an exclamation mark | with an exclamation mark at the end | ending in ! | with a ! after it | "
        "ended by an exclamation point || closed by an exclamation mark | with a trailing !",
        "add an exclamation mark | put a ! after it | finish it with an exclamation mark | follow it with an "
        "exclamation point || append an exclamation mark | close with a !",
    ),
    modifier(
        "question",
        lambda text: f"{text}?",
        "followed by a question mark | with a question mark at the end | ending in ? | with a ? after it || closed "
        "by a question mark",
        "add a question mark | put a ? after it | finish it with a question mark || append a question mark",
        held_out=True,
    ),
    modifier(
        "period",
        lambda text: f"{text}.",
        "followed by a full stop | with a period at the end | ended by a full stop | with a full stop after it | "
        "closed with a period || finished off by a full stop | with a trailing period",
        "add a full stop | put a period after it | end it with a full stop | follow it with a period || append a "
        "full stop | finish off with a period",
    ),
    modifier(
        "answer",
        lambda text: f"Answer: {text}",
        'preceded by "Answer: " | introduced by the word Answer and a colon | labelled with Answer: in front | after '
        'the label "Answer:" | prefixed with Answer: || following the prefix "Answer:" | with "Answer:" before it',
        'write "Answer: " before it | put the label Answer: in front | start with the word Answer and a colon | '
        'prefix it with "Answer: " || begin with "Answer:" | place Answer: ahead of it',
    ),
    modifier(
        "bullet",
        lambda text: f"- {text}",
        "preceded by a dash and a space | written as a bullet point with a dash | shown as a list item with a dash | "
        "formatted as a dashed bullet | with a dash and a space in front || presented as an item of a dashed list | "
        "with a leading dash",
        "put a dash and a space before it | make it a bullet point with a dash | start the line with a dash | format "
        "it as a dashed item || present it as a dash bullet | place a dash ahead of it",
    ),
    modifier(
        "hashtag",
        lambda text: f"#{text}",
        "written as a hashtag | with a # in front | preceded by a hash sign | turned into a hashtag | starting with "
        "the # sign || in the form of a hashtag | following a # symbol",
        "make it a hashtag | put a hash sign before it | write # in front of it | start it with a hash || render it "
        "as a hashtag | place a # ahead of it",
    ),
    modifier(
        "stars",
        lambda text: f"**{text}**",
        "in bold Markdown | between double asterisks | with two asterisks on either side | bold, as Markdown writes "
        "it | wrapped in ** || set in bold with double asterisks | flanked by **",
        "make it bold in Markdown | put two asterisks on either side of it | wrap it in ** | set it between double "
        "asterisks || embolden it the Markdown way | surround it with double asterisks",
    ),
    modifier(
        "json",
        lambda text: f'{{"answer": "{text}"}}',
        'as JSON with the single key "answer" | as a JSON object whose only key is answer | in JSON, as the value of '
        '"answer" | stored in a JSON object under the key "answer" || as the string value of "answer" in a JSON '
        "object | in a one-key JSON object, the key being answer",
        'put it in a JSON object under the key "answer" | write a JSON object with it as the value of "answer" | '
        'make it the value of "answer" in JSON || serialise it as JSON, with "answer" as the key',
    ),
    modifier(
        "tag",
        lambda text: f"<answer>{text}</answer>",
        "inside <answer> tags | between <answer> and </answer> | enclosed in an XML element named answer | wrapped in "
        "<answer></answer> || within a pair of <answer> tags | as the content of an answer element in XML",
        "put it inside <answer> tags | wrap it in <answer></answer> | write <answer> before it and </answer> after "
        "it || place it between <answer> tags | make it the content of an XML element named answer",
    ),
)

COMMA = modifier(
    "comma",
    ", ".join,
    "separated by commas | with commas between them | in a comma-separated list | with a comma and a space between "
    "them || divided by commas | comma-separated",
    "separate them with commas | put commas between them | write them as a comma-separated list || divide them by "
    "commas | set commas between them",
)

JOINS: tuple[Primitive, ...] = (
    COMMA,
    modifier(
        "space",
        " ".join,
        "separated by spaces | with only spaces between them | with a single space between them | without commas, on "
        "one line || divided by blanks | spaced apart, with no commas",
        "separate them with single spaces | put only spaces between them | leave out the commas between them || "
        "divide them by blanks | write them with no commas, one space apart",
    ),
    modifier(
        "slash",
        "/".join,
        "separated by slashes | with slashes between them | joined by slashes, without spaces | with a / between "
        "them || divided by forward slashes | slash-separated",
        "separate them with slashes | put a / between them | join them with slashes || divide them by forward "
        "slashes | set slashes between them",
    ),
    modifier(
        "hyphen",
        "-".join,
        "joined by hyphens | with hyphens between them | separated by a - without spaces | linked with hyphens || "
        "chained together by hyphens | hyphen-separated",
        "join them with hyphens | put hyphens between them | link them with a - || chain them together by hyphens | "
        "set hyphens between them",
    ),
    modifier(
        "and",
        " and ".join,
        'joined by the word "and" | with the word "and" between them | linked by "and", without commas || connected by '
        '"and" | with "and" as the only separator',
        'join them with the word "and" | put the word "and" between them | link them by "and" || connect them by '
        '"and" | use "and" as the only separator',
    ),
    modifier(
        "list",
        lambda parts: f"[{', '.join(parts)}]",
        "as one list in square brackets | together in square brackets, with commas | in a list such as [x, y] | all "
        "inside one pair of square brackets || bracketed together as a list | as a bracketed, comma-separated list",
        "put them in one pair of square brackets, with commas | write them as a list in square brackets | make them "
        "a list such as [x, y] || bracket them together as a list | enclose the comma-separated items in square "
        "brackets",
    ),
    modifier(
        "semicolon",
        "; ".join,
        "separated by semicolons | with semicolons between them | with a semicolon and a space between them || "
        "divided by semicolons",
        "separate them with semicolons | put semicolons between them || divide them by semicolons",
        held_out=True,
    ),
)

IN_ORDER = modifier(
    "given",
    tuple,
    "in the order given | in their original order | in the same order | in the order in which they stand || with their "
    "order untouched | in unchanged order",
    "keep their order | leave them in the order given | do not reorder them || preserve their order | retain the "
    "original order",
    takes="word name number letter",
)

ORDERS: tuple[Primitive, ...] = (
    IN_ORDER,
    modifier(
        "reversed",
        lambda values: tuple(reversed(values)),
        "in reverse order | in the opposite order | from last to first | back to front | with their order reversed "
        "|| in backwards order | with the sequence flipped",
        "reverse their order | turn their order around | list them from last to first | put them in the opposite "
        "order || flip the sequence | go through them backwards",
        takes="word name number letter",
    ),
    modifier(
        "alphabetical",
        lambda values: tuple(sorted(values)),
        "in alphabetical order | sorted alphabetically | sorted from A to Z | ordered as in a dictionary || arranged "
        "by the alphabet | in dictionary order",
        "sort them alphabetically | put them in alphabetical order | order them from A to Z || arrange them by the "
        "alphabet | put them in dictionary order",
        takes="word name letter",
    ),
    modifier(
        "backwards",
        lambda values: tuple(sorted(values, reverse=True)),
        "in reverse alphabetical order | sorted from Z to A | sorted alphabetically backwards || arranged from Z "
        "down to A",
        "sort them from Z to A | put them in reverse alphabetical order || arrange them from Z down to A",
        takes="word name letter",
        held_out=True,
    ),
    modifier(
        "ascending",
        lambda values: tuple(sorted(values)),
        "in ascending order | from smallest to largest | sorted upwards | in increasing order || arranged from low "
        "to high | with the smaller before the larger",
        "sort them in ascending order | put them in increasing order | order them from smallest to largest || "
        "arrange them from low to high | put the smaller before the larger",
        takes="number",
    ),
    modifier(
        "descending",
        lambda values: tuple(sorted(values, reverse=True)),
        "in descending order | from largest to smallest | sorted downwards | in decreasing order || arranged from "
        "high to low | with the larger before the smaller",
        "sort them in descending order | put them in decreasing order | order them from largest to smallest || "
        "arrange them from high to low | put the larger before the smaller",
        takes="number",
    ),
)
