"""The one error of our own: the input is wrong, so trying again cannot help."""


class DataError(ValueError):
    """Wrong input data, a wrong model folder or wrong options.

    The message says what is wrong, where (file and line), and what to do. A task never retries it.
    """
