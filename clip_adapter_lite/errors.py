"""What is wrong, in one sentence."""


class BankError(ValueError):
    """A bank, split or episode that cannot be right; the message says what, what was expected and
    what to do.
    """


def one_line(error: BaseException | str) -> str:
    """An exception's message, or any text, as part of a sentence: one line, no full stop."""
    return " ".join(str(error).split()).rstrip(".").replace(". ", "; ") or type(error).__name__
