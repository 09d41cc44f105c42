"""The one error of reports."""


class ReportError(ValueError):
    """The folder holds no finished run, or the table no comparison."""
