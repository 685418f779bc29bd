"""The one error of our own: the input is wrong, so trying again cannot help."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """Wrong input data, a wrong model folder or wrong options.

    The message says what is wrong, where (file and line), and what to do. A task never retries it.
    """


@contextlib.contextmanager
def naming(option: str, *others: type[Exception]) -> Iterator[None]:
    """Begin the message of a DataError with the option that is at fault, unless it names it.

    Args:
        option: as the user writes it.
        others: errors that are the option's fault as well; they become a DataError.
    """
    try:
        yield
    except (DataError, *others) as error:
        text = str(error).strip() or type(error).__name__
        text = text if isinstance(error, DataError) else text.splitlines()[0]
        raise DataError(text if option in text else f"{option}: {text}") from error


def first_line(error: Exception) -> str:
    """Return the first line of what an error says, or else its name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
