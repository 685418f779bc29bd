"""Our one error class, for wrong input: retrying cannot help."""

import contextlib
from collections.abc import Iterator


class DataError(ValueError):
    """Wrong data, model folder or options.

    The message says what is wrong, where (file and line), and what to do. Tasks do not retry it.
    """


@contextlib.contextmanager
def naming(option: str, *others: type[Exception]) -> Iterator[None]:
    """Prefix the message of a DataError with the option at fault, unless it names that already.

    Args:
        option: as the user writes it.
        others: further errors to turn into a DataError.
    """
    try:
        yield
    except (DataError, *others) as error:
        text = str(error).strip() or type(error).__name__
        text = text if isinstance(error, DataError) else text.splitlines()[0]
        fault = text.partition(";")[0]  # what follows is the remedy
        raise DataError(text if option in fault else f"{option}: {text}") from error


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its class name."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
