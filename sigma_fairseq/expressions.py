"""Options that fairseq evaluates as Python, and which of them are no more than data."""

import ast
from typing import Any


def calls_something(value: Any) -> bool:
    """Whether evaluating an option would run code: it is an expression with a call in it.

    Args:
        value: of an option; what is in a list or a mapping is looked at too.
    """
    if isinstance(value, dict):
        return calls_something([*value, *value.values()])
    if isinstance(value, list | tuple | set):
        return any(map(calls_something, value))
    if not isinstance(value, str):
        return False
    try:
        tree = ast.parse(value.strip(), mode="eval")
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return False  # so that it cannot be evaluated either
    return any(
        isinstance(node, ast.Call)
        # Some are evaluated twice: the strings in a mapping of overrides.
        or (isinstance(node, ast.Constant) and node.value != value and calls_something(node.value))
        for node in ast.walk(tree)
    )
