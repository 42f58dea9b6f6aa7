"""Templates of `mcframe new-plugin`: complete plug-in packages."""
