"""How the primitives and the tasks of the procedural family are put into words, for training and held out.

A phrase of a transform or a format fits behind "the word, ..." and behind "it must be ..."; a step is an imperative
about "it". A phrase of a select is a noun phrase. A template uses some of these fields:

    {select}          the animal
    {style}           ", in capital letters and inside square brackets"; a default may be left out
    {then}            ", then shout it, then wrap it in brackets"; a default may be left out
    {transform} {format} {transform_step} {format_step}      the phrases and steps by themselves, defaults included

Nothing in UNSEEN stands in TRAIN: neither a phrase, nor a step, nor a template.
"""

from typing import NamedTuple


class Forms(NamedTuple):
    """The wordings of one primitive. Selects have no steps: the templates' own verbs go with their noun phrases."""

    phrases: tuple[str, ...]
    steps: tuple[str, ...] = ()


class Wordings(NamedTuple):
    """One side of the split: templates, and forms by the primitive's name."""

    templates: tuple[str, ...]
    selects: dict[str, Forms]
    transforms: dict[str, Forms]
    formats: dict[str, Forms]


def _forms(phrases: str, steps: str = "") -> Forms:
    """Forms whose members are separated by bars."""
    return Forms(*(tuple(part.split(" | ")) if part else () for part in (phrases, steps)))


