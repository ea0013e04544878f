"""Lightning makes its log handler for the stderr of the moment when it is imported: here, and not inside a test that captures it."""

import lightning.pytorch  # noqa: F401
