"""The one error of everything that reads, splits or writes scans."""

from fedplatform.core.errors import FedplatformError


class DataError(FedplatformError, ValueError):
    """A data set, a split or a shard cannot be had as asked; the message is one line for the person who asked."""
