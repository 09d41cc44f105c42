"""The root of all errors of this project."""


class FedplatformError(Exception):
    """Something that the person who called can mend; the message is one line for them.

    Most are a ValueError or a RuntimeError, too, so either can be caught.
    """
