"""These suites use sandboxes by name as well: see `support.names`."""

from support import names

pytest_configure = names.pytest_configure
