"""One file per migration, in the order of their numbers. They go forwards only: to go back, restore a backup."""
