"""The embedded data: scenes of OpenMoji drawings."""