TRAIN = Wordings(
    templates=(
        "Reply with {select}{style}.",
        "Reply with only {select}{style}.",
        "You get some words. Give back {select}{style}.",
        "From the list, pick out {select}{style}.",
        "Answer with {select}{style}.",
        "Read the words and write {select}{style}.",
        "The answer is {select}{style}.",
        "Your output should be {select}{style}.",
        "Output: {select}{style}.",
        "{select}{style}.",
        "I will send a list of words and I want {select}{style}.",
        "Given a list of words, return {select}{style}.",
        "Find {select}{then}.",
        "Look for {select}{then}.",
        "Go through the words, choose {select}{then}.",
        "Pick {select} from the list{then}.",
        "Find {select}. {transform_step}. {format_step}.",
        "First find {select}. Then {transform_step}. Finally, {format_step}.",
        "Take {select}; {transform_step}; {format_step}.",
        "Out of all the words choose {select}, {transform_step} and {format_step}.",
        "Write {select}. It must be {transform} and {format}.",
        "The result must be {format}. Use {select}, {transform}.",
        "What I need is {select}. It should be {format}, and the word itself should be {transform}.",
        "Word to use: {select}. Writing: {transform}. Layout: {format}.",
    ),
    selects={
        "first": _forms(
            "the first word | the first item of the list | the word at the start of the list | the opening word | "
            "the word that comes first | item number one | the very first entry | the word at the beginning | the "
            "word listed first | the first element | the first of the words | the word that starts the list | the "
            "word that opens the list | the first one | the leading word | the word before all the others",
        ),
        "second": _forms(
            "the second word | the second item of the list | the word in second place | word number two | the word "
            "right after the first one | the second entry | the word at position 2 | item two | the one after the "
            "first | the second of the words | the word that comes second | the word following the first word | the "
            "second one | the word listed second | the entry in position two | number 2 in the list",
        ),
        "last": _forms(
            "the last word | the last item of the list | the word at the end of the list | the final word | the "
            "word that comes last | the final entry | the closing word | the very last item | the word listed last "
            "| the last of the words | the last one | the word that closes the list | the word after all the others "
            "| the last entry | the ending word | the word in last place",
        ),
        "animal": _forms(
            "the animal | the word that names an animal | the creature | the name of the animal | the beast | the "
            "living creature | the animal among the words | the word for an animal",
        ),
        "fruit": _forms(
            "the fruit | the word that names a fruit | the name of the fruit | the fruit among the words | the "
            "piece of fruit | the word for a fruit | the only fruit | the kind of fruit",
        ),
        "colour": _forms(
            "the colour | the color | the word that names a colour | the name of the color | the hue | the word for "
            "a colour | the only color | the colour among the words",
        ),
        "vehicle": _forms(
            "the vehicle | the word that names a vehicle | the means of transport | the vehicle among the words | "
            "the thing people travel in | the word for a vehicle | the kind of vehicle | the form of transport",
        ),
        "job": _forms(
            "the job | the profession | the occupation | the word that names a job | the name of the profession | "
            "the word for an occupation | the job among the words | the kind of work a person does",
        ),
        "clothing": _forms(
            "the item of clothing | the garment | the piece of clothing | the word that names a garment | the "
            "clothing item | the word for something to wear | the article of clothing | the thing people wear",
        ),
        "body": _forms(
            "the body part | the part of the body | the word that names a body part | the part of the human body | "
            "the only body part | the word for a part of the body | the body part among the words | the name of the "
            "body part",
        ),
    },
    transforms={
        "same": _forms(
            "unchanged | exactly as it is written | left as it is | copied without changes | spelled just as in the "
            "list | kept in its original form | not altered | the same as in the list | as it was given | verbatim "
            "| with no changes | in the given spelling | without altering anything | in the form it was given | "
            "unmodified | just as it appears",
            "leave it as it is | do not change it | copy it exactly | keep its spelling | keep it unchanged",
        ),
        "upper": _forms(
            "in capital letters | in upper case | in all caps | written entirely in capitals | with every letter "
            "capitalised | converted to uppercase | in block capitals | all in upper case | with all letters in "
            "upper case | as uppercase text | in large capital letters | shouted in capitals | completely in "
            "capital letters | with all of its letters capitalised | in uppercase only | in nothing but capitals",
            "write it in capital letters | convert it to upper case | put it in all caps | make every letter a "
            "capital | turn all of it into capitals",
        ),
        "title": _forms(
            "in title case | capitalised like a name | written like a proper noun | in Title Case | capitalised as "
            "at the start of a sentence | written like a person's name | capitalised like a title | with an initial "
            "capital and the rest in lower case | with only the first letter capitalised | in sentence case | with "
            "a capital at the start | capitalised | beginning with a capital letter | in lower case except for a "
            "capital at the start | with a leading capital | capitalised in the way of a surname",
            "write it in title case | capitalise it like a name | write it like a proper noun | start it with a "
            "capital as in a name | convert it to title case",
        ),
        "initial": _forms(
            "reduced to its first letter | cut down to its initial | shortened to one letter, its first | "
            "abbreviated to the first letter | only the letter it starts with | trimmed to a single letter, the "
            "first one | just its first character | just the starting letter | given as a single letter, its "
            "initial | represented by its first letter | shown by its first letter alone | only its initial letter "
            "| with everything but the first letter removed | shown as the one letter it begins with | given as one "
            "character, the first | stripped down to its starting letter",
            "keep only its first letter | shorten it to its initial | drop all letters but the first | abbreviate "
            "it to one letter | cut it down to the letter it starts with",
        ),
        "twice": _forms(
            "written twice | repeated two times | doubled, with a space between | said twice in a row | given two "
            "times | duplicated | repeated once more after a space | printed two times in a row | two times in "
            "succession | repeated | twice in a row | given twice | shown twice, side by side | in two copies | "
            "appearing two times | followed by itself",
            "write it twice | repeat it | say it two times | double it | duplicate it with a space between",
        ),
    },
    formats={
        "bare": _forms(
            "with nothing around it | on its own | without any extra text | free of punctuation | with nothing "
            "added | all by itself | without decoration | plain",
            "add nothing around it | give it on its own | do not decorate it | add no other text | leave it without "
            "punctuation",
        ),
        "quotes": _forms(
            "in double quotes | inside quotation marks | between double quotation marks | quoted | enclosed in "
            'double quotes | put in quotation marks | surrounded by quote marks | in " " marks',
            "put it in double quotes | quote it | add quotation marks around it | wrap it in double quotes | "
            "enclose it in quotation marks",
        ),
        "brackets": _forms(
            "in square brackets | inside square brackets | enclosed in brackets | between [ and ] | wrapped in "
            "square brackets | bracketed | surrounded by square brackets | put inside [ ]",
            "put it in square brackets | wrap it in [ ] | enclose it in brackets | add square brackets around it | "
            "bracket it",
        ),
        "exclaim": _forms(
            "followed by an exclamation mark | with an exclamation mark at the end | ending in ! | ended by an "
            "exclamation point | finished with an exclamation mark | exclaimed with a ! | with a ! after it | with "
            "an exclamation point behind it",
            "add an exclamation mark | end with an exclamation point | put a ! after it | finish it with an "
            "exclamation mark | follow it with an exclamation point",
        ),
        "answer": _forms(
            'preceded by "Answer: " | introduced by the word Answer and a colon | prefixed with Answer: | labelled '
            'with Answer: | after the label "Answer:" | starting with "Answer: " | with the label Answer: in front '
            '| headed by the word Answer and a colon | announced by "Answer:" | with Answer: written before it | '
            'beginning with the label Answer: | with the prefix "Answer: " | placed after "Answer:"',
            'write "Answer: " before it | put the label Answer: in front | start with the word Answer and a colon | '
            'label it with Answer: | prefix it with "Answer: "',
        ),
        "bullet": _forms(
            "preceded by a dash | written as a bullet point | after a dash and a space | as a list item with a dash "
            "| with a hyphen in front | formatted as a dashed bullet | starting with a dash | shown as a - bullet",
            "put a dash before it | make it a bullet point | start the line with a dash | write a hyphen and a "
            "space in front | format it as a bulleted item",
        ),
        "hashtag": _forms(
            "written as a hashtag | preceded by a hash sign | with a # in front | turned into a hashtag | starting "
            "with the # sign | prefixed with a hash | in hashtag form | directly after a # sign",
            "make it a hashtag | put a hash sign before it | write # in front of it | turn it into a hashtag | "
            "start it with a hash",
        ),
    },
)

