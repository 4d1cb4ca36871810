"""The exceptions that are shown without a traceback: a person's mistake, and a person's wish to stop."""

import signal


class UserError(Exception):
    """Bad input: the message says what was wrong, where, and what to do. The CLI prints it and exits with status 2."""


class Unreachable(UserError):
    """The network is at fault, not what was asked for: asking for the next thing is no use."""


class Stopped(Exception):
    """Work ended early because a signal asked for it, and can go on later. The CLI exits with status 128 + signal."""

    def __init__(self, number: signal.Signals, where: str) -> None:
        super().__init__(f"stopped by {number.name} {where}; the same command goes on from there")
        self.status = 128 + int(number)
