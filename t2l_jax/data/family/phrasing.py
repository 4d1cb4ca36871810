"""From a combination to descriptions: templates of many orders of thought, filled with the wordings of its primitives.

A description is an opening, a core and a closing; opening and closing are often empty. Fields of a core:

    {a} {the}           names of the input: "a list of words", "the words"
    {select}            "the animal"; of several values with their order: "all the words, in reverse order"
    {whole}             the select inside the transform: "the first letter of the animal"
    {style}             ", in capital letters and inside square brackets"; a default may be left out
    {layout}            ", inside square brackets", or nothing where a default is left out
    {then}              ", then write it in capital letters, then wrap it in [ ]"; a default may be left out
    {steps}             the same as sentences: "Write it in capital letters. Wrap it in [ ]."
    {transform} {format} {transform_step} {format_step}       the phrases and steps by themselves, defaults included
    {give} {find}       verbs
    {it} {is}           "it" or "them", "is" or "are"

Nothing on the held-out side (templates and their verbs, openings, closings, wordings of primitives) is used as such in
training; a training step may hold a verb of a held-out template ("calculate").
"""

from random import Random
from typing import NamedTuple

from t2l_jax.data.family.formats import BARE, COMMA, IN_ORDER
from t2l_jax.data.family.primitive import Primitive
from t2l_jax.data.family.split import Combination
from t2l_jax.data.family.transforms import SAME
from t2l_jax.data.family.wordings import wordings

DEFAULTS = (SAME, BARE, COMMA, IN_ORDER)
_MENTIONED = 0.35  # how often a default is put into words


class Frames(NamedTuple):
    """One side of the split of templates. `single` is for one selected value, `several` for more, `both` for both."""

    both: tuple[str, ...]
    single: tuple[str, ...]
    several: tuple[str, ...]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    give: tuple[str, ...]
    find: tuple[str, ...]
    compute: tuple[str, ...]


