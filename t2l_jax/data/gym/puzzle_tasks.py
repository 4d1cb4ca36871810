"""Tasks over words, letters, equations, grids and relations."""

from collections.abc import Sequence

from t2l_jax.data.gym.generator import Facts, GymTask


def _grid(rows: Sequence[Sequence[int]]) -> str:
    return "\n".join(" ".join(map(str, row)) for row in rows)


def _lower(facts: Facts) -> bool:
    """Words in small letters only: where capitals sort is a matter of taste."""
    return all(word.islower() for word in facts["transformed_words"])


PUZZLE_TASKS: tuple[GymTask, ...] = (
    GymTask(
        "solve_equation",
        "simple_equations",
        {"max_terms": 2, "max_value": 30},
        lambda facts: facts["equation"],
        "Solve the equation and give the number. | What does the unknown stand for? | Find the value of the variable."
        " | Work out the letter's value, as a whole number. | Answer with the number that makes the equation true. | "
        "Isolate the variable and write its value alone. | Which number must replace the letter? | Compute the "
        "solution of the linear equation. | State the number hidden behind the letter. | Reply with the root of the "
        "equation. | Determine what the unknown equals.",
    ),
    GymTask(
        "spell_backward",
        "spell_backward",
        {},
        lambda facts: facts["word"],
        "Spell the word backward. | Reverse the letters. | Write the word from its last letter to its first. | Turn "
        "the word around. | Answer with the letters in the opposite order. | Mirror the word. | Read the word from "
        "right to left and write what you get. | Flip the order of the characters. | Give the word's reverse "
        "spelling. | Reply with the word written back to front. | State its letters, last one first.",
    ),
    GymTask(
        "reverse_words",
        "word_sequence_reversal",
        {"max_words": 5},
        lambda facts: ", ".join(facts["words"]),
        "Reverse the list of words. | Write the words in the opposite order, with commas. | Begin with the last word "
        "and end with the first. | Turn the list around; leave each word as it is. | Read the list from its end. | "
        "Give the same words, back to front. | Flip the order of the list. | List the words from last to first. | "
        "State the words in backward sequence. | Reply with the list, its order inverted. | Mirror the sequence of "
        "words.",
    ),
    GymTask(
        "sort_words",
        "word_sorting",
        {"max_words": 5},
        lambda facts: ", ".join(facts["transformed_words"]),
        "Sort the words from A to Z. | Put the words in alphabetical order. | Order the list as a dictionary would. |"
        " Arrange the words alphabetically, separated by commas. | Write the list again, a before b before c. | Begin"
        " with the word that a dictionary has first. | Alphabetise the words. | List the words by their letters, "
        "ascending. | State the words in dictionary order. | Reply with an alphabetical list of these words. | Line "
        "the words up by the alphabet.",
        keep=lambda facts: facts["direction"] == "ascending" and _lower(facts),
    ),
    GymTask(
        "sort_words_backward",
        "word_sorting",
        {"max_words": 5},
        lambda facts: ", ".join(facts["transformed_words"]),
        "Sort the words from Z to A. | Put the words in reverse alphabetical order. | Order the list as a dictionary "
        "read from its end. | Arrange the words alphabetically but descending, with commas. | Write the list again, c"
        " before b before a. | Begin with the word that a dictionary has last. | Alphabetise the words backwards. | "
        "List the words by their letters, descending. | State the words in reversed dictionary order. | Reply with "
        "these words, the alphabet run backward. | Line the words up from the end of the alphabet.",
        keep=lambda facts: facts["direction"] == "descending" and _lower(facts),
    ),
    GymTask(
        "count_letter",
        "letter_counting",
        {"min_words": 3, "max_words": 6},
        lambda facts: f"{facts['target_letter']}: {' '.join(facts['span'])}",
        "How often does the letter before the colon occur in the text after it? | Count the given letter in the text."
        " | The letter comes first, then the text: how many times is it there? | Tell how many of this letter the "
        "text has, capitals too. | Answer with the number of occurrences of the letter. | Go through the words and "
        "count the letter. | Find how many times the letter is used. | Give the letter's count as a number. | State "
        "the frequency of the letter in the phrase. | Reply with how often the phrase contains the letter. | Number "
        "the appearances of the first letter in what follows.",
    ),
    GymTask(
        "keep_larger",
        "number_filtering",
        {"max_numbers": 5, "max_decimals": 1},
        lambda facts: f"{facts['filter_value']}: {', '.join(facts['original_numbers'])}",
        "Keep the numbers that are larger than the one before the colon. | Drop all that is below the limit given "
        "first. | From the list after the colon, write those above the first number. | Which numbers exceed the "
        "threshold? | Filter the list: only what is greater than the limit stays. | Copy the numbers that are above "
        "the bound, with commas. | Answer with every number bigger than the leading one. | Remove what is smaller "
        "than the number in front. | State the list's members over the threshold. | Reply with the numbers that top "
        "the limit. | Pick out whatever lies above the cutoff.",
        answer=lambda facts: ", ".join(facts["result"]),
        keep=lambda facts: facts["operation"] == "keep_larger" and bool(facts["result"]),
    ),
    GymTask(
        "keep_smaller",
        "number_filtering",
        {"max_numbers": 5, "max_decimals": 1},
        lambda facts: f"{facts['filter_value']}: {', '.join(facts['original_numbers'])}",
        "Keep the numbers that are smaller than the one before the colon. | Drop all that is above the limit given "
        "first. | From the list after the colon, write those below the first number. | Which numbers stay under the "
        "threshold? | Filter the list: only what is less than the limit stays. | Copy the numbers that are below the "
        "bound, with commas. | Answer with every number lower than the leading one. | Remove what is larger than the "
        "number in front. | State the list's members beneath the threshold. | Reply with the numbers that fall short "
        "of the limit. | Pick out whatever lies under the cutoff.",
        answer=lambda facts: ", ".join(facts["result"]),
        keep=lambda facts: facts["operation"] == "keep_smaller" and bool(facts["result"]),
    ),
    GymTask(
        "ransom_note",
        "ransom_note",
        {"max_magazine_length": 12, "max_note_length": 5},
        lambda facts: f"{facts['ransom_note']} / {facts['magazine']}",
        "Can the first string be made from letters of the second, each used once? True or False. | Say True if the "
        "note before the slash can be cut out of the letters after it, else False. | Are all letters of the first "
        "string in the second, often enough? True or False. | Answer True when the second string has the letters for "
        "the first. | Check letter by letter whether the left can be built from the right: True or False. | True if "
        "the right side contains the left side's letters, in any order; otherwise False. | Decide, True or False: the"
        " letters behind the slash suffice to write the note. | Is the note possible with these letters? True or "
        "False. | State True if no letter is lacking on the right, False if one is. | Reply True or False: the left "
        "can be spelt with the right's letters. | True or False: the supply after the slash covers the word before "
        "it.",
    ),
    GymTask(
        "isomorphic",
        "isomorphic_strings",
        {"max_string_length": 6},
        lambda facts: " ".join(facts["words"]),
        "Do both strings have the same pattern of letters? True or False. | Are the strings isomorphic? True or "
        "False. | Can the first become the second by swapping letters one to one? Answer True or False. | Say True if"
        " equal letters on the left match equal letters on the right and different ones different ones, else False. |"
        " Check whether a letter code turns one string into the other: True or False. | True if a one-to-one "
        "replacement of letters maps one on the other, otherwise False. | Decide True or False: the strings repeat "
        "letters at the same places. | Compare the shapes of the strings and answer True or False. | State True or "
        "False: one is a re-lettering of the other. | Reply True when their repetition patterns agree, False when "
        "not. | True or False: the two are alike up to renaming letters.",
    ),
    GymTask(
        "alternating_swaps",
        "binary_alternation",
        {"p_solvable": 1.0, "max_n": 12},
        lambda facts: facts["string"],
        "How many swaps of two digits make the string alternate? Give the smallest number. | Count the swaps needed "
        "until no two neighbours are equal. | Find the least number of exchanges that gives 0101... or 1010... | Any "
        "two digits may change places: how often, at least, until zeros and ones take turns? | Answer with the "
        "minimum of swaps for an alternating string. | What is the fewest swaps to make the bits alternate? | Give "
        "the smallest count of exchanges so that equal digits never touch. | Tell how many pairs of digits must trade"
        " places. | State the minimal swaps towards alternating bits. | Reply with the fewest trades after which "
        "digits take turns. | Number the swaps that turn it into a zebra of bits, at the least.",
    ),
    GymTask(
        "rotate_clockwise",
        "rotate_matrix",
        {"max_n": 3, "min_rotations": 1, "max_rotations": 1},
        lambda facts: _grid(facts["matrix"]),
        "Rotate the matrix by 90 degrees clockwise. | Turn the grid a quarter to the right. | Give the matrix after "
        "one clockwise quarter turn, in the same format. | The first column, read upwards, becomes the first row: "
        "write the new matrix. | Turn the square of numbers clockwise once. | Answer with the grid rotated right. | "
        "Rotate the rows and columns a quarter clockwise. | Write what the grid looks like turned to the right. | "
        "State the matrix turned ninety degrees rightwards. | Reply with the clockwise rotation of the grid. | Spin "
        "the numbers a quarter circle with the clock.",
    ),
    GymTask(
        "rotate_half",
        "rotate_matrix",
        {"max_n": 3, "min_rotations": 2, "max_rotations": 2},
        lambda facts: _grid(facts["matrix"]),
        "Rotate the matrix by 180 degrees. | Turn the grid upside down by half a turn. | Give the matrix after a half"
        " turn, in the same format. | Reverse the order of the rows and the numbers in each: write the new matrix. | "
        "Turn the square of numbers around by half a circle. | Answer with the grid rotated twice. | Rotate the rows "
        "and columns by two quarters. | Write what the grid looks like to someone opposite. | State the matrix turned"
        " one hundred and eighty degrees. | Reply with the half rotation of the grid. | Spin the numbers half a "
        "circle.",
    ),
    GymTask(
        "spiral",
        "spiral_matrix",
        {"max_n": 3},
        lambda facts: _grid(facts["matrix"]),
        "Read the matrix in a spiral, clockwise from the top left. | Write the numbers in spiral order. | Go right, "
        "down, left, up, ever inwards, and list the numbers. | Unroll the grid from outside to inside, starting top "
        "left. | Walk around the grid towards its centre and write what you pass. | List the entries along the "
        "spiral. | Answer with the numbers in the order of an inward spiral, with blanks. | Peel the matrix from its "
        "first row round to the middle. | State the entries as a clockwise spiral meets them. | Reply with the grid's"
        " numbers, circling inwards. | Trace the spiral and give its numbers on one line.",
    ),
    GymTask(
        "largest_island",
        "largest_island",
        {"min_rows": 3, "max_rows": 4, "min_cols": 3, "max_cols": 4, "max_island_size": 4},
        lambda facts: _grid(facts["grid"]),
        "How many cells has the largest group of ones that touch by their sides? 0 if there is none. | Find the area "
        "of the biggest island: 1 is land, 0 is water. | Count the ones in the largest connected patch. | Ones that "
        "are neighbours, not across corners, form islands: give the largest size. | Answer with the size of the "
        "greatest block of connected ones. | Measure the largest region of land. | What is the most ones that hang "
        "together? | Give the cell count of the largest island, or 0. | State how big the largest patch of ones is. |"
        " Reply with the area of the widest land mass in the grid. | Number the cells of the largest cluster of ones.",
    ),
    GymTask(
        "course_schedule",
        "course_schedule",
        {"min_num_courses": 4, "max_num_courses": 5, "max_num_prerequisites": 1, "max_cycle_length": 4},
        lambda facts: ", ".join(f"{course} needs {earlier}" for course, earlier in facts["prerequisites"]),
        "Can all courses be taken? Answer True, or False where the needs run in a circle. | Is there an order that "
        "meets every need? True or False. | True if nothing needs itself in the end, otherwise False. | Check the "
        "list for a circle: False if there is one, else True. | Say True when all of them can be done one after the "
        "other. | Decide whether the requirements can be met: True or False. | Can one finish everything? True or "
        "False. | Look for a loop of needs; answer False if you find one and True if not. | State True or False: a "
        "valid order exists. | Reply True when no cycle blocks the courses, False when one does. | True or False: the"
        " plan is free of circular needs.",
    ),
    GymTask(
        "family",
        "family_relationships",
        {"max_family_size": 6},
        lambda facts: f"{facts['story']}\n{facts['person1']} to {facts['person2']}?",
        "What is the first person of the last line to the second? One word. | Name the relation asked for at the end."
        " | Tell how the two are related, as in mother-in-law. | Answer with the word for what the one is to the "
        "other. | Work out the family tie of the two people. | Read the family's story and name the kinship. | Give "
        "the relationship in a single word. | From marriages and children, find the relation of the two. | State the "
        "kinship word for the pair at the end. | Reply with what the former is to the latter. | Say in one word how "
        "they belong together in the family.",
    ),
)
