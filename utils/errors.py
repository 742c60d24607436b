"""The exception for what a user said or gave."""


class UserError(ValueError):
    """A flag, file or folder that cannot be honoured, in one sentence that names cause and remedy.

    Scripts print the sentence alone. Every other exception is a fault of the code and shows its traceback.
    """