TRAIN = Frames(
    both=(
        "{give} {select}{style}.",
        "{give} only {select}{style}.",
        "{give} {whole}{layout}.",
        "please {give} {whole}{layout}.",
        "{select}{style}.",
        "{whole}{layout}, please.",
        "your answer is {select}{style}.",
        "the output should be {whole}{layout}.",
        "output: {whole}{layout}.",
        "I want {select}{style}.",
        "I only need {whole}{layout}.",
        "I would like to get {select}{style}.",
        "can you {give} {whole}{layout}?",
        "could you {find} {select}{then}?",
        "what {is} {select}? Write the answer{style}.",
        "what {is} {whole}? {Format_step}.",
        "tell me this: what {is} {select}? {Transform_step}, and {format_step}.",
        "{find} {select}{then}.",
        "{find} {select}. {steps}",
        "{find} {select}; {transform_step}; {format_step}.",
        "first {find} {select}. Then {transform_step}. Finally, {format_step}.",
        "{find} {select}, {transform_step} and {format_step}.",
        "1. {Find} {select}. 2. {Transform_step}. 3. {Format_step}.",
        "step one: {find} {select}. Step two: {transform_step}. Step three: {format_step}.",
        "what to {find}: {select}. How to write {it}: {transform}. Layout of the answer: {format}.",
        "content: {select}; form: {transform}; layout: {format}.",
        "target = {select}. Transformation = {transform}. Format = {format}.",
        "the goal is to {find} {select}{then}.",
        "your job is to {find} {select}{then}.",
        "the task is simple: {give} {whole}{layout}.",
        "given {a}, {give} {select}{style}.",
        "given {a}, {find} {select}{then}.",
        "for {a}, {give} {whole}{layout}.",
        "read {the} and {give} {select}{style}.",
        "look at {the}, {find} {select}{then}.",
        "from {the}, {find} {select}{then}.",
        "go through {the} and {give} {whole}{layout}.",
        "using {the}, {give} {select}{style}.",
        "when you get {a}, {give} {whole}{layout}.",
        "whenever I send {a}, you {give} {select}{style}.",
        "input: {a}. Output: {select}{style}.",
        "a reader of {the} wants to know {select}. Write the reply{style}.",
        "a program takes {a} and returns {select}{style}. Act like that program.",
        "my script expects {whole}{layout}. Produce that from {the}.",
        "{the} can be ignored except for {select}. {steps}",
        "do not copy all of {the}: {give} {select}{style}.",
        "act as a function from {the} to {whole}{layout}.",
        "help me with {the}: {find} {select}{then}.",
        "solve this for {a}: what {is} {whole}? Answer{layout}.",
        "after reading {the}, {transform_step} once you have {select}, and {format_step}.",
    ),
    single=(
        "the result must appear {format}. Use {select}, {transform}.",
        "{give} {select}. It must appear {transform} and {format}.",
        "what I need is {select}. It should appear {format}, and its content should come {transform}.",
        "take care of the layout ({format}) and {give} {whole}.",
        "the answer, {format}, has to be {whole}.",
        "layout first: the answer comes {format}. It consists of {whole}.",
        "I expect an answer {format}. It holds {select}, {transform}.",
    ),
    several=(
        "the results must appear {format}. Use {select}, {transform}.",
        "{give} {select}. They should come {format}. Write them {transform}.",
        "take care of the layout ({format}) and {give} {whole}.",
        "the answer has several parts, {format}. They are {select}, {transform}.",
        "layout first: the parts come {format}. They are {whole}.",
    ),
    openings=(
        "In this task, you are given {a}.",
        "You will be given {a}.",
        "The input is {a}.",
        "Each message holds {a}.",
        "You get {a}.",
        "I will send {a}.",
        "Here you see {the}.",
        "What follows is {a}.",
        "You receive {a} from the user.",
        "Consider {the}.",
        "Task:",
        "Instructions:",
        "This is about {a}.",
    ),
    closings=(
        "Do not explain.",
        "No explanation is needed.",
        "Say nothing else.",
        "That is all.",
        "Give just that.",
        "Write nothing more.",
        "Keep it to that.",
        "Be exact.",
    ),
    give=(
        "give", "return", "write", "output", "print", "reply with", "answer with", "respond with", "state", "send back",
        "report", "write down", "produce", "provide", "show",
    ),
    find=("find", "locate", "look for", "pick out", "identify", "choose", "select", "take", "get"),
    compute=("find", "work out", "get", "determine", "figure out", "establish"),
)  # fmt: skip

UNSEEN = Frames(
    both=(
        "kindly {give} {select}{style}.",
        "just {give} {whole}{layout}, and leave it at that.",
        "would you {give} {whole}{layout}?",
        "among everything in {the}, only {select} matters. {steps}",
        "start by using {the} to {find} {select}; after that, {transform_step}, and lastly {format_step}.",
        "extract from {the} the following: {select}{style}.",
        "for every input ({a}) the correct reply is {select}{style}.",
        "somebody hands you {a} and asks for {whole}{layout}. Oblige.",
        "once you manage to {find} {select}, {transform_step}. To conclude, {format_step}.",
        "your reply to {a} may hold one thing only: {whole}{layout}.",
        "question: what {is} {select}? Present your solution{style}.",
        "(a) {Find} {select}; (b) {transform_step}; (c) {format_step}.",
    ),
    single=(
        "make sure that your reply appears {format}: it is {select}, {transform}.",
        "the reply is meant to appear {format}, and it should contain {whole}.",
    ),
    several=(
        "make sure that the items of your reply stand {format}: they are {select}, {transform}.",
        "the reply is meant to list, {format}, the following: {whole}.",
    ),
    openings=("Suppose that you see {a}.", "Every prompt consists of {a}.", "Assignment:", "Examine {the}."),
    closings=("Omit any commentary.", "Refrain from adding remarks.", "Stop there."),
    give=("hand back", "emit", "come up with", "deliver"),
    find=("single out", "track down", "extract", "spot"),
    compute=("calculate", "arrive at", "ascertain"),
)


