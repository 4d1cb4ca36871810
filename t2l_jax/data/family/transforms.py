"""Transforms: from one selected value to text.

Types of values: "word" (lower case), "name" (with a capital), "number" (0 to 999), "year" and "letter" (a capital).
"""

from t2l_jax.data.family.primitive import Primitive, modifier

_ONES = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
]
_TENS = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]
_ALL = "word name number year letter"


def number_words(number: int) -> str:
    """The number (0 to 999) in English words: 342 is "three hundred forty-two"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens = _TENS[number // 10 - 2]
        return f"{tens}-{_ONES[number % 10]}" if number % 10 else tens
    hundreds = f"{_ONES[number // 100]} hundred"
    return f"{hundreds} {number_words(number % 100)}" if number % 100 else hundreds


SAME = modifier(
    "same",
    str,
    "unchanged | exactly as it is written | left as it is | copied without changes | not altered in any way | as it "
    "was given | kept in its original form | just as it appears || untouched | reproduced faithfully",
    "leave {it} as it is | do not change {it} | copy {it} exactly | keep {it} unchanged || make no changes to {it} | "
    "reproduce {it} as given",
    takes=_ALL,
)

TRANSFORMS: tuple[Primitive, ...] = (
    SAME,
    modifier(
        "upper",
        str.upper,
        "in capital letters | in upper case | in all caps | written entirely in capitals | converted to uppercase | in "
        "block capitals | with every letter capitalised | shouted in capitals || with capitals throughout | typed with "
        "caps lock on | in majuscules",
        "write {it} in capital letters | convert {it} to upper case | put {it} in all caps | make every letter of "
        "{it} a capital || uppercase {it} | capitalise all letters of {it}",
        "the uppercase form of {x} | the all-caps version of {x} | {x} in capital letters | {x} in upper case || the "
        "fully capitalised form of {x} | the upper-case spelling of {x}",
        "word name",
    ),
    modifier(
        "lower",
        str.lower,
        "in lower case | in small letters | without capital letters | converted to lowercase | written in small "
        "letters only | with no capitals || entirely in lowercase | free of capitals | in minuscules",
        "write {it} in lower case | convert {it} to lowercase | put {it} in small letters | remove the capitals from "
        "{it} || lowercase {it} | turn every capital in {it} into a small letter",
        "the lowercase form of {x} | {x} in small letters | the lower-case version of {x} || the uncapitalised form of "
        "{x} | the lower-case spelling of {x}",
        "name letter",
    ),
    modifier(
        "title",
        str.capitalize,
        "with a capital first letter | capitalised like a name | written like a proper noun | in title case | with "
        "only the first letter capitalised | beginning with a capital letter || capitalised the way names are | with "
        "a single capital at the start",
        "capitalise the first letter of {it} | write {it} like a proper noun | start {it} with a capital | put {it} in "
        "title case || give {it} a leading capital | capitalise {it} as one would a name",
        "the title-case form of {x} | {x} with a capital first letter | {x} written like a name || {x} with an initial "
        "capital | the properly capitalised form of {x}",
        "word",
    ),
    modifier(
        "initial",
        lambda text: text[0],
        "reduced to its first letter | cut down to its initial | shortened to the one letter that starts it | "
        "abbreviated to the first letter | with everything but its first letter removed || represented by its "
        "initial alone | truncated after the first letter",
        "keep only {its} first letter | shorten {it} to its initial | drop all letters of {it} but the first | "
        "abbreviate {it} to its first letter || retain just {its} initial letter | remove everything after {its} "
        "first letter",
        "the first letter of {x} | the initial of {x} | the letter at the start of {x} | the letter that begins {x} || "
        "the opening letter of {x} | the leading character of {x}",
        "word name",
    ),
    modifier(
        "last_letter",
        lambda text: text[-1],
        "reduced to its last letter | cut down to its final letter | shortened to the one letter that ends it | with "
        "everything but its last letter removed || represented by its closing letter alone | stripped of all but the "
        "final letter",
        "keep only {its} last letter | shorten {it} to its final letter | drop all letters of {it} but the last || "
        "retain just {its} closing letter | remove everything before {its} final letter",
        "the last letter of {x} | the final letter of {x} | the letter at the end of {x} | the letter that ends {x} || "
        "the closing letter of {x} | the trailing character of {x}",
        "word name",
    ),
    modifier(
        "first_three",
        lambda text: text[:3],
        "reduced to its first three letters | cut off after the third letter | abbreviated to its first three "
        "letters | shortened to the first 3 letters || trimmed to its opening three letters | truncated to a length "
        "of three",
        "keep only {its} first three letters | cut {it} off after the third letter | shorten {it} to its first 3 "
        "letters | abbreviate {it} to three letters || truncate {it} to the opening three letters | remove "
        "everything after {its} third letter",
        "the first three letters of {x} | the first 3 letters of {x} | the three letters that begin {x} || the opening "
        "three letters of {x} | the three-letter start of {x}",
        "word name",
    ),
    modifier(
        "last_three",
        lambda text: text[-3:],
        "reduced to its last three letters | stripped of all but its last three letters | shortened to the last 3 "
        "letters | trimmed to its final three letters || represented by its closing three letters",
        "keep only {its} last three letters | shorten {it} to its last 3 letters | drop all letters of {it} but the "
        "last three || retain just {its} closing three letters",
        "the last three letters of {x} | the last 3 letters of {x} | the three letters that end {x} || the closing "
        "three letters of {x}",
        "word name",
        held_out=True,
    ),
    modifier(
        "length",
        lambda text: str(len(text)),
        "replaced by its number of letters | given only as its length in letters | replaced by the count of its "
        "letters | expressed as how many letters it has || represented by its letter count | swapped for its length "
        "in characters",
        "count the letters of {it} and keep only that number | replace {it} by the number of its letters | turn {it} "
        "into its length in letters || swap {it} for its letter count | tally {its} letters and use the figure "
        "instead",
        "the number of letters in {x} | the length of {x} in letters | the count of letters in {x} || the letter "
        "count of {x} | the character count of {x}",
        "word name",
    ),
    modifier(
        "spelled",
        "-".join,
        "spelled out with hyphens between its letters | with a hyphen between all its letters | spelled letter by "
        "letter with dashes | with its letters separated by hyphens || hyphenated after every letter but the last | "
        "broken into letters joined by hyphens",
        "put a hyphen between all letters of {it} | spell {it} letter by letter with hyphens | separate the letters "
        "of {it} with hyphens || hyphenate {it} after every letter but the last | break {it} into letters joined by "
        "hyphens",
        "the letters of {x} with hyphens between them | the hyphenated spelling of {x} | the letters of {x}, "
        "separated by hyphens || the letter-by-letter spelling of {x}, with hyphens",
        "word name",
    ),
    modifier(
        "twice",
        lambda value: f"{value} {value}",
        "written twice with a space between | said two times in a row | repeated once after a space | given twice "
        "in a row | printed two times side by side || stated twice | repeated so that it appears two times",
        "write {it} twice in a row | say {it} two times | repeat {it} once after a space | put {it} down twice || "
        "state {it} twice | output {it} two times",
        "two copies of {x}, with a space between | {x} two times in a row | {x} written twice || a pair of copies of "
        "{x}, one space apart",
        _ALL,
    ),
    modifier(
        "thrice",
        lambda value: f"{value} {value} {value}",
        "written three times with spaces between | said three times in a row | given three times | printed 3 times "
        "side by side || repeated so that it appears three times",
        "write {it} three times in a row | say {it} three times | put {it} down 3 times || output {it} thrice",
        "three copies of {x}, with spaces between | {x} three times in a row || {x} thrice in succession",
        _ALL,
        held_out=True,
    ),
    modifier(
        "plus_one",
        lambda number: str(number + 1),
        "increased by one | raised by 1 | counted up by one | replaced by the whole number one higher | made larger "
        "by one || incremented | stepped up by one",
        "add one to {it} | increase {it} by one | add 1 to {it} | count one up from {it} || increment {it} | step "
        "{it} up by one",
        "one more than {x} | the result of adding one to {x} | the sum of one and {x} || the result of incrementing "
        "{x} | the integer one above {x}",
        "number year",
    ),
    modifier(
        "minus_one",
        lambda number: str(number - 1),
        "decreased by one | lowered by 1 | counted down by one | replaced by the whole number one lower | made "
        "smaller by one || decremented | stepped down by one",
        "subtract one from {it} | decrease {it} by one | take 1 away from {it} | count one down from {it} || decrement "
        "{it} | step {it} down by one",
        "one less than {x} | the whole number one below {x} | the result of taking one from {x} || the result of "
        "decrementing {x} | what is left of {x} when one is taken away",
        "number year",
    ),
    modifier(
        "plus_two",
        lambda number: str(number + 2),
        "increased by two | raised by 2 | counted up by two | made larger by two || stepped up by two",
        "add two to {it} | increase {it} by two | add 2 to {it} || step {it} up by two",
        "two more than {x} | the sum of two and {x} || the value two above {x}",
        "number year",
        held_out=True,
    ),
    modifier(
        "plus_ten",
        lambda number: str(number + 10),
        "increased by ten | raised by 10 | made larger by ten | counted up by ten || stepped up by ten | augmented "
        "by 10",
        "add ten to {it} | increase {it} by ten | add 10 to {it} | count ten up from {it} || step {it} up by ten | "
        "augment {it} by 10",
        "ten more than {x} | the sum of ten and {x} || the value ten above {x} | 10 on top of {x}",
        "number year",
    ),
    modifier(
        "double",
        lambda number: str(number * 2),
        "multiplied by two | times two | added to itself | made twice as large || scaled by a factor of two | "
        "increased to twice its value",
        "multiply {it} by two | add {it} to itself | make {it} twice as large | work out two times {it} || scale "
        "{it} by a factor of two | compute the product of 2 and {it}",
        "the double of {x} | two times {x} | twice the value of {x} || the product of two and {x} | 2 multiplied by "
        "{x}",
        "number",
    ),
    modifier(
        "in_words",
        number_words,
        "in words | spelled out in English | written as words instead of digits | expressed in words | written out "
        "in full || verbalised in English | put into words without digits",
        "write {it} in words | spell {it} out in English | turn the digits of {it} into words | write {it} out in "
        "full || verbalise {it} in English | express {it} without digits",
        "the English words for {x} | the spelled-out form of {x} | the name in words of {x} || the verbal form of "
        "{x} | the written-out English for {x}",
        "number",
    ),
    modifier(
        "parity",
        lambda number: "odd" if number % 2 else "even",
        "replaced by the right one of the words even and odd | classified as even or odd | labelled only as odd or "
        "even || judged as odd or even | reduced to its parity",
        "say whether {it} is even or odd, and only that | replace {it} by the word even or odd | classify {it} as "
        "odd or even || reduce {it} to its parity | decide on odd or even for {it}, and keep that word",
        "the parity (even or odd) of {x} | the right word, even or odd, for {x} || the odd-or-even class of {x}",
        "number",
    ),
    modifier(
        "last_digit",
        lambda number: str(number)[-1],
        "reduced to its last digit | cut down to its final digit | without any digit but the last | shortened to the "
        "units digit || represented by its closing digit | stripped of all but the final digit",
        "keep only {its} last digit | shorten {it} to its final digit | drop all digits of {it} but the last || retain "
        "just {its} units digit | remove everything before {its} final digit",
        "the last digit of {x} | the final digit of {x} | the digit that ends {x} || the closing digit of {x} | the "
        "rightmost digit of {x}",
        "number year",
    ),
    modifier(
        "next_letter",
        lambda letter: chr((ord(letter) - 64) % 26 + 65),
        "moved one place forward in the alphabet | replaced by the letter after it in the alphabet | shifted forward "
        "by one letter of the alphabet | replaced by the next letter of the alphabet || advanced one step in the "
        "alphabet | swapped for its successor in the alphabet",
        "replace {it} by the letter after it in the alphabet | move {it} one place forward in the alphabet | shift "
        "{it} forward by one letter of the alphabet || advance {it} one step in the alphabet | swap {it} for its "
        "successor in the alphabet",
        "the letter of the alphabet after {x} | the next letter of the alphabet after {x} || the alphabetical "
        "successor of {x}",
        "letter",
    ),
    modifier(
        "previous_letter",
        lambda letter: chr((ord(letter) - 66) % 26 + 65),
        "moved one place back in the alphabet | replaced by the letter before it in the alphabet | shifted back by "
        "one letter of the alphabet || taken one step back in the alphabet",
        "replace {it} by the letter before it in the alphabet | move {it} one place back in the alphabet || take "
        "{it} one step back in the alphabet",
        "the letter of the alphabet before {x} || the alphabetical predecessor of {x}",
        "letter",
        held_out=True,
    ),
    modifier(
        "alphabet_place",
        lambda letter: str(ord(letter) - 64),
        "replaced by its place in the alphabet | given as its number in the alphabet (A is 1) | turned into its "
        "position in the alphabet || represented by its alphabet index with A as 1",
        "replace {it} by its place in the alphabet | turn {it} into its number in the alphabet, A being 1 | write the "
        "position of {it} in the alphabet instead || swap {it} for {its} alphabet index with A as 1",
        "the place in the alphabet of {x} | the number in the alphabet (A is 1) of {x} || the alphabet index of {x}",
        "letter",
    ),
)
