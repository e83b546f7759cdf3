"""Small data sets that ship with the package."""

from ._support_requests import load_support_requests

__all__ = ["load_support_requests"]
