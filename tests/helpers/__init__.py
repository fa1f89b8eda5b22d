"""What tests of several folders do with models, graphs and pages."""
