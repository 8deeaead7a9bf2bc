"""The energy meter and the carbon intensity of the grid."""