UNSEEN = Wordings(
    templates=(
        "Please tell me {select}{style}.",
        "Say just {select}{style}.",
        "Several words follow; respond with {select}{style}.",
        "Among these words, identify {select}{then}.",
        "Search the list for {select}. After that, {transform_step}, and {format_step}.",
        "Your task is to print {select}. Make sure that it is {transform} and {format}.",
        "Extract {select}{style}; say no more than that.",
        "Once you have spotted {select}, {transform_step}. Lastly, {format_step}.",
    ),
    selects={
        "first": _forms(
            "the initial item | whichever word leads the list | the 1st word",
        ),
        "second": _forms(
            "the 2nd word | the item that directly follows the first | the list's second element",
        ),
        "last": _forms(
            "the concluding item | whichever word ends the list | the list's last element",
        ),
        "animal": _forms(
            "whichever word is an animal | the animal's name | the one animal",
        ),
        "fruit": _forms(
            "whichever word is a fruit | the fruit's name | the one fruit",
        ),
        "colour": _forms(
            "whichever word is a colour | the color's name | the one colour",
        ),
        "vehicle": _forms(
            "whichever word is a vehicle | the mode of transportation | the one vehicle",
        ),
        "job": _forms(
            "whichever word is a profession | the job title | the one occupation",
        ),
        "clothing": _forms(
            "whichever word is a garment | the piece of apparel | the one item of clothing",
        ),
        "body": _forms(
            "whichever word is a body part | the bodily part | the one part of the body",
        ),
    },
    transforms={
        "same": _forms(
            "untouched | precisely as given | without any modification",
            "make no changes to it | reproduce it as given",
        ),
        "upper": _forms(
            "with capitals throughout | in uppercase letters | typed with caps lock on",
            "uppercase it | capitalise all of its letters",
        ),
        "title": _forms(
            "capitalised the way names are | with one capital letter, at the start | formatted in title case",
            "capitalise it as one would a name | give it title case",
        ),
        "initial": _forms(
            "represented by its initial alone | truncated after the first letter | only the opening letter of it",
            "retain just the initial letter | remove everything after its first letter",
        ),
        "twice": _forms(
            "two times over | stated twice | repeated so that it appears twice",
            "output it two times | state it twice",
        ),
    },
    formats={
        "bare": _forms(
            "with no other characters | standing alone | unadorned",
            "put nothing else with it | present it bare",
        ),
        "quotes": _forms(
            "within quote marks | flanked by double quotes | set in quotation marks",
            "place it between quotation marks | surround it with double quotes",
        ),
        "brackets": _forms(
            "within square brackets | flanked by [ and ] | set in brackets",
            "place it between square brackets | surround it with [ and ]",
        ),
        "exclaim": _forms(
            "closed by an exclamation mark | with a trailing ! | punctuated by an exclamation point",
            "append an exclamation mark | close with a !",
        ),
        "answer": _forms(
            'following the prefix "Answer:" | with "Answer:" before it | opened by the label Answer:',
            'begin with "Answer:" | place Answer: ahead of it',
        ),
        "bullet": _forms(
            "following a leading dash | as an item of a dashed list | with a dash before it",
            "present it as a dash bullet | place a dash ahead of it",
        ),
        "hashtag": _forms(
            "in the form of a hashtag | following a # symbol | hashtagged",
            "render it as a hashtag | place a # ahead of it",
        ),
    },
)
