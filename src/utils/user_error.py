"""The error that says that input, not code, is at fault."""


class UserError(ValueError):
    """What a user gave cannot be used; the message says what is wrong and what to do.

    Commands end with this message and without a stack trace. Any other error is a bug, and is
    shown as one.
    """
