"""Where the pages get their form."""

from __future__ import annotations

import jinja2

from fedplatform.experiments.report.wording import number, percent, share

PACKAGE = "fedplatform.experiments.report"


def load_template(name: str, *, package: str = PACKAGE) -> jinja2.Template:
    """A page of ``templates/`` in a package; it may include those of this one, and write numbers as this one does."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(name, "templates") for name in dict.fromkeys((package, PACKAGE))]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "share": share}
    return environment.get_template(name)
