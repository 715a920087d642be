"""One file a recipe: which stages, what each needs, when a barrier opens."""
