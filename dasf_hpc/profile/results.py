"""Recording: what a task's result is, or its failure, without running any code of the user's.

An attribute may be anything: a property that computes for seconds, or ends the process, would do so
in the task that is recorded. So shape and element type are read of types only of which it is known
that reading them is cheap, and what a type is, is read past whatever its own class says of it.
"""

from __future__ import annotations

import logging
import operator
import re
from collections.abc import Callable
from typing import Any

import numpy as np

logger = logging.getLogger(__name__)

#: Longest message of an exception that is kept, in characters.
MAX_MESSAGE = 200
#: Different messages that a worker records whole; of so many more the numbers in them are left out,
#: and then there is the exception's type only. Each costs the worker's memory 0.5 kB at most.
MOST_MESSAGES = 1000

#: Gives a value's shape and element type, None for what it has not.
Reader = Callable[[Any], tuple[Any, Any]]

# What `type` itself says: a class may have a metaclass that says something else, or takes its time.
_MRO = type.__dict__["__mro__"].__get__
_MODULE = type.__dict__["__module__"].__get__
_QUALNAME = type.__dict__["__qualname__"].__get__
# And what an exception holds, past what its class has in the place of it.
_ARGUMENTS = BaseException.__dict__["args"].__get__
_STRERROR = OSError.__dict__["strerror"].__get__
_FILENAME = OSError.__dict__["filename"].__get__

_SHOWN = re.compile(r"[\w.]+\((.*)\)\s*", re.DOTALL)


def type_name(kind: type | None) -> str:
    """Give a type's qualified name, without the module of built-in ones."""
    if kind is None:
        return "NoneType"
    module, name = _MODULE(kind), _QUALNAME(kind)
    if type(module) is not str or module == "builtins":  # a class's body may set it to anything
        return str(name[:200])
    return f"{module}.{name}"[:200]


def byte_count(value: Any) -> int:
    """Give a size as Dask reports it; a user's own ``sizeof`` may give anything."""
    if not issubclass(type(value), (int, float, np.integer, np.floating)):
        return 0
    try:
        return min(max(0, int(value)), 2**63 - 1)
    except (TypeError, ValueError, OverflowError):
        return 0


def reader_of(kind: type) -> Reader | None:
    """Give what reads shape and element type of a type's values; None where nothing is safe to.

    That is decided by the names of the classes that a type is made of, so that no package needs to
    be there. A user's own class that is made of one of these may say what it likes of its shape: it
    is asked for nothing, but where it is an array of NumPy, which has its shape whatever it says.
    """
    if type(kind) is not type and _root(type(kind)) not in _PACKAGES:
        return None  # a metaclass of the user's
    own = True
    for base in _MRO(kind):
        root = _root(base)
        make = _READERS.get((root, _QUALNAME(base)))
        if make is not None and (own or root == "numpy"):
            return make(base)
        own = own and root in _PACKAGES
    return None


def _root(kind: type) -> str:
    module = _MODULE(kind)
    return module.partition(".")[0] if type(module) is str else ""


def _numpy_reader(base: type) -> Reader:
    # What is in NumPy's own class, whatever one that is made of it has in its place.
    shape, dtype = base.__dict__["shape"].__get__, base.__dict__["dtype"].__get__

    def read(value: Any) -> tuple[Any, Any]:
        return shape(value), dtype(value)

    return read


def _both(base: type) -> Reader:
    def read(value: Any) -> tuple[Any, Any]:
        return value.shape, getattr(value, "dtype", None)

    return read


def _frame_reader(base: type) -> Reader:
    def read(value: Any) -> tuple[Any, Any]:
        return value.shape, None  # a ``dtype`` of its would be a column

    return read


def _series_reader(base: type) -> Reader:
    known: dict[type, bool] = {}

    def read(value: Any) -> tuple[Any, Any]:
        array = value.array  # which may be of a class of the user's
        kind = type(array)
        own = known.get(kind)
        if own is None:
            own = known[kind] = _root(kind) in _PACKAGES
        return ((len(array),), array.dtype) if own else (None, None)

    return read


def _labelled_reader(base: type) -> Reader:
    def read(value: Any) -> tuple[Any, Any]:
        return _read(getattr(getattr(value, "variable", value), "_data", None))

    return read


def _lazy_reader(base: type) -> Reader:
    if _MODULE(base) != "dask.array.core":
        return lambda value: (None, None)

    def read(value: Any) -> tuple[Any, Any]:
        return value.shape, _read(value._meta)[1]

    return read


def _read(value: Any) -> tuple[Any, Any]:
    """Read what a value holds that is one of the known types itself."""
    reader = reader_of(type(value))
    return (None, None) if reader is None else reader(value)


#: By a class's package and name, what makes the reader. What a collection of Dask's other than an
#: array gives as its shape is a computation, and its element type may call the user's function.
_READERS: dict[tuple[str, str], Callable[[type], Reader]] = {
    ("numpy", "ndarray"): _numpy_reader,
    ("numpy", "generic"): _numpy_reader,
    ("cupy", "ndarray"): _both,
    ("cupyx", "spmatrix"): _both,
    ("pandas", "DataFrame"): _frame_reader,
    ("pandas", "Series"): _series_reader,
    ("pandas", "Index"): _both,
    ("cudf", "DataFrame"): _frame_reader,
    ("cudf", "Series"): _both,
    ("cudf", "Index"): _both,
    ("xarray", "DataArray"): _labelled_reader,
    ("xarray", "Variable"): _labelled_reader,
    ("torch", "Tensor"): _both,
    ("scipy", "_spbase"): _both,
    ("scipy", "spmatrix"): _both,
    ("dask", "Array"): _lazy_reader,
}

