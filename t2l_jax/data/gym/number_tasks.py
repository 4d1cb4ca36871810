"""Tasks over numbers, times and dates."""

from collections.abc import Callable

from t2l_jax.data.gym.generator import Facts, GymTask


def _commas(field: str) -> Callable[[Facts], str]:
    return lambda facts: ", ".join(map(str, facts[field]))


NUMBER_TASKS: tuple[GymTask, ...] = (
    GymTask(
        "chain_sum",
        "chain_sum",
        {"max_terms": 4, "max_digits": 2},
        lambda facts: facts["expression"],
        "Work out the sum. | Add and subtract the numbers from left to right and give the result. | What does this "
        "chain of additions and subtractions come to? | Compute the total, as a whole number. | Calculate the line "
        "and reply with the number only. | You see plus and minus signs between numbers: evaluate. | Find the value "
        "of the expression; it may be negative. | Do the addition and subtraction. | State what these terms sum up "
        "to. | Reply with the outcome of the plus and minus steps. | Tally the terms, minding the minus signs.",
    ),
    GymTask(
        "basic_arithmetic",
        "basic_arithmetic",
        {"max_terms": 3, "max_digits": 2},
        lambda facts: facts["expression"],
        "Evaluate the arithmetic expression. | Calculate it, brackets first, and answer with a whole number. | Work "
        "out the formula with its brackets, products and divisions. | What is the value of this expression? | Mind "
        "the order of operations and give the result. | Compute the expression and write the number alone. | Simplify"
        " the arithmetic to a single integer. | Multiply and divide before you add and subtract; reply with what "
        "comes out. | Resolve the calculation to one number. | Give the integer that this arithmetic equals. | Figure"
        " out what the bracketed calculation yields.",
    ),
    GymTask(
        "products",
        "products",
        {"max_digits": 2},
        lambda facts: facts["expression"],
        "Multiply the two numbers. | Give the product. | What do the factors make when multiplied? | Work out the "
        "multiplication and reply with the number. | Compute this product. | Times one number by the other. | Answer "
        "with the result of the multiplication. | Find out how much the first factor times the second is. | Carry out"
        " the multiplication shown. | State the product of both factors. | Reply with what multiplying them gives.",
    ),
    GymTask(
        "decimal_chain_sum",
        "decimal_chain_sum",
        {"max_terms": 3, "max_digits": 2, "max_decimal_places": 2},
        lambda facts: facts["expression"],
        "Add and subtract the decimal numbers; keep as many decimals as the most exact of them has. | Work out the "
        "sum of decimals. | Compute this line of decimal additions and subtractions. | What is the total of these "
        "decimal numbers? Do not drop trailing zeros. | Calculate with the decimal points lined up and give the "
        "result. | Give the exact decimal result. | Evaluate the decimals from left to right. | Sum the decimal "
        "terms, minding their signs. | Reply with the exact total of the decimals. | Do the decimal arithmetic; leave"
        " zeros at the end in place. | Find what the decimal chain amounts to.",
    ),
    GymTask(
        "gcd",
        "gcd",
        {"max_value": 100},
        _commas("numbers"),
        "Find the greatest common divisor. | What is the largest number that divides both? | Give the GCD. | Answer "
        "with the highest common factor of the two numbers. | Which is the biggest integer that both numbers are "
        "multiples of? | Compute the gcd of the pair. | Name the largest divisor that the numbers share. | Reply with"
        " the greatest factor in common. | State the highest number dividing each without remainder. | Work out the "
        "pair's greatest shared divisor. | Give the common factor that is the largest.",
    ),
    GymTask(
        "lcm",
        "lcm",
        {"max_value": 30},
        _commas("numbers"),
        "Find the least common multiple. | What is the smallest number that both divide? | Give the LCM. | Answer "
        "with the lowest common multiple of the two numbers. | Which is the first number in both times tables? | "
        "Compute the lcm of the pair. | Name the smallest multiple that the numbers share. | Reply with the least "
        "number divisible by each. | State the lowest number that is a multiple of both. | Work out the pair's "
        "smallest shared multiple. | Give the common multiple that is the least.",
    ),
    GymTask(
        "prime_factors",
        "prime_factorization",
        {},
        lambda facts: str(facts["number"]),
        "Split the number into primes, smallest first, joined by ×. | Write the prime factorization with × signs. | "
        "Give the number as a product of primes, like 2 × 2 × 3. | Factor it into primes in ascending order. | Which "
        "primes multiply to this number? Write them with × between them. | Decompose the number into prime factors, "
        "separated by ×. | List all prime factors, repeated ones too, with × in between. | Reply with the prime "
        "decomposition in the form a × b × c. | Express the number by its prime factors (×). | Break it down into "
        "primes, from small to large, using ×. | State the product of primes equal to it, with ×.",
    ),
    GymTask(
        "count_bits",
        "count_bits",
        {"max_n": 1000},
        lambda facts: str(facts["number"]),
        "How many ones are in the number's binary form? | Count the 1 bits. | Give the population count. | Write the "
        "number in base two and count the ones. | Answer with how many bits are set. | Convert to binary and tell how"
        " often the digit 1 occurs. | Find the Hamming weight of the integer. | Say how many binary digits are 1. | "
        "Count the set bits of the integer. | Reply with the number of ones after writing it in binary. | State how "
        "many 1s its bits hold.",
    ),
    GymTask(
        "simplify_fraction",
        "fraction_simplification",
        {"styles": ("plain",), "max_value": 30, "max_factor": 12},
        lambda facts: f"{facts['numerator']}/{facts['denominator']}",
        "Simplify the fraction. | Reduce the fraction to lowest terms. | Cancel common factors and give the fraction."
        " | Write the same fraction with the smallest possible numbers. | Divide top and bottom by what they share. |"
        " Answer with the reduced fraction. | Bring the fraction to its simplest form, like 2/3. | Shorten the "
        "fraction as far as it goes. | Give an equal fraction that cannot be reduced further. | Rewrite numerator and"
        " denominator without common factors. | Express the ratio in lowest terms.",
    ),
    GymTask(
        "to_binary",
        "base_conversion",
        {"min_base": 2, "max_base": 3},
        lambda facts: str(facts["decimal_value"]),
        "Convert the number to binary. | Write the decimal number in base 2. | Give its binary digits. | Translate "
        "the number into zeros and ones. | What is this number in the binary system? | Answer with the base-two form,"
        " without a prefix. | Change from decimal to binary notation. | Express the integer with the digits 0 and 1 "
        "only. | Spell the number out in bits. | Reply with the base-2 representation. | Turn the decimal into its "
        "binary string.",
        keep=lambda facts: facts["target_base"] == 2,
    ),
    GymTask(
        "to_hex",
        "base_conversion",
        {"min_base": 15, "max_base": 16},
        lambda facts: str(facts["decimal_value"]),
        "Convert the number to hexadecimal, in small letters. | Write the decimal number in base 16. | Give its hex "
        "digits, without a prefix. | Translate the number into hexadecimal notation. | What is this number in the "
        "hexadecimal system? | Answer with the base-sixteen form, a to f in lower case. | Change from decimal to hex."
        " | Express the integer with the digits 0 to 9 and a to f. | Spell the number out in hexadecimal. | Reply "
        "with the base-16 representation. | Turn the decimal into hex.",
        keep=lambda facts: facts["target_base"] == 16,
    ),
    GymTask(
        "hex_arithmetic",
        "bitwise_arithmetic",
        {"difficulty": 1},
        lambda facts: facts["problem"],
        "Calculate with the hexadecimal numbers and answer in hex, starting with 0x. | Evaluate the hex expression. |"
        " What does this hexadecimal calculation give? Write 0x and the digits. | Work it out; reply as 0x... | Do "
        "the arithmetic or the bit shift and give a hexadecimal result. | Compute the line, all numbers being hex. | "
        "Find the value in hexadecimal; negative values start with -0x. | Carry out the operation on the hex numbers."
        " | State the hexadecimal outcome, with its 0x. | Reply with the result of the operation in base 16 after 0x."
        " | Solve the hex sum, product, difference or shift.",
    ),
    GymTask(
        "duration",
        "time_intervals",
        {"task_types": ["time"]},
        lambda facts: f"{facts['start_time'][11:16]} to {facts['end_time'][11:16]}",
        "How long does it last? Answer as HH:MM. | Give the time between the two clock times, in hours and minutes. |"
        " Work out the duration, written like 02:35. | Subtract the first time from the second. | How many hours and "
        "minutes pass? Use the form HH:MM. | Tell the length of the interval as HH:MM. | Compute the elapsed time. | "
        "Find the difference between start and end, two digits each. | State the time span in HH:MM. | Reply with how"
        " much time goes by, formatted as hours:minutes. | Measure the stretch from the earlier to the later time.",
    ),
    GymTask(
        "weekday_after",
        "calendar_arithmetic",
        {"tasks": ["weekday_offset"]},
        lambda facts: f"{facts['start_date']}, {facts['offset_days']:+d} days",
        "Which weekday is it after that many days? Negative numbers go back. | Move the date by the days and name the"
        " weekday. | Give the day of the week of the shifted date. | Count the days on or back and tell the weekday. "
        "| Add the days to the date; on which weekday do you land? | Answer with a weekday: that of the date plus the"
        " days. | Find the weekday so many days later or earlier. | Tell the name of the day that you reach. | State "
        "the weekday at the end of the shift. | Reply with the weekday that lies this many days away. | Name the day "
        "of the week once the days have passed.",
    ),
    GymTask(
        "weekday_of",
        "calendar_arithmetic",
        {"tasks": ["weekday_of_date"]},
        lambda facts: facts["target_date"],
        "Which day of the week was it? | Name the weekday of this date. | On what weekday did the date fall? | Give "
        "the day of the week, Monday to Sunday. | Tell the weekday that belongs to the date. | Answer with the "
        "weekday's full name. | Look the date up in the calendar and name its weekday. | From the date, work out the "
        "day of the week. | State what weekday the date is. | Reply with the name of the day, as in Tuesday. | Say "
        "whether it was a Monday, a Tuesday or which other day.",
    ),
    GymTask(
        "leap_year",
        "calendar_arithmetic",
        {"tasks": ["is_leap_year"]},
        lambda facts: str(facts["year"]),
        "Is it a leap year? Yes or No. | Answer Yes if the year has 366 days, otherwise No. | Does February have 29 "
        "days in this year? Yes or No. | Tell by Yes or No whether the year is a leap year. | Say Yes for a leap year"
        " and No for any other. | Check the leap year rule and answer Yes or No. | Decide: leap year (Yes) or common "
        "year (No). | Has the year a 29th of February? Answer Yes or No. | State Yes or No: the year is leap. | Reply"
        " Yes when the year gets an extra day, else No. | Yes or No: does this year count 366 days?",
    ),
    GymTask(
        "business_days",
        "calendar_arithmetic",
        {"tasks": ["count_business_days"], "offset_upper_bound": 30},
        lambda facts: f"{facts['start_date']} to {facts['end_date']}",
        "How many working days are there, Monday to Friday, both dates included? | Count the business days. | Leave "
        "out Saturdays and Sundays and count the days. | Give the number of weekdays in the period. | How often does "
        "one go to work from the first to the last date, weekends off? | Answer with the number of days that are not "
        "on a weekend. | Count Mondays to Fridays between the dates, ends included. | Tell how many office days the "
        "range holds. | State the count of non-weekend days. | Reply with how many days from Monday to Friday lie in "
        "the span. | Number the workdays in this range.",
    ),
    GymTask(
        "nth_weekday",
        "calendar_arithmetic",
        {"tasks": ["recurring_event_day"]},
        lambda facts: f"{facts['ordinal']} {facts['weekday']}, {facts['year']}-{facts['month']:02d}",
        "On which day of the month does it fall? | Give the day number of this weekday in that month. | Find the "
        "date: answer with the day of the month only. | Which day of the month is meant? | Look at the month's "
        "calendar and tell the day number. | Turn the description into a day of the month. | Answer with a number "
        "from 1 to 31: the day that this is. | What date in the month is it? | State the day number for this "
        "recurring weekday. | Reply with the date's day, as a plain number. | Name the number of the day in its "
        "month.",
    ),
    GymTask(
        "count_primes",
        "count_primes",
        {"max_n": 100},
        lambda facts: f"{facts['start']} to {facts['end']}",
        "How many prime numbers are in the range, both ends included? | Count the primes. | Give the number of primes"
        " from the first to the last number. | Tell how many numbers of the interval are prime. | Answer with the "
        "count of prime numbers in between. | Go through the range and count what is prime. | How many of these "
        "integers have no divisors but 1 and themselves? | Find the number of primes in the interval. | State the "
        "count of primes lying in the interval. | Reply with how many primes the range contains. | Number the primes "
        "between the bounds.",
    ),
    GymTask(
        "sort_ascending",
        "number_sorting",
        {"max_numbers": 5, "max_decimals": 0},
        _commas("original_numbers"),
        "Sort the numbers from smallest to largest. | Put the numbers in ascending order. | Order them, lowest first."
        " | Arrange the list so that it rises. | Write the numbers again in increasing order, with commas. | Begin "
        "with the least number and end with the greatest. | Rank the numbers upwards. | List the same numbers from "
        "low to high. | Reorder the list so each number is above the one before. | Give the numbers in rising order. "
        "| Line the values up, minimum to maximum.",
        answer=_commas("sorted_numbers"),
        keep=lambda facts: facts["direction"] == "ascending",
    ),
    GymTask(
        "sort_descending",
        "number_sorting",
        {"max_numbers": 5, "max_decimals": 0},
        _commas("original_numbers"),
        "Sort the numbers from largest to smallest. | Put the numbers in descending order. | Order them, highest "
        "first. | Arrange the list so that it falls. | Write the numbers again in decreasing order, with commas. | "
        "Begin with the greatest number and end with the least. | Rank the numbers downwards. | List the same numbers"
        " from high to low. | Reorder the list so each number is below the one before. | Give the numbers in falling "
        "order. | Line the values up, maximum to minimum.",
        answer=_commas("sorted_numbers"),
        keep=lambda facts: facts["direction"] == "descending",
    ),
    GymTask(
        "next_number",
        "number_sequence",
        {"max_complexity": 1},
        lambda facts: ", ".join(map(str, facts["sequence"][:-1])),
        "Continue the sequence by one number. | What number comes next? | Find the rule and give the next term. | "
        "Predict the following number. | Answer with the number that goes on the series. | Which value would stand at"
        " the end of this row? | Extend the pattern by a single term. | Work out the term after the last. | State the"
        " next member of the progression. | Reply with whatever number follows the pattern. | Supply the number "
        "missing at the end.",
    ),
    GymTask(
        "missing_angle",
        "simple_geometry",
        {},
        lambda facts: ", ".join(f"{angle:g}" for angle in facts["known_angles"]),
        "These are all interior angles of a convex polygon but one, in degrees. Give the missing one. | A polygon has"
        " one more angle than listed: how large is it? | Find the last interior angle of the polygon. | What angle "
        "completes the polygon? Answer in degrees, number only. | From the known interior angles work out the "
        "remaining one. | Use the angle sum of a polygon with one corner more to find its last angle. | Compute the "
        "unknown interior angle. | The list leaves out one angle of a convex shape: which? | State the degrees of the"
        " polygon's final corner. | Reply with the interior angle that is not in the list. | Supply the polygon's "
        "absent angle.",
        keep=lambda facts: float(facts["missing_angle_raw"]).is_integer(),
    ),
)
