"""The stages of a compression as functions, each with the settings of its verb."""
