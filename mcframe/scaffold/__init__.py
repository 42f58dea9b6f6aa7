"""`mcframe new-plugin`: a complete plug-in package from templates."""
