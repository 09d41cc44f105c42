"""Where the pages get their form."""

from __future__ import annotations

import jinja2

from fedplatform.core.wording import number, percent, share


def load_template(name: str, *packages: str) -> jinja2.Template:
    """A page in the folder ``templates/`` of one of these packages; it may include theirs, and those of this one."""
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(
            [jinja2.PackageLoader(package, "templates") for package in (*packages, "fedplatform.core")]
        ),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"percent": percent, "number": number, "share": share}
    return environment.get_template(name)
