"""The patch archive: `format` says what is in the file, `fit` turns it into a patch for this process."""