def descriptions(combination: Combination, count: int, held_out: bool = False) -> tuple[str, ...]:
    """`count` different descriptions, the same at every call, all from one side of the split of wordings."""
    stream = Random(combination.name)  # seeded by SHA-512 of the text: the same everywhere
    texts: dict[str, None] = {}  # an ordered set
    while len(texts) < count:
        texts[describe(stream, combination, held_out)] = None
    return tuple(texts)


def describe(stream: Random, combination: Combination, held_out: bool) -> str:
    """One description, drawn from the stream."""
    frames = UNSEEN if held_out else TRAIN
    several = combination.select.plural
    core = stream.choice(frames.both + (frames.several if several else frames.single))
    fields = _fields(stream, combination, held_out)
    sentences = [core]
    if "{a}" not in core and stream.random() < 0.4:
        sentences.insert(0, stream.choice(frames.openings))
    if not core.endswith(("?", "that.", "Oblige.")) and stream.random() < 0.25:
        sentences.append(stream.choice(frames.closings))
    return " ".join(_capitalised(sentence.format_map(fields)).strip() for sentence in sentences)


def _fields(stream: Random, combination: Combination, held_out: bool) -> dict[str, str]:
    parts = combination.parts | {"input": (combination.kind.name, "input")}

    def draw(part: str, form: str) -> str:
        return stream.choice(wordings(*parts[part], form, held_out))

    frames = UNSEEN if held_out else TRAIN
    _, select, order, transform, format_ = combination
    several = select.plural
    it, its = ("each of them", "each one's") if several else ("it", "its")
    chosen = draw("select", "phrases")
    if order is not None and (order not in DEFAULTS or stream.random() < _MENTIONED):
        chosen = f"{chosen}, {draw('order', 'phrases')}"
    transform_phrase = ("each " if several else "") + draw("transform", "phrases")
    format_phrase = draw("format", "phrases")
    transform_step = draw("transform", "steps").replace("{it}", it).replace("{its}", its)
    format_step = draw("format", "steps")
    styles = _mentioned(stream, ((transform, transform_phrase), (format_, format_phrase)))
    steps = _mentioned(stream, ((transform, transform_step), (format_, format_step)))
    layout = _mentioned(stream, ((format_, format_phrase),))
    fields = {
        "a": draw("input", "indefinite"),
        "the": draw("input", "definite"),
        "select": chosen,
        "whole": _whole(stream, transform, transform_phrase, chosen, several, held_out),
        "style": f", {(', ' if several else ' and ').join(styles)}" if styles else "",
        "layout": "".join(f", {phrase}" for phrase in layout),
        "then": "".join(f", then {step}" for step in steps),
        "steps": " ".join(f"{_capitalised(step)}." for step in steps),
        "transform": transform_phrase,
        "format": format_phrase,
        "transform_step": transform_step,
        "format_step": format_step,
        "give": stream.choice(frames.give),
        "find": stream.choice(frames.compute if select.computed else frames.find),
        "it": "them" if several else "it",
        "is": "are" if several else "is",
    }
    return fields | {
        name.capitalize(): _capitalised(fields[name]) for name in ("find", "transform_step", "format_step")
    }


def _mentioned(stream: Random, worded: tuple[tuple[Primitive, str], ...]) -> list[str]:
    return [text for part, text in worded if part not in DEFAULTS or stream.random() < _MENTIONED]


def _whole(stream: Random, transform: Primitive, phrase: str, chosen: str, several: bool, held_out: bool) -> str:
    if transform is SAME:
        return chosen
    if several:
        return f"{chosen}, {phrase}"
    return stream.choice(wordings("transforms", transform.name, "nouns", held_out)).replace("{x}", chosen)


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]
