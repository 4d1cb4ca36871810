"""The one exception a person can cause, and is shown without a traceback."""


class UserError(Exception):
    """Bad input: the message says what was wrong, where, and what to do. The CLI prints it and exits with status 2."""
