"""What the values of the input decide, such as the size of `x[mask]`: a model may do no more than check it."""

from __future__ import annotations

from typing import Any, NoReturn

__all__ = ["Unknown"]


class Unknown:
    """A tensor whose size depends on values of the input, or a number or truth computed from its size.

    `torch._check(image[mask].numel() == features.numel())` is traced past; all else that needs to know is an error.

    Attributes:
        error: what is raised then.
    """

    def __init__(self, error: Exception) -> None:
        self.error = error

    def _unknown(self, *_: Any, **__: Any) -> Unknown:
        return Unknown(self.error)

    def _fail(self, *_: Any, **__: Any) -> NoReturn:
        raise self.error

    shape = property(_unknown)
    numel = nelement = size = __getitem__ = _unknown
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __floordiv__ = __rfloordiv__ = __mod__ = _unknown
    __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _unknown  # type: ignore[assignment]
    __hash__ = object.__hash__
    __bool__ = __int__ = __float__ = __index__ = __len__ = __iter__ = __format__ = __setitem__ = _fail
    __truediv__ = __rtruediv__ = __neg__ = __matmul__ = __contains__ = _fail
    __torch_function__ = classmethod(lambda *_: NotImplemented)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(name) if name.startswith("__") else self.error
