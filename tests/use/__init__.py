"""Models and pipelines as people have them: diffusers', and the zoo's."""
