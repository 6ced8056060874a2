"""The one kind of error that is a user's to mend."""


class UserError(ValueError):
    """Bad input: a key, a path, a file or a value that the user can correct.

    The `mosgoat` command prints the message without a traceback and exits with status 2. The message
    names the key, the value, what is allowed, and what to do. Anything else that is raised is our bug
    and keeps its traceback.
    """
