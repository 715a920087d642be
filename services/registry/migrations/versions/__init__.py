"""One file a migration, in the order of their numbers. They go forwards only: whoever must go back restores a backup."""
