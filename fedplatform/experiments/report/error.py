"""The one error of reports."""

from fedplatform.core.errors import FedplatformError


class ReportError(FedplatformError, ValueError):
    """The folder holds no finished run, or the table no comparison."""
