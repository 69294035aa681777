"""What goes wrong when data are read: one error to catch, one refinement for "not there"."""

from __future__ import annotations


class DataError(ValueError):
    """Data are damaged, contradictory or in a form that cannot be read.

    The message names the file or array, what was expected and what was found.
    """


class DataNotFoundError(DataError, FileNotFoundError):
    """Data are not there.

    The message says what was looked for, where, and how to get it.
    """

    def __str__(self) -> str:
        # OSError formats itself from errno and file name, of which there are none here.
        return str(self.args[0]) if self.args else ""
