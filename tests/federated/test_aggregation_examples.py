"""Every public rule and mixer has an example in its docstring, and it is right."""

from __future__ import annotations

import doctest
import inspect

import pytest

from fedplatform.federated.aggregation import MIXERS, RULES, Aggregator, Mixed, as_updates
from fedplatform.federated.trust import OptiGradTrust

EXPLAINED = (Aggregator, *RULES.values(), *MIXERS.values(), Mixed, OptiGradTrust, as_updates)


@pytest.mark.parametrize("explained", EXPLAINED, ids=lambda explained: explained.__name__)
def test_the_example_in_a_docstring_is_right(explained: object) -> None:
    module = inspect.getmodule(explained)
    assert module is not None
    (found,) = doctest.DocTestFinder(recurse=False).find(explained, globs=dict(vars(module)))
    assert found.examples, "a docstring without an example"
    said: list[str] = []
    assert doctest.DocTestRunner().run(found, out=said.append).failed == 0, "".join(said)


@pytest.mark.parametrize("rule", [*RULES.values(), *MIXERS.values(), OptiGradTrust], ids=lambda rule: rule.__name__)
def test_a_docstring_says_when_the_rule_raises(rule: type) -> None:
    assert "Raises ValueError" in inspect.getdoc(rule)
