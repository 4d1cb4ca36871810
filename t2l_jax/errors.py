"""Exceptions that the CLI shows without a traceback: user errors, and requests to stop."""

import signal


class UserError(Exception):
    """Bad input: the message says what was wrong, where, and what to do. The CLI prints it and exits with status 2."""


class Unreachable(UserError):
    """The network failed, not the request: further requests are pointless."""


class Stopped(Exception):
    """Work was stopped early by a signal and can be resumed. The CLI exits with status 128 + signal."""

    def __init__(self, number: signal.Signals, where: str) -> None:
        super().__init__(f"stopped by {number.name} {where}; the same command goes on from there")
        self.status = 128 + int(number)