#: Packages of which classes may come before those: what they override is theirs. The others are of
#: which classes are made everywhere.
_PACKAGES = frozenset(
    {
        *(package for package, _ in _READERS),
        *("abc", "builtins", "collections", "typing", "pyarrow"),
    }
)


def dtype_text(dtype: Any) -> str:
    """Write an element type; what is no such type is left out."""
    try:
        if isinstance(dtype, type):
            return str(_QUALNAME(dtype)[:100])
        kind = type(dtype)
        if _root(kind) in _PACKAGES and _QUALNAME(kind).lower().endswith("dtype"):
            return str(dtype)[:100]
        if np.dtype in _MRO(kind):
            return str(dtype)[:100]
    except Exception:
        logger.debug("an element type could not be written", exc_info=True)
    return ""


def shape_text(shape: Any) -> str:
    """Write an array's shape, a tuple of numbers; anything else is left out."""
    if not isinstance(shape, tuple) or len(shape) > 64:
        return ""
    try:
        # numpy's integers are no int; an axis of unknown length is NaN
        return str(tuple(n if n != n else operator.index(n) for n in shape))
    except TypeError:
        return ""


def shown_error(shown: str) -> str:
    """Give the text ``type|message`` of an exception of which only its ``repr`` is known."""
    kind = _first_line(shown.partition("(")[0]).replace("|", "/")
    message = _first_line(_inside(shown))
    return f"{kind}|{message}" if message else kind


def _inside(shown: str) -> str:
    """Give what stands between the brackets of an exception's ``repr``; another text whole."""
    match = _SHOWN.fullmatch(shown)
    return match.group(1) if match else shown


def _first_line(text: str) -> str:
    lines = text[: 10 * MAX_MESSAGE].strip().splitlines()
    line = lines[0].rstrip() if lines else ""
    return line if len(line) <= MAX_MESSAGE else f"{line[: MAX_MESSAGE - 1]}…"


def error_message(error: BaseException, shown: str = "") -> str:
    """Give the first line of what an exception says, of `MAX_MESSAGE` characters at most.

    Parameters
    ----------
    error
        The exception. Its own ``__str__`` may be anything and is not called.
    shown
        Its ``repr`` as Dask made it, for one that holds more than a text.
    """
    arguments = _ARGUMENTS(error)
    text = ""
    if len(arguments) == 1 and type(arguments[0]) is str:
        text = arguments[0]
    elif issubclass(type(error), OSError) and type(_STRERROR(error)) is str:
        name = _FILENAME(error)
        text = _STRERROR(error) + (f": {name!r}" if type(name) is str else "")
    elif type(shown) is str:
        text = _inside(shown)
    return _first_line(text)


class ResultTexts:
    """Gives the id of the text ``type|dtype|shape`` that describes a result.

    Of a failure it is ``type|message``.

    Parameters
    ----------
    string
        Gives the id of a text.

    Attributes
    ----------
    known
        By type, ids for those of which the type says it all; `describe` adds to it.
    """

    def __init__(self, string: Callable[[str], int]) -> None:
        self._string = string
        self.known: dict[Any, int] = {}
        self._readers: dict[type, Reader] = {}
        self._errors: set[str] = set()

    def describe_error(self, error: BaseException, shown: str = "") -> int:
        """Give the id of a failure's text; the parameters are those of `error_message`."""
        kind = type_name(type(error)).replace("|", "/")
        try:
            message = error_message(error, shown)
            texts = [f"{kind}|{message}", f"{kind}|{re.sub('[0-9]+', '#', message)}"]
            for text, most in zip(texts, (MOST_MESSAGES, 2 * MOST_MESSAGES), strict=True):
                if message and (text in self._errors or len(self._errors) < most):
                    self._errors.add(text)
                    return self._string(text)
        except Exception:
            logger.debug("an exception could not be described", exc_info=True)
        return self._string(kind)

    def describe(self, value: Any) -> int:
        """Give the id of a result's text."""
        kind = type(value)
        try:
            reader = self._readers.get(kind)
            if reader is None:
                reader = reader_of(kind)
                if reader is None:
                    return self._keep(kind, f"{type_name(kind)}||")
                self._readers[kind] = reader
            shape, dtype = reader(value)
            what = (kind, dtype, shape)
            number = self.known.get(what)
            if number is not None:
                return number
            text = f"{type_name(kind)}|{dtype_text(dtype)}|{shape_text(shape)}"
            return self._keep(what, text)
        except Exception:  # a type that cannot be looked up, an array that is in no good state
            return self._string(f"{type_name(kind)}||")

    def _keep(self, what: Any, text: str) -> int:
        number = self._string(text)
        if len(self.known) < 65536:
            self.known[what] = number
        return number
