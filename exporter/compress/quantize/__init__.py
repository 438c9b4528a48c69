"""Ways to choose codes on a grid."""
